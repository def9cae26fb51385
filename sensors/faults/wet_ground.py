"""Wet ground on LiDAR: a film of water mirrors the beam away (Hahner et al., LiDAR snowfall, CVPR 2022, section 3.2).

The level is the height of the water in mm; pavement of 1.2 mm depth is covered from there on.
"""

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.lidar_fog import clear_air_headroom, echoes_at, range_of
from sensors.faults.protocol import Number, SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

PAVEMENT_DEPTH_MM = 1.2
AIR_INDEX, WATER_INDEX = 1.0003, 1.33
_DIFFUSE_FULL_SCALE = 100.0
_GROUND_BAND_M, _PLANE_BAND_M, _PLANE_RADIUS_M = 0.3, 0.6, 40.0
_FEWEST_FOR_PLANE, _ENOUGH_FOR_PLANE = 100, 3000


def wet_ground(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Ground points fade with the share of the pavement that is under water, and weak ones are lost."""
    range_m = range_of(sweep)
    headroom = clear_air_headroom(sweep.intensity, range_m, rng)
    cos_incidence, ground = incidence_on_ground(sweep, range_m)
    left = np.where(ground, left_on_wet_ground(sweep.intensity, cos_incidence, level), 1.0)
    return echoes_at(sweep, range_m, range_m, left * sweep.intensity, left * headroom >= 1)


def left_on_wet_ground(
    intensity: Float[np.ndarray, "n"], cos_incidence: Float[np.ndarray, "n"], water_mm: Number
) -> Float[np.ndarray, "n"]:
    """Share of the dry echo that is left.

    Intensities up to 100 are calibrated diffuse reflectivities in percent (Velodyne), at least 5 %. Wet reflectivity is
    the mean over both polarisations; the published weights take the larger one over the angle in radians.
    """
    reflectivity = np.clip(intensity / _DIFFUSE_FULL_SCALE, 0.05, 1.0)
    s, p = through_water(np.arccos(np.clip(cos_incidence, 0, 1)), reflectivity)
    covered = min(max(water_mm / PAVEMENT_DEPTH_MM, 0.0), 1.0)
    return np.minimum((1 - covered) + covered * (s + p) / 2 / reflectivity, 1.0)


def through_water(
    incidence_rad: Float[np.ndarray, "n"], reflectivity: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Reflectivity of a ground under water, for s and p polarisation: in, off the ground, and out again.

    t_in rho t_out / (1 - rho r_out): what the surface throws back from below is reflected once more.
    """
    inside_rad = np.arcsin(np.minimum(AIR_INDEX / WATER_INDEX * np.sin(incidence_rad), 1))
    into = fresnel_reflectance(incidence_rad, inside_rad, AIR_INDEX, WATER_INDEX)
    out = fresnel_reflectance(inside_rad, incidence_rad, WATER_INDEX, AIR_INDEX)
    s, p = ((1 - a) * reflectivity * (1 - b) / (1 - reflectivity * b) for a, b in zip(into, out, strict=True))
    return s, p


def fresnel_reflectance(
    in_rad: Float[np.ndarray, "n"], out_rad: Float[np.ndarray, "n"], n_in: Number, n_out: Number
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Share of the power that a surface reflects, for s and p polarisation; the rest is transmitted."""
    a, b = np.cos(in_rad), np.cos(out_rad)
    s = ((n_in * a - n_out * b) / (n_in * a + n_out * b)) ** 2
    p = ((n_out * a - n_in * b) / (n_out * a + n_in * b)) ** 2
    return s, p


def incidence_on_ground(
    sweep: LidarSweep, range_m: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Cosine of the angle between each ray and the ground's normal, and which points are ground (within 0.3 m)."""
    xyz_m = sweep.to_ego().astype(np.float64)
    a, b, c = ground_plane(xyz_m)
    height_m = (xyz_m[:, 2] - a * xyz_m[:, 0] - b * xyz_m[:, 1] - c) / np.sqrt(1 + a * a + b * b)
    origin = sweep.ego_from_lidar.translation_m
    above_m = (origin[2] - a * origin[0] - b * origin[1] - c) / np.sqrt(1 + a * a + b * b)
    ground = (np.abs(height_m) < _GROUND_BAND_M) & (above_m > height_m)
    return np.clip((above_m - height_m) / range_m, 0, 1), ground


def ground_plane(xyz_m: Float[np.ndarray, "n 3"]) -> tuple[float, float, float]:
    """z = a x + b y + c in the ego frame: least squares near z = 0, trimmed twice; flat where too few are there."""
    near = (np.abs(xyz_m[:, 2]) < _PLANE_BAND_M) & (np.square(xyz_m[:, :2]).sum(axis=1) < _PLANE_RADIUS_M**2)
    # Every few of them: an odd step, so that it meets all beams in turn.
    points = xyz_m[np.flatnonzero(near)[:: near.sum() // _ENOUGH_FOR_PLANE | 1]]
    if len(points) < _FEWEST_FOR_PLANE:
        return 0.0, 0.0, 0.0
    plane = np.zeros(3)
    for band_m in (_PLANE_BAND_M, 0.3, 0.15):
        design = np.column_stack([points[:, :2], np.ones(len(points))])
        chosen = np.abs(points[:, 2] - design @ plane) < band_m
        if chosen.sum() < _FEWEST_FOR_PLANE:
            break
        # Normal equations of three unknowns: far cheaper than lstsq on 20,000 rows.
        matrix = design[chosen].T @ design[chosen]
        plane = np.linalg.solve(matrix + 1e-6 * np.eye(3), design[chosen].T @ points[chosen, 2])
    return float(plane[0]), float(plane[1]), float(plane[2])


WET_GROUND = SensorFault(
    "lidar_wet_ground", "weather", "lidar", "mm of water", (0.1, 0.3, 0.6, 0.9, 1.2), effect=wet_ground
)
