"""Samples of a split held in memory between passes over it, so that many scenarios read and prepare each file once.

A fault leaves most channels of a frame alone: what it hands back untouched is the very object that it was given, and
whatever was prepared of that object is taken as it is. Held arrays are read-only: a fault that writes into what it was
given fails instead of harming every scenario after it.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace

import numpy as np
from jaxtyping import Bool

from datamodules.nuscenes import NuScenesFrames
from datamodules.points import lidar_points, radar_points
from datamodules.prepare import Corruptor, Preparation, PreparedSamples, Sample, SampleKey, Views
from sensors.frame import Frame
from sensors.health import health_of, thumbnails_of
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS


@dataclass(frozen=True, eq=False)
class HeldSample:
    """A frame as it was read, and what was prepared of it."""

    frame: Frame
    sample: Sample


class HeldSamples:
    """The first samples of a split that fit into memory; the others are read whenever they are asked for.

    Nothing is dropped for another sample: passes go through a split in its order, where whatever was used longest ago
    is what comes next.

    In the process that made it, a sample is held when it is first asked for. Forked workers have what was held before
    they were forked, without a copy of their own; workers that are started afresh have nothing. See ``fill``.

    Args:
        frames: what is read.
        preparation: of evaluation: no augmentation and no targets.
        max_gb: of memory for frames and what was prepared of them.

    Raises:
        ValueError: a preparation with depth targets, which need the clean frame.
    """

    def __init__(self, frames: NuScenesFrames, preparation: Preparation, max_gb: float | int):
        if preparation.depth_stride is not None:
            raise ValueError("expected a preparation of evaluation to hold samples, got one with depth targets")
        self.clean = PreparedSamples(frames, preparation)
        self.max_bytes, self.num_bytes, self.is_full = int(max_gb * 1e9), 0, False
        self._held: dict[int, HeldSample] = {}
        self._owner = os.getpid()

    def __len__(self) -> int:
        """Samples that are held now."""
        return len(self._held)

    def __getstate__(self) -> dict:
        return {**vars(self), "_held": {}, "num_bytes": 0}

    def get(self, index: int) -> HeldSample | None:
        """The sample, read now if there is room for it; None where there is none."""
        if index not in self._held and not self.is_full and os.getpid() == self._owner:
            self._hold(index)
        return self._held.get(index)

    def fill(self) -> None:
        """Read what fits at once, for workers that are about to be forked."""
        for index in range(len(self.clean)):
            if self.get(index) is None:
                break

    def _hold(self, index: int) -> None:
        frame = self.clean.frames[index]
        held = HeldSample(frame, self.clean.prepared(frame))
        arrays = list(arrays_of(held))
        num_bytes = _num_bytes(arrays)
        if self.num_bytes + num_bytes > self.max_bytes:
            self.is_full = True
            return
        for array in arrays:
            array.flags.writeable = False
        self._held[index] = held
        self.num_bytes += num_bytes


class ReplayedSamples(PreparedSamples):
    """As PreparedSamples to evaluate, with the same numbers to the bit, from samples that are held where they are."""

    def __init__(self, held: HeldSamples, corruptor: Corruptor | None):
        super().__init__(held.clean.frames, held.clean.preparation, corruptor)
        self.held = held

    def __getitem__(self, key: "int | SampleKey") -> Sample:
        held = self.held.get(key) if isinstance(key, int) else None
        if held is None:
            return super().__getitem__(key)
        moment = SampleKey(key, None, float("nan"))
        frame, faults, severity = self._corrupted(held.frame, self.frames.history(key), moment)
        return replace(self._harmed(held, frame), faults=tuple(faults), fault_severity=severity)

    def _harmed(self, held: HeldSample, frame: Frame) -> Sample:
        """What was prepared of the clean frame, but for the channels that the fault changed."""
        clean, sample = held.frame, held.sample
        changed = np.array([not _same(clean, frame, channel) for channel in CHANNELS])
        if not changed.any():
            return replace(sample, frame=frame)
        names = {channel for channel, is_changed in zip(CHANNELS, changed, strict=True) if is_changed}
        part = replace(
            frame,
            cameras={channel: image for channel, image in frame.cameras.items() if channel in names},
            lidar=frame.lidar if LIDAR in names else (),
            radars={channel: sweeps for channel, sweeps in frame.radars.items() if channel in names},
        )
        of_cameras, range_m = changed[: len(CAMERAS)], self.preparation.point_range_m
        lidar, radar = sample.lidar, sample.radar
        if LIDAR in names and lidar is not None:
            lidar = lidar_points(frame, np.eye(4), range_m)
        if names & set(RADARS) and radar is not None:
            radar = radar_points(frame, np.eye(4), range_m)
        views, thumbnails = sample.views, sample.thumbnails
        if of_cameras.any():
            thumbnails = _patched(thumbnails, thumbnails_of(part), of_cameras)
            views = None if views is None else _patched_views(views, self.clean_views(part), of_cameras)
        return replace(
            sample,
            frame=frame,
            views=views,
            lidar=lidar,
            radar=radar,
            health=_patched(sample.health, health_of(part), changed),
            thumbnails=thumbnails,
            channel_present=np.array([frame.present(channel) for channel in CHANNELS]),
        )


def _same(clean: Frame, frame: Frame, channel: str) -> bool:
    """Whether the channel holds the very objects that were read."""
    if channel in CAMERAS:
        return clean.cameras.get(channel) is frame.cameras.get(channel)
    before, now = (
        (clean.lidar, frame.lidar) if channel == LIDAR else (clean.radars.get(channel), frame.radars.get(channel))
    )
    if before is None or now is None:
        return before is now
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _patched(held: np.ndarray, new: np.ndarray, changed: Bool[np.ndarray, "_"]) -> np.ndarray:
    """Held rows, and new ones where something changed."""
    rows = held.copy()
    rows[changed] = new[changed]
    return rows


def _patched_views(held: Views, new: Views, changed: Bool[np.ndarray, "6"]) -> Views:
    names = ("images", "image_from_camera", "ego_from_camera", "present")
    return Views(**{name: _patched(getattr(held, name), getattr(new, name), changed) for name in names}, depth_m=None)


def arrays_of(value: object) -> Iterator[np.ndarray]:
    """All arrays in data classes, dictionaries and tuples, however deep."""
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        for column in fields(value):
            yield from arrays_of(getattr(value, column.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from arrays_of(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from arrays_of(part)


def _num_bytes(arrays: list[np.ndarray]) -> int:
    """Of the pieces of memory that the arrays keep alive; what is mapped from a file is not counted."""
    owners = {}
    for array in arrays:
        while isinstance(array.base, np.ndarray):
            array = array.base
        if not isinstance(array, np.memmap):
            owners[id(array)] = array.nbytes
    return sum(owners.values())
