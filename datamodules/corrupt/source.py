"""What of a data set is on the disk: all files that the tables name, or keyframes alone."""

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datamodules.columns import NuScenesIndex
from datamodules.corrupt.request import CopyRequest
from datamodules.nuscenes import NuScenesFrames
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS

Chains = list[dict[str, list[int]]]
"""Of each keyframe, by channel: rows of the measurements that belong to it, newest first."""


def open_source(request: CopyRequest) -> tuple[NuScenesFrames, Chains, int]:
    """The frames to copy, what belongs to each, and how many sweeps are named in the tables but not on the disk.

    A measurement belongs to the keyframe that it leads to: a keyframe's sweeps are those since the keyframe before. A
    sensor may have all of its sweeps on the disk or none of them (a download of keyframes alone).

    Raises:
        FileNotFoundError: a keyframe's file is not there, or some of a sensor's sweeps.
    """
    touched = request.touched()
    cameras = any(channel in touched for channel in CAMERAS)
    settings = {"cameras": cameras, "close_m": request.close_m}
    frames = NuScenesFrames(request.root, request.version, request.split, **settings)
    chains = _chains(frames)
    lost = _lost(frames.index, frames.root, chains)
    if lost:
        # Faults that look back must know which files are not there. What is missing is said by the caller.
        numbers = [max(len(chain[c]) for chain in chains for c in group) for group in ((LIDAR,), RADARS)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = NuScenesFrames(
                request.root, request.version, request.split, *map(int, numbers), missing="absent", **settings
            )
        chains = [{c: [row for row in rows if row not in lost] for c, rows in chain.items()} for chain in chains]
    return frames, chains, len(lost)


def _chains(frames: NuScenesFrames) -> Chains:
    keyframes = frames.index.samples.keyframes
    is_keyframe = np.zeros(len(frames.index.measurements.filename), bool)
    is_keyframe[keyframes[keyframes >= 0]] = True
    previous = frames.index.measurements.previous
    chains = []
    for newest_of in keyframes[frames.rows].tolist():
        chains.append({})
        for channel, newest in zip(CHANNELS, newest_of, strict=True):
            chain = [newest] if newest >= 0 else []
            while chain and channel not in CAMERAS:
                before = int(previous[chain[-1]])
                if before < 0 or is_keyframe[before]:
                    break
                chain.append(before)
            chains[-1][channel] = chain
    return chains


def _lost(index: NuScenesIndex, root: Path, chains: Chains) -> set[int]:
    """Rows of the sweeps that the disk lacks. Raises FileNotFoundError where that is no download of keyframes alone."""
    sweeps = {channel: [row for chain in chains for row in chain[channel][1:]] for channel in CHANNELS}
    keyframes = [row for chain in chains for rows in chain.values() for row in rows[:1]]
    lost = {channel: _not_there(index, root, rows) for channel, rows in sweeps.items()}
    partly = [row for channel, rows in lost.items() if len(rows) < len(sweeps[channel]) for row in rows]
    broken = _not_there(index, root, keyframes) + partly
    if broken:
        first = root / index.measurements.filename[broken[0]].decode()
        raise FileNotFoundError(
            f"expected the file {first} that the tables name, found none ({len(broken)} such files); copy them again: "
            "a sensor may lack all of its sweeps, but not some of them, and no keyframe"
        )
    return {row for rows in lost.values() for row in rows}


def _not_there(index: NuScenesIndex, root: Path, rows: Iterable[int]) -> list[int]:
    """One look into each folder instead of one for each file."""
    listed: dict[str, set[str]] = {}
    missing = []
    for row in rows:
        folder, _, name = index.measurements.filename[row].decode().rpartition("/")
        if folder not in listed:
            path = root / folder
            listed[folder] = {file.name for file in path.iterdir()} if path.is_dir() else set()
        if name not in listed[folder]:
            missing.append(row)
    return missing
