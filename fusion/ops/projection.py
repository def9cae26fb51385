"""Which cells of a view's feature map look at a point."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

FLOPS_PER_POINT = 36
"""Two 3x3 products with their sums, and two divisions, of one point in one view."""
MIN_DEPTH_M = 0.5


@dataclass(frozen=True, eq=False)
class SeenPoints:
    """One row for each point in each view that sees it.

    Attributes:
    view, point: which.
    cell: line * columns + column of the view's map.
    depth_m: along the optical axis.
    """

    view: Int64[Tensor, "s"]
    point: Int64[Tensor, "s"]
    cell: Int64[Tensor, "s"]
    depth_m: Float[Tensor, "s"]


@torch.no_grad()
def seen_points(
    xyz_m: Float[Tensor, "p 3"],
    image_from_camera: Float[Tensor, "v 3 3"],
    ego_from_camera: Float[Tensor, "v 4 4"],
    image_size_px: tuple[int, int],
    size: tuple[int, int],
) -> SeenPoints:
    """Points of one sample in its views.

    Args:
        xyz_m: in the ego frame of the views.
        image_size_px: height and width of the picture that the calibration belongs to.
        size: lines and columns of the map that spans the picture.
    """
    cell_px = (image_size_px[0] / size[0], image_size_px[1] / size[1])
    camera_from_ego = torch.linalg.inv_ex(ego_from_camera.float())[0]
    camera = torch.einsum("vij,pj->vpi", camera_from_ego[:, :3, :3], xyz_m.float()) + camera_from_ego[:, None, :3, 3]
    image = torch.einsum("vij,vpj->vpi", image_from_camera.float(), camera)
    depth_m = camera[..., 2]
    ahead = depth_m > MIN_DEPTH_M
    scale = torch.where(ahead, image[..., 2], 1.0)
    # Pixel centres are whole numbers, so a picture spans -0.5 .. size - 0.5.
    column = torch.floor((image[..., 0] / scale + 0.5) / cell_px[1])
    line = torch.floor((image[..., 1] / scale + 0.5) / cell_px[0])
    inside = ahead & (column >= 0) & (column < size[1]) & (line >= 0) & (line < size[0])
    view, point = torch.nonzero(inside, as_tuple=True)
    cell = line[view, point].long() * size[1] + column[view, point].long()
    return SeenPoints(view, point, cell, depth_m[view, point])
