"""Fog, rain, snow and wet ground on LiDAR: plain loops under the same draws, closed forms, and full simulations."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.lidar_loops import fog_loop, rain_loop, snow_loop
from sensors.faults.catalogue import fault_named
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
