"""LiDAR points that are missing: beams, points, resolution."""

import numpy as np
from jaxtyping import Float, Int

from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.rig import LIDAR_BEAMS

COLUMN_DEG = 360 / 1084
"""Between two firings of a HDL-32E at 20 turns a second."""

_CUT_SHARE, _MOST_CUTS = 0.02, 50


def _evenly_ranked_beams() -> Int[np.ndarray, "32"]:
    """Rank of each ring: the first 16 are 1 3 .. 31, of these the first 8 are 1 5 .. 29, the first 4 are 1 9 17 25."""
    reversed_bits = [int(f"{i:05b}"[::-1], 2) for i in range(LIDAR_BEAMS)]
    rank = np.empty(LIDAR_BEAMS, np.int64)
    rank[(np.array(reversed_bits) + 1) % LIDAR_BEAMS] = np.arange(LIDAR_BEAMS)
    return rank


def _beam_drop(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    rank = rng.permutation(LIDAR_BEAMS)
    dead = np.zeros(256, bool)
    dead[:LIDAR_BEAMS] = rank + rng.random() < level * LIDAR_BEAMS
    return sweep.select(~dead[sweep.ring])


def _beams_kept(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """A LiDAR of fewer beams, evenly spaced; a fraction is the probability of one beam more."""
    alive = np.zeros(256, bool)
    alive[:LIDAR_BEAMS] = _evenly_ranked_beams() < int(level + rng.random())
    return sweep.select(alive[sweep.ring])


def _point_drop(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    return sweep.select(rng.random(len(sweep)) >= level)


def _density_decrease(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Every ring loses its points evenly along the turn: a slower firing rate, not chance.

    The k-th point of a ring is lost where frac(k phi + start) falls below the share (phi the golden ratio), which
    spaces the lost points evenly at every share and nests them.
    """
    order = np.lexsort((azimuth_rad(sweep), sweep.ring))
    ring = sweep.ring[order]
    number = np.arange(len(ring)) - np.searchsorted(ring, ring)
    turn = np.empty(len(ring))
    turn[order] = (number * ((1 + np.sqrt(5)) / 2) + rng.random(256)[ring]) % 1.0
    return sweep.select(turn >= level)


def _cross_sensor(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """A LiDAR of less resolution: that share of the beams, and of the firings along the turn."""
    firing = (np.rad2deg(azimuth_rad(sweep)) / COLUMN_DEG).astype(np.int64)
    start = rng.random()
    fires = (firing * ((1 + np.sqrt(5)) / 2) + start) % 1.0 < level
    alive = np.zeros(256, bool)
    alive[:LIDAR_BEAMS] = _evenly_ranked_beams() < level * LIDAR_BEAMS
    return sweep.select(alive[sweep.ring] & fires)


def _cutout(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Holes: the nearest 2 % of all points around a random one each; part of a hole for a fraction of one."""
    centers = rng.random(_MOST_CUTS)
    lost = np.zeros(len(sweep), bool)
    for k in range(min(int(np.ceil(level)), _MOST_CUTS)):
        size = int(np.ceil(_CUT_SHARE * min(level - k, 1.0) * len(sweep)))
        if not 0 < size < len(sweep):
            continue
        distance = np.square(sweep.xyz_m - sweep.xyz_m[int(centers[k] * len(sweep))]).sum(axis=1)
        lost[np.argpartition(distance, size)[:size]] = True
    return sweep.select(~lost)


def azimuth_rad(sweep: LidarSweep) -> Float[np.ndarray, "n"]:
    """Direction of each point in the sensor frame, counter-clockwise from its x axis, in [0, 2 pi]."""
    return np.arctan2(sweep.xyz_m[:, 1], sweep.xyz_m[:, 0]) + np.pi


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
LIDAR_BEAMS_KEPT = SensorFault(
    "lidar_beams_kept",
    "points",
    "lidar",
    "beams kept of 32",
    (24.0, 16.0, 8.0, 4.0, 1.0),
    effect=_beams_kept,
    per_sweep=False,
    clean=32.0,
    worst=0.0,
)
LIDAR_POINT_DROP = SensorFault(
    "lidar_point_drop", "points", "lidar", "share of points", (0.1, 0.3, 0.5, 0.7, 0.9), effect=_point_drop, worst=1.0
)
LIDAR_DENSITY_DECREASE = SensorFault(
    "lidar_density_decrease",
    "points",
    "lidar",
    "share of points",
    (0.06, 0.12, 0.18, 0.24, 0.3),
    effect=_density_decrease,
    worst=1.0,
)
LIDAR_CROSS_SENSOR = SensorFault(
    "lidar_cross_sensor",
    "points",
    "lidar",
    "share of beams and of firings",
    (0.75, 0.5, 0.35, 0.25, 0.125),
    effect=_cross_sensor,
    per_sweep=False,
    clean=1.0,
    worst=0.0,
)
LIDAR_CUTOUT = SensorFault(
    "lidar_cutout",
    "points",
    "lidar",
    "holes of 2 % of the points",
    (2.0, 3.0, 5.0, 7.0, 10.0),
    effect=_cutout,
    worst=float(_MOST_CUTS),
)

LOSS_FAULTS = (
    *(LIDAR_BEAM_DROP, LIDAR_BEAMS_KEPT, LIDAR_POINT_DROP),
    *(LIDAR_DENSITY_DECREASE, LIDAR_CROSS_SENSOR, LIDAR_CUTOUT),
)
