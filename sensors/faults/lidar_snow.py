"""Snow on LiDAR: flakes that cover part of a beam and send their own echo (Hahner et al., LiDAR snowfall, CVPR 2022).

The level is the snowfall rate in mm/h of melted water, at a terminal velocity of 1.2 m/s. A beam is a wedge in the
plane of its turn, flakes are disks in that plane (balls of exponential diameter, Gunn & Marshall 1958, cut by it).
Gunn and Marshall's diameters are of the melted flakes and their rate is that of the melted water; the published code
takes the diameters for the flakes' own and the rate to the power 1.5, so that more snow holds fewer flakes. That is
only in ``published_weather``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from sensors.faults.lidar_fog import LIGHT_MPS, WEAKEST_POWER, clear_air_headroom, echoes_at, overlap_at, range_of
from sensors.faults.lidar_rain import poisson_quantile
from sensors.faults.protocol import Number, SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

SNOW_LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
VELOCITY_MPS = 1.2
DIVERGENCE_RAD = 3e-3
FLAKE_REFLECTIVITY = 0.9
PULSE_M = LIGHT_MPS * 10e-9
BIN_M, END_M = 0.1, 120.0
FARTHEST_FLAKE_M = 80.0
SAME_PLACE_M = 0.2
FLAKE_DENSITY = 0.1
_LARGEST_FLAKE_M = 0.02
_BEAM_GAP_M = 1000.0


class Flakes(NamedTuple):
    """Flakes in beams, by beam and then by distance.

    ``share`` of the beam that each covers and nearer ones leave free.
    """

    beam: Int[np.ndarray, "k"]
    distance_m: Float[np.ndarray, "k"]
    share: Float[np.ndarray, "k"]


def lidar_snow(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Flakes hide part of the target, and the strongest echo of all wins."""
    range_m = range_of(sweep)
    headroom = clear_air_headroom(sweep.intensity, range_m, rng)
    slope = gunn_slope_per_m(level) * FLAKE_DENSITY ** (1 / 3)
    flakes = flakes_in_beams(range_m, flakes_per_m2(occupancy_of(level, VELOCITY_MPS), slope), slope, rng)
    return echoes_at(sweep, range_m, *snowy_echoes(range_m, sweep.intensity, headroom, flakes))


def snowy_echoes(
    range_m: Float[np.ndarray, "n"],
    intensity: Float[np.ndarray, "n"],
    headroom: Float[np.ndarray, "n"],
    flakes: Flakes,
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Range, intensity and whether anything is seen.

    All echoes of a beam are compared as received powers. The published code lets a flake's power stand for the target's
    in every beam with a flake; that is only in ``published_weather``.
    """
    open_share = 1 - np.bincount(flakes.beam, flakes.share, len(range_m))
    target = np.maximum(intensity / (255 * range_m**2), WEAKEST_POWER) * open_share
    flake = FLAKE_REFLECTIVITY * flakes.share * overlap_at(flakes.distance_m) / flakes.distance_m**2
    beams, beam = np.unique(flakes.beam, return_inverse=True)
    peak_m, power = strongest_echo(
        np.concatenate([beam, np.arange(len(beams))]),
        np.concatenate([flakes.distance_m, np.minimum(range_m[beams], END_M)]),
        np.concatenate([flake, target[beams]]),
    )
    snow = (np.abs(peak_m - range_m[beams]) >= SAME_PLACE_M) & (power >= WEAKEST_POWER) & (peak_m < range_m[beams])
    seen_m, seen = range_m.copy(), open_share * intensity
    from_flake = np.zeros(len(range_m), bool)
    from_flake[beams[snow]] = True
    seen_m[beams[snow]] = np.maximum(peak_m[snow], BIN_M)
    seen[beams[snow]] = np.minimum(255 * power[snow] * peak_m[snow] ** 2, 255)
    return seen_m, seen, from_flake | (open_share * headroom >= 1)


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
    order = np.lexsort((distance_m, beam))
    return beam, distance_m[order], low[order], high[order]


def counted_uniforms(seed: int, beam: Int[np.ndarray, "k"], number: Int[np.ndarray, "k"]) -> Float[np.ndarray, "6 k"]:
    """Six draws for a flake, from its beam and its number alone (splitmix64), so that they are common to all levels."""
    with np.errstate(over="ignore"):
        counter = (beam.astype(np.uint64) << np.uint64(24)) + (number.astype(np.uint64) << np.uint64(3))
        bits = np.uint64(seed) + (counter + np.arange(6, dtype=np.uint64)[:, None]) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53


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

    Beams with equally many intervals are handled together: between two neighbouring ends the first interval that
    covers them takes all.
    """
    share = np.zeros(len(beam))
    _, start, count = np.unique(beam, return_index=True, return_counts=True)
    for size in np.unique(count):
        rows = start[count == size][:, None] + np.arange(size)
        if size == 1:
            share[rows] = high[rows] - low[rows]
            continue
        ends = np.sort(np.concatenate([low[rows], high[rows]], axis=1), axis=1)
        middle, width = (ends[:, 1:] + ends[:, :-1]) / 2, np.diff(ends, axis=1)
        covers = (low[rows][:, :, None] < middle[:, None]) & (middle[:, None] < high[rows][:, :, None])
        first = covers & (np.cumsum(covers, axis=1) == 1)
        share[rows] = (first * width[:, None]).sum(axis=2)
    return share


def strongest_echo(
    beam: Int[np.ndarray, "k"], distance_m: Float[np.ndarray, "k"], power: Float[np.ndarray, "k"]
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """Where the sum of all pulses of a beam is strongest, in bins of 0.1 m, less the delay of the peak; and its power.

    Each echo is a sin^2 pulse of 3 m (10 ns) that begins at its distance. ``beam`` runs from 0 without gaps. The sum is
    worked out under those pulses only that together with all that overlap them could reach the strongest.
    """
    num_beams = int(beam.max(initial=-1)) + 1
    if not num_beams:
        return np.zeros(0), np.zeros(0)
    place_m = beam * _BEAM_GAP_M + distance_m
    rows = np.argsort(place_m)
    beam, distance_m, power, place_m = beam[rows], distance_m[rows], power[rows], place_m[rows]
    strongest = np.maximum.reduceat(power, np.searchsorted(beam, np.arange(num_beams)))[beam]
    low = np.searchsorted(place_m, place_m - PULSE_M)
    high = np.searchsorted(place_m, place_m + PULSE_M, side="right")
    total = np.concatenate([[0.0], np.cumsum(power)])
    # A bin may miss a peak by half its width: 0.3 % of the power.
    chosen = np.flatnonzero(total[high] - total[low] >= 0.99 * strongest)
    where_m, height = _summed_pulses(distance_m, power, chosen, (low[chosen], high[chosen]))
    order = np.lexsort((where_m, -height, beam[chosen]))
    best = order[np.searchsorted(beam[chosen][order], np.arange(num_beams))]
    return where_m[best], height[best]


def _summed_pulses(
    distance_m: Float[np.ndarray, "k"],
    power: Float[np.ndarray, "k"],
    chosen: Int[np.ndarray, "c"],
    overlapping: tuple[Int[np.ndarray, "c"], Int[np.ndarray, "c"]],
) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    """Place and height of the strongest bin under each chosen pulse; the pulses from ``low`` to ``high`` overlap it.

    sin^2 of a difference is taken apart into a table over bins and two numbers per pulse. Where a sum is largest it is
    not convex, so some pulse is not: its peak is within a quarter of its length, and only there bins are looked at.
    """
    low, high = overlapping
    alone = np.flatnonzero(high - low == 1)
    where_m = np.rint((distance_m[chosen] + PULSE_M / 2) / BIN_M) * BIN_M
    height = power[chosen] * np.sin((where_m - distance_m[chosen]) * (np.pi / PULSE_M)) ** 2
    angle = np.arange(int((END_M + 2 * PULSE_M) / BIN_M) + 2) * (2 * np.pi * BIN_M / PULSE_M)
    table = np.cos(angle), np.sin(angle)
    parts = power * np.cos(2 * np.pi / PULSE_M * distance_m), power * np.sin(2 * np.pi / PULSE_M * distance_m)
    steps = np.arange(int(PULSE_M / 4 / BIN_M) - 1, int(np.ceil(PULSE_M * 3 / 4 / BIN_M)) + 2)
    first = np.ceil(distance_m[chosen] / BIN_M).astype(np.int64)
    crowd = np.setdiff1d(np.arange(len(chosen)), alone, assume_unique=True)
    for count in np.unique((high - low)[crowd]):
        rows = crowd[(high - low)[crowd] == count]
        bins = first[rows][:, None] + steps
        cosine, sine, bins_m = table[0][bins], table[1][bins], bins * BIN_M
        received = np.zeros(bins.shape)
        for k in range(count):
            other = (low[rows] + k)[:, None]
            after_m = bins_m - distance_m[other]
            pulse = power[other] - parts[0][other] * cosine - parts[1][other] * sine
            received += pulse * ((after_m >= 0) & (after_m <= PULSE_M))
        strongest = received.argmax(axis=1)
        every = np.arange(len(rows))
        where_m[rows], height[rows] = bins_m[every, strongest], received[every, strongest] / 2
    return where_m - PULSE_M / 2, height


def gunn_slope_per_m(rate_mmph: Number) -> float:
    """Of the exponential law of diameters, 25.5 R^-0.48 per cm (Gunn & Marshall 1958)."""
    return 2550 * float(rate_mmph) ** -0.48


def occupancy_of(snowfall_mmph: Number, velocity_mps: Number) -> float:
    """Share of the air, and of any plane through it, that flakes fill."""
    return snowfall_mmph / (3.6e6 * FLAKE_DENSITY * velocity_mps)


def flakes_per_m2(occupancy: Number, slope_per_m: Number) -> float:
    """Disks in a plane: occupancy over their mean area, pi E[d^2] / 6 = pi / (3 slope^2)."""
    return occupancy * 3 * slope_per_m**2 / np.pi


LIDAR_SNOW = SensorFault("lidar_snow", "weather", "lidar", "mm/h", SNOW_LEVELS, effect=lidar_snow, worst=10.0)
