"""LiDAR weather exactly as other suites publish it; rows and sources as in ``published_lidar``.

Fog: Hahner et al., ICCV 2021. Snow and wet ground: Hahner et al., CVPR 2022. Rain: Kilic et al., LISA, 2021.

Known differences: tables and flakes are drawn by code here, each beam's flakes by themselves and not from pre-drawn
planes; the focal correction uses one nominal laser (24 m, slope .75: the medians of the published laser file); the
ground comes from a trimmed plane fit where a suite uses RANSAC or point labels; rings are kept where the published code
overwrites them with a flag.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.lidar_echoes import strongest_echo
from sensors.faults.lidar_flakes import (
    FLAKE_DENSITY,
    flakes_in_beams,
    flakes_per_m2,
    gunn_slope_per_m,
    occupancy_of,
)
from sensors.faults.lidar_fog import LIGHT_MPS, backscatter_per_sr, overlap_at
from sensors.faults.lidar_rain import drop_of, drops_per_m3, extinction_per_m, visible_drops
from sensors.faults.lidar_snow import FLAKE_REFLECTIVITY, SAME_PLACE_M
from sensors.faults.published_ground import noise_threshold, on_ground, wet_intensities
from sensors.faults.published_lidar import Points

ROBO3D_FOG_ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06)
"""Robo3D's script draws one of these per file; its paper names none."""

_FLAKE_DIAMETER_M = 0.003
_FOCAL_SLOPE, _FOCAL_OFFSET = 0.75, (1 - 2400 / 13100) ** 2
_LISA_REACH_M, _LISA_NEAREST_M, _LISA_ACCURACY_M = 120.0, 0.9, 0.09
_HARD_REFLECTIVITY = 1e-6 / np.pi
_PULSE_HALF_POWER_S = 20e-9
_SNOW_END_M = 120.0


def multicorrupt_fog(points: Points, alpha: float, beta: float, rng: np.random.Generator) -> Points:
    """Fog of its own backscattering coefficient, no limit at 255, range noise r0 / U(r0 - 10, r0 + 10)."""
    return _fog(points, (alpha, beta), 10.0, np.inf, rng)


def robo3d_fog(points: Points, beta: float, rng: np.random.Generator, alpha: float = 0.06) -> Points:
    """As MultiCorrupt's, with a fixed attenuation."""
    return _fog(points, (alpha, beta), 10.0, np.inf, rng)


def thu_fog(points: Points, alpha: float, rng: np.random.Generator) -> Points:
    """Fog with beta = .046 alpha / ln 20, responses limited to 255, range noise r0 / U(r0 - 1, r0 + 1)."""
    return _fog(points, (alpha, backscatter_per_sr(alpha)), 1.0, 255.0, rng)


def _fog(
    points: Points, alpha_beta: tuple[float, float], noise_m: float, limit: float, rng: np.random.Generator
) -> Points:
    alpha, beta = alpha_beta
    range_m = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    hard = np.round(np.exp(-2 * alpha * range_m) * points[:, 3])
    distances, responses = fog_table(float(alpha))
    key = np.clip(np.round(range_m * 10).astype(np.int64), 0, len(distances) - 1)
    soft = np.minimum(responses[key] * points[:, 3] * range_m**2 * beta / _HARD_REFLECTIVITY, limit)
    noise = range_m / rng.uniform(range_m - noise_m, range_m + noise_m)
    foggy = soft > hard
    result = points.copy()
    result[:, 3] = np.where(foggy, soft, hard)
    scale = distances[key][foggy] / range_m[foggy] * noise[foggy]
    result[foggy, :3] = points[foggy, :3] * scale[:, None]
    return result


@lru_cache(maxsize=16)
def fog_table(alpha: float) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "r"]]:
    """Where the fog answers most strongly before a target at 0, 0.1, .. 200 m, and its integral in seconds.

    2000 ranges from 0 to 200 m and 2000 steps of Simpson's rule; distances are shifted by half the pulse, so that they
    are negative for targets nearer than 3 m, as published.
    """
    at_m = np.linspace(0, 200, 2000)
    # From 30 m on the response only falls: the rest of the table repeats its last entry.
    near_m = at_m[at_m <= 30]
    time_s = np.linspace(0, 2 * _PULSE_HALF_POWER_S, 2000)
    source_m = near_m[:, None] - LIGHT_MPS * time_s / 2
    safe_m = np.maximum(source_m, 0.9)
    pulse = np.sin(np.pi / (2 * _PULSE_HALF_POWER_S) * time_s) ** 2
    integrand = pulse * np.exp(-2 * alpha * safe_m) / safe_m**2 * overlap_at(source_m)
    response = _simpson(integrand, time_s[1])
    target_m = np.round(np.arange(2001) * 0.1, 2)
    last = np.searchsorted(near_m, target_m, side="right") - 1
    best = np.maximum.accumulate(np.where(response >= np.maximum.accumulate(response), np.arange(len(near_m)), 0))
    chosen = best[np.clip(last, 0, len(near_m) - 1)]
    return near_m[chosen] - _PULSE_HALF_POWER_S * LIGHT_MPS / 2, response[chosen]


def _simpson(values: Float[np.ndarray, "r t"], step: float) -> Float[np.ndarray, "r"]:
    """For an even number of samples: the mean of leaving out the first and the last interval (by trapezoids)."""

    def odd(part: Float[np.ndarray, "r o"]) -> Float[np.ndarray, "r"]:
        return step / 3 * (part[:, 0] + 4 * part[:, 1:-1:2].sum(1) + 2 * part[:, 2:-1:2].sum(1) + part[:, -1])

    first = odd(values[:, :-1]) + step / 2 * (values[:, -2] + values[:, -1])
    return (first + odd(values[:, 1:]) + step / 2 * (values[:, 0] + values[:, 1])) / 2


def thu_rain(points: Points, rate_mmph: float, rng: np.random.Generator) -> Float[np.ndarray, "n 6"]:
    """LISA's rain; a sixth column says 0 lost, 1 scattered, 2 kept. Lost points stay, with zeros everywhere.

    Intensities are used as they come, though LISA asks for 0 to 1: few points are ever lost. Drops that cannot be seen
    are not drawn, which changes no result: of N drops, each is seen with a probability that the range alone sets.
    """
    range_m = np.linalg.norm(points[:, :3].astype(np.float64), axis=1)
    weakest = 0.9 / _LISA_REACH_M**2
    left = np.exp(-2 * extinction_per_m(rate_mmph) * range_m)
    power = points[:, 3] * left / np.maximum(range_m, 1e-6) ** 2
    drop_m, drop_power = _lisa_drops(range_m, rate_mmph, weakest, rng)
    lost = ((power < weakest) & (drop_power < weakest)) | (points[:, 3] == 0)
    scattered = ~lost & (drop_power > power)
    noise = rng.standard_normal(len(points)) * _LISA_ACCURACY_M / np.sqrt(2 * np.maximum(power, 1e-12) / weakest)
    new_m = np.where(scattered, drop_m, range_m + noise)
    result = np.zeros((len(points), 6))
    result[:, :3] = points[:, :3] * (new_m / np.maximum(range_m, 1e-6))[:, None]
    result[:, 3] = np.where(scattered, drop_power * drop_m**2, points[:, 3] * left)
    result[:, 4] = points[:, 4]
    result[:, 5] = np.where(scattered, 1, 2)
    result[lost] = 0
    return result


def _lisa_drops(
    range_m: Float[np.ndarray, "n"], rate_mmph: float, weakest: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Range and power of the strongest drop that is not too weak to be seen; (1, 0) where there is none."""
    drops = visible_drops(float(rate_mmph), weakest)
    volume_m3 = np.pi / 3 * range_m * (np.tan(3e-3) * range_m / 2) ** 2
    mean = np.where(range_m > _LISA_NEAREST_M, drops_per_m3(rate_mmph) * volume_m3, 0.0)
    number = (np.floor(mean) + (rng.random(len(range_m)) < mean % 1)).astype(np.int64)
    visible = np.interp(range_m, drops.range_m, drops.nearer)
    seen = rng.binomial(number, np.clip(visible / np.maximum(mean, 1e-12), 0, 1))
    best_m, best = np.ones(len(range_m)), np.zeros(len(range_m))
    for k in range(int(seen.max(initial=0))):
        beam = np.flatnonzero(seen > k)
        at_m, power = drop_of(drops, visible[beam] * rng.random(len(beam)), rng.random(len(beam)), rate_mmph)
        stronger = power > best[beam]
        best_m[beam[stronger]], best[beam[stronger]] = at_m[stronger], power[stronger]
    return best_m, best


def multicorrupt_snow(points: Points, snowfall_mmph: float, velocity_mps: float, rng: np.random.Generator) -> Points:
    """Snow with a noise floor of .7."""
    return _snow(
        points, published_rain_rate(snowfall_mmph, velocity_mps), occupancy_of(snowfall_mmph, velocity_mps), rng
    )


def robo3d_snow(points: Points, snowfall_mmph: float, velocity_mps: float, rng: np.random.Generator) -> Points:
    """Snow with a noise floor of .7."""
    return multicorrupt_snow(points, snowfall_mmph, velocity_mps, rng)


def thu_snow(points: Points, rain_rate_mmph: float, occupancy: float, rng: np.random.Generator) -> Points:
    """Snow of given flakes (rates 2.62/42.7/200/368/791 at 7.7e-7 to 3.5e-5), floor .7, then 1 mm of water."""
    snowy = _snow(points, rain_rate_mmph, occupancy, rng)
    return _wet(snowy, *on_ground(snowy), water_mm=1.0, noise_floor=0.7)


def published_rain_rate(snowfall_mmph: float, velocity_mps: float) -> float:
    """The rate that the published code puts into Gunn and Marshall's law."""
    return (snowfall_mmph / (487 * FLAKE_DENSITY * _FLAKE_DIAMETER_M * velocity_mps)) ** 1.5


def _snow(points: Points, rain_rate_mmph: float, occupancy: float, rng: np.random.Generator) -> Points:
    """In a beam with flakes the target counts as a flake at its own distance, as published: a reused variable."""
    range_m = np.maximum(np.linalg.norm(points[:, :3].astype(np.float64), axis=1), 1e-3)
    slope = gunn_slope_per_m(rain_rate_mmph)
    flakes = flakes_in_beams(range_m, flakes_per_m2(occupancy, slope), slope, rng)
    open_share = 1 - np.bincount(flakes.beam, flakes.share, len(points))
    beams, beam = np.unique(flakes.beam, return_inverse=True)
    echo_beam = np.concatenate([beam, np.arange(len(beams))])
    echo_m = np.concatenate([flakes.distance_m, np.minimum(range_m[beams], _SNOW_END_M)])
    share = np.concatenate([flakes.share, open_share[beams]])
    peak_m, peak = strongest_echo(echo_beam, echo_m, FLAKE_REFLECTIVITY * 255 * share * overlap_at(echo_m) / echo_m**2)
    seen = np.clip(peak + 255 * _FOCAL_SLOPE * np.abs(_FOCAL_OFFSET - (1 - peak_m / 120) ** 2), 0, 255)
    moved = np.abs(peak_m - range_m[beams]) >= SAME_PLACE_M
    result = points.copy()
    result[beams, 3] = np.floor(seen)
    result[beams[moved], :3] *= (peak_m / range_m[beams])[moved, None].astype(points.dtype)
    scattered = np.zeros(len(points), bool)
    scattered[beams[moved]] = True
    threshold = noise_threshold(points, range_m, noise_floor=0.7)
    return result[scattered | (result[:, 3] > threshold)]


def robo3d_wet_ground(
    points: Points, ground: Bool[np.ndarray, "n"], water_height_mm: float, noise_floor: float
) -> Points:
    """Water on the ground points (published: from point labels); fewer than 1000 of them stay as they are."""
    range_m = np.maximum(np.linalg.norm(points[:, :3].astype(np.float64), axis=1), 1e-3)
    return _wet(points, ground, -points[:, 2] / range_m, water_height_mm, noise_floor)


def _wet(
    points: Points,
    ground: Bool[np.ndarray, "n"],
    cos_incidence: Float[np.ndarray, "n"],
    water_mm: float,
    noise_floor: float,
) -> Points:
    """All others first, then the ground points that are still seen."""
    if ground.sum() < 1000:
        return points
    intensity, threshold = wet_intensities(points[ground], cos_incidence[ground], water_mm, noise_floor)
    wet = points[ground].copy()
    wet[:, 3] = intensity
    return np.concatenate([points[~ground], wet[intensity > threshold]])
