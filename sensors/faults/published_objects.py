"""Corruptions of single objects exactly as other suites publish them; rows and sources as in ``published_lidar``.

Boxes are in the frame of the points: ``frame.boxes.moved(sweep.ego_from_lidar.inverse())``.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.faults.published_lidar import (
    Points,
    thu_gaussian_noise,
    thu_impulse_noise,
    thu_uniform_noise,
    without_nearest,
)

_ECHO_CLASSES = tuple(
    DETECTION_NAMES.index(name)
    for name in ("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck")
)
_FEWEST_ECHOES = 10


class _Box(NamedTuple):
    center_m: np.ndarray
    size_lwh_m: np.ndarray
    yaw_rad: float


def inside_of(xyz_m: Float[np.ndarray, "p 3"], boxes: Boxes) -> Bool[np.ndarray, "b p"]:
    """Which points lie in which box (faces included)."""
    c, s = np.cos(boxes.yaw_rad)[:, None], np.sin(boxes.yaw_rad)[:, None]
    half = boxes.size_lwh_m[:, :, None] / 2
    x, y, z = (xyz_m[None, :, axis] - boxes.center_m[:, axis, None] for axis in range(3))
    return (np.abs(x * c + y * s) <= half[:, 0]) & (np.abs(y * c - x * s) <= half[:, 1]) & (np.abs(z) <= half[:, 2])


def thu_local_density(points: Points, boxes: Boxes, dropped_share: float, rng: np.random.Generator) -> Points:
    """A share of each object's points is lost."""

    def thinned(inner: Points, box: _Box) -> Points:
        return np.delete(inner, rng.choice(len(inner), int(dropped_share * len(inner)), replace=False), axis=0)

    return _in_each_box(points, boxes, thinned)


def thu_local_cutout(points: Points, boxes: Boxes, dropped_share: float, rng: np.random.Generator) -> Points:
    """Each object loses that share of its points, the nearest around one of them."""
    return _in_each_box(points, boxes, lambda inner, box: without_nearest(inner, int(len(inner) * dropped_share), rng))


def thu_local_gaussian(points: Points, boxes: Boxes, sigma: float, rng: np.random.Generator) -> Points:
    """N(0, sigma) on all columns of the objects' points."""
    return _in_each_box(points, boxes, lambda inner, box: thu_gaussian_noise(inner, sigma, rng))


def thu_local_uniform(points: Points, boxes: Boxes, half_width: float, rng: np.random.Generator) -> Points:
    """U(-w, w) on all columns of the objects' points."""
    return _in_each_box(points, boxes, lambda inner, box: thu_uniform_noise(inner, half_width, rng))


def thu_local_impulse(points: Points, boxes: Boxes, divisor: int, rng: np.random.Generator) -> Points:
    """One in ``divisor`` of each object's points is off by +-0.1 in all columns."""
    return _in_each_box(points, boxes, lambda inner, box: thu_impulse_noise(inner, divisor, rng))


def scale_matrix(change: float, rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Larger or smaller by that share along one random axis."""
    factor = np.ones(3)
    axis = rng.integers(3)
    factor[axis] += change * rng.choice([-1, 1])
    return np.diag(factor)


def shear_matrix(entry: float, rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Entries (0,2), (1,0), (1,2), (2,0) of U(c - .05, c + .05) with random signs."""
    b, d, e, f = rng.uniform(entry - 0.05, entry + 0.05, 4) * rng.choice([-1, 1], 4)
    return np.array([[1, 0, b], [d, 1, e], [f, 0, 1]])


def rotation_matrix(angle_deg: float, rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """A turn about the vertical axis by U(c - 1, c + 1) deg to either side."""
    angle = np.deg2rad(rng.uniform(angle_deg - 1, angle_deg + 1)) * rng.choice([-1, 1])
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def thu_scale(points: Points, boxes: Boxes, change: float, rng: np.random.Generator) -> Points:
    """Each object grows or shrinks by that share along one random axis; along z it is lifted to stand on the ground."""

    def scaled(inner: Points, box: _Box) -> Points:
        matrix = scale_matrix(change, rng)
        unit = _to_unit(inner[:, :3], box) @ matrix
        unit[:, 2] += (matrix[2, 2] - 1) * box.size_lwh_m[2] / box.size_lwh_m.max()
        return _with(inner, _from_unit(unit, box))

    return _in_each_box(points, boxes, scaled)


def thu_shear(points: Points, boxes: Boxes, entry: float, rng: np.random.Generator) -> Points:
    """Each object is sheared, then squeezed into its box."""

    def sheared(inner: Points, box: _Box) -> Points:
        unit = _to_unit(inner[:, :3], box) @ shear_matrix(entry, rng)
        bound = box.size_lwh_m / box.size_lwh_m.max()
        return _with(inner, _from_unit(unit / np.maximum(np.abs(unit).max(axis=0) / bound, 1), box))

    return _in_each_box(points, boxes, sheared)


def thu_rotation(points: Points, boxes: Boxes, angle_deg: float, rng: np.random.Generator) -> Points:
    """Each object turns about its vertical axis by U(c - 1, c + 1) deg to either side; its label does not."""

    def turned(inner: Points, box: _Box) -> Points:
        return _with(inner, _from_unit(_to_unit(inner[:, :3], box) @ rotation_matrix(angle_deg, rng), box))

    return _in_each_box(points, boxes, turned)


def thu_moving_object(points: Points, boxes: Boxes, shift_m: float) -> Points:
    """Each object's points move along +x of the sensor, whatever its heading: its first third by half of the shift.

    A point exactly at the smallest x stays, as published.
    """

    def moved(inner: Points, box: _Box) -> Points:
        x = inner[:, 0]
        third = x.min() + (x.max() - x.min()) / 3
        step = np.where(x > third, shift_m, np.where(x > x.min(), shift_m / 2, 0.0))
        return _with(inner, inner[:, :3] + np.stack([step, 0 * step, 0 * step], axis=1))

    return _in_each_box(points, boxes, moved)


def robo3d_incomplete_echo(points: Points, boxes: Boxes, dropped_share: float, rng: np.random.Generator) -> Points:
    """Vehicles lose a share of their points, class by class, where a class has more than ten.

    Published on point labels; a point's class is that of the box around it here.
    """
    inside = inside_of(points[:, :3], boxes)
    lost = np.zeros(len(points), bool)
    for label in _ECHO_CLASSES:
        members = np.flatnonzero(inside[boxes.label == label].any(axis=0))
        if len(members) > _FEWEST_ECHOES:
            lost[rng.choice(members, int(dropped_share * len(members)), replace=False)] = True
    return points[~lost]


def adlab_object_failure(points: Points, boxes: Boxes, probability: float, rng: np.random.Generator) -> Points:
    """With that probability (published: .5 per frame) the points of every object are lost."""
    if rng.random() >= probability:
        return points
    return points[~inside_of(points[:, :3], boxes).any(axis=0)]


def _in_each_box(points: Points, boxes: Boxes, change: Callable[[Points, _Box], Points]) -> Points:
    """Box after box, on what the boxes before left; the changed points come first."""
    for i in range(len(boxes)):
        inside = inside_of(points[:, :3], boxes.select(np.array([i])))[0]
        if inside.any():
            box = _Box(boxes.center_m[i], boxes.size_lwh_m[i], float(boxes.yaw_rad[i]))
            points = np.concatenate([change(points[inside], box).astype(points.dtype), points[~inside]])
    return points


def _to_unit(xyz_m: Float[np.ndarray, "n 3"], box: _Box) -> Float[np.ndarray, "n 3"]:
    """In the box's frame, its longest side of length 2."""
    return (xyz_m - box.center_m) @ _turn(box.yaw_rad) * (2 / box.size_lwh_m.max())


def _from_unit(unit: Float[np.ndarray, "n 3"], box: _Box) -> Float[np.ndarray, "n 3"]:
    return unit * (box.size_lwh_m.max() / 2) @ _turn(box.yaw_rad).T + box.center_m


def _turn(yaw_rad: float) -> Float[np.ndarray, "3 3"]:
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _with(points: Points, xyz_m: Float[np.ndarray, "n 3"]) -> Points:
    return np.concatenate([xyz_m, points[:, 3:]], axis=1)
