"""LiDAR faults of the field of view, as seen from the vehicle's ahead."""

import numpy as np
from jaxtyping import Float

from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep


def _limited_view(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    return sweep.select(np.abs(azimuth_in_ego_rad(sweep)) <= np.deg2rad(level))


def _sector_blocked(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    middle = rng.uniform(-np.pi, np.pi)
    away = np.abs((azimuth_in_ego_rad(sweep) - middle + np.pi) % (2 * np.pi) - np.pi)
    return sweep.select(away > np.deg2rad(level) / 2)


def azimuth_in_ego_rad(sweep: LidarSweep) -> Float[np.ndarray, "n"]:
    """Direction of each point seen from the sensor, against the vehicle's ahead; counter-clockwise, in (-pi, pi]."""
    rotation = sweep.ego_from_lidar.rotation.astype(np.float32)
    direction = sweep.xyz_m @ rotation[:2].T
    return np.arctan2(direction[:, 1], direction[:, 0])


LIDAR_LIMITED_VIEW = SensorFault(
    "lidar_limited_view",
    "view",
    "lidar",
    "deg kept on either side of ahead",
    (120.0, 90.0, 75.0, 60.0, 45.0),
    effect=_limited_view,
    clean=180.0,
    worst=0.0,
)
LIDAR_SECTOR_BLOCKED = SensorFault(
    "lidar_sector_blocked",
    "view",
    "lidar",
    "deg",
    (20.0, 45.0, 90.0, 135.0, 180.0),
    effect=_sector_blocked,
    per_sweep=False,
    worst=360.0,
)

VIEW_FAULTS = (LIDAR_LIMITED_VIEW, LIDAR_SECTOR_BLOCKED)
