"""What an exit is made of: its head, and how gradients pass where it branches off."""

import copy
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fusion.heads.center import CenterHead
from fusion.ops.blocks import enlarged, group_norm
from fusion.ops.flops import counted_gflops

AFTER_GROUP = -1
"""Place of an exit over the BEV of the first sensors, before the others run."""


class ExitHead(nn.Module):
    """One exit: a 1x1 convolution to the head's channels, the map brought to the head's grid, and the head.

    Args:
        after: number of the trunk's stage, from 0; AFTER_GROUP for an exit after the first group of sensors.
        in_channels: of that stage, or of the merged BEV.
        channels: that the head takes.
        head: like the model's own, on the same grid.
    """

    def __init__(self, after: int, in_channels: int, channels: int, head: CenterHead):
        super().__init__()
        self.after, self.in_channels, self.channels, self.head = after, in_channels, channels, head
        conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.adapter = nn.Sequential(conv, group_norm(channels), nn.ReLU(inplace=True))

    def features(self, bev: Float[Tensor, "b c ny nx"]) -> Float[Tensor, "b d my mx"]:
        """What the head reads. Finer maps are averaged first, coarser ones repeated last: the convolution is cheap."""
        wanted = self.head.grid.shape
        finer = round(bev.shape[2] / wanted[0])
        if finer > 1:
            bev = functional.avg_pool2d(bev, finer, ceil_mode=True)
        adapted = self.adapter(bev)
        like = adapted.new_empty(*adapted.shape[:2], *wanted)
        return enlarged(adapted, like, max(math.ceil(wanted[0] / adapted.shape[2]), 1))

    def gflops(self, shape: tuple[int, int]) -> float:
        """Forward GFLOPs of one sample whose map is of ``shape`` (rows, columns)."""
        wanted = self.head.grid.shape
        smaller = tuple(min(here, there) for here, there in zip(shape, wanted, strict=True))
        return counted_gflops(self.adapter, (1, self.in_channels, *smaller)) + self.head.gflops()


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def scaled_gradient(values: Float[Tensor, "..."], scale: float | int) -> Float[Tensor, "..."]:
    """The identity, whose gradient is multiplied by ``scale``."""
    return _ScaledGradient.apply(values, float(scale))


def check_places(places: Sequence[int]) -> None:
    """Raises ValueError unless there are exits, at places in rising order. How many stages there are is not known."""
    if not places:
        raise ValueError("expected at least one exit, got exits: []; add an ExitHead, or leave the model's exits out")
    if min(places) < AFTER_GROUP:
        raise ValueError(
            f"expected exits after stages from 0, or after {AFTER_GROUP} (the first group of sensors), got after: "
            f"{min(places)}; change it"
        )
    if list(places) != sorted(set(places)):
        raise ValueError(f"expected exits after stages in rising order, each once, got {list(places)}; reorder them")


def stage_maps(
    trunk: nn.Module, in_channels: int, shape: tuple[int, int]
) -> tuple[dict[int, tuple[int, tuple[int, int]]], list[float]]:
    """Channels and shape of the map after each stage (and AFTER_GROUP), and the GFLOPs of each stage."""
    maps, gflops = {AFTER_GROUP: (in_channels, tuple(shape))}, []
    given = torch.empty(1, in_channels, *shape, device="meta")
    for place, stage in enumerate(trunk.stages):
        gflops.append(counted_gflops(stage, tuple(given.shape)))
        given = _on_meta(stage, given)
        maps[place] = (given.shape[1], tuple(given.shape[2:]))
    return maps, gflops


def _on_meta(stage: nn.Module, given: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(stage).to("meta")(given)
