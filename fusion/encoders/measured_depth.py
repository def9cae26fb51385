"""Depths that the LiDAR measured, for the lift: where a point lies in a feature cell, its distance need not be guessed.

BEVFusion (Liu et al., ICRA 2023) feeds the LiDAR's depth image to its depth network; here a measured depth takes the
place of the predicted distribution, and where no point lies, or the LiDAR is lost or skipped, the prediction stays.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datamodules.batch import PointBatch
from fusion.ops.projection import seen_points
from fusion.ops.sweeps import newest

_NEWEST_S = 0.02


def newest_sweep(points: PointBatch, samples: Tensor) -> PointBatch:
    """Points of the newest sweep of the samples that are True in ``samples``."""
    return newest(points.where(samples[points.sample]), _NEWEST_S)


@torch.no_grad()
def measured_depth(
    points: PointBatch,
    image_from_camera: Float[Tensor, "r 3 3"],
    ego_from_camera: Float[Tensor, "r 4 4"],
    sample: Int64[Tensor, "r"],
    image_size_px: tuple[int, int],
    feature_size: tuple[int, int],
) -> Float[Tensor, "r fh fw"]:
    """Distance along the optical axis of the nearest point in each feature cell; 0 where there is none.

    Args:
        points: in the ego frame of the views, of any number of samples.
        image_from_camera, ego_from_camera, sample: of the view rows, as in ViewRows.
        image_size_px: height and width that ``image_from_camera`` refers to.
        feature_size: cells, rows and columns.
    """
    (num_rows, num_columns), device = feature_size, image_from_camera.device
    depth_m = torch.full((len(sample) * num_rows * num_columns,), torch.inf, device=device)
    for which in torch.unique(sample).tolist():
        views = torch.nonzero(sample == which)[:, 0]
        xyz_m = points.points[points.sample == which, :3]
        seen = seen_points(xyz_m, image_from_camera[views], ego_from_camera[views], image_size_px, feature_size)
        cell = views[seen.view] * (num_rows * num_columns) + seen.cell
        depth_m = depth_m.scatter_reduce(0, cell, seen.depth_m, "amin")
    return torch.where(depth_m.isinf(), 0.0, depth_m).view(len(sample), num_rows, num_columns)
