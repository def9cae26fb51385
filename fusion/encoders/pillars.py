"""Point clouds to BEV through dynamic pillars: every point counts, no caps, no padding."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from datamodules.batch import PointBatch
from fusion.ops.blocks import conv_norm_relu, conv_stage, equally_long
from fusion.ops.cells import flat_cells
from fusion.ops.flops import GIGA, counted_gflops
from fusion.ops.scatter import row_counts, scatter_max, scatter_mean
from sensors.grid import BevGrid

NUM_DECORATIONS = 6
"""Offsets to the pillar's centre (x, y) and to its points' mean (x, y, z), and the logarithm of its point count."""


class PillarEncoder(nn.Module):
    """PointPillars (Lang et al., CVPR 2019) with dynamic pillars (Zhou et al., CoRL 2019) and LayerNorm per point.

    Args:
        num_fields: columns of the points; the first three are x, y, z in the ego frame.
        grid: pillars.
        channels: of the output.
        field_scale: multiplies each field so that it is of order one; 0 hides it.
        point_channels: widths of the layers that each point passes before its pillar takes the maximum.
        stages: ``(width, residual blocks, stride)`` of each stage of the convolutions over the pillars.
        z_range_m: points outside are ignored, as those outside the grid are.
    """

    def __init__(
        self,
        num_fields: int,
        grid: BevGrid,
        channels: int,
        field_scale: Sequence[float | int],
        point_channels: Sequence[int] = (32,),
        stages: Sequence[Sequence[int]] = ((64, 1, 2),),
        z_range_m: Sequence[float | int] = (-5.0, 10.0),
    ):
        super().__init__()
        equally_long(fields=range(num_fields), field_scale=field_scale)
        self.grid, self.channels, self.z_range_m = grid, channels, tuple(z_range_m)
        self.out_grid = grid.coarser(math.prod(stride for _, _, stride in stages))
        self.register_buffer("scale", torch.tensor([float(s) for s in field_scale]), persistent=False)
        widths = (num_fields + NUM_DECORATIONS, *point_channels)
        self.points = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(given, wanted, bias=False), nn.LayerNorm(wanted), nn.ReLU(inplace=True))
                for given, wanted in zip(widths, widths[1:], strict=False)
            )
        )
        self.pillar_channels = width = widths[-1]
        layers = []
        for wanted, depth, stride in stages:
            layers.append(conv_stage(width, wanted, depth, stride))
            width = wanted
        if width != channels or not layers:
            layers.append(conv_norm_relu(width, channels, kernel_size=1))
        self.convolutions = nn.Sequential(*layers)

    def forward(self, points: PointBatch) -> Float[Tensor, "r c my mx"]:
        """BEV of each of the R samples on ``out_grid``; no points give an empty canvas, no samples an empty batch."""
        num_samples = len(points.present)
        if num_samples == 0:
            return self.scale.new_zeros(0, self.channels, *self.out_grid.shape)
        return self.convolutions(self.canvas(points))

    def canvas(self, points: PointBatch) -> Float[Tensor, "r c ny nx"]:
        """Pillar features at ``[iy, ix]``; zeros where no point fell."""
        return self._placed(*self._on_grid(points), len(points.present))

    def gflops(self, num_points: float | int) -> float:
        """Forward GFLOPs of one sample with ``num_points`` points on the grid.

        Linear layers 2 per MAC; per point also 30 for cell, mean and offsets, and one comparison per channel.
        """
        linear = sum(layer[0].in_features * layer[0].out_features for layer in self.points)
        per_point = 2.0 * linear + 30.0 + self.pillar_channels
        convolutions = counted_gflops(self.convolutions, (1, self.pillar_channels, *self.grid.shape))
        return num_points * per_point / GIGA + convolutions

    def _on_grid(self, points: PointBatch) -> tuple[Float[Tensor, "p f"], Int64[Tensor, "p"]]:
        """Points that a pillar takes, and the number of theirs, ``sample * cells + cell``."""
        num_y, num_x = self.grid.shape
        cells, inside = flat_cells(points.points[:, :2], self.grid)
        inside &= (points.points[:, 2] >= self.z_range_m[0]) & (points.points[:, 2] < self.z_range_m[1])
        kept = torch.nonzero(inside)[:, 0]
        return points.points[kept], (points.sample * (num_y * num_x) + cells)[kept]

    def _placed(
        self, points: Float[Tensor, "p f"], pillars: Int64[Tensor, "p"], num_samples: int
    ) -> Float[Tensor, "r c ny nx"]:
        """The canvas of these points."""
        num_y, num_x = self.grid.shape
        features = self.points(self._decorated(points, pillars, num_samples * num_y * num_x))
        dense = scatter_max(features, pillars, num_samples * num_y * num_x)
        return dense.view(num_samples, num_y, num_x, -1).permute(0, 3, 1, 2)

    def _decorated(
        self, points: Float[Tensor, "p f"], pillars: Int64[Tensor, "p"], num_pillars: int
    ) -> Float[Tensor, "p g"]:
        """Scaled fields and NUM_DECORATIONS further columns.

        Clamped, since one absurd value (a fault, a wild return) must not outweigh the rest of the pillar.
        """
        num_y, num_x = self.grid.shape
        cell = pillars % (num_y * num_x)
        center_x = self.grid.x_range_m[0] + (cell % num_x + 0.5) * self.grid.cell_m
        center_y = self.grid.y_range_m[0] + (cell // num_x + 0.5) * self.grid.cell_m
        to_center = (points[:, :2] - torch.stack([center_x, center_y], dim=1)) / self.grid.cell_m
        to_mean = (points[:, :3] - scatter_mean(points[:, :3], pillars, num_pillars)[pillars]) / self.grid.cell_m
        count = torch.log1p(row_counts(pillars, num_pillars))[pillars][:, None] / 3.0
        return torch.cat([points * self.scale, to_center, to_mean, count], dim=1).clamp(-8.0, 8.0)
