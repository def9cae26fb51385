"""Objects bent in the picture as thu-ml's nuScenes-C publishes it: thin-plate splines on the faces of boxes one sees.

Own code after the published definition (Dong et al., CVPR 2023; splines: Bookstein, Principal warps, 1989).
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from sensors.camera import project
from sensors.faults.camera_pixels import Pixels
from sensors.transforms import RigidTransform

_EDGES = np.array([[0, 3], [1, 2], [5, 6], [4, 7]])
"""Upper and lower corner of the upright edges of a box, once around it."""
_NARROWEST = 0.2
"""Of two faces, one that fills less of the angle is not counted as seen."""


def bent(
    pixels: Pixels,
    corners_m: Float[np.ndarray, "n 8 3"],
    matrix: Float[np.ndarray, "3 3"],
    camera_from_lidar: RigidTransform,
    image_from_camera: Float[np.ndarray, "3 3"],
) -> Pixels:
    """Each box's corners times ``matrix`` about its middle, as rows, in the LiDAR's axes; the farthest box first.

    A box is left as it is where a corner of the faces one sees lies outside of the picture.

    Args:
        corners_m: of boxes, in the order of ``Boxes.corners``, in the frame of the LiDAR, from where faces are seen.
    """
    centers_m = corners_m.mean(axis=1)
    for row in np.argsort(-np.square(centers_m[:, :2]).sum(axis=1), kind="stable"):
        edges = seen_edges(corners_m[row][_EDGES[:, 0], :2])
        if not len(edges):
            continue
        before_m = corners_m[row][_EDGES[edges]].reshape(-1, 3)
        after_m = (before_m - centers_m[row]) @ matrix + centers_m[row]
        (source, ahead), (target, _) = (
            _projected(points_m, camera_from_lidar, image_from_camera) for points_m in (before_m, after_m)
        )
        inside = (source >= 0) & (source < pixels.shape[1::-1])
        if ahead.all() and inside.all() and np.isfinite(target).all():
            pixels = _object_bent(pixels, source.reshape(-1, 2, 2), target.reshape(-1, 2, 2), _shrinks(matrix))
    return pixels


def seen_edges(base_m: Float[np.ndarray, "4 2"]) -> Int[np.ndarray, "e"]:
    """Which of four upright edges, listed once around a box, bound the one or two faces that the origin sees.

    None where the origin is in the box.
    """
    middle = base_m.mean(axis=0)
    turned = base_m @ np.array([[middle[0], -middle[1]], [middle[1], middle[0]]])
    angle = np.arctan2(turned[:, 1], turned[:, 0])
    if np.ptp(angle) > np.pi:
        return np.zeros(0, np.int64)
    nearest = np.argsort(np.square(base_m).sum(axis=1), kind="stable")
    one_face = abs(int(angle.argmax()) - int(angle.argmin())) != 2
    if not one_face:
        parts = np.diff(np.sort(angle[nearest[:3]]))
        one_face = parts.min() < _NARROWEST * parts.sum()
    return nearest[: 2 if one_face else 3]


def _projected(
    points_m: Float[np.ndarray, "k 3"], camera_from_lidar: RigidTransform, image_from_camera: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "k 2"], Bool[np.ndarray, "k"]]:
    pixel, depth_m = project(camera_from_lidar.points(points_m), image_from_camera)
    return pixel, depth_m > 1e-6


def _shrinks(matrix: Float[np.ndarray, "3 3"]) -> bool:
    """Only a scaling that makes smaller looks beyond its patch for what comes in from around it."""
    return bool(np.array_equal(matrix, np.diag(np.diag(matrix))) and (np.diag(matrix) < 1).any())


def _object_bent(
    pixels: Pixels, source: Float[np.ndarray, "e 2 2"], target: Float[np.ndarray, "e 2 2"], shrinks: bool
) -> Pixels:
    """One or two faces between two or three edges, from the left; the second begins where the first's target ends."""
    order = np.argsort(source[..., 0].mean(axis=1), kind="stable")
    source, target = source[order], target[order]
    harmed, begin = pixels.copy(), None
    for face in range(len(source) - 1):
        here, there = source[face : face + 2].reshape(4, 2), target[face : face + 2].reshape(4, 2)
        both = np.concatenate([here, there])
        (left, top), (right, bottom) = both.min(axis=0).astype(int).tolist(), both.max(axis=0).astype(int).tolist()
        if len(source) == 3 and face == 0:
            right = int(there[:, 0].max())
        left = left if begin is None else begin
        begin = right
        if right - left >= 2 and bottom - top >= 2:
            _patch_bent(harmed, (left, top, right, bottom), (here, there), shrinks)
    return harmed


def _patch_bent(
    pixels: Pixels,
    rectangle: tuple[int, int, int, int],
    points: tuple[Float[np.ndarray, "4 2"], Float[np.ndarray, "4 2"]],
    shrinks: bool,
) -> None:
    """Fills a rectangle of the picture with what the spline from target to source points brings there."""
    left, top, right, bottom = rectangle
    margin = np.array([right - left, bottom - top]) // 2 if shrinks else np.zeros(2, int)
    origin, size = np.array([left, top]) - margin, np.array([right - left, bottom - top]) + 2 * margin
    source, target = (2 * (side - origin) / size - 1 for side in points)
    first, end = np.clip([[left, top], [right, bottom]], 0, pixels.shape[1::-1])
    if (end <= first).any():
        return
    columns, rows = (
        2 * (np.arange(*span) - start) / length - 1
        for *span, start, length in zip(first, end, origin, size, strict=True)
    )
    where = spline(target, source, columns, rows)
    if where is None:
        return
    # What lies outside of the window repeats its border, and so does what lies outside of the picture.
    pixel = np.clip((where + 1) / 2 * size, 0, size - 1) + origin
    maps = np.clip(pixel, 0, np.array(pixels.shape[1::-1]) - 1).astype(np.float32)
    moved = cv2.remap(pixels, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR)
    pixels[first[1] : end[1], first[0] : end[0]] = moved


def spline(
    at: Float[np.ndarray, "k 2"],
    values: Float[np.ndarray, "k 2"],
    columns: Float[np.ndarray, "w"],
    rows: Float[np.ndarray, "h"],
) -> Float32[np.ndarray, "h w 2"] | None:
    """The thin-plate spline through ``values`` at some points, on a raster; None where the points lie on one line."""
    num = len(at)
    system = np.zeros((num + 3, num + 3))
    system[:num, :num] = _plate(np.square(at[:, None] - at[None]).sum(axis=2))
    system[:num, num:] = np.column_stack([np.ones(num), at])
    system[num:] = system[:, num:].T
    if np.linalg.cond(system) > 1e10:
        return None
    weights = np.linalg.solve(system, np.concatenate([values, np.zeros((3, 2))])).astype(np.float32)
    columns, rows = columns.astype(np.float32)[None], rows.astype(np.float32)[:, None]
    bent_to = weights[num] + columns[..., None] * weights[num + 1] + rows[..., None] * weights[num + 2]
    for (x, y), weight in zip(at.astype(np.float32), weights[:num], strict=True):
        bent_to += _plate(np.square(columns - x) + np.square(rows - y))[..., None] * weight
    return bent_to


def _plate(squared: np.ndarray) -> np.ndarray:
    """r^2 ln r, 0 at 0."""
    return 0.5 * squared * np.log(np.maximum(squared, np.finfo(squared.dtype).tiny))
