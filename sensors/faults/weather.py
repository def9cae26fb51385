"""Weather on all sensors together, from one parameter.

Fog is stated by its extinction coefficient alpha in 1/m. The meteorological visibility, at which 5 % of the contrast
is left, is ln(20) / alpha: the five levels are 600, 300, 150, 100 and 50 m. Radar at 77 GHz loses less than
0.1 dB over 100 m in such fog, so it is left untouched.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from sensors.camera import CameraImage, project
from sensors.faults.camera import blended
from sensors.faults.protocol import Draws, Ladder, Number, SensorFault, measurement_of, scope_of, with_measurements
from sensors.frame import Frame, History
from sensors.lidar import LidarSweep

FOG_LEVELS = (0.005, 0.01, 0.02, 0.03, 0.06)
SKY_M = 300.0
_DEPTH_COLUMNS = 100
_HIGHEST_BEAM_RAD = np.deg2rad(10.0)
_GUIDE_CELLS, _GUIDE_SMOOTHNESS = 13, 0.01

_PULSE_HALF_POWER_S = 20e-9
_OVERLAP_M = (0.9, 1.0)
_LIGHT_MPS = 299_792_458.0
_HARD_REFLECTIVITY = 1e-6 / np.pi
_WEAKEST_REFLECTIVITY, _REACH_M = 0.1, 100.0


def _camera_fog(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Koschmieder: what is left of the scene is exp(-alpha d), the rest is airlight.

    The airlight is the picture's own brightest tenth, greyed, so that a night's fog is dark. The density varies in
    space by a fifth.
    """
    height, width = image.pixels.shape[:2]
    coarse_m = coarse_depth_m(image, frame.lidar)
    density = 1 + 0.2 * cv2.resize(
        rng.standard_normal((3, 5), dtype=np.float32), coarse_m.shape[::-1], interpolation=cv2.INTER_CUBIC
    )
    left = np.exp(-level * np.clip(density, 0.3, 2) * coarse_m).astype(np.float32)
    base, slope = _along_edges(left, image.pixels)
    bright = np.quantile(image.pixels[:: max(1, height // 45), :: max(1, width // 80)], 0.9, axis=(0, 1))
    airlight = 0.3 * bright + 0.7 * bright.mean()
    return replace(image, pixels=blended(image.pixels, airlight, base, slope))


def _along_edges(
    coarse: Float32[np.ndarray, "ch cw"], pixels: UInt8[np.ndarray, "h w 3"]
) -> tuple[Float32[np.ndarray, "ch cw"], Float32[np.ndarray, "ch cw"]]:
    """Base and slope of a guided filter (He & Sun, Fast guided filter, 2015): ``base + slope * brightness``."""
    small = cv2.resize(pixels, coarse.shape[::-1], interpolation=cv2.INTER_AREA)
    guide = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    def mean(values):
        return cv2.blur(values, (_GUIDE_CELLS, _GUIDE_CELLS))

    covariance = mean(guide * coarse) - mean(guide) * mean(coarse)
    slope = covariance / (mean(guide * guide) - mean(guide) ** 2 + _GUIDE_SMOOTHNESS)
    return mean(mean(coarse) - slope * mean(guide)), mean(slope)


def coarse_depth_m(image: CameraImage, lidar: tuple[LidarSweep, ...]) -> Float32[np.ndarray, "ch cw"]:
    """Distance along each ray on a coarse raster of the picture: the LiDAR's where it saw something near there.

    Elsewhere the flat ground at z = 0 of the ego frame, and above the horizon the sky. Above the LiDAR's highest beam
    a column goes on as that beam saw it: walls rise, sky stays sky.
    """
    height, width = image.pixels.shape[:2]
    columns = min(_DEPTH_COLUMNS, width)
    rows = max(1, round(height * columns / width))
    # Centres of the raster's cells in pixels; pixel centres are at whole numbers.
    u, v = ((np.arange(columns) + 0.5) * width / columns - 0.5, (np.arange(rows) + 0.5) * height / rows - 0.5)
    grid = np.stack([*np.meshgrid(u, v), np.ones((rows, columns))], axis=-1)
    rays = grid @ np.linalg.inv(image.image_from_camera).T @ image.ego_from_camera.rotation.T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    down = np.maximum(-rays[..., 2], 1e-6)
    depth = np.minimum(max(float(image.ego_from_camera.translation_m[2]), 0.5) / down, SKY_M).astype(np.float32)
    if not lidar or not len(lidar[0]):
        return depth
    xyz_m = image.ego_from_camera.inverse().points(lidar[0].to_ego())
    xyz_m = xyz_m[xyz_m[:, 2] > 0.5]
    pixel, _ = project(xyz_m, image.image_from_camera)
    ix, iy = np.floor((pixel + 0.5) * (columns / width)).astype(np.int64).T
    seen = (ix >= 0) & (ix < columns) & (iy >= 0) & (iy < rows)
    cell = iy[seen] * columns + ix[seen]
    count = np.bincount(cell, minlength=rows * columns).reshape(rows, columns).astype(np.float32)
    nearness = np.bincount(cell, 1 / np.linalg.norm(xyz_m[seen], axis=1), rows * columns)
    nearness = nearness.reshape(rows, columns).astype(np.float32)
    # The beams leave gaps between their rows: spread what they saw, most of all upwards and downwards.
    weight = cv2.GaussianBlur(count, (0, 0), sigmaX=1.0, sigmaY=2.0)
    spread = cv2.GaussianBlur(nearness, (0, 0), sigmaX=1.0, sigmaY=2.0)
    trust = np.clip(weight / 0.05, 0, 1)
    depth = 1 / (trust * spread / np.maximum(weight, 1e-6) + (1 - trust) / depth)
    above = np.arcsin(np.clip(rays[..., 2], -1, 1)) > _HIGHEST_BEAM_RAD
    highest = np.clip(above.sum(axis=0), 0, rows - 1)
    depth = np.where(above, depth[highest, np.arange(columns)][None], depth)
    return cv2.GaussianBlur(depth, (0, 0), 1.0)


def _lidar_fog(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Attenuation and backscatter (Hahner et al., Fog simulation on real LiDAR point clouds, ICCV 2021).

    The echo of a target fades by exp(-2 alpha r). Where the fog's own echo (their equations 5-10, the strongest place
    of the response before the target) is stronger, the point moves there, spread by a third; the published spread
    divides by a range that may be zero. A target that is then weaker than a 10 % target at 100 m in clear air is lost;
    one that is weaker already has a random headroom, since it was seen.
    """
    range_m = np.maximum(np.linalg.norm(sweep.xyz_m, axis=1).astype(np.float64), 1e-3)
    intensity = sweep.intensity.astype(np.float64)
    left = np.exp(-2 * level * range_m)
    response, peak_m = fog_response(level, range_m)
    scatter = range_m**2 * (0.046 * level / np.log(20)) / _HARD_REFLECTIVITY * response
    from_fog = scatter > left
    headroom = (intensity / 255) / _WEAKEST_REFLECTIVITY * (_REACH_M / range_m) ** 2
    kept = from_fog | (left * np.maximum(headroom, 1 + rng.exponential(1.0, len(sweep))) >= 1)
    spread = np.exp(rng.normal(0, 0.33, len(sweep)))
    moved_m = np.clip(peak_m * spread, min(_OVERLAP_M), range_m)
    stretch = np.where(from_fog, moved_m / range_m, 1.0)
    seen = np.where(from_fog, np.minimum(scatter, 1.0), left) * intensity
    foggy = replace(
        sweep,
        xyz_m=(sweep.xyz_m * stretch[:, None]).astype(sweep.xyz_m.dtype),
        intensity=np.rint(seen).astype(sweep.intensity.dtype),
    )
    return foggy.select(kept)


def fog_response(
    alpha: Number, range_m: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The fog's strongest echo nearer than each range, in units of a unit target's power at 1 m, and where it is.

    The integral of a sin^2 pulse over attenuation, 1/r^2 and the overlap of emitter and receiver.
    """
    at_m = np.arange(_OVERLAP_M[0], 30.0, 0.1)
    time_s = (np.arange(128) + 0.5) * (2 * _PULSE_HALF_POWER_S / 128)
    source_m = at_m[:, None] - _LIGHT_MPS * time_s / 2
    overlap = np.clip((source_m - _OVERLAP_M[0]) / (_OVERLAP_M[1] - _OVERLAP_M[0]), 0, 1)
    safe_m = np.maximum(source_m, _OVERLAP_M[0])
    pulse = np.sin(np.pi * time_s / (2 * _PULSE_HALF_POWER_S)) ** 2
    response = (pulse * overlap * np.exp(-2 * alpha * safe_m) / safe_m**2).sum(axis=1) * (time_s[1] - time_s[0])
    strongest = np.maximum.accumulate(response)
    where = at_m[np.maximum.accumulate(np.where(response == strongest, np.arange(len(at_m)), 0))]
    index = np.clip(np.searchsorted(at_m, range_m, side="right") - 1, 0, len(at_m) - 1)
    return np.where(range_m > at_m[0], strongest[index], 0.0), where[index]


@dataclass(frozen=True)
class Fog(Ladder):
    """Fog on cameras and LiDAR from one extinction coefficient; radar sees through it."""

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        foggy = frame
        for part in (CAMERA_FOG, LIDAR_FOG):
            channels = tuple(channel for channel in scope_of(part) if channel in self.targets(frame))
            if channels:
                # Both parts see the clear frame: the cameras take their depth from the LiDAR without fog.
                harmed = replace(part, channels=channels)(frame, history, level, draws)
                foggy = with_measurements(foggy, {channel: measurement_of(harmed, channel) for channel in channels})
        return foggy


CAMERA_FOG = SensorFault(
    "camera_fog",
    "weather",
    "camera",
    "1/m (visibility 600 300 150 100 50 m)",
    FOG_LEVELS,
    effect=_camera_fog,
    worst=1.0,
)
LIDAR_FOG = SensorFault(
    "lidar_fog", "weather", "lidar", "1/m (visibility 600 300 150 100 50 m)", FOG_LEVELS, effect=_lidar_fog, worst=1.0
)
FOG = Fog("fog", "weather", "camera+lidar", "1/m (visibility 600 300 150 100 50 m)", FOG_LEVELS, worst=1.0)

WEATHER_FAULTS = (CAMERA_FOG, LIDAR_FOG, FOG)
