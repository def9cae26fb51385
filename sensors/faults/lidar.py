"""LiDAR faults on raw sweeps: metres, rings, intensities of 0 to 255."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.rig import LIDAR_BEAMS


def _beam_drop(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    rank = rng.permutation(LIDAR_BEAMS)
    dead = np.zeros(256, bool)
    dead[:LIDAR_BEAMS] = rank + rng.random() < level * LIDAR_BEAMS
    return sweep.select(~dead[sweep.ring])


def _point_drop(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    return sweep.select(rng.random(len(sweep)) >= level)


def _limited_view(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    return sweep.select(np.abs(azimuth_in_ego_rad(sweep)) <= np.deg2rad(level))


def _sector_blocked(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    middle = rng.uniform(-np.pi, np.pi)
    away = np.abs((azimuth_in_ego_rad(sweep) - middle + np.pi) % (2 * np.pi) - np.pi)
    return sweep.select(away > np.deg2rad(level) / 2)


def _range_noise(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    range_m = np.linalg.norm(sweep.xyz_m, axis=1)
    noisy_m = np.maximum(range_m + level * rng.standard_normal(len(sweep), dtype=np.float32), 0.0)
    stretch = noisy_m / np.maximum(range_m, 1e-3)
    return replace(sweep, xyz_m=(sweep.xyz_m * stretch[:, None]).astype(sweep.xyz_m.dtype))


def _intensity_noise(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    noisy = sweep.intensity + level * rng.standard_normal(len(sweep), dtype=np.float32)
    return replace(sweep, intensity=np.clip(noisy, 0, 255).astype(sweep.intensity.dtype))


def azimuth_in_ego_rad(sweep: LidarSweep) -> Float[np.ndarray, "n"]:
    """Direction of each point seen from the sensor, against the vehicle's ahead; counter-clockwise, in (-pi, pi]."""
    rotation = sweep.ego_from_lidar.rotation.astype(np.float32)
    direction = sweep.xyz_m @ rotation[:2].T
    return np.arctan2(direction[:, 1], direction[:, 0])


LIDAR_BEAM_DROP = SensorFault(
    "lidar_beam_drop",
    "points",
    "lidar",
    "share of 32 beams",
    (0.2, 0.4, 0.6, 0.8, 0.9),
    effect=_beam_drop,
    per_sweep=False,
    worst=1.0,
)
LIDAR_POINT_DROP = SensorFault(
    "lidar_point_drop", "points", "lidar", "share of points", (0.1, 0.3, 0.5, 0.7, 0.9), effect=_point_drop, worst=1.0
)
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
LIDAR_RANGE_NOISE = SensorFault(
    "lidar_range_noise", "noise", "lidar", "m", (0.02, 0.05, 0.1, 0.2, 0.4), effect=_range_noise
)
LIDAR_INTENSITY_NOISE = SensorFault(
    "lidar_intensity_noise", "noise", "lidar", "of 255", (5.0, 10.0, 20.0, 40.0, 80.0), effect=_intensity_noise
)

LIDAR_FAULTS = (
    *(LIDAR_BEAM_DROP, LIDAR_POINT_DROP, LIDAR_LIMITED_VIEW, LIDAR_SECTOR_BLOCKED),
    *(LIDAR_RANGE_NOISE, LIDAR_INTENSITY_NOISE),
)
