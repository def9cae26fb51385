"""Whole sensors that are lost, worthless or stuck."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, LIDAR, RADARS
from tests.sensors.fault_measures import digest, drifting_scene, history_of
from tests.sensors.toy_frames import ListHistory, toy_frame

SCENE = drifting_scene(5, height=18, width=32, num_points=320)


def applied(name, level, frame=SCENE[-1], history=None, token="a", channels=None):
    fault = fault_named(name, channels)
    return fault(frame, history or NoHistory(), level, Draws(1, token, name))


@pytest.mark.parametrize(("modality", "channels"), [("camera", CAMERAS), ("radar", RADARS)])
def test_level_is_how_many_sensors_are_lost_and_losses_nest(modality, channels):
    for token in "abcd":
        left = [
            {channel for channel in channels if applied(f"{modality}_drop", n, token=token).present(channel)}
            for n in range(len(channels) + 1)
        ]
        assert [len(kept) for kept in left] == list(range(len(channels), -1, -1))
        assert all(more > fewer for more, fewer in zip(left, left[1:], strict=False))


def test_fraction_is_the_probability_of_one_more():
    lost = [not applied("lidar_drop", 0.4, token=f"t{i}").lidar for i in range(400)]
    assert np.mean(lost) == pytest.approx(0.4, abs=4 * np.sqrt(0.4 * 0.6 / 400))
    counts = [6 - len(applied("camera_drop", 2.5, token=f"t{i}").cameras) for i in range(200)]
    assert set(counts) == {2, 3}


def test_drop_is_absent_and_blackout_is_present_but_worthless():
    frame = SCENE[-1]
    dropped = applied("camera_drop", 1, channels=["CAM_BACK"])
    assert set(dropped.cameras) == set(CAMERAS) - {"CAM_BACK"}
    black = applied("camera_blackout", 1, channels=["CAM_BACK"])
    assert not black.cameras["CAM_BACK"].pixels.any()
    assert black.cameras["CAM_BACK"].lag_s == frame.cameras["CAM_BACK"].lag_s
    assert black.cameras["CAM_FRONT"] is frame.cameras["CAM_FRONT"]
    assert applied("lidar_drop", 1).lidar == ()
    empty = applied("lidar_blackout", 1)
    assert empty.present(LIDAR)
    assert [len(sweep) for sweep in empty.lidar] == [0, 0]
    silent = applied("radar_blackout", 5)
    assert all(silent.present(radar) and not len(silent.radars[radar][0]) for radar in RADARS)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_freeze_shows_the_data_of_then_under_todays_calibration(k):
    now, then = SCENE[-1], SCENE[-1 - k]
    history = history_of(SCENE)
    stuck = applied("camera_freeze", k, history=history)
    for channel, image in stuck.cameras.items():
        assert np.array_equal(image.pixels, then.cameras[channel].pixels)
        assert image.ego_from_camera is now.cameras[channel].ego_from_camera
        assert image.lag_s == now.cameras[channel].lag_s
    stuck = applied("lidar_freeze", k, history=history)
    for sweep, today in zip(stuck.lidar, now.lidar, strict=True):
        assert sweep.xyz_m is then.lidar[0].xyz_m
        assert (sweep.ego_from_lidar, sweep.lag_s) == (today.ego_from_lidar, today.lag_s)
    stuck = applied("radar_freeze", k, history=history, channels=["RADAR_FRONT"])
    assert stuck.radars["RADAR_FRONT"][0].xyz_m is then.radars["RADAR_FRONT"][0].xyz_m
    assert stuck.radars["RADAR_BACK_LEFT"] is now.radars["RADAR_BACK_LEFT"]


def test_freeze_never_leaves_the_scene():
    # One keyframe into the scene, four asked: the scene's first measurement. At the very start: as it is.
    second = applied("camera_freeze", 4, frame=SCENE[1], history=ListHistory(SCENE, 1))
    assert np.array_equal(second.cameras["CAM_FRONT"].pixels, SCENE[0].cameras["CAM_FRONT"].pixels)
    first = applied("camera_freeze", 4, frame=SCENE[0], history=ListHistory(SCENE, 0))
    assert digest(first) == digest(SCENE[0])


def test_freeze_fraction_mixes_two_ages():
    ages = set()
    for i in range(30):
        stuck = applied("lidar_freeze", 1.5, history=history_of(SCENE), token=f"t{i}").lidar[0]
        ages |= {k for k in range(5) if stuck.xyz_m is SCENE[-1 - k].lidar[0].xyz_m}
    assert ages == {1, 2}


def test_blackout_of_a_lost_camera_leaves_it_lost():
    frame = toy_frame(height=9, width=16, num_points=32)
    without = replace(frame, cameras={"CAM_FRONT": frame.cameras["CAM_FRONT"]})
    assert set(applied("camera_blackout", 6, frame=without).cameras) == {"CAM_FRONT"}
