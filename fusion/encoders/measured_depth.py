"""Depths that the LiDAR measured, for the lift: where a point lies in a feature cell, its distance need not be guessed.

BEVFusion (Liu et al., ICRA 2023) feeds the LiDAR's depth image to its depth network; here a measured depth takes the
place of the predicted distribution, and where no point lies, or the LiDAR is lost or skipped, the prediction stays.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.batch import PointBatch
from fusion.ops.projection import PosedViews, seen_by_own_views
from fusion.ops.sweeps import newest

_NEWEST_S = 0.02


def newest_sweep(points: PointBatch, samples: Tensor) -> PointBatch:
    """Points of the newest sweep of the samples that are True in ``samples``."""
    return newest(points.where(samples[points.sample]), _NEWEST_S)


@torch.no_grad()
def measured_depth(points: PointBatch, views: PosedViews, feature_size: tuple[int, int]) -> Float[Tensor, "r fh fw"]:
    """Distance along the optical axis of the nearest point in each feature cell; 0 where there is none.

    Args:
        points: in the ego frame of the views, of any number of samples.
        feature_size: cells, rows and columns.
    """
    num_cells, device = feature_size[0] * feature_size[1], views.sample.device
    depth_m = torch.full((len(views) * num_cells,), torch.inf, device=device)
    seen = seen_by_own_views(points, views, feature_size)
    depth_m = depth_m.scatter_reduce(0, seen.view * num_cells + seen.cell, seen.depth_m, "amin")
    return torch.where(depth_m.isinf(), 0.0, depth_m).view(len(views), *feature_size)
