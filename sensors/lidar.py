"""One LiDAR sweep, and nuScenes' ``.pcd.bin`` format: float32 rows of x y z intensity ring."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from sensors.transforms import RigidTransform

_FIELDS = 5
_POINT = np.dtype((np.void, 4 * _FIELDS))


@dataclass(frozen=True, eq=False)
class LidarSweep:
    """One turn of the LiDAR, in its own sensor frame (x right, y forward, z up for LIDAR_TOP).

    Attributes:
        intensity: 0 to 255.
        ring: beam index, 0 the lowest.
        lag_s: keyframe reference time minus the sweep's time; positive for an older sweep.
        ego_from_lidar: keyframe ego frame from the sensor at the sweep's own time, chained through global.
    """

    xyz_m: Float[np.ndarray, "n 3"]
    intensity: Float[np.ndarray, "n"]
    ring: UInt8[np.ndarray, "n"]
    lag_s: float
    ego_from_lidar: RigidTransform

    def __len__(self) -> int:
        return len(self.ring)

    def select(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "k"]) -> "LidarSweep":
        """The points of a mask or of an index array."""
        return replace(self, xyz_m=self.xyz_m[chosen], intensity=self.intensity[chosen], ring=self.ring[chosen])

    def to_ego(self) -> Float[np.ndarray, "n 3"]:
        """Points in the keyframe's ego frame."""
        return self.ego_from_lidar.points(self.xyz_m)


def read_lidar(path: Path, lag_s: float, ego_from_lidar: RigidTransform, close_m: float = 0.0) -> LidarSweep:
    """Read a ``.pcd.bin``; points with a NaN or infinite number are left out (they are no returns).

    A file of one NaN point is an empty measurement, as in nuScenes' radar files; a file of no bytes is a damaged one. A
    file that was cut off between two points cannot be told from a short measurement by itself: see
    ``datamodules.sizes``.

    Args:
        close_m: points nearer than this to the sensor's axis are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no bytes, a size that is no multiple of five float32, or more than half of the points not finite.
    """
    return read_lidar_sweeps([(path, lag_s, ego_from_lidar)], close_m)[0]


def read_lidar_sweeps(
    sweeps: Sequence[tuple[Path, float, RigidTransform]], close_m: float = 0.0
) -> tuple[LidarSweep, ...]:
    """Several files (path, lag_s, ego_from_lidar) as by ``read_lidar``, into one piece of memory.

    A piece of its own for each would be given back to the system and asked for again with every frame, which costs more
    than reading.
    """
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "rb", buffering=0)) for path, _, _ in sweeps]
        counts = [_num_points(file.fileno(), path) for file, (path, _, _) in zip(files, sweeps, strict=True)]
        memory = np.empty((sum(counts), _FIELDS), np.float32)
        found, end = [], 0
        for file, count, sweep in zip(files, counts, sweeps, strict=True):
            rows = memory[end : end + count]
            file.readinto(rows)
            found.append(_sweep_of_rows(rows, sweep, close_m))
            end += count
    return tuple(found)


def _num_points(descriptor: int, path: Path) -> int:
    num_bytes = os.fstat(descriptor).st_size
    if num_bytes % _POINT.itemsize or not num_bytes:
        raise ValueError(
            f"expected rows of {_FIELDS} float32 ({_POINT.itemsize} bytes) in {path}, got {num_bytes} bytes; the "
            "file is cut off: copy it again"
        )
    return num_bytes // _POINT.itemsize


def _sweep_of_rows(
    rows: Float32[np.ndarray, "n 5"], sweep: tuple[Path, float, RigidTransform], close_m: float
) -> LidarSweep:
    path, lag_s, ego_from_lidar = sweep
    flat = rows.reshape(-1)
    # A sum of squares is not finite where one number is not, and costs a tenth of looking at each.
    if not math.isfinite(np.dot(flat, flat)):
        rows = _finite_rows(rows, path)
    if close_m > 0:
        kept = without_close(rows, close_m)
        rows = rows if kept.all() else chosen_rows(rows, kept)
    return LidarSweep(rows[:, :3], rows[:, 3], rows[:, 4].astype(np.uint8), lag_s, ego_from_lidar)


def _finite_rows(rows: Float[np.ndarray, "n 5"], path: Path) -> Float[np.ndarray, "k 5"]:
    finite = np.isfinite(rows).all(axis=1)
    if finite.mean() < 0.5 and len(rows) > 1:
        raise ValueError(
            f"expected finite points in {path}, got {int((~finite).sum())} of {len(rows)} with NaN or infinity; "
            "copy the file again"
        )
    return rows[finite]


def encode_lidar(sweep: LidarSweep) -> bytes:
    """The bytes of a ``.pcd.bin`` file; an empty sweep is written as one NaN point."""
    rows = np.concatenate([sweep.xyz_m, sweep.intensity[:, None], sweep.ring[:, None]], axis=1)
    if not len(rows):
        rows = np.full((1, _FIELDS), np.nan)
    return rows.astype("<f4").tobytes()


def gathered_points(
    sweeps: Sequence[LidarSweep],
    dst_from_ego: Float[np.ndarray, "4 4"],
    range_m: tuple[float, ...] | None = None,
) -> Float32[np.ndarray, "p 5"]:
    """The points of all sweeps in one frame, in the order of the sweeps: x, y, z, intensity, lag_s.

    Args:
        dst_from_ego: from the keyframe's ego frame; any 4x4 of the last row 0 0 0 1. Coordinates of both frames are
            small (a vehicle's surroundings), so that float32 holds them to some hundredths of a millimetre.
        range_m: x, y, z from, x, y, z to in the destination: lower bounds inside, upper ones outside. None for all.
    """
    points = np.empty((sum(map(len, sweeps)), 5), np.float32)
    end = 0
    for sweep in sweeps:
        dst_from_lidar = (dst_from_ego @ sweep.ego_from_lidar.matrix).astype(np.float32)
        own = points[end : end + len(sweep)]
        np.matmul(sweep.xyz_m.astype(np.float32, copy=False), dst_from_lidar[:3, :3].T, out=own[:, :3])
        for axis in range(3):
            # Column by column: numpy adds three numbers to each of many rows ten times slower.
            own[:, axis] += dst_from_lidar[axis, 3]
        own[:, 3], own[:, 4] = sweep.intensity, sweep.lag_s
        if range_m is not None:
            kept = within(own, range_m)
            inside = chosen_rows(own, kept)
            own = points[end : end + len(inside)]
            own[:] = inside
        end += len(own)
    return points[:end]


def chosen_rows(rows: Float32[np.ndarray, "n 5"], kept: Bool[np.ndarray, "n"]) -> Float32[np.ndarray, "k 5"]:
    """``rows[kept]``, several times faster: whole points move as one item."""
    return rows.view(_POINT)[:, 0][kept].view(np.float32).reshape(-1, _FIELDS)


def within(points: Float[np.ndarray, "n _"], range_m: tuple[float, ...]) -> Bool[np.ndarray, "n"]:
    """Which points lie in x, y, z from, x, y, z to: lower bounds inside, upper ones outside."""
    inside = np.ones(len(points), bool)
    for axis in range(3):
        column = points[:, axis]
        inside &= (column >= range_m[axis]) & (column < range_m[axis + 3])
    return inside


def without_close(xyz_m: Float[np.ndarray, "n _"], radius_m: float) -> Bool[np.ndarray, "n"]:
    """Mask of the points farther than ``radius_m`` from the sensor axis; columns after x and y are not looked at.

    A circle; the devkit's ``remove_close`` cuts a square.
    """
    return np.square(xyz_m[:, 0]) + np.square(xyz_m[:, 1]) >= radius_m**2
