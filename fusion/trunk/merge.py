"""Merging the sensors' BEVs into one, whichever of them are there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fusion.ops.blocks import conv_norm_relu, group_norm
from fusion.ops.flops import GIGA, counted_gflops
from sensors.grid import BevGrid

_AWAKE = 1e-3


@dataclass(frozen=True, eq=False)
class SensorBev:
    """What one modality knows of B samples.

    Attributes:
        bev: anything finite where not present.
        present: whether the modality was there *and* computed; the learned missing token stands in elsewhere.
        weight: 1 where computed; carries straight-through gradients of the choice. 0 means the missing token.
        covered: cells that the modality looked at (camera frusta); None for all.
    """

    bev: Float[Tensor, "b c ny nx"]
    present: Bool[Tensor, "b"]
    weight: Float[Tensor, "b"]
    covered: Bool[Tensor, "b ny nx"] | None = None

    def available(self) -> Bool[Tensor, "b 1 hy hx"]:
        """Cells in which this modality has a say; the last two dimensions are 1 where it covers everything."""
        present = self.present[:, None, None, None]
        return present if self.covered is None else present & self.covered[:, None]

    def select(self, rows: Int64[Tensor, "r"]) -> "SensorBev":
        """Some of the samples."""
        covered = None if self.covered is None else self.covered.index_select(0, rows)
        chosen = (values.index_select(0, rows) for values in (self.bev, self.present, self.weight))
        return SensorBev(*chosen, covered)


class Merge(nn.Module):
    """Each modality projected, its missing token put where it is absent, all concatenated and convolved.

    Args:
        in_channels: of each modality's BEV; its keys are the modalities, in the order of concatenation.
        channels: of the merged BEV.
        grid: of all the BEVs, theirs and the merged one.
        projected_channels: of each modality after its 1x1 projection.
        kernel_size: of the convolution over the concatenation.
        zero_init: modalities whose input weights in that convolution start at zero, so that adding them to a model
            trained without them changes nothing at first. One of them alone also learns.
    """

    def __init__(
        self,
        in_channels: Mapping[str, int],
        channels: int,
        grid: BevGrid,
        projected_channels: int = 64,
        kernel_size: int = 1,
        zero_init: Sequence[str] = (),
    ):
        super().__init__()
        _known(zero_init, in_channels)
        self.grid, self.channels = grid, channels
        self.projections = _projections(in_channels, projected_channels)
        self.missing = _tokens(in_channels, projected_channels)
        self.fuse = conv_norm_relu(len(in_channels) * projected_channels, channels, kernel_size)
        if zero_init:
            # Where nothing else is there the convolution gives zeros, and at zero a ReLU passes no gradient on.
            nn.init.constant_(self.fuse[1].bias, _AWAKE)
        with torch.no_grad():
            for place, name in enumerate(in_channels):
                if name in zero_init:
                    self.fuse[0].weight[:, place * projected_channels : (place + 1) * projected_channels] = 0.0

    def forward(self, parts: dict[str, SensorBev], num_samples: int) -> Float[Tensor, "b c ny nx"]:
        """One BEV. A modality without an entry in ``parts`` is missing everywhere and costs no projection."""
        _known(parts, self.projections)
        shape = (num_samples, -1, *self.grid.shape)
        maps = []
        for name, projection in self.projections.items():
            token = self.missing[name][None, :, None, None]
            filled = _filled(parts[name], projection, token) if name in parts else token
            maps.append(filled.expand(shape))
        dtype = maps[0].dtype if len({m.dtype for m in maps}) == 1 else torch.float32
        return self.fuse(torch.cat([m.to(dtype) for m in maps], dim=1))

    def gflops(self) -> float:
        """Forward GFLOPs of one sample with every modality in ``parts``."""
        projected = sum(counted_gflops(p, (1, p[0].in_channels, *self.grid.shape)) for p in self.projections.values())
        return projected + counted_gflops(self.fuse, (1, self.fuse[0].in_channels, *self.grid.shape))


class ChannelWeightedMerge(nn.Module):
    """A mean of the projected modalities with learned weights per channel, normalised over what is available per cell.

    The channel-normalised weights of UniBEV (Wang et al., IV 2024), per cell instead of per sample. A cell that nobody
    saw holds the learned missing token.

    Args:
        in_channels: of each modality's BEV, by modality.
        channels: of the merged BEV.
        grid: of all the BEVs.
        quiet: modalities whose weight starts small, for adding them gently to a trained model.
    """

    def __init__(self, in_channels: Mapping[str, int], channels: int, grid: BevGrid, quiet: Sequence[str] = ()):
        super().__init__()
        _known(quiet, in_channels)
        self.grid, self.channels = grid, channels
        self.projections = _projections(in_channels, channels)
        self.missing = nn.Parameter(torch.zeros(channels))
        # exp(-5): a quiet modality starts with under one hundredth of the mean, but alone it still has all of it.
        self.logits = nn.ParameterDict(
            {name: nn.Parameter(torch.full((channels,), -5.0 if name in quiet else 0.0)) for name in in_channels}
        )

    def forward(self, parts: dict[str, SensorBev], num_samples: int) -> Float[Tensor, "b c ny nx"]:
        """One BEV. A modality without an entry in ``parts`` is missing everywhere and costs no projection."""
        _known(parts, self.projections)
        token = self.missing[None, :, None, None]
        total = token.new_zeros(num_samples, self.channels, *self.grid.shape)
        share = torch.zeros_like(total)
        for name, part in parts.items():
            gate = torch.where(part.available(), part.weight[:, None, None, None], 0.0)
            scale = self.logits[name].exp()[None, :, None, None] * gate
            projected = torch.where(part.available(), self.projections[name](part.bev), 0.0)
            total, share = total + scale * projected, share + scale
        return torch.where(share > 0, total / torch.where(share > 0, share, 1.0), token)

    def gflops(self) -> float:
        """Forward GFLOPs of one sample with every modality in ``parts``; 2 FLOPs per value for the weighted sum."""
        cells = self.grid.shape[0] * self.grid.shape[1]
        projected = sum(counted_gflops(p, (1, p[0].in_channels, *self.grid.shape)) for p in self.projections.values())
        return projected + 2.0 * len(self.projections) * self.channels * cells / GIGA


def _filled(part: SensorBev, projection: nn.Module, token: Tensor) -> Tensor:
    """The projected BEV where available, the token elsewhere; ``weight`` slides between the two."""
    projected = projection(part.bev)
    gated = token + part.weight[:, None, None, None] * (projected - token)
    return torch.where(part.available(), gated, token)


def _projections(in_channels: Mapping[str, int], channels: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            name: nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), group_norm(channels), nn.ReLU(inplace=True))
            for name, width in in_channels.items()
        }
    )


def _tokens(names: Mapping[str, int], channels: int) -> nn.ParameterDict:
    return nn.ParameterDict({name: nn.Parameter(torch.zeros(channels)) for name in names})


def _known(names, known) -> None:
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(f"expected modalities among {list(known)}, got {strange}; add them to in_channels")
