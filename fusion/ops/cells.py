"""Metres to flat cell numbers of a BevGrid, in torch, by floor like ``BevGrid.cell_of``."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sensors.grid import BevGrid


def flat_cells(xy_m: Float[Tensor, "... 2"], grid: BevGrid) -> tuple[Int64[Tensor, "..."], Bool[Tensor, "..."]]:
    """``iy * num_x + ix`` of each point, and whether it lies on the grid (the number is 0 where it does not)."""
    num_y, num_x = grid.shape
    column = torch.floor((xy_m[..., 0] - grid.x_range_m[0]) / grid.cell_m)
    row = torch.floor((xy_m[..., 1] - grid.y_range_m[0]) / grid.cell_m)
    # Compared as floats: a far point or a NaN would overflow the integer type first.
    inside = (column >= 0) & (column < num_x) & (row >= 0) & (row < num_y)
    return torch.where(inside, row * num_x + column, 0.0).long(), inside


def cell_centers(grid: BevGrid, device: torch.device) -> Float[Tensor, "ny nx 2"]:
    """x and y of every cell's centre."""
    num_y, num_x = grid.shape
    x_m = grid.x_range_m[0] + (torch.arange(num_x, device=device) + 0.5) * grid.cell_m
    y_m = grid.y_range_m[0] + (torch.arange(num_y, device=device) + 0.5) * grid.cell_m
    return torch.stack(torch.meshgrid(x_m, y_m, indexing="xy"), dim=-1)
