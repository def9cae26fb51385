"""Frames of a nuScenes version, real or synthetic: one class for both.

How every measurement comes into the keyframe's ego frame: ``datamodules.chains``.
"""

import re
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from datamodules.absence import MISSING_POLICIES, check_keyframes, lost_files, sweeps_read
from datamodules.chains import MeasurementChains, Reference
from datamodules.columns import NuScenesIndex
from datamodules.index import open_index
from datamodules.labels import boxes_of, class_counts
from datamodules.sizes import check_size, recorded_sizes
from datamodules.splits import scenes_of_split
from sensors.camera import CameraImage, read_pixels
from sensors.frame import Frame, Measurement, Single
from sensors.lidar import LidarSweep, read_lidar_sweeps
from sensors.radar import RadarSweep, read_radar
from sensors.rig import CAMERAS, LIDAR, RADARS, modality_of

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
        missing: what a file that is named but not there means, or a keyframe that the tables lack: ``error``, or
            ``absent`` (a lost measurement), with one warning for all of them. Files that are there and broken are
            always an error.
        close_m: LiDAR points nearer than this to the sensor's axis are hits on the own vehicle and left out.

    Raises:
        FileNotFoundError: no such root, version or table; while reading, no such file under ``missing="error"``.
        ValueError: no such split, a broken table, a lacking keyframe under ``missing="error"``; while reading, a broken
            file, or one of another size than was recorded (``datamodules.sizes``).
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
        self.chains = MeasurementChains(self.index)
        self.rows = _rows_of_split(self.index, self.root, version, split)
        self._sizes = recorded_sizes(self.index)
        wanted = sweeps_read(cameras, lidar_sweeps, radar_sweeps)
        if missing == "absent":
            self._lost = lost_files(self.index, self.rows, wanted, self.root, split or "all scenes")
        else:
            check_keyframes(self.index, self.rows, wanted)
            self._lost = frozenset()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Sample tokens, in order."""
        return tuple(token.decode() for token in self.index.samples.token[self.rows].tolist())

    @property
    def scene_rows(self) -> Int64[np.ndarray, "n"]:
        """The scene of each frame, as a row of the index; frames of one scene follow each other in time."""
        return self.index.samples.scene[self.rows].astype(np.int64)

    @property
    def class_counts(self) -> Int64[np.ndarray, "n 10"]:
        """How many boxes of each detection class every frame has."""
        return class_counts(self.index, self.rows)

    def __getitem__(self, i: int) -> Frame:
        row = int(self.rows[i])
        samples, scenes = self.index.samples, self.index.scenes
        scene = int(samples.scene[row])
        reference = self.chains.reference(row)
        first, last = np.searchsorted(samples.scene, np.array([scene, scene + 1], np.int32))
        read = partial(self.measurement, row, reference)
        cameras = {channel: read(channel) for channel in CAMERAS} if self.cameras else {}
        radars = {channel: read(channel) for channel in RADARS} if self.radar_sweeps else {}
        return Frame(
            token=samples.token[row].decode(),
            scene=scenes.name[scene].decode(),
            timestamp_us=int(samples.timestamp_us[row]),
            global_from_ego=reference.global_from_ego,
            ego_speed_mps=self.chains.speed_mps(row),
            cameras={channel: image for channel, image in cameras.items() if image is not None},
            lidar=(read(LIDAR) or ()) if self.lidar_sweeps else (),
            radars={channel: sweeps for channel, sweeps in radars.items() if sweeps is not None},
            boxes=boxes_of(self.index, row, reference.ego_from_global),
            conditions=conditions_of(scenes.description[scene].decode()),
            keyframe=row - int(first),
            num_keyframes=int(last - first),
            ego_yaw_rate_radps=self.chains.yaw_rate_radps(row),
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
        return SceneHistory(self, int(self.rows[i]))

    def measurement(self, row: int, reference: Reference, channel: str) -> Measurement | None:
        """What a channel holds at a sample's keyframe; None where the tables or the files have nothing."""
        newest = self.chains.keyframe(row, channel)
        if newest < 0 or newest in self._lost:
            return None
        modality = modality_of(channel)
        if modality == "camera":
            return self._image(newest, reference)
        num_sweeps = self.lidar_sweeps if modality == "lidar" else self.radar_sweeps
        chain = [step for step in self.chains.sweeps(newest, max(num_sweeps, 1)) if step not in self._lost]
        if modality == "radar":
            return tuple(self._radar_sweep(step, reference) for step in chain)
        return self._lidar_sweeps(chain, reference)

    def _image(self, measurement: int, reference: Reference) -> CameraImage:
        pixels = _found(read_pixels, self._path(measurement))
        self.require_size(measurement, pixels)
        return self.calibrated(measurement, reference, pixels)

    def require_size(self, measurement: int, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
        """That a picture has the size that the tables, and with them its calibration, tell of.

        Raises:
            ValueError: it has another.
        """
        path = self._path(measurement)
        width_px, height_px = (int(side) for side in self.index.measurements.size_px[measurement])
        if pixels.shape[:2] != (height_px, width_px):
            raise ValueError(
                f"expected {width_px}x{height_px} pixels in {path} as in sample_data.json, got "
                f"{pixels.shape[1]}x{pixels.shape[0]}; its calibration would be wrong: use the original picture"
            )

    def calibrated(self, measurement: int, reference: Reference, pixels: UInt8[np.ndarray, "h w 3"]) -> CameraImage:
        """A picture with the calibration and pose of a measurement, whose pixels may have been made smaller."""
        calibration = self.index.measurements.calibration[measurement]
        return CameraImage(
            pixels=pixels,
            image_from_camera=np.array(self.index.calibrations.intrinsics[calibration]),
            ego_from_camera=self.chains.ego_from_sensor(measurement, reference),
            lag_s=self.chains.lag_s(measurement, reference),
        )

    def _lidar_sweeps(self, measurements: list[int], reference: Reference) -> tuple[LidarSweep, ...]:
        sweeps = [
            (self._path(step), self.chains.lag_s(step, reference), self.chains.ego_from_sensor(step, reference))
            for step in measurements
        ]
        return _found(read_lidar_sweeps, sweeps, self.close_m)

    def _lidar_sweep(self, measurement: int, reference: Reference) -> LidarSweep:
        return self._lidar_sweeps([measurement], reference)[0]

    def _radar_sweep(self, measurement: int, reference: Reference) -> RadarSweep:
        lag_s = self.chains.lag_s(measurement, reference)
        ego_from_radar = self.chains.ego_from_sensor(measurement, reference)
        return _found(read_radar, self._path(measurement), lag_s, ego_from_radar)

    def _path(self, measurement: int) -> Path:
        """Where the file lies; of the size that was recorded, if any was."""
        path = self.root / self.index.measurements.filename[measurement].decode()
        if self._sizes is not None:
            _found(check_size, path, int(self._sizes[measurement]))
        return path


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
        return self.frames.measurement(earlier, self.frames.chains.reference(earlier), channel)

    def lags_s(self, channel: str, within_s: float) -> tuple[float, ...]:
        """Lags of the channel's measurements, newest first, to the first that is older than ``within_s``.

        Under ``missing="absent"`` a measurement whose file is lost is passed over.
        """
        chains, lags_s = self.frames.chains, []
        reference = chains.reference(self.row)
        for measurement in self._measurements(channel):
            lags_s.append(chains.lag_s(measurement, reference))
            if lags_s[-1] > within_s:
                break
        return tuple(lags_s)

    def measured(self, channel: str, step: int) -> Single | None:
        """The measurement at that place of ``lags_s``, relative to this keyframe's ego frame."""
        frames, reference = self.frames, self.frames.chains.reference(self.row)
        read = {"camera": frames._image, "lidar": frames._lidar_sweep, "radar": frames._radar_sweep}
        for number, measurement in enumerate(self._measurements(channel)):
            if number == step:
                return read[modality_of(channel)](measurement, reference)
        return None

    def _measurements(self, channel: str) -> Iterator[int]:
        """Rows of the channel's measurements up to this keyframe's, newest first, within the scene."""
        frames = self.frames
        columns = frames.index.measurements
        row = frames.chains.keyframe(self.row, channel)
        while row >= 0:
            if frames.missing == "error" or (frames.root / columns.filename[row].decode()).is_file():
                yield row
            row = int(columns.previous[row])


def _found(read, what, *arguments):
    """What ``read`` makes of a file (or several), or one line about the file that is not there."""
    try:
        return read(what, *arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected the file {error.filename} that the tables name, found none; copy it, or set missing=absent to "
            "go on without it"
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
