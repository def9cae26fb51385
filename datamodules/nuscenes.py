"""Frames of a nuScenes version, real or synthetic: one class for both.

Every measurement is chained through its *own* ego pose, by way of the global frame, into the ego frame at the
keyframe's reference time. That frame is the LIDAR_TOP keyframe's ego pose (of the sensor nearest in time where the
tables have no LiDAR): metadata, known even when the LiDAR's file is lost.
"""

import re
import warnings
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from datamodules.columns import NuScenesIndex
from datamodules.index import open_index
from datamodules.splits import scenes_of_split
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import CameraImage, read_pixels
from sensors.frame import Frame, Measurement, Single
from sensors.lidar import LidarSweep, read_lidar, without_close
from sensors.radar import RadarSweep, read_radar
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS, modality_of
from sensors.transforms import RigidTransform

MISSING_POLICIES = ("error", "absent")
_CHANNEL_ROW = {channel: i for i, channel in enumerate(CHANNELS)}
_CONDITIONS = {
    "night": re.compile(r"\bnight\b", re.IGNORECASE),
    "rain": re.compile(r"\brain(y|ing)?\b", re.IGNORECASE),
    "fog": re.compile(r"\b(fog|foggy|mist)\b", re.IGNORECASE),
    "snow": re.compile(r"\bsnow(y|ing)?\b", re.IGNORECASE),
    "dusk": re.compile(r"\b(dusk|dawn)\b", re.IGNORECASE),
}


def conditions_of(description: str) -> frozenset[str]:
    """Words for light and weather found in a scene's description; ``day`` where there is none."""
    return frozenset(word for word, pattern in _CONDITIONS.items() if pattern.search(description)) or frozenset({"day"})


class NuScenesFrames:
    """The keyframes of a split, scene by scene in time. Files are read when a frame is asked for.

    Small when pickled: the index is mapped again by every worker.

    Args:
        root: folder that holds the version's folder, ``samples`` and ``sweeps``.
        version: e.g. ``v1.0-mini``.
        split: one of nuScenes' predefined splits or of ``<root>/<version>/splits.json``; None for every scene.
        lidar_sweeps: sweeps per frame, the keyframe's included; fewer at a scene's start; 0 reads no LiDAR.
        radar_sweeps: likewise for every radar.
        cameras: False reads no pictures.
        missing: what a file that is named but not there means: ``error``, or ``absent`` (a lost measurement), with one
            warning for all of them. Files that are there and broken are always an error.
        close_m: LiDAR points nearer than this to the sensor's axis are hits on the own vehicle and left out.

    Raises:
        FileNotFoundError: no such root, version or table; while reading, no such file under ``missing="error"``.
        ValueError: no such split, a broken table; while reading, a broken file.
    """

    def __init__(
        self,
        root: str | Path,
        version: str,
        split: str | None,
        lidar_sweeps: int = 1,
        radar_sweeps: int = 1,
        cameras: bool = True,
        missing: str = "error",
        close_m: float = 1.0,
    ):
        if missing not in MISSING_POLICIES:
            raise ValueError(f"expected missing to be one of {', '.join(MISSING_POLICIES)}, got '{missing}'")
        if lidar_sweeps < 0 or radar_sweeps < 0:
            raise ValueError(f"expected 0 or more sweeps, got lidar_sweeps={lidar_sweeps}, radar_sweeps={radar_sweeps}")
        self.root, self.version, self.split = Path(root), version, split
        self.lidar_sweeps, self.radar_sweeps, self.cameras = lidar_sweeps, radar_sweeps, cameras
        self.close_m, self.missing = close_m, missing
        self.index = open_index(self.root, version)
        self._rows = _rows_of_split(self.index, self.root, version, split)
        self._lost = self._lost_files() if missing == "absent" else frozenset()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Sample tokens, in order."""
        return tuple(token.decode() for token in self.index.samples.token[self._rows].tolist())

    @property
    def class_counts(self) -> Int64[np.ndarray, "n 10"]:
        """How many boxes of each detection class every frame has."""
        bounds, labels = self.index.samples.first_annotation, self.index.annotations.label
        counts = [
            np.bincount(labels[bounds[row] : bounds[row + 1]] + 1, minlength=len(DETECTION_NAMES) + 1)[1:]
            for row in self._rows
        ]
        return np.array(counts, np.int64).reshape(-1, len(DETECTION_NAMES))

    def __getitem__(self, i: int) -> Frame:
        row = int(self._rows[i])
        samples, scenes = self.index.samples, self.index.scenes
        scene = int(samples.scene[row])
        reference = self._reference(row)
        first, last = np.searchsorted(samples.scene, np.array([scene, scene + 1], np.int32))
        read = partial(self._measure, row, reference)
        cameras = {channel: read(channel) for channel in CAMERAS} if self.cameras else {}
        radars = {channel: read(channel) for channel in RADARS} if self.radar_sweeps else {}
        return Frame(
            token=samples.token[row].decode(),
            scene=scenes.name[scene].decode(),
            timestamp_us=int(samples.timestamp_us[row]),
            global_from_ego=reference.global_from_ego,
            ego_speed_mps=self._speed_mps(row),
            cameras={channel: image for channel, image in cameras.items() if image is not None},
            lidar=(read(LIDAR) or ()) if self.lidar_sweeps else (),
            radars={channel: sweeps for channel, sweeps in radars.items() if sweeps is not None},
            boxes=self._boxes(row, reference.global_from_ego),
            conditions=conditions_of(scenes.description[scene].decode()),
            keyframe=row - int(first),
            num_keyframes=int(last - first),
            ego_yaw_rate_radps=self._yaw_rate_radps(row),
        )

    def without_cameras(self) -> "NuScenesFrames":
        """The same frames, reading no picture."""
        blind = copy(self)
        blind.cameras = False
        return blind

    def with_sweeps(self, lidar_sweeps: int, radar_sweeps: int) -> "NuScenesFrames":
        """The same frames with other numbers of sweeps."""
        other = copy(self)
        other.lidar_sweeps, other.radar_sweeps = lidar_sweeps, radar_sweeps
        return other

    def history(self, i: int) -> "SceneHistory":
        """A look at what came before frame ``i`` in its scene."""
        return SceneHistory(self, int(self._rows[i]))

    def _reference(self, row: int) -> "_Reference":
        """Pose and time that everything of this keyframe refers to."""
        samples = self.index.samples
        keyframes, timestamp_us = samples.keyframes[row], int(samples.timestamp_us[row])
        chosen = int(keyframes[_CHANNEL_ROW[LIDAR]])
        if chosen < 0:
            there = keyframes[keyframes >= 0]
            if not len(there):
                raise ValueError(
                    f"expected a keyframe of some sensor for the sample '{samples.token[row].decode()}', found none; "
                    "copy sample_data.json again"
                )
            chosen = int(there[np.argmin(np.abs(self.index.measurements.timestamp_us[there] - timestamp_us))])
        return _Reference(timestamp_us, self._pose(chosen))

    def _pose(self, measurement: int) -> RigidTransform:
        columns = self.index.measurements
        return RigidTransform.from_quaternion(columns.pose_wxyz[measurement], columns.pose_m[measurement])

    def _speed_mps(self, row: int) -> float:
        """From the keyframe before (after, at a scene's start); 0 for a scene of one keyframe."""
        samples = self.index.samples
        for other in (row - 1, row + 1):
            if 0 <= other < len(samples.scene) and samples.scene[other] == samples.scene[row]:
                here, there = self._reference(row), self._reference(other)
                moved_m = here.global_from_ego.translation_m - there.global_from_ego.translation_m
                seconds = abs(here.timestamp_us - there.timestamp_us) * 1e-6
                return float(np.hypot(moved_m[0], moved_m[1]) / seconds) if seconds > 0 else 0.0
        return 0.0

    def _yaw_rate_radps(self, row: int) -> float:
        """From the same two keyframes as the speed; counter-clockwise."""
        samples = self.index.samples
        for other in (row - 1, row + 1):
            if 0 <= other < len(samples.scene) and samples.scene[other] == samples.scene[row]:
                here, there = self._reference(row), self._reference(other)
                turned_rad = (there.global_from_ego.inverse() @ here.global_from_ego).yaw_rad
                seconds = (here.timestamp_us - there.timestamp_us) * 1e-6
                return turned_rad / seconds if seconds else 0.0
        return 0.0

    def _measure(self, row: int, reference: "_Reference", channel: str) -> Measurement | None:
        """What a channel holds at a keyframe; None where the tables or the files have nothing."""
        newest = int(self.index.samples.keyframes[row, _CHANNEL_ROW[channel]])
        if newest < 0 or newest in self._lost:
            return None
        modality = modality_of(channel)
        if modality == "camera":
            return self._image(newest, reference)
        num_sweeps = self.lidar_sweeps if modality == "lidar" else self.radar_sweeps
        read = self._lidar_sweep if modality == "lidar" else self._radar_sweep
        chain = [step for step in self._chain(newest, max(num_sweeps, 1)) if step not in self._lost]
        return tuple(read(step, reference) for step in chain)

    def _chain(self, newest: int, num_sweeps: int) -> list[int]:
        """The measurement and those before it in its scene, newest first."""
        chain = [newest]
        while len(chain) < num_sweeps and (before := int(self.index.measurements.previous[chain[-1]])) >= 0:
            chain.append(before)
        return chain

    def _ego_from_sensor(self, measurement: int, reference: "_Reference") -> RigidTransform:
        calibrations = self.index.calibrations
        calibration = int(self.index.measurements.calibration[measurement])
        ego_then_from_sensor = RigidTransform.from_quaternion(
            calibrations.rotation_wxyz[calibration], calibrations.translation_m[calibration]
        )
        return reference.global_from_ego.inverse() @ self._pose(measurement) @ ego_then_from_sensor

    def _lag_s(self, measurement: int, reference: "_Reference") -> float:
        return (reference.timestamp_us - int(self.index.measurements.timestamp_us[measurement])) * 1e-6

    def _path(self, measurement: int) -> Path:
        return self.root / self.index.measurements.filename[measurement].decode()

    def _image(self, measurement: int, reference: "_Reference") -> CameraImage:
        columns = self.index.measurements
        path = self._path(measurement)
        pixels = _found(read_pixels, path)
        width_px, height_px = (int(side) for side in columns.size_px[measurement])
        if pixels.shape[:2] != (height_px, width_px):
            raise ValueError(
                f"expected {width_px}x{height_px} pixels in {path} as in sample_data.json, got "
                f"{pixels.shape[1]}x{pixels.shape[0]}; its calibration would be wrong: use the original picture"
            )
        return CameraImage(
            pixels=pixels,
            image_from_camera=np.array(self.index.calibrations.intrinsics[columns.calibration[measurement]]),
            ego_from_camera=self._ego_from_sensor(measurement, reference),
            lag_s=self._lag_s(measurement, reference),
        )

    def _lidar_sweep(self, measurement: int, reference: "_Reference") -> LidarSweep:
        ego_from_lidar, lag_s = self._ego_from_sensor(measurement, reference), self._lag_s(measurement, reference)
        sweep = _found(lambda path: read_lidar(path, lag_s, ego_from_lidar), self._path(measurement))
        kept = without_close(sweep.xyz_m, self.close_m)
        return sweep if kept.all() else sweep.select(np.flatnonzero(kept))

    def _radar_sweep(self, measurement: int, reference: "_Reference") -> RadarSweep:
        ego_from_radar, lag_s = self._ego_from_sensor(measurement, reference), self._lag_s(measurement, reference)
        return _found(lambda path: read_radar(path, lag_s, ego_from_radar), self._path(measurement))

    def _boxes(self, row: int, global_from_ego: RigidTransform) -> Boxes | None:
        """Boxes of the detection classes in the ego frame; None where the version has no annotations at all."""
        columns = self.index.annotations
        if not len(columns.label):
            return None
        bounds = self.index.samples.first_annotation
        rows = np.arange(bounds[row], bounds[row + 1])
        rows = rows[columns.label[rows] >= 0]
        ego_from_global = global_from_ego.inverse()
        heading = ego_from_global.vectors(columns.heading[rows])
        flat_velocity = columns.velocity_mps[rows] * [1.0, 1.0, 0.0]
        return Boxes(
            center_m=ego_from_global.points(columns.center_m[rows]).astype(np.float32),
            size_lwh_m=columns.size_lwh_m[rows].astype(np.float32),
            yaw_rad=np.arctan2(heading[:, 1], heading[:, 0]).astype(np.float32),
            velocity_mps=ego_from_global.vectors(flat_velocity)[:, :2].astype(np.float32),
            label=columns.label[rows].astype(np.int64),
            score=np.ones(len(rows), np.float32),
            attribute=columns.attribute[rows].astype(np.int64),
            num_points=(columns.num_lidar[rows] + columns.num_radar[rows]).astype(np.int64),
        )

    def _lost_files(self) -> frozenset[int]:
        """Measurements of this split whose files are not there; warns once about all of them."""
        columns = self.index.measurements
        needed = np.concatenate([self._needed(channel) for channel in CHANNELS])
        listed: dict[Path, set[str]] = {}
        lost = []
        for measurement in needed.tolist():
            path = self._path(measurement)
            if path.parent not in listed:
                listed[path.parent] = {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()
            if path.name not in listed[path.parent]:
                lost.append(measurement)
        if lost:
            warnings.warn(
                f"{len(lost)} of {len(needed)} files of the split '{self.split}' are missing in {self.root}, the first "
                f"is {columns.filename[lost[0]].decode()}; their sensors count as absent",
                stacklevel=3,
            )
        return frozenset(lost)

    def _needed(self, channel: str) -> Int64[np.ndarray, "k"]:
        """Rows of all measurements of a channel that the frames of this split read."""
        modality = modality_of(channel)
        num_sweeps = {"camera": int(self.cameras), "lidar": self.lidar_sweeps, "radar": self.radar_sweeps}[modality]
        rows = self.index.samples.keyframes[self._rows, _CHANNEL_ROW[channel]].astype(np.int64)
        found = [np.zeros(0, np.int64)]
        for _ in range(num_sweeps):
            rows = rows[rows >= 0]
            found.append(rows)
            rows = self.index.measurements.previous[rows].astype(np.int64)
        return np.unique(np.concatenate(found))


@dataclass(frozen=True)
class _Reference:
    timestamp_us: int
    global_from_ego: RigidTransform


@dataclass(frozen=True)
class SceneHistory:
    """Earlier keyframes of one keyframe's scene, read on demand (``sensors.frame.History``)."""

    frames: NuScenesFrames
    row: int

    def past(self, channel: str, num_keyframes: int) -> Measurement | None:
        """What the channel held that many keyframes earlier, relative to the ego frame of then; None before the start.

        Also None where the file is lost, under ``missing="absent"``.
        """
        scene = self.frames.index.samples.scene
        earlier = self.row - num_keyframes
        if earlier < 0 or scene[earlier] != scene[self.row]:
            return None
        return self.frames._measure(earlier, self.frames._reference(earlier), channel)

    def lags_s(self, channel: str, within_s: float) -> tuple[float, ...]:
        """Lags of the channel's measurements, newest first, to the first that is older than ``within_s``.

        Under ``missing="absent"`` a measurement whose file is lost is passed over.
        """
        reference, lags_s = self.frames._reference(self.row), []
        for measurement in self._measurements(channel):
            lags_s.append(self.frames._lag_s(measurement, reference))
            if lags_s[-1] > within_s:
                break
        return tuple(lags_s)

    def measured(self, channel: str, step: int) -> Single | None:
        """The measurement at that place of ``lags_s``, relative to this keyframe's ego frame."""
        frames, reference = self.frames, self.frames._reference(self.row)
        read = {"camera": frames._image, "lidar": frames._lidar_sweep, "radar": frames._radar_sweep}
        for number, measurement in enumerate(self._measurements(channel)):
            if number == step:
                return read[modality_of(channel)](measurement, reference)
        return None

    def _measurements(self, channel: str) -> Iterator[int]:
        """Rows of the channel's measurements up to this keyframe's, newest first, within the scene."""
        frames = self.frames
        row = int(frames.index.samples.keyframes[self.row, _CHANNEL_ROW[channel]])
        while row >= 0:
            if frames.missing == "error" or frames._path(row).is_file():
                yield row
            row = int(frames.index.measurements.previous[row])


def _found(read, path: Path):
    """What ``read`` makes of a file, or one line about the file that is not there."""
    try:
        return read(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected the file {path} that the tables name, found none; copy it, or set missing=absent to go on "
            "without it"
        ) from error


def _rows_of_split(index: NuScenesIndex, root: Path, version: str, split: str | None) -> Int64[np.ndarray, "n"]:
    if split is None:
        return np.arange(len(index.samples.token), dtype=np.int64)
    wanted = {name.encode() for name in scenes_of_split(root, version, split)}
    scenes = np.array([bytes(name) in wanted for name in index.scenes.name], bool)
    rows = np.flatnonzero(scenes[index.samples.scene]) if len(scenes) else np.zeros(0, np.int64)
    if not len(rows):
        raise ValueError(
            f"expected scenes of the split '{split}' in {root / version}, found none of its {len(wanted)}; "
            "choose a split of this version"
        )
    return rows
