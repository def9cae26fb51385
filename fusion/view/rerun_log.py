"""A scene as a Rerun recording: cameras, LiDAR, radar with Doppler arrows, boxes, and what the router ran, over time.

Rerun is an extra (``pip install dynfusion[view]``) and is imported in functions only.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from fusion.report.colours import CLASS_COLOURS, RADAR_COLOUR, SHOWN_SCORE
from fusion.view.rerun_layout import layout
from fusion.view.rerun_series import Ran, log_event, log_faults, log_ran
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import encode_jpeg
from sensors.frame import Frame
from sensors.rig import CAMERAS, LIDAR, RADARS

DOPPLER_S = 0.5
"""Arrows show half a second of motion: nuScenes' step between keyframes."""


@dataclass(frozen=True, eq=False)
class Moment:
    """One keyframe of a recording.

    Attributes:
        frame: after the faults.
        detections: ego frame; None without a model.
        ran: what the model computed; None without a model.
        faults: names of those applied, with their levels.
        may_act: the same of all that the scenario holds, whether they act at this keyframe or rest.
    """

    frame: Frame
    detections: Boxes | None = None
    ran: Ran | None = None
    faults: tuple[str, ...] = ()
    may_act: tuple[str, ...] = ()


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


def record(moments: Iterable[Moment], save: str, title: str = "dynfusion", has_model: bool = True) -> int:
    """Write a recording, whole or not at all, or show it in the viewer; returns the number of keyframes.

    Args:
        save: file ``.rrd`` to write without any window; empty starts the viewer.
        has_model: whether the layout has room for routes, cost and exits.

    Raises:
        ImportError: Rerun is not installed.
        ValueError: another ending.
    """
    if save and not save.endswith(".rrd"):
        raise ValueError(f"expected save=FILE.rrd, got '{save}'")
    rerun = rerun_module()
    recording = rerun.RecordingStream(title)
    arranged = layout(rerun, title, has_model)
    if not save:
        recording.spawn(default_blueprint=arranged)
        return _log_all(rerun, recording, moments)
    whole = Path(save)
    part = whole.with_name(f".{whole.name}.{os.getpid()}.part")
    whole.parent.mkdir(parents=True, exist_ok=True)
    try:
        recording.save(part, default_blueprint=arranged)
        num = _log_all(rerun, recording, moments)
        recording.disconnect()  # closes the file
        os.replace(part, whole)
    finally:
        recording.disconnect()
        part.unlink(missing_ok=True)
    return num


def _log_all(rerun, recording, moments: Iterable[Moment]) -> int:
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
    branches = {} if moment.ran is None else moment.ran.branches
    for channel in CAMERAS:
        _log_camera(rerun, recording, frame, channel, branches.get(channel))
    _log_lidar(rerun, recording, frame)
    for channel in RADARS:
        _log_radar(rerun, recording, frame, channel)
    labels = None if frame.boxes is None else frame.boxes.select(frame.boxes.num_points != 0)
    _log_boxes(rerun, recording, "world/ego/labels", labels, is_label=True)
    found = moment.detections
    shown = None if found is None else found.select(found.score >= SHOWN_SCORE)
    _log_boxes(rerun, recording, "world/ego/detections", shown, is_label=False)
    if moment.ran is not None:
        log_ran(rerun, recording, moment.ran)
    log_faults(rerun, recording, moment.faults, moment.may_act)
    log_event(rerun, recording, moment.faults, moment.ran)


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
