"""LiDAR and radar faults against closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws
from sensors.faults.radar import MAX_RANGE_M, azimuth_of, range_of
from sensors.frame import NoHistory
from sensors.radar import read_radar
from sensors.rig import NUSCENES_RIG
from sensors.transforms import RigidTransform
from tests.sensors.fault_measures import angle_deg
from tests.sensors.toy_frames import toy_frame, toy_radar

FRAME = toy_frame(height=9, width=16, num_points=20_000)


def applied(name, level, frame=FRAME, token="a"):
    fault = fault_named(name)
    return fault(frame, NoHistory(), level, Draws(1, token, name))


def rows(sweep):
    return {row.tobytes() for row in sweep.xyz_m}


def radial_speed(sweep, velocity):
    line = sweep.xyz_m[:, :2] / range_of(sweep)[:, None]
    across = velocity[:, 0] * line[:, 1] - velocity[:, 1] * line[:, 0]
    return (velocity * line).sum(axis=1), across


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_point_drop_keeps_the_binomial_share(share):
    counts = [len(sweep) for sweep in applied("lidar_point_drop", share).lidar]
    bound = 4 * np.sqrt(20_000 * share * (1 - share))
    assert all(abs(count - 20_000 * (1 - share)) < bound for count in counts)
    assert counts[0] != counts[1]


@pytest.mark.parametrize(
    "name",
    ["lidar_point_drop", "lidar_beam_drop", "lidar_limited_view", "lidar_sector_blocked"],
)
def test_lidar_losses_nest(name):
    kept = [rows(applied(name, level).lidar[0]) for level in fault_named(name).levels]
    assert all(more > fewer for more, fewer in zip(kept, kept[1:], strict=False))


@pytest.mark.parametrize("name", ["radar_point_drop", "radar_blocked", "radar_rcs_loss"])
def test_radar_losses_nest(name):
    levels = fault_named(name).levels
    kept = [rows(applied(name, level).radars["RADAR_FRONT"][0]) for level in levels]
    assert all(more >= fewer for more, fewer in zip(kept, kept[1:], strict=False))
    assert len(kept[0]) > len(kept[-1])


@pytest.mark.parametrize("name", ["radar_ghosts", "radar_clutter"])
def test_false_points_nest(name):
    seen = [rows(applied(name, level).radars["RADAR_FRONT"][0]) for level in fault_named(name).levels]
    assert all(more > fewer for fewer, more in zip(seen, seen[1:], strict=False))


@pytest.mark.parametrize(("share", "left"), [(0.25, 24), (0.5, 16), (0.875, 4), (1.0, 0)])
def test_beam_drop_leaves_whole_beams_the_same_in_all_sweeps(share, left):
    before, after = FRAME.lidar, applied("lidar_beam_drop", share).lidar
    alive = [set(sweep.ring.tolist()) for sweep in after]
    assert alive[0] == alive[1]
    assert len(alive[0]) == left
    for old, new in zip(before, after, strict=True):
        assert len(new) == np.isin(old.ring, list(alive[0])).sum()


def test_limited_view_keeps_exactly_the_points_ahead():
    sweep = FRAME.lidar[0]
    kept = applied("lidar_limited_view", 60.0).lidar[0]
    # Independent of the implementation: the angle to the vehicle's x axis in the ground plane, through the pose.
    ego = sweep.to_ego() - sweep.ego_from_lidar.translation_m
    angle = np.rad2deg(np.arccos(ego[:, 0] / np.hypot(ego[:, 0], ego[:, 1])))
    assert rows(kept) == rows(sweep.select(angle <= 60.0))
    # LIDAR_TOP's y axis looks ahead.
    assert kept.xyz_m[:, 1].min() > 0


def test_range_noise_moves_along_the_ray_by_the_asked_deviation():
    before, after = FRAME.lidar[0], applied("lidar_range_noise", 0.2).lidar[0]
    direction = before.xyz_m / np.linalg.norm(before.xyz_m, axis=1, keepdims=True)
    moved = after.xyz_m - before.xyz_m
    along = (moved * direction).sum(axis=1)
    assert np.abs(moved - along[:, None] * direction).max() < 1e-4
    assert along.std() == pytest.approx(0.2, rel=0.05)
    assert abs(along.mean()) < 0.01


@pytest.mark.parametrize(
    ("name", "shift_m_per_level"), [("lidar_rotation", 0), ("lidar_misalignment", 0.1), ("lidar_shift", 1)]
)
@pytest.mark.parametrize("level", [0.1, 0.5])
def test_misalignment_is_exactly_as_asked(name, shift_m_per_level, level):
    before, after = FRAME.lidar, applied(name, level).lidar
    for old, new in zip(before, after, strict=True):
        assert new.xyz_m is old.xyz_m
        turned = angle_deg(old.ego_from_lidar, new.ego_from_lidar)
        assert turned == pytest.approx(0 if name == "lidar_shift" else level, abs=1e-5)
        shift = np.linalg.norm(new.ego_from_lidar.translation_m - old.ego_from_lidar.translation_m)
        assert shift == pytest.approx(shift_m_per_level * level, abs=1e-9)
    errors = [old.ego_from_lidar.inverse() @ new.ego_from_lidar for old, new in zip(before, after, strict=True)]
    assert np.allclose(errors[0].matrix, errors[1].matrix)


def test_cameras_and_radars_turn_by_the_asked_angle():
    turned = applied("camera_misalignment", 3.0).cameras
    for channel, image in turned.items():
        assert angle_deg(FRAME.cameras[channel].ego_from_camera, image.ego_from_camera) == pytest.approx(3.0)
        assert image.pixels is FRAME.cameras[channel].pixels
    old = FRAME.radars["RADAR_FRONT"][0]
    new = applied("radar_misalignment", 2.0).radars["RADAR_FRONT"][0]
    assert angle_deg(old.ego_from_radar, new.ego_from_radar) == pytest.approx(2.0)
    assert new.to_ego()[0][:, 2] == pytest.approx(0.5, abs=1e-4)


def test_ghosts_are_farther_weaker_and_as_fast():
    frame = replace(FRAME, radars={"RADAR_FRONT": (toy_radar("RADAR_FRONT", 1, 4000),)})
    before = frame.radars["RADAR_FRONT"][0]
    after = applied("radar_ghosts", 1.0, frame).radars["RADAR_FRONT"][0]
    assert rows(before) < rows(after)
    ghosts = after.select(np.arange(len(before), len(after)))
    origin = before.select(np.array([np.flatnonzero(before.track_id == track)[0] for track in ghosts.track_id]))
    stretch = range_of(ghosts) / range_of(origin)
    assert stretch.min() >= 1.5 - 1e-4
    assert stretch.max() <= 3.0 + 1e-4
    assert azimuth_of(ghosts) == pytest.approx(azimuth_of(origin), abs=1e-5)
    assert ghosts.rcs_dbsm == pytest.approx(origin.rcs_dbsm - 10, abs=1e-5)
    assert np.array_equal(ghosts.velocity_mps, origin.velocity_mps)
    assert np.array_equal(ghosts.velocity_raw_mps, origin.velocity_raw_mps)
    assert range_of(ghosts).max() < MAX_RANGE_M
    # Of all points within a third of the reach every one has its ghost.
    near = range_of(before) * 3 < MAX_RANGE_M
    assert set(before.track_id[near]) <= set(ghosts.track_id)


@pytest.mark.parametrize(
    "name", ["radar_ghosts", "radar_clutter", "radar_doppler_noise", "radar_doppler_alias", "radar_range_azimuth_noise"]
)
def test_compensated_velocity_stays_radial(name):
    for sweeps in applied(name, fault_named(name).levels[-1]).radars.values():
        _, across = radial_speed(sweeps[0], sweeps[0].velocity_mps)
        assert np.abs(across).max() < 1e-4


def test_a_wrong_azimuth_keeps_the_range_rate_and_moves_what_stands():
    channel = "RADAR_FRONT_LEFT"
    frame = replace(FRAME, radars={channel: (toy_radar(channel, 1, 500),)})
    before, after = frame.radars[channel][0], applied("radar_range_azimuth_noise", 2.0, frame).radars[channel][0]
    rate = [radial_speed(sweep, sweep.velocity_raw_mps)[0] for sweep in (before, after)]
    assert rate[1] == pytest.approx(rate[0], abs=1e-4)
    # Straight on at 8 m/s, 55 deg to the left: the sensor's own speed along its line of sight at an azimuth.
    own = [8 * np.cos(azimuth_of(sweep) + before.ego_from_radar.yaw_rad) for sweep in (before, after)]
    speed = [radial_speed(sweep, sweep.velocity_mps)[0] for sweep in (before, after)]
    assert speed[1] - speed[0] == pytest.approx(own[1] - own[0], abs=1e-4)
    standing = np.abs(speed[0]) < 1e-6
    assert 0.2 < speed[1][standing].std() < 1.0


def test_a_real_radar_compensates_as_ours_do_at_a_wrong_azimuth(nuscenes_real):
    sweep = read_radar(next((nuscenes_real / "radar").glob("*.pcd")), 0.0, RigidTransform.identity())
    line = sweep.xyz_m[:, :2] / range_of(sweep)[:, None]
    added = radial_speed(sweep, sweep.velocity_mps - sweep.velocity_raw_mps)[0]
    own = np.linalg.lstsq(line, added, rcond=None)[0]
    # compensated = (raw + own) along the line of sight, in the file as it is and with wrong azimuths.
    posed = replace(sweep, ego_from_radar=RigidTransform.from_yaw(-float(np.arctan2(own[1], own[0]))))
    frame = replace(FRAME, radars={"RADAR_BACK_RIGHT": (posed,)}, ego_speed_mps=float(np.hypot(*own)))
    after = applied("radar_range_azimuth_noise", 2.0, frame).radars["RADAR_BACK_RIGHT"][0]
    assert np.rad2deg(np.abs(azimuth_of(after) - azimuth_of(sweep))).max() > 5
    for measured in (posed, after):
        speed, across = radial_speed(measured, measured.velocity_mps)
        raw, _ = radial_speed(measured, measured.velocity_raw_mps + own.astype(np.float32))
        assert np.abs(across).max() < 1e-4
        assert speed == pytest.approx(raw, abs=1e-4)


def test_doppler_noise_and_alias_change_raw_and_compensated_speed_alike():
    frame = replace(FRAME, radars={"RADAR_FRONT": (toy_radar("RADAR_FRONT", 1, 4000),)})
    before = frame.radars["RADAR_FRONT"][0]
    for name, level in (("radar_doppler_noise", 2.0), ("radar_doppler_alias", 0.4)):
        after = applied(name, level, frame).radars["RADAR_FRONT"][0]
        change = after.velocity_mps - before.velocity_mps
        assert change == pytest.approx(after.velocity_raw_mps - before.velocity_raw_mps, abs=1e-4)
        speed, _ = radial_speed(before, change)
        if name == "radar_doppler_noise":
            assert speed.std() == pytest.approx(2.0, rel=0.05)
        else:
            shifted = np.abs(speed) > 1
            assert np.abs(speed[shifted]) == pytest.approx(20.0, abs=1e-3)
            assert shifted.mean() == pytest.approx(0.4, abs=0.03)


def test_clutter_adds_the_asked_number_in_the_field_of_view():
    frame = replace(FRAME, radars={"RADAR_FRONT": (toy_radar("RADAR_FRONT", 1, 0),)})
    sweep = applied("radar_clutter", 40.0, frame).radars["RADAR_FRONT"][0]
    assert len(sweep) == 40
    assert np.abs(azimuth_of(sweep)).max() <= np.deg2rad(60) + 1e-6
    # Straight ahead of a front radar a standing point comes nearer at the vehicle's speed.
    assert NUSCENES_RIG["RADAR_FRONT"].ego_from_sensor.yaw_rad == pytest.approx(0, abs=0.01)
    ahead = sweep.xyz_m[:, :2] / range_of(sweep)[:, None]
    relative = (sweep.velocity_raw_mps - sweep.velocity_mps) * ahead
    assert relative.sum(axis=1) == pytest.approx(-8.0 * ahead[:, 0], abs=0.1)


def test_rcs_loss_takes_what_falls_below_the_limit():
    before = FRAME.radars["RADAR_BACK_LEFT"][0]
    after = applied("radar_rcs_loss", 9.0).radars["RADAR_BACK_LEFT"][0]
    assert after.rcs_dbsm == pytest.approx(before.rcs_dbsm[before.rcs_dbsm >= 4.0] - 9.0, abs=1e-5)


def test_blocked_radar_loses_one_side_of_its_view():
    before = FRAME.radars["RADAR_FRONT"][0]
    after = applied("radar_blocked", 0.5).radars["RADAR_FRONT"][0]
    sides = [rows(before.select(azimuth_of(before) < 0)), rows(before.select(azimuth_of(before) > 0))]
    assert rows(after) in sides
    # Near the sensor some see wider than 60 deg: a cover that is blocked everywhere leaves nothing of that either.
    wide = replace(before, xyz_m=before.xyz_m @ RigidTransform.from_yaw(1.0).rotation.T.astype(np.float32))
    for sweep in (before, wide):
        frame = replace(FRAME, radars={"RADAR_FRONT": (sweep,)})
        assert len(applied("radar_blocked", 1.0, frame).radars["RADAR_FRONT"][0]) == 0
