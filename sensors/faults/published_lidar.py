"""LiDAR corruptions exactly as other suites publish them, quirks included; our own definitions are in ``lidar_*``.

All act on rows x y z intensity ring in the sensor frame (metres, 0..255, 0..31) and return new rows: columns that a
suite disturbs by mistake (noise on rings and intensities) are disturbed here too. ``rows_of`` and ``sweep_of`` lead
there and back. Corruptions of single objects are in ``published_objects``, weather is in ``published_weather``.

Sources: Beemelmanns et al., MultiCorrupt, IV 2024; Dong et al., Benchmarking Robustness of 3D Object Detection, CVPR
2023 (``thu``); Kong et al., Robo3D, ICCV 2023; Yu et al., Benchmarking the Robustness of LiDAR-Camera Fusion, CVPRW
2023 (``adlab``); D2ICE. Written from their published definitions.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from sensors.lidar import LidarSweep
from sensors.transforms import RigidTransform

Points = Float[np.ndarray, "_ 5"]
"""Rows x y z intensity ring."""

_KEPT_BEAMS = {16: range(1, 32, 2), 8: range(1, 32, 4), 4: range(1, 32, 8)}
_CROSS_SENSOR_STEP = {8: 4, 16: 2, 24: 1.33}
_SEGMENTS = 100


def rows_of(sweep: LidarSweep) -> Points:
    """x y z intensity ring of a sweep."""
    return np.concatenate([sweep.xyz_m, sweep.intensity[:, None], sweep.ring[:, None].astype(np.float32)], axis=1)


def sweep_of(rows: Float[np.ndarray, "n f"], like: LidarSweep) -> LidarSweep:
    """The rows with pose and lag of ``like``; rings are rounded, columns after the fifth are left out."""
    return replace(
        like,
        xyz_m=np.ascontiguousarray(rows[:, :3]).astype(like.xyz_m.dtype),
        intensity=rows[:, 3].astype(like.intensity.dtype),
        ring=np.clip(np.rint(rows[:, 4]), 0, 255).astype(np.uint8),
    )


def multicorrupt_spatial_misalignment(
    points: Points, probability: float, angle_deg: float, rng: np.random.Generator
) -> Points:
    """With that probability turned about x, y and z by the same angle and moved by 2 m along x."""
    if rng.random() >= probability:
        return points
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    about_x = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    about_y = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    about_z = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    moved = points[:, :3] @ (about_x @ about_y @ about_z).T + [2.0, 0.0, 0.0]
    return _with_xyz(points, moved)


def multicorrupt_beams_reducing(points: Points, num_kept: int) -> Points:
    """The points of 16, 8 or 4 rings: every second, fourth or eighth from ring 1 on."""
    return points[np.isin(points[:, 4], list(_KEPT_BEAMS[num_kept]))]


def multicorrupt_points_reducing(points: Points, dropped_percent: float, rng: np.random.Generator) -> Points:
    """A random share without replacement, in random order."""
    num_kept = round(len(points) * (100 - dropped_percent) / 100)
    return points[rng.permutation(len(points))[:num_kept]]


def multicorrupt_motion_blur(points: Points, sigma_m: float, rng: np.random.Generator) -> Points:
    """One offset of the whole cloud, and jitter of each point of 15, 20 and 12 % of it in x, y and z."""
    return _blurred(points, sigma_m, (0.15, 0.2, 0.12), rng)


def thu_noise_on_points(points: Points, share: float, sigma: float, rng: np.random.Generator) -> Points:
    """Scene glare (share .01 to .05, sigma 2) and crosstalk (.004 to .02, sigma 3): N(0, sigma) on all columns."""
    hit = rng.choice(len(points), int(share * len(points)), replace=False)
    noisy = points.copy()
    noisy[hit] += (sigma * rng.standard_normal((len(hit), points.shape[1]))).astype(points.dtype)
    return noisy


def thu_density_decrease(points: Points, fifths: int, rng: np.random.Generator) -> Points:
    """That many fifths of 30 % of the points are lost."""
    num_dropped = int((0.2, 0.4, 0.6, 0.8, 1.0)[fifths - 1] * int(len(points) * 0.3))
    return np.delete(points, rng.choice(len(points), num_dropped, replace=False), axis=0)


def thu_cutout(points: Points, num_cuts: int, rng: np.random.Generator) -> Points:
    """Each cut loses the nearest 2 % (of the original number) around a random point; near in all five columns."""
    size = int(len(points) * 0.02)
    for _ in range(num_cuts):
        points = without_nearest(points, size, rng)
    return points


def without_nearest(points: Points, num_dropped: int, rng: np.random.Generator) -> Points:
    """The points without the nearest ones around one of them, distances over all columns."""
    if not 0 < num_dropped < len(points):
        return points
    distance = np.square(points - points[rng.integers(len(points))]).sum(axis=1)
    return np.delete(points, np.argpartition(distance, num_dropped)[:num_dropped], axis=0)


def thu_gaussian_noise(points: Points, sigma: float, rng: np.random.Generator) -> Points:
    """N(0, sigma) on all columns."""
    return (points + sigma * rng.standard_normal(points.shape)).astype(points.dtype)


def thu_uniform_noise(points: Points, half_width: float, rng: np.random.Generator) -> Points:
    """U(-w, w) on all columns."""
    return (points + rng.uniform(-half_width, half_width, points.shape)).astype(points.dtype)


def thu_impulse_noise(points: Points, divisor: int, rng: np.random.Generator) -> Points:
    """One point in ``divisor`` (30, 25, 20, 15, 10) is off by +-0.1 in all columns."""
    hit = rng.choice(len(points), len(points) // divisor, replace=False)
    noisy = points.copy()
    noisy[hit] += rng.choice([-0.1, 0.1], (len(hit), points.shape[1])).astype(points.dtype)
    return noisy


def thu_fov_lost(points: Points, half_angle_deg: float) -> Points:
    """Points within the angle from +y, the front of nuScenes' LiDAR frame."""
    return points[np.abs(np.rad2deg(np.arctan2(points[:, 0], points[:, 1]))) <= half_angle_deg]


def thu_motion_compensation(points: Points, sigma_m: float, sigma_entry: float, rng: np.random.Generator) -> Points:
    """A wrong pose for each of 100 segments of the turn: noise on the nine entries and the translation.

    The noisy 3x3 matrix is no rotation, as published. The pose of a segment relative to the sweep is the identity here.
    """
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    segment = np.minimum(((azimuth + np.pi) / (2 * np.pi) * _SEGMENTS).astype(np.int64), _SEGMENTS - 1)
    entries = np.eye(3) + sigma_entry * rng.standard_normal((_SEGMENTS, 3, 3))
    shift = sigma_m * rng.standard_normal((_SEGMENTS, 3))
    return _with_xyz(points, np.einsum("nij,nj->ni", entries[segment], points[:, :3]) + shift[segment])


def thu_spatial_misalignment(
    matrix: Float[np.ndarray, "4 4"], sigma_m: float, sigma_entry: float, rng: np.random.Generator
) -> Float[np.ndarray, "4 4"]:
    """Noise on the nine entries of a pose (so it is no rotation any more) and on its translation.

    The listed .02 to .10 m and .002 to .010 are doubled in the published code: pass .04 to .20 and .004 to .020.
    """
    noisy = matrix.copy()
    noisy[:3, :3] += sigma_entry * rng.standard_normal((3, 3))
    noisy[:3, 3] += sigma_m * rng.standard_normal(3)
    return noisy


def robo3d_motion_blur(points: Points, sigma_m: float, rng: np.random.Generator) -> Points:
    """One offset of the whole cloud, and jitter of each point of 10, 10 and 5 % of it in x, y and z."""
    return _blurred(points, sigma_m, (0.1, 0.1, 0.05), rng)


def robo3d_beam_missing(points: Points, num_draws: int, rng: np.random.Generator) -> Points:
    """Rings drawn from 2..28 with replacement, so fewer distinct ones than draws."""
    return points[~np.isin(points[:, 4], rng.integers(2, 29, num_draws))]


def robo3d_crosstalk(points: Points, share: float, rng: np.random.Generator) -> Points:
    """N(0, 3) on x y z and intensity of a share of the points."""
    hit = rng.choice(len(points), int(share * len(points)), replace=False)
    noisy = points.copy()
    noisy[hit, :4] += (3 * rng.standard_normal((len(hit), 4))).astype(points.dtype)
    return noisy


def robo3d_cross_sensor(points: Points, num_dropped: int) -> Points:
    """8, 16 or 24 rings are lost, then every second point in the order of the file."""
    dropped = np.arange(1, 32, _CROSS_SENSOR_STEP[num_dropped]).astype(np.int64)
    return points[~np.isin(points[:, 4], dropped)][::2]


def adlab_limited_view(points: Points, half_angle_deg: float) -> Points:
    """Points within the angle from +y, the front of nuScenes' LiDAR frame."""
    return thu_fov_lost(points, half_angle_deg)


def adlab_extrinsic_noise(
    transform: RigidTransform, angle_deg: tuple[float, float], shift_m: tuple[float, float], rng: np.random.Generator
) -> RigidTransform:
    """A random axis, the angle and shift (each axis) from the given ranges, at the destination side.

    The published code converts degrees by pi / 360, so half of the named angle is applied; so it is here.
    """
    axis = rng.standard_normal(3)
    half_turn = np.deg2rad(rng.uniform(*angle_deg) / 2) / 2
    quaternion = np.concatenate([[np.cos(half_turn)], np.sin(half_turn) * axis / np.linalg.norm(axis)])
    shift = rng.uniform(*shift_m, 3) * rng.choice([-1.0, 1.0], 3)
    return RigidTransform.from_quaternion(quaternion, shift) @ transform


def d2ice_sector_drop(points: Points, width_deg: float, dropped_share: float, rng: np.random.Generator) -> Points:
    """A random sector (published: 90 deg) loses a share (70 %) of its points; 360 deg and .5 for the 50 % drop."""
    middle = rng.uniform(-np.pi, np.pi)
    away = np.abs((np.arctan2(points[:, 1], points[:, 0]) - middle + np.pi) % (2 * np.pi) - np.pi)
    return points[(away > np.deg2rad(width_deg) / 2) | (rng.random(len(points)) >= dropped_share)]


def _blurred(points: Points, sigma_m: float, jitter: tuple[float, float, float], rng: np.random.Generator) -> Points:
    offset = sigma_m * rng.standard_normal(3)
    each = rng.standard_normal((len(points), 3)) * sigma_m * np.array(jitter)
    return _with_xyz(points, points[:, :3] + offset + np.clip(each, -3 * sigma_m, 3 * sigma_m))


def _with_xyz(points: Points, xyz_m: Float[np.ndarray, "n 3"]) -> Points:
    return np.concatenate([xyz_m.astype(points.dtype), points[:, 3:]], axis=1)
