"""Snow on LiDAR: flakes against disks scattered over a plane, echoes against pulses summed bin by bin."""

import numpy as np
import pytest

from sensors.faults.lidar_echoes import PULSE_M, strongest_echo
from sensors.faults.lidar_flakes import (
    drawn_flakes,
    flakes_in_beams,
    flakes_per_m2,
    gunn_slope_per_m,
    occupancy_of,
    visible_shares,
)


def test_flakes_cover_the_share_of_the_beam_that_their_density_says():
    # A ray meets disks at a rate of n 2 E[r] per metre, so a share of exp(-that R) of all rays stays free.
    slope = gunn_slope_per_m(1.0)
    per_m2 = 4 * flakes_per_m2(occupancy_of(1.0, 1.2), slope)
    flakes = flakes_in_beams(np.full(4000, 30.0), per_m2, slope, np.random.default_rng(1))
    open_share = 1 - np.bincount(flakes.beam, flakes.share, 4000)
    expected = np.exp(-per_m2 * 2 * np.pi / (8 * slope) * 30.0)
    assert open_share.mean() == pytest.approx(expected, abs=0.01)
    beam, distance_m, low, high = drawn_flakes(np.full(4000, 30.0), per_m2, slope, np.random.default_rng(1))
    assert ((low >= 0) & (low <= high) & (high <= 1)).all()
    assert (np.diff(beam) >= 0).all()
    assert (np.diff(distance_m)[np.diff(beam) == 0] >= 0).all()


def test_flakes_are_as_many_as_disks_scattered_over_the_plane():
    slope, per_m2, reach_m, half = 500.0, 2.0, 20.0, 1.5e-3
    rng = np.random.default_rng(5)
    num = rng.poisson(per_m2 * np.pi * reach_m**2)
    at_m, angle = reach_m * np.sqrt(rng.random(num)), rng.uniform(-np.pi, np.pi, num)
    diameter = rng.exponential(1 / slope, num)
    radius = diameter / 2 * np.sqrt(1 - rng.uniform(-1, 1, num) ** 2)
    reach = half + np.arcsin(np.minimum(radius / at_m, 1))
    beams = np.arange(-np.pi, np.pi, 6e-3)
    touching = [(np.abs(angle - middle) < reach).sum() for middle in beams]
    ours = len(drawn_flakes(np.full(len(beams), reach_m), per_m2, slope, np.random.default_rng(6))[0])
    assert ours == pytest.approx(np.sum(touching), rel=0.12)


def test_a_nearer_flake_hides_a_farther_one():
    beam = np.array([0, 0, 0, 1])
    share = visible_shares(beam, np.array([0.2, 0.0, 0.3, 0.5]), np.array([0.5, 0.4, 0.4, 0.9]))
    assert share == pytest.approx([0.3, 0.2, 0.0, 0.4])


def test_intervals_are_seen_as_painting_them_cell_by_cell_says():
    rng = np.random.default_rng(8)
    beam = np.sort(rng.integers(0, 40, 300))
    low, high = np.sort(rng.integers(0, 51, (2, 300)) / 50, axis=0)
    free = np.ones((40, 50), bool)
    expected = []
    for b, first, last in zip(beam, np.rint(50 * low).astype(int), np.rint(50 * high).astype(int), strict=True):
        expected.append(free[b, first:last].sum() / 50)
        free[b, first:last] = False
    assert visible_shares(beam, low, high) == pytest.approx(expected, abs=1e-9)


def test_strongest_echo_is_that_of_pulses_summed_bin_by_bin():
    rng = np.random.default_rng(9)
    beam = np.concatenate([np.arange(60), np.sort(rng.integers(0, 60, 400))])
    distance_m, power = rng.uniform(1, 150, 460), 10 ** rng.uniform(-7, 0, 460)
    distance_m[beam % 2 == 0] /= 10
    where_m, height = strongest_echo(beam, distance_m, power)
    bins_m = np.arange(1, 1600) * 0.1
    after = bins_m - distance_m[:, None]
    pulses = power[:, None] * np.sin(np.pi * after / PULSE_M) ** 2 * ((after >= 0) & (after <= PULSE_M))
    summed = np.array([pulses[beam == b].sum(axis=0) for b in range(60)])
    assert where_m == pytest.approx(bins_m[summed.argmax(axis=1)] - PULSE_M / 2, abs=1e-6)
    assert height == pytest.approx(summed.max(axis=1), rel=1e-6)


def test_a_beam_without_any_power_has_no_echo_and_takes_none_from_its_neighbour():
    # One flake in the blind zone covers its beam: no power is left, and the next beam's echo must not stand for it.
    where_m, height = strongest_echo(np.array([0, 0, 1]), np.array([0.2, 18.0, 5.1]), np.array([0.0, 1e-21, 2e-3]))
    assert height == pytest.approx([0.0, 2e-3], abs=1e-5)
    assert where_m[1] == pytest.approx(5.1, abs=0.06)


def test_overlapping_echoes_add_up_and_apart_the_stronger_wins():
    beam = np.array([0, 0, 1, 1, 2])
    distance_m, power = np.array([10.0, 10.4, 20.0, 40.0, 7.0]), np.array([1.0, 1.0, 1.0, 2.0, 3.0])
    where_m, height = strongest_echo(beam, distance_m, power)
    assert where_m == pytest.approx([10.2, 40.0, 7.0], abs=0.06)
    # Two sin^2 pulses 0.4 m apart: 2 sin^2(pi / 2 - 0.2 pi / 3) at the middle.
    assert height == pytest.approx([2 * np.cos(0.2 * np.pi / PULSE_M) ** 2, 2.0, 3.0], rel=4e-3)


def test_more_snow_holds_no_fewer_flakes_and_larger_ones():
    slope = np.array([gunn_slope_per_m(rate) * 0.1 ** (1 / 3) for rate in (0.25, 1.0, 4.0)])
    per_m2 = [flakes_per_m2(occupancy_of(r, 1.2), s) for r, s in zip((0.25, 1.0, 4.0), slope, strict=True)]
    assert (np.diff(slope) < 0).all()
    assert (np.diff(per_m2) > 0).all()
