"""Samples and batches: the order of preparation, absence, and every field where it belongs."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from datamodules.augment import BevAugmentation, ImageAugmentation
from datamodules.batch import LIDAR_FIELDS, RADAR_FIELDS
from datamodules.collate import collate
from datamodules.nuscenes import NuScenesFrames
from datamodules.prepare import Preparation, PreparedSamples, SampleKey
from sensors.camera import project
from sensors.health import health_of, thumbnails_of
from sensors.rig import CAMERAS, CHANNELS, RADARS, UNITS

SIZE_PX = (32, 64)


class Break:
    """A corruptor that blackens the front camera, loses the rear one, the LiDAR and a radar, and moves the boxes."""

    def __init__(self):
        self.calls = []

    def apply(self, frame, history, epoch, progress):
        self.calls.append((frame.token, epoch, progress, history.past("LIDAR_TOP", 1) is not None))
        cameras = {channel: image for channel, image in frame.cameras.items() if channel != "CAM_BACK"}
        front = cameras["CAM_FRONT"]
        cameras["CAM_FRONT"] = replace(front, pixels=np.zeros_like(front.pixels))
        radars = {channel: sweeps for channel, sweeps in frame.radars.items() if channel != "RADAR_FRONT"}
        return replace(frame, cameras=cameras, lidar=(), radars=radars, boxes=None), ("broken@1.00",)


@pytest.fixture(scope="module")
def frames(small_set):
    return NuScenesFrames(small_set, "v1.0-small", "small_train", lidar_sweeps=3, radar_sweeps=2)


def prepared(frames, corruptor=None, **options):
    return PreparedSamples(frames, Preparation(SIZE_PX, **options), corruptor)


def test_every_field_of_a_clean_batch(frames):
    samples = prepared(frames)
    batch = collate([samples[i] for i in (1, 4)])
    here = [frames[i] for i in (1, 4)]
    assert batch.tokens == ("scene-a-sample-1", "scene-b-sample-0")
    assert batch.scenes == ("scene-a", "scene-b")
    assert batch.timestamp_us.tolist() == [frame.timestamp_us for frame in here]
    np.testing.assert_array_equal(batch.global_from_ego, [frame.global_from_ego.matrix for frame in here])
    np.testing.assert_array_equal(batch.ego_from_ego_aug, [np.eye(4)] * 2)
    np.testing.assert_array_equal(batch.health, [health_of(frame) for frame in here])
    np.testing.assert_array_equal(batch.thumbnails, [thumbnails_of(frame) for frame in here])
    np.testing.assert_allclose(batch.ego_speed_mps, [frame.ego_speed_mps for frame in here])
    assert batch.channel_present.all()
    assert batch.unit_present.all()
    assert batch.faults == ((), ())
    assert batch.conditions[1] == {"day"}
    assert batch.progress.isnan().all()
    assert batch.camera.depth_m is None
    assert batch.camera.images.shape == (2, 6, 3, *SIZE_PX)
    assert batch.boxes.sample.tolist() == [0, 0, 1, 1]
    assert batch.boxes.num_points.tolist() == [3, 4, 3, 4]
    np.testing.assert_array_equal(batch.boxes.center_m[2:], here[1].boxes.center_m)


def test_points_of_a_batch(frames):
    batch = collate([prepared(frames)[i] for i in (1, 4)])
    here = [frames[i] for i in (1, 4)]
    lidar, radar = batch.lidar, batch.radar
    assert torch.bincount(lidar.sample).tolist() == [120, 40]
    assert torch.bincount(radar.sample).tolist() == [5 * 40 * 2, 5 * 40]
    column = {name: i for i, name in enumerate(LIDAR_FIELDS)}
    np.testing.assert_allclose(lidar.points[:40, :3], here[0].lidar[0].to_ego(), atol=2e-5)
    np.testing.assert_allclose(lidar.points[:, column["intensity"]], 0.2, rtol=1e-6)
    np.testing.assert_allclose(lidar.points[::40, column["lag_s"]], [0, 0.05, 0.1, 0], atol=1e-6)
    column = {name: i for i, name in enumerate(RADAR_FIELDS)}
    sweep = here[0].radars[RADARS[0]][0]
    rows = radar.points[:40].numpy()
    np.testing.assert_allclose(rows[:, 3:5], sweep.to_ego()[1], atol=1e-6)
    np.testing.assert_array_equal(rows[:, column["moving"]], [i % 8 in (0, 2, 6) for i in range(40)])
    np.testing.assert_array_equal(rows[:, column["valid"]], [i % 2 == 0 for i in range(40)])
    assert (rows[:, column["unambiguous"]] == 1).all()
    np.testing.assert_allclose(rows[:, column["rcs_dbsm"]], sweep.rcs_dbsm)


def test_targets_are_clean_and_health_is_not(frames):
    """Boxes and depth from before the faults, health and presence from after."""
    corruptor = Break()
    clean, broken = prepared(frames, depth_stride=8)[2], prepared(frames, corruptor, depth_stride=8)[2]
    batch = collate([broken])
    assert corruptor.calls == [("scene-a-sample-2", None, 1.0, True)]
    np.testing.assert_array_equal(broken.boxes.center_m, clean.boxes.center_m)
    front, back = CAMERAS.index("CAM_FRONT"), CAMERAS.index("CAM_BACK")
    assert clean.views.depth_m[front].any()
    np.testing.assert_array_equal(broken.views.depth_m[front], clean.views.depth_m[front])
    assert not broken.views.depth_m[back].any(), "no picture, no target"
    assert batch.camera.present[0].tolist() == [channel != "CAM_BACK" for channel in CAMERAS]
    lost = {"CAM_BACK", "LIDAR_TOP", "RADAR_FRONT"}
    assert batch.channel_present[0].tolist() == [channel not in lost for channel in CHANNELS]
    assert batch.unit_present[0].tolist() == [unit not in ("CAM_BACK", "LIDAR") for unit in UNITS]
    assert not batch.health[0][[CHANNELS.index(channel) for channel in lost]].any()
    assert batch.thumbnails[0, front].max() == 0
    assert not torch.equal(batch.health[0, front], torch.from_numpy(clean.health[front]))
    assert batch.lidar.present.tolist() == [False]
    assert len(batch.lidar.points) == 0
    assert batch.radar.present.tolist() == [True]
    assert batch.faults == (("broken@1.00",),)


def test_training_moment_reaches_faults_and_batch(frames):
    corruptor = Break()
    batch = collate([prepared(frames, corruptor)[SampleKey(2, 7, 0.25)]])
    assert corruptor.calls == [("scene-a-sample-2", 7, 0.25, True)]
    assert batch.progress.tolist() == [0.25]


def test_bev_augmentation_keeps_all_sensors_together(frames):
    """Radar, LiDAR, boxes and cameras move as one: undoing it gives the clean sample; projections do not change."""
    key = SampleKey(2, 3, 0.5)
    clean = prepared(frames)[2]
    moved = prepared(frames, bev_augmentation=BevAugmentation(), seed=4)[key]
    undo = moved.ego_from_ego_aug
    assert not np.allclose(undo, np.eye(4))
    for name in ("lidar", "radar"):
        xyz = getattr(moved, name)[:, :3]
        np.testing.assert_allclose(xyz @ undo[:3, :3].T, getattr(clean, name)[:, :3], atol=1e-4)
    np.testing.assert_allclose(moved.radar[:, 3:5] @ undo[:2, :2].T, clean.radar[:, 3:5], atol=1e-4)
    np.testing.assert_allclose(moved.boxes.center_m @ undo[:3, :3].T, clean.boxes.center_m, atol=1e-4)
    np.testing.assert_array_equal(moved.health, clean.health)
    for view in range(6):
        pixels = []
        for sample in (clean, moved):
            camera_from_ego = np.linalg.inv(sample.views.ego_from_camera[view].astype(np.float64))
            camera = sample.lidar[:, :3] @ camera_from_ego[:3, :3].T + camera_from_ego[:3, 3]
            pixels.append(project(camera, sample.views.image_from_camera[view].astype(np.float64))[0])
        seen = np.isfinite(pixels[0][:, 0]) & (np.abs(pixels[0]) < 1000).all(axis=1)
        assert seen.any()
        np.testing.assert_allclose(pixels[1][seen], pixels[0][seen], atol=0.05)


def test_augmentation_is_the_same_again_and_another_in_another_epoch(frames):
    samples = prepared(frames, bev_augmentation=BevAugmentation(), image_augmentation=ImageAugmentation(), seed=4)
    first, again, later = samples[SampleKey(1, 0, 0.0)], samples[SampleKey(1, 0, 0.9)], samples[SampleKey(1, 1, 0.9)]
    np.testing.assert_array_equal(first.lidar, again.lidar)
    np.testing.assert_array_equal(first.views.images, again.views.images)
    assert not np.array_equal(first.ego_from_ego_aug, later.ego_from_ego_aug)


def test_range_filter_applies_after_augmentation(frames):
    bounds = (-10.0, -10.0, -5.0, 10.0, 10.0, 3.0)
    samples = prepared(frames, point_range_m=bounds, bev_augmentation=BevAugmentation(yaw_rad=3.0), seed=1)
    sample = samples[SampleKey(2, 0, 0.0)]
    for points in (sample.lidar, sample.radar):
        assert len(points) > 0
        assert (points[:, :3] >= bounds[:3]).all()
        assert (points[:, :3] < bounds[3:]).all()


def test_a_run_without_cameras_reads_none(small_set, monkeypatch):
    frames = NuScenesFrames(small_set, "v1.0-small", "small_train", lidar_sweeps=1, radar_sweeps=0, cameras=False)
    monkeypatch.setattr("datamodules.nuscenes.read_pixels", None)
    batch = collate([PreparedSamples(frames, Preparation(None))[0]])
    assert batch.camera is None
    assert batch.radar is None
    assert batch.unit_present[0].tolist() == [unit == "LIDAR" for unit in UNITS]
    with pytest.raises(ValueError, match="cameras=False"):
        PreparedSamples(frames, Preparation(SIZE_PX))


def test_a_test_split_has_no_boxes(frames):
    batch = collate([replace(prepared(frames)[i], boxes=None) for i in (0, 1)])
    assert batch.boxes is None


def test_a_batch_can_be_pinned_and_moved(frames):
    batch = collate([prepared(frames)[0]])
    moved = batch.to("cpu")
    assert all(hasattr(moved, field.name) for field in fields(batch))
    assert torch.equal(moved.camera.images, batch.camera.images)


def test_impossible_preparations_are_refused():
    for options in ({"image_size_px": (30, 64), "depth_stride": 8}, {"image_size_px": (0, 64)}):
        with pytest.raises(ValueError, match="image_size_px"):
            Preparation(**options)
    with pytest.raises(ValueError, match="six numbers"):
        Preparation(None, point_range_m=(1.0, 2.0))
