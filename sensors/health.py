"""Cheap statistics that tell a working sensor from a broken one before any network looks at it.

Every channel has the same number of fields, so that they stack into one array; what a field means depends on the
modality (``HEALTH_MEANINGS``). All are scaled to order 1 and finite for any input. Only the newest sweep is looked at,
and only some hundred pixels or some thousand points of it, so that a whole frame costs about a millisecond.
"""

import cv2
import numpy as np
from jaxtyping import Float32

from sensors.camera import CameraImage
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep
from sensors.rig import CAMERAS, CHANNELS, LIDAR, LIDAR_BEAMS

HEALTH_FIELDS = ("amount", "strength", "detail", "high_share", "low_share", "age")

HEALTH_MEANINGS: dict[str, tuple[str, ...]] = {
    "camera": (
        "mean brightness in [0, 1]",
        "contrast: standard deviation of brightness over 64 grey levels",
        "sharpness: mean difference of horizontal neighbours over 16 grey levels",
        "share of saturated pixels (brighter than 250)",
        "share of dark pixels (darker than 16)",
        "lag in tenths of a second",
    ),
    "lidar": (
        "log10(1 + points) / 4",
        "mean intensity over 64",
        "mean range over 32 m",
        "share of the 32 beams that returned anything",
        "share of 36 azimuth sectors that hold points",
        "lag in tenths of a second",
    ),
    "radar": (
        "log10(1 + points) / 2",
        "mean radar cross-section over 16 dBsm",
        "mean range over 64 m",
        "share of moving points (dyn_prop 0, 2 or 6)",
        "share of points with invalid_state other than 0",
        "lag in tenths of a second",
    ),
}
"""What each of HEALTH_FIELDS holds, by modality; a row of an absent channel is all zeros."""

THUMBNAIL_SIZE_PX = (16, 28)
"""Rows and columns of a thumbnail: 16:9 as the nuScenes cameras."""

_SAMPLE_ROWS = 45
_SAMPLE_POINTS = 4096
_NUM_SECTORS = 36
_MOVING = np.array([code in (0, 2, 6) for code in range(8)])
_LAG_UNIT_S = 0.1
_MAX_LAG_UNITS = 10.0


def health_of(frame: Frame) -> Float32[np.ndarray, "12 k"]:
    """One row of HEALTH_FIELDS per channel, in the order of CHANNELS; zeros where the channel is absent."""
    rows = np.zeros((len(CHANNELS), len(HEALTH_FIELDS)), np.float32)
    for row, channel in enumerate(CHANNELS):
        if not frame.present(channel):
            continue
        if channel in CAMERAS:
            rows[row] = _camera_health(frame.cameras[channel])
        elif channel == LIDAR:
            rows[row] = _lidar_health(frame.lidar[0])
        else:
            rows[row] = _radar_health(frame.radars[channel][0])
    return rows


def thumbnails_of(frame: Frame, size_px: tuple[int, int] = THUMBNAIL_SIZE_PX) -> Float32[np.ndarray, "6 3 h w"]:
    """Tiny RGB pictures in [0, 1], (height, width) = ``size_px``, in the order of CAMERAS; zeros where absent."""
    thumbnails = np.zeros((len(CAMERAS), 3, *size_px), np.float32)
    for row, channel in enumerate(CAMERAS):
        if channel in frame.cameras:
            pixels = frame.cameras[channel].pixels
            # Area averaging of a full-size picture costs milliseconds; every n-th pixel of it looks the same here.
            step = max(1, pixels.shape[0] // (4 * size_px[0]))
            small = cv2.resize(
                np.ascontiguousarray(pixels[::step, ::step]), size_px[::-1], interpolation=cv2.INTER_AREA
            )
            thumbnails[row] = small.transpose(2, 0, 1) * np.float32(1 / 255)
    return thumbnails


def _camera_health(image: CameraImage) -> tuple[float, ...]:
    step = max(1, image.pixels.shape[0] // _SAMPLE_ROWS)
    # Whole rows are copied first: the neighbour difference needs true neighbours, at any resolution.
    green = np.ascontiguousarray(image.pixels[::step, :, 1])
    grey = np.ascontiguousarray(green[:, ::step])
    sharpness = cv2.mean(cv2.absdiff(green[:, 1:], green[:, :-1]))[0] if green.shape[1] > 1 else 0.0
    mean, deviation = cv2.meanStdDev(grey)
    return (
        float(mean[0, 0]) / 255,
        float(deviation[0, 0]) / 64,
        sharpness / 16,
        np.count_nonzero(grey > 250) / grey.size,
        np.count_nonzero(grey < 16) / grey.size,
        _lag(image.lag_s),
    )


def _lidar_health(sweep: LidarSweep) -> tuple[float, ...]:
    if not len(sweep):
        return (0.0, 0.0, 0.0, 0.0, 0.0, _lag(sweep.lag_s))
    beams = np.bincount(sweep.ring, minlength=LIDAR_BEAMS)[:LIDAR_BEAMS]
    # The file interleaves the 32 beams: an odd step visits all of them.
    step = max(1, len(sweep) // _SAMPLE_POINTS) | 1
    x, y = sweep.xyz_m[::step, 0], sweep.xyz_m[::step, 1]
    sector = ((np.arctan2(y, x) + np.pi) * (_NUM_SECTORS / (2 * np.pi))).astype(np.int64) % _NUM_SECTORS
    return (
        float(np.log10(1 + len(sweep))) / 4,
        float(sweep.intensity[::step].mean()) / 64,
        float(np.hypot(x, y).mean()) / 32,
        float((beams > 0).mean()),
        float((np.bincount(sector, minlength=_NUM_SECTORS) > 0).mean()),
        _lag(sweep.lag_s),
    )


def _radar_health(sweep: RadarSweep) -> tuple[float, ...]:
    if not len(sweep):
        return (0.0, 0.0, 0.0, 0.0, 0.0, _lag(sweep.lag_s))
    return (
        float(np.log10(1 + len(sweep))) / 2,
        float(sweep.rcs_dbsm.mean()) / 16,
        float(np.hypot(sweep.xyz_m[:, 0], sweep.xyz_m[:, 1]).mean()) / 64,
        float(_MOVING[sweep.dyn_prop & 7].mean()),
        float((sweep.invalid_state != 0).mean()),
        _lag(sweep.lag_s),
    )


def _lag(lag_s: float) -> float:
    return float(np.clip(lag_s / _LAG_UNIT_S, -_MAX_LAG_UNITS, _MAX_LAG_UNITS))
