"""How the published snow and wet ground guess a laser's power and noise from the ground points of a sweep.

Rows x y z intensity ring in the sensor frame. Source: Hahner et al., CVPR 2022.
"""

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.published_lidar import Points
from sensors.faults.wet_ground import PAVEMENT_DEPTH_MM, through_water

_POWER_FACTOR = 15.0
_BAND_M, _LOWEST_M, _HIGHEST_M, _DEFAULT_M = 0.5, -2.1, -1.3, -1.85
_RANGE_BINS, _INTENSITY_BINS = 50, 2555


def on_ground(points: Points) -> tuple[Bool[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Points within half a metre of the ground's plane, and the cosine of each ray's angle to its normal."""
    xyz = points[:, :3].astype(np.float64)
    slope_x, slope_y, height_m = _plane(xyz)
    normal = np.array([slope_x, slope_y, -1.0])
    normal /= np.linalg.norm(normal)
    down_m = xyz @ normal
    range_m = np.maximum(np.linalg.norm(xyz, axis=1), 1e-3)
    return np.abs(down_m + height_m) < _BAND_M, np.clip(down_m / range_m, -1, 1)


def noise_threshold(points: Points, range_m: Float[np.ndarray, "n"], noise_floor: float) -> Float[np.ndarray, "n"]:
    """The intensity below which nothing is seen, a parabola over range fitted to the ground; 0 without ground."""
    ground, cos_incidence = on_ground(points)
    ground &= cos_incidence > 1e-2
    if ground.sum() < 3:
        return np.zeros(len(points))
    cosine = cos_incidence[ground]
    _, threshold = laser_parameters(points[ground], cosine, noise_floor)
    return np.polyval(np.polyfit(range_m[ground], threshold * cosine, 2), range_m)


def laser_parameters(
    ground: Points, cos_incidence: Float[np.ndarray, "n"], noise_floor: float, lowest: float = 5.0
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Emitted power and noise threshold of each ground point, both straight lines over range.

    The power is 15 times the regression of intensity over cosine. The noise is the regression of the weakest intensity
    bin of each of 50 range bins (10 to 70 m), where more than three are above 5; else that of the power.
    """
    range_m = np.linalg.norm(ground[:, :3].astype(np.float64), axis=1)
    normalised = ground[:, 3] / cos_incidence
    line = np.polyfit(range_m, normalised, 1)
    top = max(abs(float(normalised.max())), lowest + 1e-3)
    histogram, range_edges, edges = np.histogram2d(
        range_m, normalised, bins=(_RANGE_BINS, _INTENSITY_BINS), range=((10, 70), (lowest, top))
    )
    histogram[histogram == 0] = len(ground)
    weakest = edges[histogram.argmin(axis=1)]
    used = np.flatnonzero(weakest > 5)
    noise = line
    if len(used) > 3:
        noise = np.polyfit((range_edges[used] + range_edges[used + 1]) / 2, weakest[used], 1)
    return _POWER_FACTOR * np.polyval(line, range_m), noise_floor * np.polyval(noise, range_m)


def wet_intensities(
    ground: Points, cos_incidence: Float[np.ndarray, "n"], water_mm: float, noise_floor: float
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """New intensities of ground points and what they must exceed to be seen.

    tw = (1 - f) rho + f t / theta, with theta in radians and the larger polarisation, as published.
    """
    cosine = np.clip(cos_incidence, 1e-3, 1)
    theta = np.maximum(np.arccos(cosine), 1e-3)
    power, threshold = laser_parameters(ground, cosine, noise_floor, lowest=0.0)
    reflectivity = ground[:, 3] / cosine / np.where(power == 0, 1e-9, power)
    t = np.maximum(*through_water(theta, np.clip(reflectivity, 0.05, 1)))
    covered = np.clip(water_mm / PAVEMENT_DEPTH_MM, 0, 1)
    weight = (1 - covered) * reflectivity + covered * t / theta
    intensity = np.minimum(np.maximum(power * cosine * weight, 0), ground[:, 3])
    threshold = threshold * cosine
    return np.where(intensity < threshold, 0.0, intensity), threshold


def _plane(xyz_m: Float[np.ndarray, "n 3"]) -> tuple[float, float, float]:
    """z = a x + b y + h where the ground of this vehicle should be; flat at -1.85 m where nothing sensible fits."""
    near = xyz_m[(xyz_m[:, 2] < _HIGHEST_M) & (xyz_m[:, 2] > _LOWEST_M)]
    for _ in range(3):
        if len(near) < 25:
            return 0.0, 0.0, _DEFAULT_M
        design = np.column_stack([near[:, :2], np.ones(len(near))])
        plane = np.linalg.lstsq(design, near[:, 2], rcond=None)[0]
        off = np.abs(near[:, 2] - design @ plane)
        near = near[off <= max(np.median(off) * 2.5, 0.02)]
    if not _LOWEST_M <= plane[2] <= _HIGHEST_M:
        return 0.0, 0.0, _DEFAULT_M
    return float(plane[0]), float(plane[1]), float(plane[2])
