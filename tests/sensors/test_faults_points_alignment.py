"""Radar interference, miscalibrated cameras and wrong ego poses."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults.catalogue import CATALOGUE, fault_named
from sensors.faults.protocol import Draws
from sensors.faults.radar import HALF_VIEW_RAD, azimuth_of, range_of
from sensors.frame import NoHistory
from sensors.radar import read_radar
from sensors.rig import NUSCENES_RIG
from tests.sensors.fault_measures import angle_deg
from tests.sensors.toy_frames import toy_frame, toy_radar

FRAME = toy_frame(height=18, width=32, num_points=640)


def applied(name, level, frame=FRAME, token="a"):
    return fault_named(name)(frame, NoHistory(), level, Draws(1, token, name))


@pytest.mark.parametrize("width_deg", [10.0, 60.0, 90.0])
def test_interference_leaves_ten_false_points_outside_of_an_empty_wedge(width_deg):
    before = toy_radar("RADAR_FRONT", 1, 4000)
    frame = replace(FRAME, radars={"RADAR_FRONT": (before,)})
    for token in "abc":
        after = applied("radar_interference", width_deg, frame, token).radars["RADAR_FRONT"][0]
        azimuth = np.sort(np.concatenate([azimuth_of(after), [-HALF_VIEW_RAD, HALF_VIEW_RAD]]))
        gap_deg = np.rad2deg(np.diff(azimuth).max())
        # Up to half of the wedge may lie outside of the view.
        assert width_deg / 2 - 1 <= gap_deg <= width_deg + 1
        true = np.isin(after.xyz_m[:, 0], before.xyz_m[:, 0])
        assert (~true).sum() == 10
        assert np.abs(azimuth_of(after)).max() <= HALF_VIEW_RAD + 1e-6


@pytest.mark.parametrize(
    "name", [fault.name for fault in CATALOGUE if fault.modality == "radar" and fault.family != "late"]
)
def test_radial_pair_stays_radial_and_consistent(name):
    """Compensated speed lies on the line of sight; raw minus compensated is the vehicle's own speed along it."""
    fault = fault_named(name)
    for channel, sweeps in applied(name, fault.levels[2]).radars.items():
        sweep = sweeps[0]
        line = sweep.xyz_m[:, :2] / np.maximum(range_of(sweep), 1e-3)[:, None]
        for velocity in (sweep.velocity_mps, sweep.velocity_raw_mps):
            across = velocity[:, 0] * line[:, 1] - velocity[:, 1] * line[:, 0]
            assert np.abs(across).max(initial=0) < 1e-4, channel


def test_doppler_sign_is_positive_away_from_the_sensor():
    before = toy_radar("RADAR_FRONT", 1, 4000)
    frame = replace(FRAME, radars={"RADAR_FRONT": (before,)})
    after = applied("radar_doppler_alias", 1.0, frame).radars["RADAR_FRONT"][0]
    change = after.velocity_mps - before.velocity_mps
    speed = (change * before.xyz_m[:, :2]).sum(axis=1) / range_of(before)
    # What is faster away has moved outwards a little later.
    later = np.linalg.norm(before.xyz_m[:, :2] + 0.1 * change, axis=1)
    assert np.array_equal(later > range_of(before), speed > 0)
    assert np.abs(speed) == pytest.approx(20.0, abs=1e-3)
    assert (speed > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_intrinsics_are_off_by_the_asked_percentage():
    for channel, image in applied("camera_intrinsics", 4.0).cameras.items():
        before = FRAME.cameras[channel].image_from_camera
        ratio = image.image_from_camera[[0, 1], [0, 1]] / before[[0, 1], [0, 1]]
        assert np.abs(ratio - 1) == pytest.approx(0.04)
        shift = (image.image_from_camera - before)[:2, 2] / before[[0, 1], [0, 1]]
        assert np.linalg.norm(shift) == pytest.approx(0.02)
        assert image.pixels is FRAME.cameras[channel].pixels


def test_camera_shift_moves_each_camera_by_the_asked_distance_its_own_way():
    moves = []
    for channel, image in applied("camera_shift", 0.3).cameras.items():
        error = FRAME.cameras[channel].ego_from_camera.inverse() @ image.ego_from_camera
        assert np.linalg.norm(error.translation_m) == pytest.approx(0.3)
        assert error.rotation == pytest.approx(np.eye(3))
        moves.append(error.translation_m)
    assert np.std(moves, axis=0).min() > 0.01


def test_ego_pose_noise_is_anew_for_every_measurement():
    shifts, turns = [], []
    for i in range(60):
        after = applied("ego_pose_noise", 0.4, token=f"{i}")
        pairs = [(FRAME.lidar[k].ego_from_lidar, after.lidar[k].ego_from_lidar) for k in range(2)]
        pairs.append((FRAME.cameras["CAM_BACK"].ego_from_camera, after.cameras["CAM_BACK"].ego_from_camera))
        errors = [new @ old.inverse() for old, new in pairs]
        shifts.append([error.translation_m[:2] for error in errors])
        turns += [angle_deg(*pair) for pair in pairs]
        assert all(error.translation_m[2] == pytest.approx(0, abs=1e-9) for error in errors)
    shifts = np.array(shifts)
    assert shifts.std() == pytest.approx(0.4, rel=0.15)
    assert np.abs(np.corrcoef(shifts[:, 0, 0], shifts[:, 1, 0])[0, 1]) < 0.4
    assert np.sqrt(np.mean(np.square(turns))) == pytest.approx(0.4, rel=0.2)


def test_real_radar_keeps_its_ego_compensation(nuscenes_real):
    path = next(nuscenes_real.rglob("*RADAR_BACK_RIGHT*.pcd"))
    before = read_radar(path, 0.0, NUSCENES_RIG["RADAR_BACK_RIGHT"].ego_from_sensor)
    frame = replace(FRAME, radars={"RADAR_BACK_RIGHT": (before,)})
    line = before.xyz_m[:, :2] / range_of(before)[:, None]
    own = ((before.velocity_raw_mps - before.velocity_mps) * line).sum(axis=1)
    # The file's own compensation is one vector along each line of sight, though its raw velocities are not radial.
    vector = np.linalg.lstsq(line, own, rcond=None)[0]
    assert line @ vector == pytest.approx(own, abs=1e-4)
    for name in ("radar_doppler_noise", "radar_doppler_alias", "radar_ghosts", "radar_point_drop", "radar_rcs_loss"):
        after = applied(name, fault_named(name).levels[2], frame).radars["RADAR_BACK_RIGHT"][0]
        line = after.xyz_m[:, :2] / range_of(after)[:, None]
        own = ((after.velocity_raw_mps - after.velocity_mps) * line).sum(axis=1)
        assert line @ vector == pytest.approx(own, abs=1e-3), name
        across = after.velocity_mps[:, 0] * line[:, 1] - after.velocity_mps[:, 1] * line[:, 0]
        assert np.abs(across).max() < 1e-4, name
