"""From camera features to BEV: one joint splat of all chosen (sample, view) rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fusion.encoders.views import ViewFeatures
from fusion.ops.cells import cell_centers, flat_cells
from fusion.ops.flops import GIGA
from fusion.ops.pooling import weighted_pool
from fusion.ops.projection import PosedViews
from sensors.grid import BevGrid

SPACINGS = ("uniform", "growing")


@dataclass(frozen=True, eq=False)
class ViewRows(PosedViews):
    """R chosen (sample, view) rows of one branch.

    Attributes:
        features: of the rows.
        weight: multiplies the context; 1 in the forward pass, carries straight-through gradients.
        measured_m: depth of feature cells that is known, which takes the place of the prediction; 0 where unknown.
    """

    features: ViewFeatures
    weight: Float[Tensor, "r"]
    measured_m: Float[Tensor, "r fh fw"] | None = None

    def chosen(self, rows: Int64[Tensor, "k"]) -> "ViewRows":
        """Some of the rows."""
        return ViewRows(
            **vars(self.posed(rows)),
            features=ViewFeatures(self.features.context[rows], self.features.depth_logits[rows]),
            weight=self.weight[rows],
            measured_m=None if self.measured_m is None else self.measured_m[rows],
        )


class Lift(nn.Module):
    """Lift, splat (Philion and Fidler, ECCV 2020): each feature spread along its ray by its depth distribution.

    Args:
        grid: BEV cells.
        channels: of the context, needed when no view was computed.
        depth_range_m: nearest and farthest depth along the optical axis.
        num_depths: bins.
        spacing: ``uniform``, or ``growing``: bins widen linearly with depth (CaDDN, Reading et al., CVPR 2021).
        z_range_m: height above the ego origin that is splatted; the rest is sky or below the road.
    """

    def __init__(
        self,
        grid: BevGrid,
        channels: int,
        depth_range_m: Sequence[float | int] = (1.0, 60.0),
        num_depths: int = 59,
        spacing: str = "uniform",
        z_range_m: Sequence[float | int] = (-5.0, 5.0),
    ):
        super().__init__()
        if spacing not in SPACINGS:
            raise ValueError(f"expected spacing to be one of {SPACINGS}, got {spacing!r}; change it")
        if not 0 < depth_range_m[0] < depth_range_m[1]:
            raise ValueError(f"expected 0 < near < far in depth_range_m, got {depth_range_m}; change it")
        self.grid, self.channels, self.num_depths = grid, channels, num_depths
        self.depth_range_m, self.z_range_m = tuple(depth_range_m), tuple(z_range_m)
        steps = torch.arange(num_depths + 1, dtype=torch.float64)
        share = steps / num_depths if spacing == "uniform" else steps * (steps + 1) / (num_depths * (num_depths + 1))
        edges = depth_range_m[0] + (depth_range_m[1] - depth_range_m[0]) * share
        self.register_buffer("edges_m", edges.float(), persistent=False)
        self.register_buffer("depths_m", ((edges[1:] + edges[:-1]) / 2).float(), persistent=False)

    def forward(
        self, views: list[ViewRows], num_samples: int
    ) -> tuple[Float[Tensor, "b c ny nx"], Bool[Tensor, "b ny nx"]]:
        """The BEV of each sample (zeros where nothing was splatted) and the cells that a computed view looks at.

        Args:
            views: rows of any number of branches, in any order; feature sizes may differ between branches.
            num_samples: batch size; samples without a row get zeros and no coverage.
        """
        views = [rows for rows in views if len(rows)]
        num_y, num_x = self.grid.shape
        covered = torch.zeros(num_samples, num_y, num_x, dtype=torch.bool, device=self.depths_m.device)
        if not views:
            return self.depths_m.new_zeros(num_samples, self.channels, num_y, num_x), covered
        parts, first_pixel = [], 0
        for rows in views:
            parts.append(self._contributions(rows, first_pixel))
            first_pixel += len(parts[-1][0])
            seen = self._seen(rows).float().flatten(1)
            covered |= (covered.new_zeros(num_samples, num_y * num_x).float().index_add(0, rows.sample, seen) > 0).view(
                covered.shape
            )
        features, weights, pixels, cells = (torch.cat(columns) for columns in zip(*parts, strict=True))
        bev = weighted_pool(features, weights, pixels, cells, num_samples * num_y * num_x)
        return bev.view(num_samples, num_y, num_x, -1).permute(0, 3, 1, 2), covered

    def points_m(self, rows: ViewRows) -> Float[Tensor, "r d fh fw 3"]:
        """Ego positions of every depth bin's middle on the ray through every feature cell's centre."""
        height, width = rows.features.context.shape[-2:]
        rays = _rays(rows, height, width)
        offset = rows.ego_from_camera[:, None, None, None, :3, 3]
        return rays[:, None] * self.depths_m[None, :, None, None, None] + offset

    def depth_loss(self, features: ViewFeatures, depth_m: Float[Tensor, "r dh dw"]) -> Float[Tensor, ""]:
        """Mean cross entropy of the depth bins where the target lies in range; 0 where there is no target.

        Args:
            depth_m: 0 where unknown. May be finer than the features by a whole factor: the nearest depth of each
                feature cell is then the target.
        """
        logits = features.depth_logits.float()
        depth_m = _nearest(depth_m, logits.shape[-2:])
        known = (depth_m >= self.edges_m[0]) & (depth_m < self.edges_m[-1])
        bins = self._bins(depth_m)
        losses = functional.cross_entropy(logits, bins, reduction="none") if len(logits) else logits.sum(1)
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)

    def gflops(self, feature_size: tuple[int, int]) -> float:
        """Forward GFLOPs of one view: weighted sums (2 per value), geometry (6 per point), softmax (5 per logit)."""
        points = feature_size[0] * feature_size[1] * self.num_depths
        return points * (2.0 * self.channels + 6.0 + 5.0) / GIGA

    def _contributions(self, rows: ViewRows, first_pixel: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of every pixel; weight, pixel (counted from ``first_pixel``) and cell of every point on the grid."""
        context = rows.features.context * rows.weight[:, None, None, None].to(rows.features.context.dtype)
        num_rows, channels, height, width = context.shape
        features = context.permute(0, 2, 3, 1).reshape(-1, channels)
        probability = self._probability(rows)
        with torch.no_grad():
            points_m = self.points_m(rows)
            cells, inside = flat_cells(points_m[..., :2], self.grid)
            inside &= (points_m[..., 2] >= self.z_range_m[0]) & (points_m[..., 2] < self.z_range_m[1])
            num_y, num_x = self.grid.shape
            cells = cells + rows.sample[:, None, None, None] * (num_y * num_x)
            chosen = torch.nonzero(inside.flatten())[:, 0]
            area = height * width
            pixels = first_pixel + chosen // (self.num_depths * area) * area + chosen % area
        return features, probability.flatten()[chosen], pixels, cells.flatten()[chosen]

    def _probability(self, rows: ViewRows) -> Float[Tensor, "r d fh fw"]:
        """Of each depth bin: the prediction, or all of it in the bin of a measured depth within range."""
        predicted = rows.features.depth_logits.float().softmax(dim=1)
        if rows.measured_m is None:
            return predicted
        known = (rows.measured_m >= self.edges_m[0]) & (rows.measured_m < self.edges_m[-1])
        bins = self._bins(rows.measured_m)
        certain = functional.one_hot(bins, self.num_depths).permute(0, 3, 1, 2).to(predicted.dtype)
        return torch.where(known[:, None], certain, predicted)

    def _bins(self, depth_m: Float[Tensor, "r fh fw"]) -> Int64[Tensor, "r fh fw"]:
        """The depth bin of each depth; the first or the last for those out of range."""
        return (torch.bucketize(depth_m.contiguous(), self.edges_m, right=True) - 1).clamp(0, self.num_depths - 1)

    @torch.no_grad()
    def _seen(self, rows: ViewRows) -> Bool[Tensor, "r ny nx"]:
        """Cells whose centre, at the camera's own height, projects between the picture's sides and within range.

        Geometry, not the splatted points: far away the rays are wider apart than cells are, and leave holes.
        """
        camera_from_ego = torch.linalg.inv_ex(rows.ego_from_camera.float())[0]
        centers_m = cell_centers(self.grid, rows.ego_from_camera.device).expand(len(rows.sample), -1, -1, -1)
        height_m = rows.ego_from_camera[:, None, None, 2, 3].expand(centers_m.shape[:-1])
        ego = torch.stack([*centers_m.unbind(-1), height_m, torch.ones_like(height_m)], dim=-1)
        with torch.autocast(ego.device.type, enabled=False):
            camera = torch.einsum("rij,ryxj->ryxi", camera_from_ego[:, :3], ego)
            image = torch.einsum("rij,ryxj->ryxi", rows.image_from_camera.float(), camera)
        depth = camera[..., 2]
        ahead = (depth >= self.depth_range_m[0]) & (depth < self.depth_range_m[1])
        column = image[..., 0] / torch.where(ahead, image[..., 2], 1.0)
        return ahead & (column >= -0.5) & (column < rows.image_size_px[1] - 0.5)


def _rays(rows: ViewRows, height: int, width: int) -> Float[Tensor, "r fh fw 3"]:
    """Ego directions through the feature cells' centres, one metre deep along the optical axis."""
    device = rows.image_from_camera.device
    # Pixel centres are whole numbers, so a picture spans -0.5 .. size - 0.5.
    column = (torch.arange(width, device=device) + 0.5) * (rows.image_size_px[1] / width) - 0.5
    row = (torch.arange(height, device=device) + 0.5) * (rows.image_size_px[0] / height) - 0.5
    columns, rows_px = torch.meshgrid(column, row, indexing="xy")
    homogeneous = torch.stack([columns, rows_px, torch.ones_like(columns)], dim=-1)
    with torch.autocast(device.type, enabled=False):
        camera_from_image = torch.linalg.inv_ex(rows.image_from_camera.float())[0]
        ego_from_image = rows.ego_from_camera[:, :3, :3].float() @ camera_from_image
        return torch.einsum("rij,hwj->rhwi", ego_from_image, homogeneous)


def _nearest(depth_m: Float[Tensor, "r dh dw"], size: tuple[int, int]) -> Float[Tensor, "r fh fw"]:
    """Targets at the features' size: the nearest known depth of the finer cells within, 0 where none is known."""
    factor = depth_m.shape[-1] // size[1]
    if (size[0] * factor, size[1] * factor) != tuple(depth_m.shape[-2:]):
        raise ValueError(
            f"expected depth targets of a whole multiple of the features' {tuple(size)}, got "
            f"{tuple(depth_m.shape[-2:])}; set depth_stride to the view encoder's stride"
        )
    if factor == 1:
        return depth_m
    filled = torch.where(depth_m > 0, depth_m, torch.inf).unflatten(1, (-1, factor)).unflatten(3, (-1, factor))
    nearest = filled.amin(dim=(2, 4))
    return torch.where(nearest.isinf(), 0.0, nearest)
