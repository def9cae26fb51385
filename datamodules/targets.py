"""What training aims at, taken from the clean frame before any fault: boxes, and the depth of every view."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from sensors.boxes import Boxes
from sensors.frame import Frame
from sensors.rig import CAMERAS

MIN_DEPTH_M = 0.5


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
        projected = projected.reshape(len(channels), 3, -1)
        view, point = np.nonzero(projected[:, 2] > MIN_DEPTH_M)
        u, v, z = projected[view, :, point].T
        # The cell of a pixel position: pixel k covers k - 1/2 to k + 1/2.
        column = np.floor((u / z + 0.5) / stride).astype(np.int64)
        row = np.floor((v / z + 0.5) / stride).astype(np.int64)
        inside = (column >= 0) & (column < num_columns) & (row >= 0) & (row < num_rows)
        view, cell, z = view[inside], (row * num_columns + column)[inside], z[inside]
        # Of several values assigned to one place the last one stays: far to near, so the nearest.
        order = np.argsort(-z, kind="stable")
        slots = np.array([CAMERAS.index(c) for c in channels])[view]
        depth_m[slots[order], cell[order]] = z[order]
    return depth_m.reshape(len(CAMERAS), num_rows, num_columns)
