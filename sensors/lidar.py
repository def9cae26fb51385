"""One LiDAR sweep, and nuScenes' ``.pcd.bin`` format: float32 rows of x y z intensity ring."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sensors.transforms import RigidTransform

_FIELDS = 5


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


def read_lidar(path: Path, lag_s: float, ego_from_lidar: RigidTransform) -> LidarSweep:
    """Read a ``.pcd.bin``; points with a NaN or infinite coordinate are left out (they are no returns).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its size is no multiple of five float32, or more than half of its points are not finite.
    """
    encoded = path.read_bytes()
    if len(encoded) % (4 * _FIELDS):
        raise ValueError(
            f"expected rows of {_FIELDS} float32 (20 bytes) in {path}, got {len(encoded)} bytes; the file is cut off: "
            "copy it again"
        )
    rows = np.frombuffer(encoded, np.float32).reshape(-1, _FIELDS)
    if not np.isfinite(rows).all():
        finite = np.isfinite(rows).all(axis=1)
        if finite.mean() < 0.5:
            raise ValueError(
                f"expected finite points in {path}, got {int((~finite).sum())} of {len(rows)} with NaN or infinity; "
                "copy the file again"
            )
        rows = rows[finite]
    return LidarSweep(
        np.ascontiguousarray(rows[:, :3]), rows[:, 3].copy(), rows[:, 4].astype(np.uint8), lag_s, ego_from_lidar
    )


def encode_lidar(sweep: LidarSweep) -> bytes:
    """The bytes of a ``.pcd.bin`` file."""
    rows = np.concatenate([sweep.xyz_m, sweep.intensity[:, None], sweep.ring[:, None]], axis=1)
    return rows.astype("<f4").tobytes()


def without_close(xyz_m: Float[np.ndarray, "n 3"], radius_m: float) -> Bool[np.ndarray, "n"]:
    """Mask of the points farther than ``radius_m`` from the sensor axis.

    A circle; the devkit's ``remove_close`` cuts a square.
    """
    return np.square(xyz_m[:, 0]) + np.square(xyz_m[:, 1]) >= radius_m**2
