"""Labels to what the head should say: Gaussian heatmaps and regressions at the cells of box centres."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from datamodules.batch import BoxBatch
from fusion.heads.center import NUM_CLASSES
from sensors.grid import BevGrid


@dataclass(frozen=True, eq=False)
class CenterTargets:
    """Targets of B samples with M boxes on the grid, in the order of the labels.

    Attributes:
        heatmap: 1 at the cell of a box's centre, falling off around it as a Gaussian.
        spared: cells that are no negatives, around boxes that nothing could see.
        sample, label: of each box.
        cell: ``iy * nx + ix`` of each centre.
        height, offset, log_size, heading, velocity: as in HeadOutput; the velocity is NaN where unknown.
        attribute: index into ATTRIBUTE_NAMES, NO_ATTRIBUTE where there is none.
    """

    heatmap: Float32[Tensor, "b 10 ny nx"]
    spared: Bool[Tensor, "b 10 ny nx"]
    sample: Int64[Tensor, "m"]
    label: Int64[Tensor, "m"]
    cell: Int64[Tensor, "m"]
    height: Float32[Tensor, "m 1"]
    offset: Float32[Tensor, "m 2"]
    log_size: Float32[Tensor, "m 3"]
    heading: Float32[Tensor, "m 2"]
    velocity: Float32[Tensor, "m 2"]
    attribute: Int64[Tensor, "m"]

    def __len__(self) -> int:
        """How many samples."""
        return len(self.heatmap)

    @property
    def num_boxes(self) -> Int64[Tensor, "b"]:
        """Boxes of each sample."""
        return torch.bincount(self.sample, minlength=len(self))


@torch.no_grad()
def center_targets(
    boxes: BoxBatch,
    num_samples: int,
    grid: BevGrid,
    min_points: int = 1,
    min_overlap: float = 0.1,
    min_radius: int = 2,
    spare_unseen: bool = True,
) -> CenterTargets:
    """Targets on ``grid`` for the boxes whose centres lie on it.

    Args:
        boxes: in the frame of the grid.
        num_samples: of the batch; a sample may have no box.
        grid: the head's.
        min_points: boxes with fewer LiDAR + radar points are no targets, as in the metric.
        min_overlap: see ``gaussian_radius``.
        min_radius: of the Gaussian, in cells.
        spare_unseen: whether a box with too few points also takes its Gaussian out of the negatives. A camera may well
            see such an object; the metric then counts a false positive, but it is not wrong to answer.
    """
    iy, ix, offset = _cells_of(boxes.center_m[:, :2], grid)
    num_y, num_x = grid.shape
    inside = (ix >= 0) & (ix < num_x) & (iy >= 0) & (iy < num_y)
    seen = boxes.num_points >= min_points
    radius = gaussian_radius(boxes.size_lwh_m[:, :2] / grid.cell_m, min_overlap).floor().clamp(min=min_radius)
    plane = boxes.sample * NUM_CLASSES + boxes.label
    shape = (num_samples, NUM_CLASSES, num_y, num_x)

    def drawn(chosen: Tensor) -> Tensor:
        return _draw_gaussians(plane[chosen], iy[chosen], ix[chosen], radius[chosen], shape)

    rows = torch.nonzero(inside & seen)[:, 0]
    unseen = torch.nonzero(inside & ~seen)[:, 0] if spare_unseen else rows[:0]
    yaw = boxes.yaw_rad[rows]
    return CenterTargets(
        heatmap=drawn(rows),
        spared=drawn(unseen) > 0,
        sample=boxes.sample[rows],
        label=boxes.label[rows],
        cell=(iy * num_x + ix)[rows],
        height=boxes.center_m[rows, 2:],
        offset=offset[rows],
        log_size=boxes.size_lwh_m[rows].clamp(min=1e-2).log(),
        heading=torch.stack([yaw.sin(), yaw.cos()], dim=-1),
        velocity=boxes.velocity_mps[rows],
        attribute=boxes.attribute[rows],
    )


def gaussian_radius(size_cells: Float[Tensor, "m 2"], min_overlap: float) -> Float[Tensor, "m"]:
    """How many cells all sides of a rectangle may move inwards until its overlap with itself is ``min_overlap``.

    (l - 2r)(w - 2r) = min_overlap l w. Of the three cases of CornerNet (Law and Deng, ECCV 2018: both corners in, both
    out, one in and one out) this one always has the smallest radius, so it alone is solved.
    """
    length, width = size_cells.unbind(-1)
    half_sum = (length + width) / 2
    return (half_sum - (half_sum**2 - (1 - min_overlap) * length * width).clamp(min=0).sqrt()) / 2


def _cells_of(xy_m: Float32[Tensor, "m 2"], grid: BevGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and x, y within the cell. In float64: a centre on an edge must not fall into a cell it is not in."""
    low = torch.tensor([grid.x_range_m[0], grid.y_range_m[0]], dtype=torch.float64, device=xy_m.device)
    cells = (xy_m.double() - low) / grid.cell_m
    floor = cells.floor()
    ix, iy = floor.long().unbind(-1)
    return iy, ix, (cells - floor).float()


def _draw_gaussians(
    plane: Int64[Tensor, "m"],
    iy: Int64[Tensor, "m"],
    ix: Int64[Tensor, "m"],
    radius: Float32[Tensor, "m"],
    shape: tuple[int, int, int, int],
) -> Float32[Tensor, "b 10 ny nx"]:
    """The highest of the Gaussians at each cell; zero beyond ``radius``. One scatter over all boxes' windows.

    The standard deviation is a sixth of the window's side (CenterNet, Zhou et al. 2019).
    """
    num_y, num_x = shape[2:]
    heatmap = torch.zeros(shape, device=radius.device)
    if len(plane) == 0:
        return heatmap
    reach = int(radius.max())
    steps = torch.arange(-reach, reach + 1, device=radius.device)
    dy, dx = (d.flatten() for d in torch.meshgrid(steps, steps, indexing="ij"))  # w of the widest window
    y, x = iy[:, None] + dy, ix[:, None] + dx  # m w
    sigma = (2 * radius + 1) / 6
    values = torch.exp(-(dx**2 + dy**2) / (2 * sigma[:, None] ** 2))
    widest = torch.maximum(dx.abs(), dy.abs())
    drawn = (widest <= radius[:, None]) & (y >= 0) & (y < num_y) & (x >= 0) & (x < num_x)
    cells = (plane[:, None] * num_y + y) * num_x + x
    heatmap.view(-1).scatter_reduce_(0, cells[drawn], values[drawn], "amax")
    return heatmap
