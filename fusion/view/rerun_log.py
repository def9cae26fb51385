"""A scene as a Rerun recording: cameras, LiDAR, radar with Doppler arrows, boxes, and what the router ran, over time.

Rerun is an extra (``pip install dynfusion[view]``) and is imported in functions only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from fusion.report.colours import CLASS_COLOURS, RADAR_COLOUR, SHOWN_SCORE
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import encode_jpeg
from sensors.frame import Frame
from sensors.rig import CAMERAS, LIDAR, RADARS, UNITS

DOPPLER_S = 0.5
"""Arrows show half a second of motion: nuScenes' step between keyframes."""
_BRANCH_HEIGHT = {"skip": 0.0, "lite": 0.5, "full": 1.0}


@dataclass(frozen=True, eq=False)
class Moment:
    """One keyframe of a recording.

    Attributes:
        frame: after the faults.
        detections: ego frame; None without a model.
        branches: what ran, by unit; None without a model.
        gflops: executed; None without a model.
        exit: where the sample left the trunk; None without early exits.
        faults: names of those applied.
    """

    frame: Frame
    detections: Boxes | None = None
    branches: Mapping[str, str] | None = None
    gflops: float | None = None
    exit: str | None = None
    faults: tuple[str, ...] = ()


def rerun_module():
    """The library.

    Raises:
        ImportError: it is not installed, said in one line.
    """
    try:
        import rerun
    except ImportError as error:
        raise ImportError(
            "expected the package rerun-sdk for a recording; install it with: pip install 'dynfusion[view]' "
            f"({str(error).splitlines()[0]})"
        ) from error
    return rerun


def record(moments: Iterable[Moment], save: str, title: str = "dynfusion") -> int:
    """Write a recording, or show it in the viewer; returns the number of keyframes.

    Args:
        save: file ``.rrd`` to write without any window; empty starts the viewer.

    Raises:
        ImportError: Rerun is not installed.
        ValueError: another ending.
    """
    if save and not save.endswith(".rrd"):
        raise ValueError(f"expected save=FILE.rrd, got '{save}'")
    rerun = rerun_module()
    recording = rerun.RecordingStream(title)
    if save:
        recording.save(save)
    else:
        recording.spawn()
    recording.log("world", rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    num = 0
    for moment in moments:
        num += 1
        recording.set_time("time", timestamp=moment.frame.timestamp_us * 1e-6)
        recording.set_time("keyframe", sequence=moment.frame.keyframe)
        log_moment(rerun, recording, moment)
    recording.flush()
    return num


def log_moment(rerun, recording, moment: Moment) -> None:
    """Everything of one keyframe at the time that is set."""
    frame = moment.frame
    pose = frame.global_from_ego
    recording.log("world/ego", rerun.Transform3D(translation=pose.translation_m, mat3x3=pose.rotation))
    for channel in CAMERAS:
        _log_camera(rerun, recording, frame, channel, (moment.branches or {}).get(channel))
    _log_lidar(rerun, recording, frame)
    for channel in RADARS:
        _log_radar(rerun, recording, frame, channel)
    labels = None if frame.boxes is None else frame.boxes.select(frame.boxes.num_points != 0)
    _log_boxes(rerun, recording, "world/ego/labels", labels, is_label=True)
    found = moment.detections
    shown = None if found is None else found.select(found.score >= SHOWN_SCORE)
    _log_boxes(rerun, recording, "world/ego/detections", shown, is_label=False)
    for unit, branch in (moment.branches or {}).items():
        recording.log(f"routes/{unit}", rerun.Scalars(_BRANCH_HEIGHT[branch]))
    if moment.gflops is not None:
        recording.log("cost/gflops", rerun.Scalars(moment.gflops))
    words = [f"faults: {', '.join(moment.faults) or 'none'}", *([f"exit: {moment.exit}"] if moment.exit else [])]
    recording.log("events", rerun.TextLog("; ".join(words), level="WARN" if moment.faults else "INFO"))


def _log_camera(rerun, recording, frame: Frame, channel: str, branch: str | None) -> None:
    """The picture and its frustum; a lost camera is cleared, a skipped one is dark."""
    entity = f"world/ego/{channel}"
    image = frame.cameras.get(channel)
    if image is None:
        recording.log(entity, rerun.Clear(recursive=True))
        return
    height, width = image.pixels.shape[:2]
    pose = image.ego_from_camera
    recording.log(entity, rerun.Transform3D(translation=pose.translation_m, mat3x3=pose.rotation))
    pinhole = rerun.Pinhole(image_from_camera=image.image_from_camera, resolution=[width, height])
    recording.log(f"{entity}/image", pinhole)
    pixels = (image.pixels * 0.35).astype(np.uint8) if branch == "skip" else image.pixels
    recording.log(f"{entity}/image", rerun.EncodedImage(contents=encode_jpeg(pixels), media_type="image/jpeg"))


def _log_lidar(rerun, recording, frame: Frame) -> None:
    if not frame.present(LIDAR):
        recording.log("world/ego/LIDAR", rerun.Clear(recursive=True))
        return
    points = frame.lidar[0].to_ego()
    recording.log("world/ego/LIDAR", rerun.Points3D(points, colors=height_colours(points[:, 2]), radii=0.04))


def _log_radar(rerun, recording, frame: Frame, channel: str) -> None:
    """Points, and arrows as long as DOPPLER_S of compensated motion."""
    entity = f"world/ego/{channel}"
    if not frame.present(channel):
        recording.log(entity, rerun.Clear(recursive=True))
        return
    points, velocity_mps = frame.radars[channel][0].to_ego()
    colour = rgb(RADAR_COLOUR)
    recording.log(f"{entity}/points", rerun.Points3D(points, colors=[colour], radii=0.15))
    step_m = np.zeros((len(points), 3))
    step_m[:, :2] = DOPPLER_S * velocity_mps
    recording.log(f"{entity}/doppler", rerun.Arrows3D(origins=points, vectors=step_m, colors=[colour]))


def _log_boxes(rerun, recording, entity: str, boxes: Boxes | None, is_label: bool) -> None:
    if boxes is None or not len(boxes):
        recording.log(entity, rerun.Clear(recursive=True))
        return
    half_yaw = boxes.yaw_rad.astype(np.float64) / 2
    turns = np.zeros((len(boxes), 4))
    turns[:, 2], turns[:, 3] = np.sin(half_yaw), np.cos(half_yaw)  # x y z w
    names = [DETECTION_NAMES[label] for label in boxes.label]
    recording.log(
        entity,
        rerun.Boxes3D(
            centers=boxes.center_m,
            sizes=boxes.size_lwh_m,
            quaternions=turns,
            colors=[(255, 255, 255)] * len(boxes) if is_label else [rgb(CLASS_COLOURS[name]) for name in names],
            labels=names if is_label else [f"{n} {s:.2f}" for n, s in zip(names, boxes.score, strict=True)],
            show_labels=False,
        ),
    )


def height_colours(height_m: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n 3"]:
    """Dark blue at the ground to pale above 4 m."""
    share = np.clip((height_m + 1) / 5, 0, 1)[:, None]
    low, high = np.array(rgb("#3d5a80"), float), np.array(rgb("#c9e4ff"), float)
    return ((1 - share) * low + share * high).astype(np.uint8)


def rgb(colour: str) -> tuple[int, int, int]:
    """``#rrggbb`` as three numbers."""
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def branches_of(choice) -> dict[str, str]:
    """Names of the branches of the eight units."""
    names = tuple(_BRANCH_HEIGHT)
    return {unit: names[int(branch)] for unit, branch in zip(UNITS, choice, strict=True)}
