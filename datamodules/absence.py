"""What a split should have and has not: keyframes that the tables lack, files that the disk lacks."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from datamodules.chains import CHANNEL_ROW
from datamodules.columns import NuScenesIndex
from sensors.rig import CHANNELS, modality_of

MISSING_POLICIES = ("error", "absent")


def sweeps_read(cameras: bool, lidar_sweeps: int, radar_sweeps: int) -> dict[str, int]:
    """Measurements per keyframe of each channel; 0 for a channel that is not read."""
    per_modality = {"camera": int(cameras), "lidar": lidar_sweeps, "radar": radar_sweeps}
    return {channel: per_modality[modality_of(channel)] for channel in CHANNELS}


def lacking_keyframes(
    index: NuScenesIndex, samples: Int64[np.ndarray, "n"], num_sweeps: dict[str, int]
) -> list[tuple[str, int]]:
    """Channel and sample of every keyframe that the tables lack though the channel has others in the same scene.

    A channel without any keyframe in a scene is a vehicle without that sensor, and lacks nothing.
    """
    scene = index.samples.scene[samples]
    lacking = []
    for channel in (channel for channel, sweeps in num_sweeps.items() if sweeps):
        has = index.samples.keyframes[samples, CHANNEL_ROW[channel]] >= 0
        equipped = np.isin(scene, np.unique(scene[has]))
        lacking += [(channel, int(sample)) for sample in samples[equipped & ~has]]
    return lacking


def check_keyframes(index: NuScenesIndex, samples: Int64[np.ndarray, "n"], num_sweeps: dict[str, int]) -> None:
    """Raises ValueError where ``lacking_keyframes`` finds any."""
    lacking = lacking_keyframes(index, samples, num_sweeps)
    if lacking:
        channel, sample = lacking[0]
        raise ValueError(
            f"expected a keyframe of {channel} for the sample '{index.samples.token[sample].decode()}' in "
            f"sample_data.json, found none ({len(lacking)} such keyframes); copy the table again, or set "
            "missing=absent to go on without them"
        )


def lost_files(
    index: NuScenesIndex, samples: Int64[np.ndarray, "n"], num_sweeps: dict[str, int], root: Path, split: str
) -> frozenset[int]:
    """Measurements of a split whose files are not there; warns once about all of them and about lacking keyframes."""
    filenames = index.measurements.filename
    needed = np.concatenate([_needed(index, samples, channel, num_sweeps[channel]) for channel in CHANNELS])
    listed: dict[Path, set[str]] = {}
    lost = []
    for measurement in needed.tolist():
        path = root / filenames[measurement].decode()
        if path.parent not in listed:
            listed[path.parent] = {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name not in listed[path.parent]:
            lost.append(measurement)
    parts = []
    if lost:
        first = filenames[lost[0]].decode()
        parts.append(f"{len(lost)} of {len(needed)} files are missing in {root}, the first is {first}")
    if lacking := lacking_keyframes(index, samples, num_sweeps):
        token = index.samples.token[lacking[0][1]].decode()
        parts.append(
            f"{len(lacking)} keyframes are missing in sample_data.json, the first is {lacking[0][0]} of {token}"
        )
    if parts:
        warnings.warn(f"split '{split}': {'; '.join(parts)}; their sensors count as absent", stacklevel=3)
    return frozenset(lost)


def _needed(
    index: NuScenesIndex, samples: Int64[np.ndarray, "n"], channel: str, num_sweeps: int
) -> Int64[np.ndarray, "k"]:
    """Rows of all measurements of a channel that these samples read."""
    rows = index.samples.keyframes[samples, CHANNEL_ROW[channel]].astype(np.int64)
    found = [np.zeros(0, np.int64)]
    for _ in range(num_sweeps):
        rows = rows[rows >= 0]
        found.append(rows)
        rows = index.measurements.previous[rows].astype(np.int64)
    return np.unique(np.concatenate(found))
