"""Fewer points for the LiDAR encoder, and points as a guide for the cameras: what is cheap chooses for what is dear."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from datamodules.batch import PointBatch
from fusion.ops.cells import flat_cells
from sensors.grid import BevGrid


def drop_regions(points: PointBatch, regions: BevGrid, keep: float | int, near_first: bool = False) -> PointBatch:
    """The points of the best share of each sample's regions that hold any; the rest is not encoded at all.

    Dropping regions instead of points leaves whole objects (VALO, Soyyigit et al., 2024, does so under a deadline).

    Args:
        regions: coarse cells, e.g. of 12.8 m; points outside are dropped unless ``keep`` is 1.
        keep: share in (0, 1]; 1 gives back the batch itself.
        near_first: keep the regions nearest to the ego first; otherwise those with the most points.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"expected keep in (0, 1], got {keep}")
    if keep == 1:
        return points
    num_samples, (num_y, num_x) = len(points.present), regions.shape
    cells, inside = flat_cells(points.points[:, :2], regions)
    region = points.sample * (num_y * num_x) + cells
    counts = torch.zeros(num_samples * num_y * num_x, device=cells.device)
    counts = counts.index_add(0, region, inside.float()).view(num_samples, -1)
    score = torch.where(counts > 0, -_distances_m(regions, cells.device) if near_first else counts, -torch.inf)
    wanted = (keep * (counts > 0).sum(dim=1)).ceil()
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = (rank < wanted[:, None]).flatten()
    return points.where(inside & kept[region])


def point_scores(
    points: PointBatch,
    image_from_camera: Float[Tensor, "r 3 3"],
    ego_from_camera: Float[Tensor, "r 4 4"],
    sample: Int64[Tensor, "r"],
    image_size_px: tuple[int, int],
    stride: int,
) -> Float[Tensor, "r n"]:
    """How many points of LiDAR or radar fall into each patch of each view: scores for ``GuidedKeep``.

    Args:
        points: in the ego frame.
        image_from_camera, ego_from_camera, sample: of the view rows, as in ViewRows.
        stride: side of a patch in pixels of ``image_size_px``.
    """
    height, width = image_size_px[0] // stride, image_size_px[1] // stride
    scores = []
    for row in range(len(sample)):
        xyz_m = points.points[points.sample == sample[row], :3]
        camera_from_ego = torch.linalg.inv(ego_from_camera[row].double()).to(xyz_m)
        seen = (xyz_m @ camera_from_ego[:3, :3].T + camera_from_ego[:3, 3]) @ image_from_camera[row].T
        ahead = seen[:, 2] > 0.1
        pixel = torch.floor(seen[:, :2] / torch.where(ahead, seen[:, 2], 1.0)[:, None] / stride)
        column, line = pixel.unbind(-1)
        inside = ahead & (column >= 0) & (column < width) & (line >= 0) & (line < height)
        cell = torch.where(inside, line * width + column, 0.0).long()
        scores.append(torch.zeros(height * width, device=xyz_m.device).index_add(0, cell, inside.float()))
    if not scores:
        return torch.zeros(0, height * width, device=points.points.device)
    return torch.stack(scores)


def _distances_m(grid: BevGrid, device: torch.device) -> Float[Tensor, "n"]:
    num_y, num_x = grid.shape
    y = grid.y_range_m[0] + (torch.arange(num_y, device=device) + 0.5) * grid.cell_m
    x = grid.x_range_m[0] + (torch.arange(num_x, device=device) + 0.5) * grid.cell_m
    return torch.hypot(y[:, None], x[None]).flatten()
