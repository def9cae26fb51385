"""The gallery of faults: each one clean and at levels 1, 3 and 5, on one sample, as PNGs and one page.

What is drawn follows from the fault alone: pictures for what it may do to cameras, views from above for the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from datamodules.nuscenes import NuScenesFrames
from fusion.run_directory import write_text
from fusion.view.gallery_page import Entry, page
from fusion.view.gallery_panels import captioned, lidar_panel, radar_panel, view_panel, views_panel
from sensors.camera import CameraImage
from sensors.faults.protocol import Draws, Fault, measurement_of, scope_of
from sensors.frame import Frame, History
from sensors.rig import CAMERAS, modality_of

SHOWN_LEVELS = (0, 2, 4)
"""Of the five: the first, the third and the fifth."""


@dataclass(frozen=True)
class Shown:
    """The sample that all faults are shown on."""

    frame: Frame
    history: History
    seed: int = 0

    @staticmethod
    def of(frames: NuScenesFrames, sample: int) -> "Shown":
        """Sample ``sample`` of the frames; -1 takes the last keyframe of the first scene, which has the longest past.

        Raises:
            ValueError: there is no such sample.
        """
        if sample >= len(frames):
            raise ValueError(f"expected sample from 0 to {len(frames) - 1}, or -1 for a choice, got {sample}")
        i = sample if sample >= 0 else _last_of_scene(frames)
        return Shown(frames[i], frames.history(i))


def _last_of_scene(frames: NuScenesFrames) -> int:
    scene = [int(scene) for scene in frames.index.samples.scene]
    place = {bytes(token): row for row, token in enumerate(frames.index.samples.token)}
    rows = [place[token.encode()] for token in frames.tokens]
    return max(i for i, row in enumerate(rows) if scene[row] == scene[rows[0]])


def write_gallery(
    shown: Shown,
    faults: Sequence[Fault],
    out: Path,
    notices: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Entry]:
    """Write ``out/index.html`` and ``out/NAME.png`` for every fault; returns what the page says of each.

    A fault that cannot be applied to this sample is listed with the reason.
    """
    entries = []
    for number, fault in enumerate(faults):
        if progress:
            progress(number, len(faults))
        entries.append(_written(shown, fault, out))
    write_text(out / "index.html", page(entries, list(notices), shown.frame))
    if progress:
        progress(len(faults), len(faults))
    return entries


def _written(shown: Shown, fault: Fault, out: Path) -> Entry:
    levels = shown_levels(fault)
    entry = Entry(fault.name, fault.family, fault.modality, fault.unit, tuple(fault.levels), f"{fault.name}.png")
    try:
        harmed = [fault(shown.frame, shown.history, level, _draws(shown, fault)) for level in levels]
    except ValueError as error:
        return entry._replace(picture="", problem=str(error).splitlines()[0])
    captions = ["clean", *(f"{level:g} {_short(fault.unit)}" for level in levels)]
    pixels = fault_picture(shown.frame, harmed, captions, fault)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV could not encode a PNG from uint8 RGB"
    out.mkdir(parents=True, exist_ok=True)
    (out / entry.picture).write_bytes(encoded.tobytes())
    return entry


def shown_levels(fault: Fault) -> tuple[float, ...]:
    """Levels 1, 3 and 5; of a suite's fault with three severities all of them."""
    return tuple(fault.levels) if len(fault.levels) < 5 else tuple(fault.levels[i] for i in SHOWN_LEVELS)


def _draws(shown: Shown, fault: Fault) -> Draws:
    return Draws(shown.seed, shown.frame.token, fault.name)


def _short(unit: str) -> str:
    return unit.partition(" (")[0]


def fault_picture(
    clean: Frame, harmed: Sequence[Frame], captions: Sequence[str], fault: Fault
) -> UInt8[np.ndarray, "h w 3"]:
    """A row of panels for each kind of sensor that the fault may harm: clean first, then harmed ones."""
    frames = [clean, *harmed]
    rows = []
    scope = [channel for channel in scope_of(fault) if clean.present(channel)]
    kinds = list(dict.fromkeys(modality_of(channel) for channel in scope))
    for kind in kinds:
        channels = [channel for channel in scope if modality_of(channel) == kind]
        if len(kinds) > 1 and not any(_changed(clean, frame, channel) for frame in harmed for channel in channels):
            continue  # weather that this sensor does not feel
        panels = _panels(kind, frames, channels)
        rows.append(
            np.concatenate([captioned(panel, text) for panel, text in zip(panels, captions, strict=True)], axis=1)
        )
    return np.concatenate(rows, axis=0)


def _panels(kind: str, frames: Sequence[Frame], channels: Sequence[str]) -> list[UInt8[np.ndarray, "h w 3"]]:
    clean, harmed = frames[0], frames[1:]
    if kind == "lidar":
        by_intensity = _fades(clean, harmed)
        focus_m = _focus_m(clean)
        return [lidar_panel(frame, by_intensity, focus_m) for frame in frames]
    if kind == "radar":
        return [radar_panel(frame) for frame in frames]
    changed = [{channel for channel in channels if _changed(clean, frame, channel)} for frame in harmed]
    moved = any(_recalibrated(clean, frame, channel) for frame in harmed for channel in channels)
    alike = all(found == changed[-1] for found in changed) and CAMERAS[0] in changed[-1]
    if alike or len(channels) == 1:
        return [view_panel(frame, channels[0], moved) for frame in frames]
    return [views_panel(frame, moved) for frame in frames]


def _changed(clean: Frame, harmed: Frame, channel: str) -> bool:
    if clean.present(channel) != harmed.present(channel):
        return True
    return clean.present(channel) and measurement_of(clean, channel) is not measurement_of(harmed, channel)


def _recalibrated(clean: Frame, harmed: Frame, channel: str) -> bool:
    before, after = clean.cameras.get(channel), harmed.cameras.get(channel)
    return before is not None and after is not None and not _same_calibration(before, after)


def _same_calibration(before: CameraImage, after: CameraImage) -> bool:
    same_pose = np.array_equal(before.ego_from_camera.matrix, after.ego_from_camera.matrix)
    return same_pose and np.array_equal(before.image_from_camera, after.image_from_camera)


def _fades(clean: Frame, harmed: Sequence[Frame]) -> bool:
    """Whether a fault acts on the echoes' strength: it moves no point, and changes the intensity of many."""
    if any(not frame.lidar or frame.lidar[0].ego_from_lidar is not clean.lidar[0].ego_from_lidar for frame in harmed):
        return False
    before, after = clean.lidar[0], [frame.lidar[0] for frame in harmed]
    places = _as_records(before.xyz_m)
    if not all(len(sweep) and np.isin(_as_records(sweep.xyz_m), places).all() for sweep in after):
        return False
    kept = before.select(np.flatnonzero(np.isin(places, _as_records(after[-1].xyz_m))))
    return len(kept) == len(after[-1]) and float(np.mean(kept.intensity != after[-1].intensity)) > 0.25


def _as_records(xyz_m: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """One value per point, which can be looked for."""
    return np.ascontiguousarray(xyz_m, np.float32).view(np.dtype((np.void, 12)))[:, 0]


def _focus_m(frame: Frame) -> Float[np.ndarray, "2"]:
    """Something worth a closer look: the label with the most LiDAR points that is not next to the vehicle."""
    if frame.boxes is None or not len(frame.boxes) or not frame.lidar:
        return np.array([12.0, 0.0])
    xy_m = frame.boxes.center_m[:, :2].astype(np.float64)
    points = np.where(np.hypot(*xy_m.T) > 8, frame.boxes.count_inside(frame.lidar[0].to_ego()), -1)
    return xy_m[int(np.argmax(points))]
