"""A learned score for the patches of the cameras, from the BEV of a LiDAR or radar that has run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fusion.encoders.guide import lower_first
from fusion.ops.cells import cell_centers
from fusion.ops.flops import GIGA
from fusion.ops.projection import FLOPS_PER_POINT, PosedViews, seen_points
from fusion.ops.scatter import scatter_max
from sensors.grid import BevGrid


@dataclass(frozen=True, eq=False)
class GuideBev:
    """Attributes:
    bev: of the guide's encoder.
    ran: samples of which the route has run it; of the others ``bev`` is not looked at.
    """

    bev: Float[Tensor, "b c ny nx"]
    ran: Bool[Tensor, "b"]


class GuideScore(nn.Module):
    """Scores for ``GuidedKeep``: what LiDAR or radar saw where a patch looks.

    Each cell of the BEV becomes a few features, is placed at some heights and projected into the views. A patch takes
    the maximum over what falls into it or next to it, and a linear layer makes a score of these and of how low it lies.
    The BEV must be computed anyway: where the route skips the guide or it is lost, nothing is encoded for it, the lower
    patches are chosen, and ``FusionOutput.unguided`` says so. Points of a guide that has not run do not count either,
    since a stream does not read what is skipped.

    Args:
        channels: of the guide's BEV.
        grid: of it.
        features: of each cell.
        heights_m: above the ego's origin.
        reach: patches to each side from which the maximum is taken, since near cells are wider than a patch.
        detach: whether the score leaves the guide's encoder alone; otherwise its gradient goes on into that.

    Raises:
        ValueError: no heights, or a negative reach.
    """

    def __init__(
        self,
        channels: int,
        grid: BevGrid,
        features: int = 8,
        heights_m: Sequence[float | int] = (0.0, 1.0, 2.0),
        reach: int = 1,
        *,
        detach: bool = True,
    ):
        super().__init__()
        if reach < 0 or not len(heights_m):
            raise ValueError(f"expected a reach from 0 and some heights_m of the guide, got {reach} and {heights_m}")
        self.channels, self.grid, self.reach, self.detach = channels, grid, reach, detach
        self.reduce, self.score = nn.Linear(channels, features), nn.Linear(features + 1, 1)
        centers = cell_centers(grid, torch.device("cpu")).flatten(0, 1)
        heights = torch.tensor([float(height) for height in heights_m])
        places = torch.cat([centers.repeat(len(heights), 1), heights.repeat_interleave(len(centers))[:, None]], dim=1)
        self.register_buffer("places_m", places, persistent=False)

    def forward(self, guide: GuideBev | None, views: PosedViews, size: tuple[int, int]) -> Float[Tensor, "r n"]:
        """Scores of the patches of view rows; with gradients in training alone.

        Args:
            guide: None where no sample has run it.
            size: patches, lines and columns.
        """
        scores = lower_first(size, views.sample.device).repeat(len(views), 1)
        if guide is None:
            return scores
        rows = torch.nonzero(guide.ran.to(views.sample.device)[views.sample])[:, 0]
        if not len(rows):
            return scores
        return scores.index_copy(0, rows, self.learned(guide.bev, views.posed(rows), size).to(scores.dtype))

    def learned(
        self, bev: Float[Tensor, "b c ny nx"], views: PosedViews, size: tuple[int, int]
    ) -> Float[Tensor, "r n"]:
        """Scores of ``size`` patches, lines and columns, of rows whose guide ran."""
        bev = (bev.detach() if self.detach else bev).float()
        cells = functional.relu(self.reduce(bev.flatten(2).transpose(1, 2)))  # b k f
        num_lines, num_columns = size
        seen = seen_points(self.places_m, views, size)
        taken = cells[views.sample[seen.view], seen.point % cells.shape[1]]
        patch = seen.view * num_lines * num_columns + seen.cell
        found = scatter_max(taken, patch, len(views) * num_lines * num_columns)
        found = found.view(len(views), num_lines, num_columns, -1).permute(0, 3, 1, 2)
        if self.reach:
            found = functional.max_pool2d(found, 2 * self.reach + 1, stride=1, padding=self.reach)
        line = torch.arange(num_lines, device=found.device, dtype=found.dtype).view(1, 1, -1, 1) / num_lines
        both = torch.cat([found, line.expand(len(views), 1, -1, num_columns)], dim=1)
        scores = self.score(both.flatten(2).transpose(1, 2))[..., 0]
        return scores if self.training else scores.detach()

    def gflops(self) -> float:
        """Of one view at most: the cells' features are the same for all views of a sample, and counted in each."""
        num_cells = self.grid.shape[0] * self.grid.shape[1]
        projected = len(self.places_m) * (FLOPS_PER_POINT + self.reduce.out_features)
        return (2.0 * num_cells * self.reduce.weight.numel() + projected) / GIGA
