"""Fog, rain, snow and wet ground on LiDAR: plain loops under the same draws, closed forms, and full simulations."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.lidar_loops import fog_loop, rain_loop, snow_loop
from sensors.faults.catalogue import fault_named
from sensors.faults.lidar_echoes import PULSE_M, strongest_echo
from sensors.faults.lidar_flakes import (
    drawn_flakes,
    flakes_in_beams,
    flakes_per_m2,
    gunn_slope_per_m,
    occupancy_of,
    visible_shares,
)
from sensors.faults.lidar_fog import WEAKEST_POWER, fog_response, range_of
from sensors.faults.lidar_rain import (
    drops_per_m3,
    extinction_efficiency,
    extinction_per_m,
    poisson_quantile,
    strongest_drop,
    visible_drops,
)
from sensors.faults.protocol import Draws
from sensors.faults.wet_ground import fresnel_reflectance, ground_plane, left_on_wet_ground, through_water
from sensors.frame import NoHistory
from sensors.rig import NUSCENES_RIG
from tests.sensors.toy_frames import toy_frame, toy_lidar

FRAME = toy_frame(height=9, width=16, num_points=4000, num_sweeps=1)


def applied(name, level, frame=FRAME, token="a"):
    return fault_named(name)(frame, NoHistory(), level, Draws(1, token, name))


@pytest.mark.parametrize(
    ("name", "loop"), [("lidar_fog", fog_loop), ("lidar_rain", rain_loop), ("lidar_snow", snow_loop)]
)
def test_weather_equals_a_plain_loop_under_the_same_draws(name, loop):
    fault = fault_named(name)
    sweep = toy_lidar(3, 1500)
    near = replace(sweep, xyz_m=(sweep.xyz_m * np.linspace(0.02, 1, 1500)[:, None]).astype(np.float32))
    for level in (fault.levels[0], fault.levels[-1]):
        ours = fault.effect(near, level, np.random.default_rng(7), FRAME)
        rows = np.array(loop(near, level, np.random.default_rng(7)))
        assert len(ours) == len(rows)
        assert ours.xyz_m == pytest.approx(rows[:, :3], abs=1e-4)
        assert np.array_equal(ours.intensity, rows[:, 3])


def test_fog_hides_strong_targets_behind_its_own_echo_near_the_sensor():
    after = applied("lidar_fog", 0.06).lidar[0]
    moved = ~np.isin(after.xyz_m[:, 0], FRAME.lidar[0].xyz_m[:, 0])
    assert 0.1 < moved.mean() < 0.9
    assert np.median(range_of(after)[moved]) == pytest.approx(1.2, abs=0.4)
    assert range_of(after)[moved].min() >= 0.9 - 1e-5
    # A target that the response reaches only in part has a weaker answer before it.
    response, _ = fog_response(0.06, np.array([2.0, 3.0, 50.0, 90.0]))
    assert response[0] < response[1] < response[2] == response[3]


def test_extinction_by_rain_agrees_with_the_closed_form_of_large_drops():
    # Q = 2 over N0 exp(-L D): pi/4 2 2 N0 / L^3. The edge term adds a little more.
    for rate in (1.0, 7.29, 25.0):
        large = 1e-6 * np.pi * 8000 / (4.1 * rate**-0.21) ** 3
        assert large < extinction_per_m(rate) < 1.04 * large


def test_extinction_efficiency_agrees_with_mie_series():
    # Mean over the ripple around x = 300, by Bohren and Huffman's series.
    sizes = np.linspace(290, 310, 41)
    mie = np.mean([_mie_extinction(x, 1.328) for x in sizes])
    ours = extinction_efficiency(sizes * 905e-6 / np.pi).mean()
    assert ours == pytest.approx(mie, rel=0.01)


def _mie_extinction(x, m):
    num = int(x + 4 * x ** (1 / 3) + 2)
    down = np.zeros(num + 40)
    for n in range(len(down) - 1, 0, -1):
        down[n - 1] = n / (m * x) - 1 / (down[n] + n / (m * x))
    before, psi = np.cos(x), np.sin(x)
    chi_before, chi = -np.sin(x), np.cos(x)
    total = 0.0
    for n in range(1, num + 1):
        before, psi = psi, (2 * n - 1) / x * psi - before
        chi_before, chi = chi, (2 * n - 1) / x * chi - chi_before
        a, b = down[n] / m + n / x, m * down[n] + n / x
        xi, xi_before = psi - 1j * chi, before - 1j * chi_before
        total += (2 * n + 1) * (
            (a * psi - before) / (a * xi - xi_before) + (b * psi - before) / (b * xi - xi_before)
        ).real
    return 2 / x**2 * total


def test_visible_drops_are_those_of_a_full_simulation():
    # All drops of a cone drawn, as LISA does, and the strongest that is strong enough kept.
    rng, rate, num_beams = np.random.default_rng(3), 25.0, 3000
    reach_m = 15.0
    number = rng.poisson(drops_per_m3(rate) * np.pi / 3 * reach_m * (np.tan(3e-3) * reach_m / 2) ** 2, num_beams)
    beam = np.repeat(np.arange(num_beams), number)
    at_m = reach_m * rng.random(len(beam)) ** (1 / 3)
    diameter = 0.05 + rng.exponential(1 / (4.1 * rate**-0.21), len(beam))
    share = np.minimum(diameter / (1e3 * np.tan(3e-3) * at_m), 1) ** 2
    power = (0.328 / 2.328) ** 2 * np.exp(-2 * extinction_per_m(rate) * at_m) * share / at_m**2
    power[(at_m < 0.9) | (power < WEAKEST_POWER)] = 0
    strongest = np.zeros(num_beams)
    np.maximum.at(strongest, beam, power)
    ours_m, ours = strongest_drop(np.full(num_beams, reach_m), rate, np.random.default_rng(4))
    bound = 4 * np.sqrt(0.25 / num_beams)
    assert (ours > 0).mean() == pytest.approx((strongest > 0).mean(), abs=2 * bound)
    assert np.median(np.log(ours[ours > 0])) == pytest.approx(np.median(np.log(strongest[strongest > 0])), abs=0.3)
    assert ours_m[ours > 0].min() >= 0.9
    assert visible_drops(rate, WEAKEST_POWER).nearer[-1] > 0


def test_poisson_quantile_agrees_with_the_distribution_and_grows_with_the_mean():
    uniform = np.random.default_rng(0).random(20_000)
    few, many = (poisson_quantile(np.full(20_000, mean), uniform) for mean in (0.7, 6.0))
    assert (few <= many).all()
    assert few.mean() == pytest.approx(0.7, abs=0.03)
    assert many.var() == pytest.approx(6.0, rel=0.05)
    assert (few == 0).mean() == pytest.approx(np.exp(-0.7), abs=0.015)


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


def test_water_takes_from_the_ground_what_fresnel_says():
    # At normal incidence each surface reflects ((1.33 - 1.0003) / (1.33 + 1.0003))^2 = 2.0 %.
    r = ((1.33 - 1.0003) / (1.33 + 1.0003)) ** 2
    rho = 0.3
    for polarisation in through_water(np.zeros(1), np.full(1, rho)):
        assert polarisation[0] == pytest.approx((1 - r) ** 2 * rho / (1 - rho * r))
    # No p-polarised light is reflected at Brewster's angle.
    brewster = np.array([np.arctan(1.33 / 1.0003)])
    inside = np.arcsin(1.0003 / 1.33 * np.sin(brewster))
    assert fresnel_reflectance(brewster, inside, 1.0003, 1.33)[1][0] == pytest.approx(0, abs=1e-12)
    cosine = np.cos(np.deg2rad([0.0, 60.0, 80.0, 88.0]))
    left = left_on_wet_ground(np.full(4, 30.0), cosine, 1.2)
    assert (np.diff(left) < 0).all()
    assert left_on_wet_ground(np.full(4, 30.0), cosine, 0.6) == pytest.approx((1 + left) / 2)
    assert left_on_wet_ground(np.full(4, 30.0), cosine, 0.0) == pytest.approx(1.0)


def test_only_the_ground_gets_wet():
    rng = np.random.default_rng(0)
    spec = NUSCENES_RIG["LIDAR_TOP"].ego_from_sensor
    ego = np.concatenate(
        [rng.uniform([3, -20, 0], [30, 20, 0.01], (800, 3)), rng.uniform([3, -9, 1], [30, 9, 4], (200, 3))]
    )
    sweep = replace(toy_lidar(0, 1000), xyz_m=spec.inverse().points(ego.astype(np.float32)))
    sweep = replace(sweep, intensity=np.full(1000, 30, np.float32))
    after = applied("lidar_wet_ground", 1.2, replace(FRAME, lidar=(sweep,))).lidar[0]
    high = after.to_ego()[:, 2] > 0.5
    assert high.sum() == 200
    assert (after.intensity[high] == 30).all()
    assert (after.intensity[~high] < 29).all()


def test_ground_plane_is_found_under_walls():
    rng = np.random.default_rng(1)
    xy = rng.uniform(-30, 30, (3000, 2))
    z = 0.01 * xy[:, 0] - 0.005 * xy[:, 1] + 0.05 + 0.01 * rng.standard_normal(3000)
    z[::5] += rng.uniform(0, 0.5, 600)
    plane = ground_plane(np.column_stack([xy, z]))
    assert plane == pytest.approx((0.01, -0.005, 0.05), abs=0.02)
    assert ground_plane(np.zeros((3, 3))) == (0.0, 0.0, 0.0)


def test_joint_weather_reaches_all_sensors_from_one_parameter():
    frame = toy_frame(height=45, width=80, num_points=640, num_sweeps=1)
    for name, part in (("snow", "lidar_snow"), ("fog", "lidar_fog")):
        level = fault_named(name).levels[3]
        both = fault_named(name)(frame, NoHistory(), level, Draws(1, "a", name))
        alone = fault_named(part)(frame, NoHistory(), level, Draws(1, "a", name))
        assert np.array_equal(both.lidar[0].xyz_m, alone.lidar[0].xyz_m)
    for name in ("rain", "snow", "fog"):
        fault = fault_named(name)
        after = fault(frame, NoHistory(), fault.levels[4], Draws(1, "a", name))
        assert all((after.cameras[c].pixels != frame.cameras[c].pixels).mean() > 0.2 for c in frame.cameras)
        lost = 1 - sum(len(s[0]) for s in after.radars.values()) / sum(len(s[0]) for s in frame.radars.values())
        assert lost < 0.15


def test_rain_takes_from_radar_what_the_way_there_and_back_does():
    before = FRAME.radars["RADAR_FRONT"][0]
    after = applied("rain", 25.0).radars["RADAR_FRONT"][0]
    kept = before.select(np.isin(before.track_id, after.track_id))
    loss_db = 2 * 1.1 * 25.0**0.7 / 1000 * np.linalg.norm(kept.xyz_m, axis=1)
    assert kept.rcs_dbsm - after.rcs_dbsm == pytest.approx(loss_db, abs=1e-4)
    assert np.array_equal(after.velocity_mps, kept.velocity_mps)
