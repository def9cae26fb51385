"""What training aims at, taken from the clean frame before any fault: boxes; depth and object centres in every view."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.frame import Frame
from sensors.rig import CAMERAS

MIN_DEPTH_M = 0.5
MAX_REACH_CELLS = 6
"""An object beside the vehicle would fill the picture."""


@dataclass(frozen=True, eq=False)
class CleanTargets:
    """What was true of a frame.

    Attributes:
        boxes: labels with their point counts, ego frame; None on a test split.
        xyz_m: LiDAR points of the keyframe's sweep, ego frame; none where the LiDAR is lost.
        image_from_ego: true projection of every camera that delivered, before faults bend its calibration.
    """

    boxes: Boxes | None
    xyz_m: Float32[np.ndarray, "n 3"]
    image_from_ego: dict[str, np.ndarray]


def targets_of(frame: Frame) -> CleanTargets:
    """The targets of a frame that no fault has touched."""
    image_from_ego = {
        channel: image.image_from_camera @ image.ego_from_camera.inverse().matrix[:3]
        for channel, image in frame.cameras.items()
    }
    xyz_m = frame.lidar[0].to_ego() if frame.lidar else np.zeros((0, 3), np.float32)
    return CleanTargets(frame.boxes, xyz_m, image_from_ego)


def depth_targets(
    targets: CleanTargets,
    cropped_from_image: dict[str, Float64[np.ndarray, "3 3"]],
    size_px: tuple[int, int],
    stride: int,
) -> Float32[np.ndarray, "6 dh dw"]:
    """Depth of the nearest LiDAR point in every cell of ``stride`` pixels; 0 where there is none.

    Metres along each camera's optical axis, unscaled by BEV augmentation (which scales ``ego_from_camera``).

    Args:
        cropped_from_image: of the views to fill; the others stay 0.
        size_px: height and width of the cropped pictures, whole multiples of ``stride``.
    """
    num_rows, num_columns = size_px[0] // stride, size_px[1] // stride
    depth_m = np.zeros((len(CAMERAS), num_rows * num_columns), np.float32)
    channels = [c for c in CAMERAS if c in cropped_from_image and c in targets.image_from_ego]
    if channels and len(targets.xyz_m):
        projection = np.concatenate([cropped_from_image[c] @ targets.image_from_ego[c] for c in channels])
        projected = projection[:, :3].astype(np.float32) @ targets.xyz_m.T + projection[:, 3:].astype(np.float32)
        u, v, z = projected.reshape(len(channels), 3, -1).transpose(1, 0, 2)
        # Pixel k covers k - 1/2 to k + 1/2. Bounds are compared before the division: no zero, no huge numbers.
        right, bottom = num_columns * stride - 0.5, num_rows * stride - 0.5
        inside = (z > MIN_DEPTH_M) & (u >= -0.5 * z) & (u < right * z) & (v >= -0.5 * z) & (v < bottom * z)
        view, point = np.nonzero(inside)
        u, v, z = u[view, point], v[view, point], z[view, point]
        column = np.clip(np.floor((u / z + 0.5) / stride).astype(np.int64), 0, num_columns - 1)
        row = np.clip(np.floor((v / z + 0.5) / stride).astype(np.int64), 0, num_rows - 1)
        cell = row * num_columns + column
        # Of several values assigned to one place the last one stays: far to near, so the nearest.
        order = np.argsort(-z)
        slots = np.array([CAMERAS.index(c) for c in channels])[view]
        depth_m[slots[order], cell[order]] = z[order]
    return depth_m.reshape(len(CAMERAS), num_rows, num_columns)


def center_maps(
    targets: CleanTargets,
    cropped_from_image: dict[str, Float64[np.ndarray, "3 3"]],
    size_px: tuple[int, int],
    stride: int,
) -> Float32[np.ndarray, "6 10 dh dw"]:
    """Where in the pictures the centres of objects are, by class: 1 in a centre's cell, falling off as a Gaussian.

    For boxes that a LiDAR or radar point hit: what is wholly hidden has no centre to be seen. The Gaussian reaches half
    an object's height or width, whichever is larger, and its standard deviation is a sixth of the window's side.

    Args:
        cropped_from_image: of the views to fill; the others stay 0.
        size_px: height and width of the cropped pictures, whole multiples of ``stride``.
    """
    num_rows, num_columns = size_px[0] // stride, size_px[1] // stride
    maps = np.zeros((len(CAMERAS), len(DETECTION_NAMES), num_rows, num_columns), np.float32)
    boxes = targets.boxes
    if boxes is None:
        return maps
    seen = np.flatnonzero(boxes.num_points >= 1)
    for channel in (c for c in CAMERAS if c in cropped_from_image and c in targets.image_from_ego):
        projection = cropped_from_image[channel] @ targets.image_from_ego[channel]
        u, v, z = projection[:, :3] @ boxes.center_m[seen].astype(np.float64).T + projection[:, 3:]
        ahead = z > MIN_DEPTH_M
        u, v, z, rows = u[ahead] / z[ahead], v[ahead] / z[ahead], z[ahead], seen[ahead]
        x, y = np.floor((u + 0.5) / stride).astype(np.int64), np.floor((v + 0.5) / stride).astype(np.int64)
        focal_px = np.linalg.norm(projection[0, :3])
        extent_m = boxes.size_lwh_m[rows][:, 1:].max(axis=1, initial=0.0)
        reach = np.minimum(extent_m * focal_px / z / stride / 2, MAX_REACH_CELLS).astype(np.int64)
        inside = (x >= 0) & (x < num_columns) & (y >= 0) & (y < num_rows)
        columns = (boxes.label[rows], y, x, reach)
        for label, row, column, radius in zip(*(values[inside].tolist() for values in columns), strict=True):
            _draw(maps[CAMERAS.index(channel), label], row, column, radius)
    return maps


def _draw(plane: Float32[np.ndarray, "dh dw"], row: int, column: int, radius: int) -> None:
    """A Gaussian of 1 at the cell, within ``radius`` cells, where it is above what the plane holds."""
    top, left = max(row - radius, 0), max(column - radius, 0)
    window = plane[top : row + radius + 1, left : column + radius + 1]
    y, x = np.ogrid[top - row : top - row + window.shape[0], left - column : left - column + window.shape[1]]
    sigma = (2 * radius + 1) / 6
    np.maximum(window, np.exp(-(x**2 + y**2) / (2 * sigma**2)), out=window, casting="same_kind")
