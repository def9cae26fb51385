"""Rain on LiDAR: extinction, and echoes of single drops (Kilic et al., LISA, 2021; Marshall-Palmer drops).

The level is the rain rate in mm/h. Of the thousands of drops in a beam only the few near the sensor are strong enough
to be seen: exactly those are drawn, from a table of how many visible drops lie nearer than each range.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sensors.faults.lidar_fog import OVERLAP_M, WEAKEST_POWER, clear_air_headroom, echoes_at, range_of
from sensors.faults.protocol import Number, SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

RAIN_LEVELS = (2.0, 5.0, 12.0, 25.0, 50.0)
DIVERGENCE_RAD = 3e-3
SMALLEST_DROP_MM = 0.05
RANGE_ACCURACY_M = 0.09
RANGE_STEP_M = 0.002
"""In which a HDL-32E counts distances."""
WATER_INDEX = 1.328
_DROP_REFLECTIVITY = ((WATER_INDEX - 1) / (WATER_INDEX + 1)) ** 2
_WAVELENGTH_MM = 905e-6
_TABLE_END_M, _TABLE_STEP_M = 20.0, 0.02


class VisibleDrops(NamedTuple):
    """Of one rain rate, by range: mean number of visible drops nearer than it, and the smallest visible diameter."""

    range_m: Float[np.ndarray, "r"]
    nearer: Float[np.ndarray, "r"]
    diameter_mm: Float[np.ndarray, "r"]


def lidar_rain(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Targets fade, weak ones are lost, and a drop near the sensor may outshine its target."""
    range_m = range_of(sweep)
    headroom = clear_air_headroom(sweep.intensity, range_m, rng)
    noise = rng.standard_normal(len(sweep))
    drop_m, drop_power = strongest_drop(range_m, level, rng)
    seen_m, intensity, kept = rainy_echoes(range_m, sweep.intensity, level, (headroom, noise), (drop_m, drop_power))
    return echoes_at(sweep, range_m, seen_m, intensity, kept)


def rainy_echoes(
    range_m: Float[np.ndarray, "n"],
    intensity: Float[np.ndarray, "n"],
    rate_mmph: Number,
    drawn: tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]],
    drop: tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Range, intensity and whether anything is seen.

    Args:
        drawn: headroom in clear air, and standard normal noise.
        drop: range and power of the strongest visible drop before the target; power 0 where there is none.
    """
    headroom, noise = drawn
    drop_m, drop_power = drop
    left = np.exp(-2 * extinction_per_m(rate_mmph) * range_m)
    clear_power = np.maximum(intensity / (255 * range_m**2), WEAKEST_POWER)
    from_drop = drop_power > clear_power * left
    # LISA's sigma is dR / sqrt(2 SNR); the clear measurement already holds what is due to clear air.
    added_m = RANGE_ACCURACY_M * np.sqrt(0.5 * WEAKEST_POWER / clear_power * (1 / left - 1)) * noise
    added_m = np.rint(added_m / RANGE_STEP_M) * RANGE_STEP_M
    seen_m = np.where(from_drop, drop_m, np.maximum(range_m + added_m, 0.1))
    seen = np.where(from_drop, np.minimum(255 * drop_power * drop_m**2, 255), left * intensity)
    return seen_m, seen, from_drop | (left * headroom >= 1)


def strongest_drop(
    range_m: Float[np.ndarray, "n"], rate_mmph: Number, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Range and power of the strongest visible drop before each target; (1, 0) where there is none.

    The number of drops is Poisson, by one draw per beam that is common to all rain rates; so are the drops' own draws.
    """
    drops = visible_drops(float(rate_mmph), WEAKEST_POWER)
    mean = np.interp(range_m, drops.range_m, drops.nearer)
    count = poisson_quantile(mean, rng.random(len(range_m)))
    best_m, best = np.ones(len(range_m)), np.zeros(len(range_m))
    for k in range(int(count.max(initial=0))):
        place, size = rng.random((2, len(range_m)))
        beam = np.flatnonzero(count > k)
        drop_m, power = drop_of(drops, mean[beam] * place[beam], size[beam], rate_mmph)
        stronger = power > best[beam]
        best_m[beam[stronger]], best[beam[stronger]] = drop_m[stronger], power[stronger]
    return best_m, best


def drop_of(
    drops: VisibleDrops, nearer: Float[np.ndarray, "k"], size: Float[np.ndarray, "k"], rate_mmph: Number
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Range and power of the drops that have so many visible ones before them; sizes above the visible are exponential.

    Power: Fresnel reflection, times the share of the beam's section, times extinction, over r^2.
    """
    drop_m = np.interp(nearer, drops.nearer, drops.range_m)
    smallest_mm = np.interp(drop_m, drops.range_m, drops.diameter_mm)
    diameter_mm = smallest_mm - np.log1p(-size) / _slope_per_mm(rate_mmph)
    share = np.minimum(diameter_mm / (1e3 * np.tan(DIVERGENCE_RAD) * drop_m), 1) ** 2
    return drop_m, _DROP_REFLECTIVITY * np.exp(-2 * extinction_per_m(rate_mmph) * drop_m) * share / drop_m**2


@lru_cache(maxsize=64)
def visible_drops(rate_mmph: float, weakest_power: float) -> VisibleDrops:
    """The table behind the drops of one beam, a cone of DIVERGENCE_RAD, from 0.9 m on."""
    range_m = np.arange(OVERLAP_M[0], _TABLE_END_M, _TABLE_STEP_M)
    slope = _slope_per_mm(rate_mmph)
    beam_mm = 1e3 * np.tan(DIVERGENCE_RAD) * range_m
    strongest = _DROP_REFLECTIVITY * np.exp(-2 * extinction_per_m(rate_mmph) * range_m) / range_m**2
    diameter_mm = np.maximum(beam_mm * np.sqrt(weakest_power / strongest), SMALLEST_DROP_MM)
    per_m3 = np.where(strongest >= weakest_power, 8000 / slope * np.exp(-slope * diameter_mm), 0.0)
    per_m = per_m3 * np.pi * (beam_mm / 2e3) ** 2
    steps = (per_m[1:] + per_m[:-1]) / 2 * _TABLE_STEP_M
    return VisibleDrops(range_m, np.concatenate([[0.0], np.cumsum(steps)]), diameter_mm)


def drops_per_m3(rate_mmph: Number) -> float:
    """Of at least the smallest diameter."""
    slope = _slope_per_mm(rate_mmph)
    return 8000 / slope * float(np.exp(-slope * SMALLEST_DROP_MM))


@lru_cache(maxsize=256)
def extinction_per_m(rate_mmph: Number) -> float:
    """alpha, the integral of pi/4 D^2 Q(D) N(D) over the diameters."""
    diameter_mm = np.geomspace(1e-3, 12, 2000)
    number = 8000 * np.exp(-_slope_per_mm(rate_mmph) * diameter_mm)
    integrand = diameter_mm**2 * extinction_efficiency(diameter_mm) * number
    steps = (integrand[1:] + integrand[:-1]) / 2 * np.diff(diameter_mm)
    return float(1e-6 * np.pi / 4 * steps.sum())


def extinction_efficiency(diameter_mm: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """Q of a sphere large against the wavelength: 2 + 1.992 x^(-2/3) (Nussenzveig & Wiscombe, 1980), ripple left out.

    Drops below a few micrometres, where it does not hold, have no part in rain's extinction.
    """
    return 2 + 1.992386 * (np.pi * diameter_mm / _WAVELENGTH_MM) ** (-2 / 3)


def poisson_quantile(mean: Float[np.ndarray, "n"], uniform: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """The count whose cumulative probability first exceeds ``uniform``: grows with the mean under the same draw."""
    count = np.zeros(len(mean), np.int64)
    term = np.exp(-mean)
    rest = np.flatnonzero(uniform >= term)
    term, left = term[rest], uniform[rest] - term[rest]
    number = 0
    while len(rest):
        number += 1
        count[rest] = number
        term = term * mean[rest] / number
        more = (left >= term) & (number < 20 + 4 * mean[rest])
        rest, left, term = rest[more], (left - term)[more], term[more]
    return count


def _slope_per_mm(rate_mmph: Number) -> float:
    return 4.1 * float(rate_mmph) ** -0.21


LIDAR_RAIN = SensorFault("lidar_rain", "weather", "lidar", "mm/h", RAIN_LEVELS, effect=lidar_rain, worst=150.0)
