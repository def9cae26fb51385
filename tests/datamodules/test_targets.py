"""Depth targets against a loop over every point."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.augment import ImageAugmentation, fitting_crop
from datamodules.nuscenes import NuScenesFrames
from datamodules.targets import MIN_DEPTH_M, CleanTargets, center_maps, depth_targets, targets_of
from sensors.camera import project
from sensors.rig import CAMERAS


def by_loop(frame, crops, size_px, stride):
    depth_m = np.zeros((6, size_px[0] // stride, size_px[1] // stride))
    for row, channel in enumerate(CAMERAS):
        if channel not in crops:
            continue
        image = frame.cameras[channel]
        xyz_m = image.ego_from_camera.inverse().points(frame.lidar[0].to_ego().astype(np.float64))
        uv, z = project(xyz_m, crops[channel] @ image.image_from_camera)
        for (u, v), depth in zip(uv, z, strict=True):
            if depth <= MIN_DEPTH_M:
                continue
            x, y = int(np.floor((u + 0.5) / stride)), int(np.floor((v + 0.5) / stride))
            if 0 <= x < depth_m.shape[2] and 0 <= y < depth_m.shape[1]:
                old = depth_m[row, y, x]
                depth_m[row, y, x] = depth if old == 0 else min(old, depth)
    return depth_m


@pytest.mark.parametrize("stride", [4, 16])
def test_nearest_depth_per_cell(small_set, stride):
    frame = NuScenesFrames(small_set, "v1.0-small", "small_train")[2]
    augmentation = ImageAugmentation(zoom=(1.0, 1.5), lift=1.0, mirror_probability=0.5)
    size_px = (32, 64)
    crops = {
        channel: augmentation.draw((36, 64), size_px, np.random.default_rng(row)).cropped_from_image
        for row, channel in enumerate(CAMERAS)
        if channel != "CAM_BACK"
    }
    found = depth_targets(targets_of(frame), crops, size_px, stride)
    expected = by_loop(frame, crops, size_px, stride)
    assert (expected > 0).sum() > 10
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not found[CAMERAS.index("CAM_BACK")].any()


def test_no_points_or_no_views_give_no_depth(small_set):
    frame = NuScenesFrames(small_set, "v1.0-small", "small_train")[0]
    targets = targets_of(frame)
    assert not depth_targets(targets, {}, (32, 64), 8).any()
    blind = CleanTargets(None, np.zeros((0, 3), np.float32), targets.image_from_ego)
    crops = {"CAM_FRONT": fitting_crop((36, 64), (32, 64)).cropped_from_image}
    assert depth_targets(blind, crops, (32, 64), 8).shape == (6, 4, 8)


@pytest.mark.parametrize("stride", [2, 8])
def test_a_center_is_one_in_the_cell_it_projects_to_and_nowhere_else(small_set, stride):
    frame = NuScenesFrames(small_set, "v1.0-small", "small_train")[2]
    size_px, channel = (32, 64), "CAM_FRONT"
    crop = fitting_crop((36, 64), size_px).cropped_from_image
    maps = center_maps(targets_of(frame), {channel: crop}, size_px, stride)
    image = frame.cameras[channel]
    expected = set()
    for box in range(len(frame.boxes)):
        center_m = image.ego_from_camera.inverse().points(frame.boxes.center_m[box : box + 1].astype(np.float64))
        uv, z = project(center_m, crop @ image.image_from_camera)
        x, y = np.floor((uv[0] + 0.5) / stride).astype(int)
        if z[0] > MIN_DEPTH_M and 0 <= x < 64 // stride and 0 <= y < 32 // stride and frame.boxes.num_points[box]:
            expected.add((int(frame.boxes.label[box]), int(y), int(x)))
    view = maps[CAMERAS.index(channel)]
    assert expected
    assert expected == {tuple(map(int, where)) for where in np.argwhere(view == 1)}
    assert view.min() == 0
    assert not np.delete(maps, CAMERAS.index(channel), axis=0).any()
    # exp(-r^2 / 2 s^2) one cell beside a centre of reach r >= 1, s = (2 r + 1) / 6: none above that of r = 6.
    assert view[view < 1].max() <= np.exp(-1 / (2 * (13 / 6) ** 2)) + 1e-6


def test_boxes_that_nothing_hit_and_splits_without_labels_have_no_center(small_set):
    frame = NuScenesFrames(small_set, "v1.0-small", "small_train")[2]
    crops = {c: fitting_crop((36, 64), (32, 64)).cropped_from_image for c in CAMERAS}
    targets = targets_of(frame)
    hidden = replace(frame.boxes, num_points=np.zeros_like(frame.boxes.num_points))
    assert center_maps(targets, crops, (32, 64), 8).any()
    assert not center_maps(replace(targets, boxes=hidden), crops, (32, 64), 8).any()
    assert not center_maps(replace(targets, boxes=None), crops, (32, 64), 8).any()
