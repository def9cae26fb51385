"""Transforms against pyquaternion and the laws of a group."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyquaternion import Quaternion

from sensors.transforms import RigidTransform, quaternion_of_rotation, rotation_of_quaternion, wrap_angle

component = st.floats(-1, 1)
quaternions = st.tuples(component, component, component, component).filter(lambda q: np.linalg.norm(q) > 1e-3)
shifts = st.tuples(*[st.floats(-1000, 1000)] * 3)
transforms = st.builds(RigidTransform.from_quaternion, quaternions, shifts)
XYZ = np.random.default_rng(0).normal(size=(5, 3)) * 10


@given(quaternions)
def test_rotation_of_a_quaternion_is_pyquaternions(q):
    np.testing.assert_allclose(rotation_of_quaternion(np.array(q)), Quaternion(q).unit.rotation_matrix, atol=1e-12)


@given(quaternions)
def test_quaternion_of_a_rotation_and_back(q):
    rotation = Quaternion(q).unit.rotation_matrix
    found = quaternion_of_rotation(rotation)
    assert found[0] >= 0
    assert np.linalg.norm(found) == pytest.approx(1)
    np.testing.assert_allclose(rotation_of_quaternion(found), rotation, atol=1e-9)
    assert Quaternion.absolute_distance(Quaternion(found), Quaternion(q).unit) < 1e-6


@pytest.mark.parametrize("q", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0.6, 0.8, 0)])
def test_half_turns(q):
    """The trace is -1: the largest component is not w."""
    q = np.array(q, np.float64)
    np.testing.assert_allclose(np.abs(quaternion_of_rotation(rotation_of_quaternion(q)) @ q), 1, atol=1e-12)


@given(transforms)
def test_inverse_undoes(a_from_b):
    np.testing.assert_allclose((a_from_b.inverse() @ a_from_b).matrix, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(a_from_b.inverse().points(a_from_b.points(XYZ)), XYZ, atol=1e-9)


@given(transforms, transforms)
def test_chains_cancel_in_the_reading(a_from_b, b_from_c):
    a_from_c = a_from_b @ b_from_c
    np.testing.assert_allclose(a_from_c.points(XYZ), a_from_b.points(b_from_c.points(XYZ)), atol=1e-9)
    np.testing.assert_allclose(a_from_c.matrix, a_from_b.matrix @ b_from_c.matrix, atol=1e-9)


@given(transforms)
def test_vectors_turn_and_do_not_shift(a_from_b):
    np.testing.assert_allclose(
        a_from_b.vectors(XYZ), a_from_b.points(XYZ) - a_from_b.points(np.zeros_like(XYZ)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.norm(a_from_b.vectors(XYZ), axis=1), np.linalg.norm(XYZ, axis=1))


@given(st.floats(-3.1, 3.1))
def test_yaw(yaw_rad):
    turned = RigidTransform.from_yaw(yaw_rad, (1.0, 2.0, 3.0))
    assert turned.yaw_rad == pytest.approx(yaw_rad)
    expected = Quaternion(axis=(0, 0, 1), radians=yaw_rad).rotation_matrix
    np.testing.assert_allclose(turned.rotation, expected, atol=1e-12)
    np.testing.assert_allclose(turned.points(np.zeros((1, 3)))[0], [1, 2, 3])


def test_a_quarter_turn_takes_forward_to_left():
    left = RigidTransform.from_yaw(np.pi / 2).points(np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(left, [[0, 1, 0]], atol=1e-12)


def test_precision_is_kept_and_computed_in_float64():
    """Far from the origin float32 alone would lose centimetres on the way there and back."""
    global_from_ego = RigidTransform.from_yaw(0.3, (100_000.0, 50_000.0, 0.0))
    other = RigidTransform.from_yaw(0.2, (100_010.0, 50_000.0, 0.0))
    near = (other.inverse() @ global_from_ego).points(XYZ.astype(np.float32))
    assert near.dtype == np.float32
    np.testing.assert_allclose(near, other.inverse().points(global_from_ego.points(XYZ)), atol=1e-5)


@pytest.mark.parametrize("q", [(0, 0, 0, 0), (np.nan, 0, 0, 1), (np.inf, 0, 0, 0)])
def test_a_quaternion_without_direction_is_refused(q):
    with pytest.raises(ValueError, match="quaternion"):
        RigidTransform.from_quaternion(q, (0, 0, 0))


@given(st.floats(-100, 100))
def test_wrap_angle(angle_rad):
    wrapped = float(wrap_angle(angle_rad))
    assert -np.pi <= wrapped < np.pi
    np.testing.assert_allclose([np.cos(wrapped), np.sin(wrapped)], [np.cos(angle_rad), np.sin(angle_rad)], atol=1e-9)
