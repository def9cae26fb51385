"""Fewer points for the LiDAR encoder: whole regions are left out."""

import torch
from jaxtyping import Float
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


def _distances_m(grid: BevGrid, device: torch.device) -> Float[Tensor, "n"]:
    num_y, num_x = grid.shape
    y = grid.y_range_m[0] + (torch.arange(num_y, device=device) + 0.5) * grid.cell_m
    x = grid.x_range_m[0] + (torch.arange(num_x, device=device) + 0.5) * grid.cell_m
    return torch.hypot(y[:, None], x[None]).flatten()
