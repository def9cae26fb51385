"""LiDAR weather point by point in plain Python: the oracle of ``sensors.faults.lidar_*`` under the same draws.

Each loop takes a sweep and returns rows x y z intensity of the points that are still seen. Numbers are drawn one by one
from the same stream; tables that the vectorised side keeps between calls are kept here too.
"""

import math
from bisect import bisect_right
from functools import lru_cache

import numpy as np

from sensors.faults import lidar_fog as fog
from sensors.faults import lidar_rain as rain
from sensors.faults import lidar_snow as snow
from sensors.faults.lidar_echoes import PULSE_M

_MASK = (1 << 64) - 1


def fog_loop(sweep, alpha, rng):
    """Hahner et al., 2021: attenuation, and backscatter from a table of 0.1 m."""
    response, where = _fog_table(alpha)
    gain = 0.046 * alpha / math.log(20) / (1e-6 / math.pi)
    delay_m = fog.LIGHT_MPS * 20e-9 / 2
    ranges, headroom = _clear_air(sweep, rng)
    spread = [math.exp(rng.normal(0, 0.5)) for _ in ranges]
    points = []
    for i, r in enumerate(ranges):
        left = math.exp(-2 * alpha * r)
        cell = min(max(int((r - 0.9) / 0.1 + 1e-9), 0), len(where) - 1)
        scatter = r * r * gain * (response[cell] if r > 0.9 else 0.0)
        if scatter > left:
            seen_m = min(max((where[cell] - delay_m) * spread[i], 0.9), r)
            points.append(_moved(sweep, i, seen_m / r, min(scatter, 1.0) * float(sweep.intensity[i])))
        elif left * headroom[i] >= 1:
            points.append(_moved(sweep, i, 1.0, left * float(sweep.intensity[i])))
    return points


@lru_cache
def _fog_table(alpha):
    response, where = fog.fog_response(alpha, np.arange(0.9, 30.0, 0.1) + 1e-6)
    return response.tolist(), where.tolist()


def rain_loop(sweep, rate, rng):
    """LISA, 2021, of the drops that can be seen."""
    drops = rain.visible_drops(float(rate), fog.WEAKEST_POWER)
    drop_m, nearer, smallest = (column.tolist() for column in drops)
    alpha, slope = rain.extinction_per_m(rate), 4.1 * rate**-0.21
    reflectivity = ((1.328 - 1) / (1.328 + 1)) ** 2
    ranges, headroom = _clear_air(sweep, rng)
    noise = [rng.standard_normal() for _ in ranges]
    means = [_between(r, drop_m, nearer) for r in ranges]
    counts = [_poisson(mean, rng.random()) for mean in means]
    best = [(1.0, 0.0)] * len(ranges)
    for k in range(max(counts, default=0)):
        place, size = [rng.random() for _ in ranges], [rng.random() for _ in ranges]
        for i, count in enumerate(counts):
            if count <= k:
                continue
            at = _between(means[i] * place[i], nearer, drop_m)
            diameter = _between(at, drop_m, smallest) - math.log1p(-size[i]) / slope
            share = min(diameter / (1e3 * math.tan(3e-3) * at), 1.0) ** 2
            power = reflectivity * math.exp(-2 * alpha * at) * share / at**2
            if power > best[i][1]:
                best[i] = (at, power)
    points = []
    for i, r in enumerate(ranges):
        value = float(sweep.intensity[i])
        left = math.exp(-2 * alpha * r)
        clear = max(value / (255 * r * r), fog.WEAKEST_POWER)
        at, power = best[i]
        if power > clear * left:
            points.append(_moved(sweep, i, at / r, min(255 * power * at * at, 255.0)))
        elif left * headroom[i] >= 1:
            added = 0.09 * math.sqrt(0.5 * fog.WEAKEST_POWER / clear * (1 / left - 1)) * noise[i]
            points.append(_moved(sweep, i, max(r + round(added / 0.002) * 0.002, 0.1) / r, left * value))
    return points


def snow_loop(sweep, rate, rng):
    """Hahner et al., 2022: flakes in the wedge of each beam, and the strongest bin of all their pulses."""
    slope = 2550 * rate**-0.48 * 0.1 ** (1 / 3)
    per_m2 = rate / (3.6e6 * 0.1 * snow.VELOCITY_MPS) * 3 * slope**2 / math.pi
    ranges, headroom = _clear_air(sweep, rng)
    reach = [min(r, 80.0) for r in ranges]
    counts = [_poisson(per_m2 * (3e-3 * m * m / 2 + math.pi / (4 * slope) * m), rng.random()) for m in reach]
    seed = int(rng.integers(1 << 62))
    points = []
    for i, r in enumerate(ranges):
        value = float(sweep.intensity[i])
        flakes = sorted(_flake(seed, i, k, reach[i], slope) for k in range(counts[i]))
        shares = _shares([(low, high) for _, low, high in flakes])
        left = 1 - sum(shares)
        if flakes:
            echoes = [
                (at, 0.9 * share * min(max((at - 0.9) / 0.1, 0), 1) / at**2)
                for (at, _, _), share in zip(flakes, shares, strict=True)
            ]
            echoes.append((r, max(value / (255 * r * r), fog.WEAKEST_POWER) * left))
            peak, power = _strongest_bin(echoes)
            if abs(peak - r) >= 0.2 and power >= fog.WEAKEST_POWER and peak < r:
                points.append(_moved(sweep, i, max(peak, 0.1) / r, min(255 * power * peak * peak, 255.0)))
                continue
        if left * headroom[i] >= 1:
            points.append(_moved(sweep, i, 1.0, left * value))
    return points


def _flake(seed, beam, number, reach_m, slope):
    kind, place, first, second, height, turn = (_uniform(seed, (beam << 24) + (number << 3) + j) for j in range(6))
    edge = math.pi / (4 * slope) * reach_m
    at_edge = kind * (3e-3 * reach_m**2 / 2 + edge) < edge
    at = max(reach_m * (place if at_edge else math.sqrt(place)), 1e-2)
    diameter = -(math.log1p(-first) + (math.log1p(-second) if at_edge else 0.0)) / slope
    height = math.sqrt(height) * math.cos(2 * math.pi * second) if at_edge else 2 * height - 1
    radius = min(diameter, 0.02) / 2 * math.sqrt(1 - height * height)
    half = math.asin(min(radius / at, 1.0)) / 3e-3
    middle = 0.5 + (2 * turn - 1) * (0.5 + half if at_edge else 0.5)
    return at, min(max(middle - half, 0.0), 1.0), min(max(middle + half, 0.0), 1.0)


def _uniform(seed, counter):
    """splitmix64."""
    bits = (seed + counter * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((bits ^ (bits >> 31)) >> 11) * 2.0**-53


def _shares(intervals):
    """What each interval covers that none before it does."""
    ends = sorted({end for interval in intervals for end in interval})
    shares = [0.0] * len(intervals)
    for a, b in zip(ends, ends[1:], strict=False):
        for j, (low, high) in enumerate(intervals):
            if low < (a + b) / 2 < high:
                shares[j] += b - a
                break
    return shares


def _strongest_bin(echoes):
    """All pulses summed in bins of 0.1 m."""
    bins = {}
    for at, power in echoes:
        cell = math.ceil(at / 0.1)
        while cell * 0.1 - at <= PULSE_M:
            bins[cell] = bins.get(cell, 0.0) + power * math.sin(math.pi * (cell * 0.1 - at) / PULSE_M) ** 2
            cell += 1
    best = max(sorted(bins), key=bins.get)
    return best * 0.1 - PULSE_M / 2, bins[best]


def _clear_air(sweep, rng):
    """Ranges, and how many times stronger than just visible each echo was."""
    ranges, headroom = [], []
    for x, y, z in sweep.xyz_m.tolist():
        ranges.append(max(math.sqrt(x * x + y * y + z * z), 1e-3))
    for r, value in zip(ranges, sweep.intensity.tolist(), strict=True):
        headroom.append(max(value / (255 * fog.WEAKEST_POWER * r * r), 1 + rng.exponential(1.0)))
    return ranges, headroom


def _poisson(mean, uniform):
    count, term = 0, math.exp(-mean)
    total = term
    while uniform >= total and count < 20 + 4 * mean:
        count += 1
        term *= mean / count
        total += term
    return count


def _between(x, at, values):
    """Linear interpolation, constant outside."""
    if x <= at[0]:
        return values[0]
    if x >= at[-1]:
        return values[-1]
    i = bisect_right(at, x) - 1
    return values[i] + (values[i + 1] - values[i]) * (x - at[i]) / (at[i + 1] - at[i])


def _moved(sweep, i, stretch, intensity):
    x, y, z = sweep.xyz_m[i]
    return x * stretch, y * stretch, z * stretch, round(intensity)
