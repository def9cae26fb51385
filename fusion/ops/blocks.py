"""Convolution blocks without batch statistics, shared by the BEV encoders, the merge and the trunk."""

import math

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def group_norm(channels: int, max_groups: int = 8) -> nn.GroupNorm:
    """GroupNorm with as many groups as divide the channels, at most ``max_groups``."""
    return nn.GroupNorm(math.gcd(channels, max_groups), channels)


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU; "same" padding."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, group_norm(out_channels), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity (He et al., CVPR 2016).

    Starts as the identity, since the last norm scales by zero: deep stacks then train at high learning rates.
    """

    def __init__(self, channels: int):
        super().__init__()
        second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(second.weight, mode="fan_out", nonlinearity="relu")
        norm = group_norm(channels)
        nn.init.zeros_(norm.weight)
        self.branch = nn.Sequential(*conv_norm_relu(channels, channels), second, norm)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.relu(x + self.branch(x))


def conv_stage(in_channels: int, out_channels: int, depth: int, stride: int) -> nn.Sequential:
    """One 3x3 convolution where width or resolution change, then ``depth`` residual blocks."""
    changes = in_channels != out_channels or stride != 1 or depth == 0
    entry = [conv_norm_relu(in_channels, out_channels, stride=stride)] if changes else []
    return nn.Sequential(*entry, *(ResidualBlock(out_channels) for _ in range(depth)))


def enlarged(coarse: Float[Tensor, "b c h w"], like: Float[Tensor, "b c hh ww"], factor: int) -> Tensor:
    """``coarse`` repeated ``factor`` times and cut to the size of ``like``, which may be one short of a multiple."""
    if factor > 1:
        coarse = functional.interpolate(coarse, scale_factor=factor, mode="nearest")
    return coarse[..., : like.shape[-2], : like.shape[-1]]


def equally_long(**sequences) -> None:
    """Raises ValueError unless all arguments have the same length."""
    lengths = {name: len(values) for name, values in sequences.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"expected one entry per stage in {', '.join(lengths)}, got lengths {lengths}; align them")
