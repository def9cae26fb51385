"""Snow flakes in the beams of a LiDAR: how many, where, how large, and what each hides of its beam.

A beam is a wedge in the plane of its turn, flakes are disks in that plane (balls of exponential diameter, Gunn &
Marshall 1958, cut by it).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sensors.faults.lidar_rain import poisson_quantile
from sensors.faults.protocol import Number

DIVERGENCE_RAD = 3e-3
FARTHEST_FLAKE_M = 80.0
FLAKE_DENSITY = 0.1
_LARGEST_FLAKE_M = 0.02
_SPLITMIX = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = 0x9E3779B97F4A7C15


class Flakes(NamedTuple):
    """Flakes in beams, by beam and then by distance.

    ``share`` of the beam that each covers and nearer ones leave free.
    """

    beam: Int[np.ndarray, "k"]
    distance_m: Float[np.ndarray, "k"]
    share: Float[np.ndarray, "k"]


def flakes_in_beams(
    range_m: Float[np.ndarray, "n"], per_m2: Number, slope_per_m: Number, rng: np.random.Generator
) -> Flakes:
    """Flakes that touch each beam before its target, with what each covers of what nearer ones leave free."""
    beam, distance_m, low, high = drawn_flakes(range_m, per_m2, slope_per_m, rng)
    return Flakes(beam, distance_m, visible_shares(beam, low, high))


def drawn_flakes(
    range_m: Float[np.ndarray, "n"], per_m2: Number, slope_per_m: Number, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Beam, distance, and first and last part of the beam (0 to 1) that a flake covers; by beam, then by distance.

    A flake of radius r at distance d touches a beam of opening t within an angle of t / 2 + r / d, so their number is
    Poisson with mean n (t R^2 / 2 + 2 E[r] R). The first part is uniform over the wedge; the second, at its edges, is
    uniform in distance and of sizes in proportion to r. One draw per beam gives the number at all snowfall rates.
    """
    reach_m = np.minimum(range_m, FARTHEST_FLAKE_M)
    inner, edge = DIVERGENCE_RAD * reach_m**2 / 2, 2 * (np.pi / (8 * slope_per_m)) * reach_m
    count = poisson_quantile(per_m2 * (inner + edge), rng.random(len(range_m)))
    beam = np.repeat(np.arange(len(range_m)), count)
    number = np.arange(len(beam)) - np.repeat(np.cumsum(count) - count, count)
    kind, *drawn = counted_uniforms(int(rng.integers(1 << 62)), beam, number)
    at_edge = kind * (inner + edge)[beam] < edge[beam]
    distance_m, low, high = _flake(drawn, at_edge, reach_m[beam], slope_per_m)
    order = np.argsort(beam * (2 * FARTHEST_FLAKE_M) + distance_m, kind="stable")
    return beam, distance_m[order], low[order], high[order]


def counted_uniforms(seed: int, beam: Int[np.ndarray, "k"], number: Int[np.ndarray, "k"]) -> Float[np.ndarray, "6 k"]:
    """Six draws for a flake, from its beam and its number alone (splitmix64), so that they are common to all levels."""
    drawn = np.empty((6, len(beam)))
    with np.errstate(over="ignore"):
        counter = (beam.astype(np.uint64) << np.uint64(24)) + (number.astype(np.uint64) << np.uint64(3))
        start = np.uint64(seed) + counter * np.uint64(_GOLDEN)
        for k in range(6):
            bits = start + np.uint64(k * _GOLDEN % 2**64)
            bits ^= bits >> np.uint64(30)
            bits *= _SPLITMIX[0]
            bits ^= bits >> np.uint64(27)
            bits *= _SPLITMIX[1]
            bits ^= bits >> np.uint64(31)
            np.multiply(bits >> np.uint64(11), 2.0**-53, out=drawn[k])
    return drawn


def _flake(
    drawn: Sequence[Float[np.ndarray, "k"]],
    at_edge: Bool[np.ndarray, "k"],
    reach_m: Float[np.ndarray, "k"],
    slope: Number,
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """Distance, and the first and last angle of the beam (0 to 1) that the flake covers."""
    place, first, second, height, turn = drawn
    distance_m = np.maximum(reach_m * np.where(at_edge, place, np.sqrt(place)), 1e-2)
    # Of a size-biased exponential (two summed) and a semicircle law, where sizes count in proportion to the radius.
    diameter_m = -(np.log1p(-first) + np.where(at_edge, np.log1p(-second), 0.0)) / slope
    height = np.where(at_edge, np.sqrt(height) * np.cos(2 * np.pi * second), 2 * height - 1)
    radius_m = np.minimum(diameter_m, _LARGEST_FLAKE_M) / 2 * np.sqrt(1 - height**2)
    half = np.arcsin(np.minimum(radius_m / distance_m, 1)) / DIVERGENCE_RAD
    middle = 0.5 + (2 * turn - 1) * np.where(at_edge, 0.5 + half, 0.5)
    return distance_m, np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def visible_shares(
    beam: Int[np.ndarray, "k"], low: Float[np.ndarray, "k"], high: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "k"]:
    """Of each interval, what no earlier one of the same beam covers; beams are in order.

    All ends in a row cut the beams into pieces. Each interval paints its pieces, the last interval first: what is seen
    in the end is the first.
    """
    num = len(beam)
    if not num:
        return np.zeros(0)
    ends = np.stack([low, high], axis=1).ravel()
    order = np.argsort(np.repeat(2.0 * beam, 2) + ends, kind="stable")
    place = np.empty(2 * num, np.int64)
    place[order] = np.arange(2 * num)
    first, count = place[::2][::-1], (place[1::2] - place[::2])[::-1]
    pieces = np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)
    owner = np.full(2 * num, num)
    owner[pieces] = np.repeat(np.arange(num)[::-1], count)
    return np.bincount(owner[:-1], np.diff(ends[order]), num + 1)[:num]


def gunn_slope_per_m(rate_mmph: Number) -> float:
    """Of the exponential law of diameters, 25.5 R^-0.48 per cm (Gunn & Marshall 1958)."""
    return 2550 * float(rate_mmph) ** -0.48


def occupancy_of(snowfall_mmph: Number, velocity_mps: Number) -> float:
    """Share of the air, and of any plane through it, that flakes fill."""
    return snowfall_mmph / (3.6e6 * FLAKE_DENSITY * velocity_mps)


def flakes_per_m2(occupancy: Number, slope_per_m: Number) -> float:
    """Disks in a plane: occupancy over their mean area, pi E[d^2] / 6 = pi / (3 slope^2)."""
    # Multiplied in this order, the slope of a level next to zero does not overflow: its occupancy is zero.
    return occupancy * 3 * slope_per_m * slope_per_m / np.pi
