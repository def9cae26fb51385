"""Every number of the town's frames against the devkit: chains, intrinsics, boxes, velocities, sweeps, points."""

import cv2
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.data_classes import RadarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility, points_in_box

from datamodules.nuscenes import NuScenesFrames
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS
from tests.datamodules import devkit_checks as checks

VERSION = "v1.0-town"


@pytest.fixture(scope="module")
def nusc(tiny_town):
    return NuScenes(VERSION, str(tiny_town), verbose=False)


@pytest.fixture(scope="module")
def frames(tiny_town):
    return NuScenesFrames(tiny_town, VERSION, "town_train", lidar_sweeps=5, radar_sweeps=5, close_m=0.0)


@pytest.fixture(autouse=True)
def _all_radar_points():
    RadarPointCloud.disable_filters()
    yield
    RadarPointCloud.default_filters()


def test_chains_times_and_intrinsics(nusc, frames):
    numbers = [checks.check_chains_and_times(nusc, frames, i) for i in range(len(frames))]
    assert min(numbers) >= len(CHANNELS)
    assert max(numbers) > 2 * len(CHANNELS), "sweeps too"
    for i in range(len(frames)):
        checks.check_intrinsics(nusc, frames, i)


def test_boxes_in_every_sensors_frame(nusc, frames):
    for i in range(len(frames)):
        checks.check_boxes_in_every_sensor(nusc, frames, i)


def test_labels_velocities_and_attributes(nusc, frames):
    for i in range(len(frames)):
        checks.check_labels(nusc, frames, i)


def test_lidar_sweeps_are_those_of_from_file_multisweep(nusc, frames):
    numbers = [checks.check_lidar_sweeps(nusc, frames, i, 5) for i in range(len(frames))]
    assert max(numbers) == 5


def test_radar_sweeps_are_those_of_from_file_multisweep(nusc, frames):
    numbers = [checks.check_radar_sweeps(nusc, frames, i, channel, 5) for i in (0, 2) for channel in RADARS]
    assert max(numbers) == 5


def test_point_counts_of_the_labels(nusc, frames):
    """Inside the devkit's boxes, of the points of our frame: LiDAR and all five radars together."""
    for i in range(len(frames)):
        frame, sample = frames[i], nusc.get("sample", frames.tokens[i])
        counted = np.zeros(len(frame.boxes), int)
        for channel, sweeps in ((LIDAR, frame.lidar), *frame.radars.items()):
            _, boxes, _ = nusc.get_sample_data(sample["data"][channel], box_vis_level=BoxVisibility.NONE)
            counted += [int(points_in_box(box, sweeps[0].xyz_m.T).sum()) for box in boxes]
        assert counted.tolist() == frame.boxes.num_points.tolist()


def test_pictures_are_the_files_pixels(nusc, frames):
    frame, sample = frames[1], nusc.get("sample", frames.tokens[1])
    for channel in CAMERAS:
        path, _, intrinsics = nusc.get_sample_data(sample["data"][channel])
        np.testing.assert_array_equal(frame.cameras[channel].pixels[:, :, ::-1], cv2.imread(path))
        np.testing.assert_array_equal(frame.cameras[channel].image_from_camera, intrinsics)


def test_poses_and_speed(nusc, frames):
    for i, token in enumerate(frames.tokens):
        sample = nusc.get("sample", token)
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"][LIDAR])["ego_pose_token"])
        np.testing.assert_allclose(frames[i].global_from_ego.matrix, checks.matrix_of(pose), atol=1e-9)
        other = nusc.get("sample", sample["prev"] or sample["next"])
        there = nusc.get("ego_pose", nusc.get("sample_data", other["data"][LIDAR])["ego_pose_token"])
        moved_m = np.subtract(pose["translation"], there["translation"])[:2]
        speed = np.linalg.norm(moved_m) / abs(1e-6 * (sample["timestamp"] - other["timestamp"]))
        assert frames[i].ego_speed_mps == pytest.approx(speed, rel=1e-9)
