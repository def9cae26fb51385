"""Frames of the hand-made set: fixed landmarks coincide in the ego frame for every sensor, sweep and time."""

import pickle
import warnings

import numpy as np
import pytest

from datamodules.nuscenes import NuScenesFrames, conditions_of
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES
from sensors.camera import project
from sensors.rig import CAMERAS, RADARS
from tests.datamodules.small_set import (
    LANDMARKS_M,
    PEDESTRIAN_MPS,
    SPEED_MPS,
    STEP_US,
    SWEEP_US,
    global_from_ego,
    intrinsics,
)
from tests.datamodules.test_index import edited

VERSION = "v1.0-small"


def frames_of(root, **options):
    return NuScenesFrames(root, VERSION, "small_train", **options)


@pytest.fixture(scope="module")
def frames(small_set):
    return frames_of(small_set, lidar_sweeps=3, radar_sweeps=2)


def landmarks_in_ego(frame):
    return global_from_ego(frame.timestamp_us).inverse().points(LANDMARKS_M)


def test_every_lidar_sweep_puts_the_landmarks_in_one_place(frames):
    for i in range(len(frames)):
        frame = frames[i]
        for sweep in frame.lidar:
            np.testing.assert_allclose(sweep.to_ego(), landmarks_in_ego(frame), atol=2e-5)


def test_every_radar_sweep_puts_the_landmarks_in_one_place(frames):
    frame = frames[2]
    assert set(frame.radars) == set(RADARS)
    for sweeps in frame.radars.values():
        assert len(sweeps) == 2
        for sweep in sweeps:
            np.testing.assert_allclose(sweep.to_ego()[0], landmarks_in_ego(frame), atol=2e-5)


def test_cameras_are_chained_through_their_own_pose(frames):
    """Straight from global at the exposure time, and by way of the keyframe's ego frame."""
    frame = frames[1]
    for row, channel in enumerate(CAMERAS):
        image = frame.cameras[channel]
        assert image.lag_s == pytest.approx((3 + 2 * row) * 1e-3)
        taken_us = round(frame.timestamp_us - image.lag_s * 1e6)
        camera_from_ego_then = image.ego_from_camera.inverse() @ frame.global_from_ego.inverse()
        here = camera_from_ego_then.points(LANDMARKS_M)
        from sensors.rig import NUSCENES_RIG

        direct = (NUSCENES_RIG[channel].ego_from_sensor.inverse() @ global_from_ego(taken_us).inverse()).points(
            LANDMARKS_M
        )
        np.testing.assert_allclose(
            project(here, image.image_from_camera)[0], project(direct, intrinsics())[0], atol=1e-6
        )


def test_sweeps_are_newest_first_and_stop_at_the_start(frames):
    assert [len(frames[i].lidar) for i in range(len(frames))] == [1, 3, 3, 3, 1, 3, 3]
    lags = [sweep.lag_s for sweep in frames[1].lidar]
    np.testing.assert_allclose(lags, [0, SWEEP_US * 1e-6, 2 * SWEEP_US * 1e-6], atol=1e-9)


def test_sweeps_reach_into_the_keyframe_before(small_set):
    frame = frames_of(small_set, lidar_sweeps=10)[1]
    lags = [sweep.lag_s for sweep in frame.lidar]
    np.testing.assert_allclose(lags, [0, 0.05, 0.1, 0.5], atol=1e-9)


def test_points_on_the_vehicle_are_left_out_by_a_circle(small_set):
    assert len(frames_of(small_set, close_m=0.0)[0].lidar[0]) == len(LANDMARKS_M) + 1
    assert len(frames_of(small_set, close_m=1.0)[0].lidar[0]) == len(LANDMARKS_M)


def test_boxes_of_the_detection_classes(frames):
    boxes = frames[1].boxes
    assert [DETECTION_NAMES[label] for label in boxes.label] == ["car", "pedestrian"]
    assert [ATTRIBUTE_NAMES[attribute] for attribute in boxes.attribute] == ["vehicle.parked", "pedestrian.moving"]
    np.testing.assert_allclose(boxes.size_lwh_m, [[4.5, 1.9, 1.6], [0.7, 0.6, 1.8]], rtol=1e-6)
    assert boxes.num_points.tolist() == [3, 4]
    home = boxes.moved(frames[1].global_from_ego)
    np.testing.assert_allclose(home.center_m[0], [10, 5, 1], atol=1e-4)
    np.testing.assert_allclose(home.velocity_mps, [[0, 0], PEDESTRIAN_MPS[:2]], atol=2e-3)
    np.testing.assert_allclose(home.yaw_rad, [0.3, -2.0], atol=2e-3)


def test_speed_is_that_of_the_poses(frames):
    for i in range(len(frames)):
        assert frames[i].ego_speed_mps == pytest.approx(SPEED_MPS, rel=1e-6)


def test_conditions():
    assert conditions_of("Night, after rain, parked train") == {"night", "rain"}
    assert conditions_of("Parked train, sunny") == {"day"}
    assert conditions_of("Dense fog, rainy") == {"fog", "rain"}


def test_history_is_relative_to_the_ego_frame_of_then(frames):
    history = frames.history(2)
    for channel, num_sweeps in (("LIDAR_TOP", 3), ("RADAR_FRONT", 2)):
        past = history.past(channel, 1)
        assert len(past) == num_sweeps
    np.testing.assert_array_equal(history.past("LIDAR_TOP", 1)[0].to_ego(), frames[1].lidar[0].to_ego())
    np.testing.assert_array_equal(history.past("CAM_BACK", 2).pixels, frames[0].cameras["CAM_BACK"].pixels)
    assert history.past("CAM_BACK", 3) is None
    assert frames.history(4).past("CAM_BACK", 1) is None, "another scene"


def test_history_measures_every_sweep_in_the_keyframes_frame(frames):
    """Places of ``lags_s`` are the frame's own sweeps, one by one; landmarks stay where they are."""
    history, frame = frames.history(2), frames[2]
    for channel, sweeps in (("LIDAR_TOP", frame.lidar), ("RADAR_FRONT", frame.radars["RADAR_FRONT"])):
        lags = history.lags_s(channel, 1.0)
        assert list(lags[: len(sweeps)]) == [sweep.lag_s for sweep in sweeps]
        assert list(lags) == sorted(lags)
        for step, sweep in enumerate(sweeps):
            single = history.measured(channel, step)
            np.testing.assert_array_equal(single.xyz_m, sweep.xyz_m)
    np.testing.assert_array_equal(history.measured("CAM_BACK", 1).pixels, history.past("CAM_BACK", 1).pixels)
    assert history.measured("CAM_BACK", 3) is None


def test_a_lost_file_is_an_error_or_an_absence_with_one_warning(own_small_set):
    for gone in ("samples/LIDAR_TOP/scene-a-LIDAR_TOP-1-0.pcd.bin", "samples/CAM_BACK/scene-a-CAM_BACK-1-0.jpg"):
        (own_small_set / gone).unlink()
    (own_small_set / "sweeps/RADAR_FRONT/scene-a-RADAR_FRONT-2-1.pcd").unlink()
    with pytest.raises(FileNotFoundError, match="missing=absent") as error:
        frames_of(own_small_set)[1]
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="3 of 144 files") as caught:
        frames = frames_of(own_small_set, lidar_sweeps=3, radar_sweeps=3, missing="absent")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = frames[1]
        assert frame.lidar == ()
        assert "CAM_BACK" not in frame.cameras
        assert len(frame.cameras) == 5
        pose = global_from_ego(frame.timestamp_us)
        np.testing.assert_allclose(frame.global_from_ego.matrix, pose.matrix, atol=1e-9)
        assert len(frame.boxes) == 2
        assert len(frames[2].radars["RADAR_FRONT"]) == 2, "the sweeps that are left"
        assert frames.history(2).past("LIDAR_TOP", 1) is None


def test_a_table_without_lidar_refers_to_the_sensor_nearest_in_time(own_small_set):
    def drop(rows):
        rows[:] = [row for row in rows if "LIDAR" not in row["token"]]

    edited(own_small_set, "sample_data", drop)
    frame = frames_of(own_small_set)[1]
    assert frame.lidar == ()
    nearest_us = frame.timestamp_us - 3000
    np.testing.assert_allclose(frame.global_from_ego.matrix, global_from_ego(nearest_us).matrix, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "samples/LIDAR_TOP/scene-a-LIDAR_TOP-0-0.pcd.bin",
        "samples/CAM_FRONT/scene-a-CAM_FRONT-0-0.jpg",
        "samples/RADAR_FRONT/scene-a-RADAR_FRONT-0-0.pcd",
    ],
)
@pytest.mark.parametrize("missing", ["error", "absent"])
def test_a_truncated_file_is_an_error_under_either_policy(own_small_set, name, missing):
    path = own_small_set / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=path.name) as error:
        frames_of(own_small_set, missing=missing)[0]
    assert "\n" not in str(error.value)


def test_a_picture_of_another_size_is_an_error(own_small_set):
    edited(own_small_set, "sample_data", lambda rows: [row.update(width=row["width"] * 2) for row in rows])
    with pytest.raises(ValueError, match="128x36"):
        frames_of(own_small_set)[0]


def test_a_test_split_has_no_boxes(own_small_set):
    for table in ("sample_annotation", "instance"):
        edited(own_small_set, table, lambda rows: rows.clear())
    assert frames_of(own_small_set)[0].boxes is None


def test_sensors_can_be_left_out(small_set):
    frame = frames_of(small_set, lidar_sweeps=0, radar_sweeps=0, cameras=False)[0]
    assert (frame.cameras, frame.lidar, frame.radars) == ({}, (), {})


def test_splits_and_options_are_checked(small_set):
    assert len(NuScenesFrames(small_set, VERSION, "small_val")) == 3
    for split in ("elsewhere", "mini_val"):
        with pytest.raises(ValueError, match=f"split '{split}'"):
            NuScenesFrames(small_set, VERSION, split)
    with pytest.raises(ValueError, match="error, absent"):
        frames_of(small_set, missing="ignore")
    with pytest.raises(ValueError, match="sweeps"):
        frames_of(small_set, lidar_sweeps=-1)


def test_frames_pickle_small_and_read_the_same(frames):
    frozen = pickle.dumps(frames)
    assert len(frozen) < 2000
    np.testing.assert_array_equal(pickle.loads(frozen)[3].lidar[0].xyz_m, frames[3].lidar[0].xyz_m)


def test_class_counts(frames):
    counts = frames.class_counts
    assert counts.shape == (7, 10)
    assert counts.sum(axis=0).tolist() == [7, 0, 0, 0, 0, 7, 0, 0, 0, 0]
    assert frames.tokens[4] == "scene-b-sample-0"
    assert STEP_US == 500_000
