"""Boxes as points on the BEV grid: the head of CenterPoint (Yin et al., CVPR 2021) and what it puts out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES
from sensors.grid import BevGrid

NUM_CLASSES = len(DETECTION_NAMES)

ONE_GROUP = (DETECTION_NAMES,)
"""All classes share their branches and one set of regression maps: the fastest."""

CENTERPOINT_GROUPS = (
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
"""The six groups of CenterPoint: classes of like size share a branch, so boxes of unlike classes may share a cell."""

_REGRESSIONS = {"height": 1, "offset": 2, "log_size": 3, "heading": 2, "velocity": 2, "attribute": len(ATTRIBUTE_NAMES)}
_INITIAL_BIAS = {"height": (0.9,), "offset": (0.5, 0.5), "log_size": (0.9, 0.4, 0.5)}
"""Where training starts: the middle of a cell and a middling box (2.5 x 1.5 x 1.6 m); zeros elsewhere."""
_HEATMAP_BIAS = -math.log((1 - 0.1) / 0.1)
"""-2.19: every cell starts at a score of 0.1, else the many negatives rule the first steps (Lin et al., ICCV 2017)."""


@dataclass(frozen=True, eq=False)
class CenterValues:
    """What the regression maps say at M cells; units as in HeadOutput."""

    height: Float[Tensor, "m 1"]
    offset: Float[Tensor, "m 2"]
    log_size: Float[Tensor, "m 3"]
    heading: Float[Tensor, "m 2"]
    velocity: Float[Tensor, "m 2"]
    attribute: Float[Tensor, "m 8"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadOutput:
    """Maps of B samples over the BEV grid, in the (augmented) ego frame. One set of regressions per class group.

    Attributes:
        heatmap: logits, classes in the order of DETECTION_NAMES.
        height: z of the box's centre in metres.
        offset: x, y of the centre within its cell, in cells from the cell's lower corner.
        log_size: natural logarithm of length, width, height in metres.
        heading: sine and cosine of the yaw (of any length).
        velocity: x, y in m/s.
        attribute: logits over ATTRIBUTE_NAMES.
        group_of_class: which of the g sets of regression maps belongs to each class.
    """

    heatmap: Float[Tensor, "b 10 ny nx"]
    height: Float[Tensor, "b g ny nx"]
    offset: Float[Tensor, "b 2*g ny nx"]
    log_size: Float[Tensor, "b 3*g ny nx"]
    heading: Float[Tensor, "b 2*g ny nx"]
    velocity: Float[Tensor, "b 2*g ny nx"]
    attribute: Float[Tensor, "b 8*g ny nx"]
    group_of_class: tuple[int, ...] = (0,) * NUM_CLASSES

    def __len__(self) -> int:
        return len(self.heatmap)

    def select(self, rows) -> "HeadOutput":
        """The samples of an index array, a mask or a slice."""
        maps = [field.name for field in fields(self) if field.name != "group_of_class"]
        return replace(self, **{name: getattr(self, name)[rows] for name in maps})

    def at(self, sample: Int64[Tensor, "m"], label: Int64[Tensor, "m"], cell: Int64[Tensor, "m"]) -> CenterValues:
        """The regressions at M places; ``cell`` is ``iy * nx + ix``, ``label`` chooses the class group."""
        group = torch.tensor(self.group_of_class, device=label.device)[label]
        num_groups = self.height.shape[1]

        def read(name: str) -> Tensor:
            maps = getattr(self, name)
            return maps.unflatten(1, (num_groups, maps.shape[1] // num_groups)).flatten(3)[sample, group, :, cell]

        return CenterValues(**{field.name: read(field.name) for field in fields(CenterValues)})


class CenterHead(nn.Module):
    """BEV features to a heatmap per class and regression maps per class group.

    One shared 3x3 convolution; then, per group, a heatmap branch and *one* branch for all regressions together, each of
    ``num_convs`` 3x3 convolutions and a 1x1. CenterPoint has a branch for each regression: about three times the cost.

    Args:
        in_channels: of the BEV features.
        grid: that the features lie on; targets and decoding must use the same.
        channels: width of every hidden layer.
        num_convs: hidden 3x3 convolutions per branch, 0 for the cheapest head.
        class_groups: a partition of DETECTION_NAMES.

    Raises:
        ValueError: the groups do not hold each class exactly once.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BevGrid,
        channels: int = 64,
        num_convs: int = 1,
        class_groups: Sequence[Sequence[str]] = ONE_GROUP,
    ):
        super().__init__()
        named = [name for group in class_groups for name in group]
        if sorted(named) != sorted(DETECTION_NAMES):
            raise ValueError(
                f"expected class_groups to hold each of {DETECTION_NAMES} once, got {[list(g) for g in class_groups]}"
            )
        self.grid = grid
        self.class_order = [named.index(name) for name in DETECTION_NAMES]
        self.group_of_class = tuple(
            next(i for i, group in enumerate(class_groups) if name in group) for name in DETECTION_NAMES
        )
        self.shared = _conv_block(in_channels, channels)
        self.heatmaps = nn.ModuleList(_branch(channels, num_convs, len(group)) for group in class_groups)
        self.regressions = nn.ModuleList(_branch(channels, num_convs, sum(_REGRESSIONS.values())) for _ in class_groups)
        self._initialise()

    def _initialise(self) -> None:
        bias = [value for name, width in _REGRESSIONS.items() for value in _INITIAL_BIAS.get(name, (0.0,) * width)]
        with torch.no_grad():
            for heatmap, regression in zip(self.heatmaps, self.regressions, strict=True):
                nn.init.normal_(heatmap[-1].weight, std=0.01)
                nn.init.constant_(heatmap[-1].bias, _HEATMAP_BIAS)
                regression[-1].bias.copy_(torch.tensor(bias))

    def forward(self, bev: Float[Tensor, "b c ny nx"]) -> HeadOutput:
        if tuple(bev.shape[2:]) != self.grid.shape:
            raise ValueError(
                f"expected BEV features of {self.grid.shape} cells (rows, columns) as in the head's grid, got "
                f"{tuple(bev.shape[2:])}; give CenterHead the grid of the trunk's output"
            )
        shared = self.shared(bev)  # b channels ny nx
        heatmap = torch.cat([branch(shared) for branch in self.heatmaps], dim=1)  # b 10 ny nx, in group order
        if len(self.heatmaps) > 1:
            heatmap = heatmap[:, self.class_order]
        regressed = torch.stack([branch(shared) for branch in self.regressions], dim=1)  # b g 18 ny nx
        parts = regressed.split(list(_REGRESSIONS.values()), dim=2)
        maps = {name: part.flatten(1, 2) for name, part in zip(_REGRESSIONS, parts, strict=True)}
        return HeadOutput(heatmap=heatmap, **maps, group_of_class=self.group_of_class)

    def gflops(self) -> float:
        """Forward cost of one sample: convolutions and normalisations (two operations per value), 1 MAC = 2 FLOPs."""
        num_cells = self.grid.shape[0] * self.grid.shape[1]
        per_cell = 0
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                per_cell += 2 * module.weight.numel()
            elif isinstance(module, nn.GroupNorm):
                per_cell += 2 * module.num_channels
        return per_cell * num_cells / 1e9


def _conv_block(in_channels: int, channels: int) -> nn.Sequential:
    """3x3 convolution, GroupNorm (no batch statistics: absent sensors must not enter any), ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        nn.GroupNorm(math.gcd(channels, 8), channels),
        nn.ReLU(inplace=True),
    )


def _branch(channels: int, num_convs: int, out_channels: int) -> nn.Sequential:
    hidden = [_conv_block(channels, channels) for _ in range(num_convs)]
    return nn.Sequential(*hidden, nn.Conv2d(channels, out_channels, 1))
