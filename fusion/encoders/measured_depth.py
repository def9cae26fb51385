"""Depths that the LiDAR measured, for the lift: where a point lies in a feature cell, its distance need not be guessed.

BEVFusion (Liu et al., ICRA 2023) feeds the LiDAR's depth image to its depth network; here a measured depth takes the
place of the predicted distribution, and where no point lies, or the LiDAR is lost or skipped, the prediction stays.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datamodules.batch import PointBatch
from fusion.ops.sweeps import newest

FLOPS_PER_POINT = 36
"""Two 3x3 products with their sums, and two divisions, of one point in one view."""
MIN_DEPTH_M = 0.5
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
    cell_px = (image_size_px[0] / num_rows, image_size_px[1] / num_columns)
    depth_m = torch.full((len(sample) * num_rows * num_columns,), torch.inf, device=device)
    camera_from_ego = torch.linalg.inv_ex(ego_from_camera.float())[0]
    for which in torch.unique(sample).tolist():
        views = torch.nonzero(sample == which)[:, 0]
        xyz_m = points.points[points.sample == which, :3].float()
        camera = (
            torch.einsum("vij,pj->vpi", camera_from_ego[views, :3, :3], xyz_m) + camera_from_ego[views, None, :3, 3]
        )
        image = torch.einsum("vij,vpj->vpi", image_from_camera[views].float(), camera)
        z_m = camera[..., 2]
        ahead = z_m > MIN_DEPTH_M
        scale = torch.where(ahead, image[..., 2], 1.0)
        # Pixel centres are whole numbers, so a picture spans -0.5 .. size - 0.5.
        column = torch.floor((image[..., 0] / scale + 0.5) / cell_px[1])
        row = torch.floor((image[..., 1] / scale + 0.5) / cell_px[0])
        inside = ahead & (column >= 0) & (column < num_columns) & (row >= 0) & (row < num_rows)
        view, point = torch.nonzero(inside, as_tuple=True)
        cell = (views[view] * num_rows + row[view, point].long()) * num_columns + column[view, point].long()
        depth_m = depth_m.scatter_reduce(0, cell, z_m[view, point], "amin")
    return torch.where(depth_m.isinf(), 0.0, depth_m).view(len(sample), num_rows, num_columns)
