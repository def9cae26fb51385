"""Boxes against the devkit's Box."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.boxes import (
    ATTRIBUTE_NAMES,
    DETECTION_FROM_CATEGORY,
    DETECTION_NAMES,
    Boxes,
    attributes_of_class,
    concatenate_boxes,
)
from sensors.transforms import RigidTransform


def random_boxes(seed, num=6) -> Boxes:
    generator = np.random.default_rng(seed)
    return Boxes(
        center_m=generator.uniform(-20, 20, (num, 3)),
        size_lwh_m=generator.uniform(0.5, 12, (num, 3)),
        yaw_rad=generator.uniform(-np.pi, np.pi, num),
        velocity_mps=generator.normal(size=(num, 2)),
        label=generator.integers(0, 10, num),
        score=generator.uniform(size=num),
        attribute=np.full(num, -1),
        num_points=np.zeros(num, np.int64),
    )


def devkit_boxes(boxes):
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    return [
        Box(
            boxes.center_m[i],
            boxes.size_lwh_m[i][[1, 0, 2]],
            Quaternion(axis=(0, 0, 1), radians=boxes.yaw_rad[i]),
            velocity=(*boxes.velocity_mps[i], 0.0),
        )
        for i in range(len(boxes))
    ]


@given(st.integers(0, 1000), st.floats(-3, 3), st.tuples(*[st.floats(-50, 50)] * 3), st.floats(-0.2, 0.2))
def test_moved_is_the_devkits_rotate_and_translate(seed, yaw_rad, shift_m, pitch):
    """Also under a tilt, where only the heading's projection is kept."""
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    q = Quaternion(axis=(0, 0, 1), radians=yaw_rad) * Quaternion(axis=(0, 1, 0), radians=pitch)
    moved = random_boxes(seed).moved(RigidTransform.from_quaternion(q.elements, shift_m))
    for i, box in enumerate(devkit_boxes(random_boxes(seed))):
        box.rotate(q)
        box.translate(np.array(shift_m))
        np.testing.assert_allclose(moved.center_m[i], box.center, atol=1e-9)
        np.testing.assert_allclose(moved.velocity_mps[i], box.velocity[:2], atol=1e-9)
        apart = moved.yaw_rad[i] - quaternion_yaw(box.orientation)
        assert np.cos(apart) == pytest.approx(1, abs=1e-12)


@given(st.integers(0, 1000))
def test_corners_are_the_devkits(seed):
    boxes = random_boxes(seed)
    expected = [box.corners().T for box in devkit_boxes(boxes)]
    np.testing.assert_allclose(boxes.corners(), expected, atol=1e-9)


@given(st.integers(0, 1000))
def test_count_inside_is_the_devkits(seed):
    from nuscenes.utils.geometry_utils import points_in_box

    boxes = random_boxes(seed)
    points = np.random.default_rng(seed + 1).uniform(-25, 25, (2000, 3))
    expected = [int(points_in_box(box, points.T).sum()) for box in devkit_boxes(boxes)]
    assert boxes.count_inside(points).tolist() == expected


def test_moving_there_and_back_changes_nothing():
    boxes, there = random_boxes(3), RigidTransform.from_yaw(2.0, (5.0, -3.0, 1.0))
    back = boxes.moved(there).moved(there.inverse())
    np.testing.assert_allclose(back.center_m, boxes.center_m, atol=1e-9)
    np.testing.assert_allclose(back.yaw_rad, boxes.yaw_rad, atol=1e-9)


def test_select_concatenate_and_empty():
    boxes = random_boxes(1)
    assert len(Boxes.empty()) == len(concatenate_boxes([])) == 0
    joined = concatenate_boxes([boxes.select(boxes.score > 0.5), boxes.select(np.flatnonzero(boxes.score <= 0.5))])
    assert sorted(joined.score.tolist()) == sorted(boxes.score.tolist())
    assert Boxes.empty().corners().shape == (0, 8, 3)
    assert len(Boxes.empty().moved(RigidTransform.identity())) == 0


def test_names_are_the_devkits():
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES as DEVKIT_ATTRIBUTES
    from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes

    assert set(DETECTION_NAMES) == set(config_factory("detection_cvpr_2019").class_names)
    assert sorted(ATTRIBUTE_NAMES) == sorted(DEVKIT_ATTRIBUTES)
    for category, name in DETECTION_FROM_CATEGORY.items():
        assert category_to_detection_name(category) == name
    assert category_to_detection_name("animal") is None
    for name in DETECTION_NAMES:
        own = {ATTRIBUTE_NAMES[i] for i in attributes_of_class(name)}
        assert own == set(detection_name_to_rel_attributes(name))
