"""The BEV trunk: a small residual network over the merged BEV and a top-down neck."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from fusion.ops.blocks import conv_norm_relu, conv_stage, enlarged, equally_long, group_norm
from fusion.ops.flops import counted_gflops


class BevTrunk(nn.Module):
    """Stages of falling resolution, summed top-down into one map (FPN, Lin et al., CVPR 2017).

    Args:
        in_channels: of the merged BEV.
        widths, depths, strides: of each stage: channels, residual blocks, and its stride relative to the stage before.
        out_channels: of the output.
        out_stride: cells of the input per cell of the output; must be the resolution of one of the stages.
        upsample: 2 makes the output twice as fine again (a learned 2x2 transposed convolution), 1 leaves it.
        tokens: a ``KeepTokens`` or ``KeepWindows`` over the last stage's map; None for none.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (64, 96, 128),
        depths: Sequence[int] = (1, 1, 1),
        strides: Sequence[int] = (1, 2, 2),
        out_channels: int = 64,
        out_stride: int = 1,
        upsample: int = 1,
        tokens: nn.Module | None = None,
    ):
        super().__init__()
        equally_long(widths=widths, depths=depths, strides=strides)
        cumulative = [math.prod(strides[: i + 1]) for i in range(len(strides))]
        if out_stride not in cumulative:
            raise ValueError(f"expected out_stride to be one of the stages' {cumulative}, got {out_stride}; change one")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.out_stride, self.upsample = out_stride, upsample
        inputs = (in_channels, *widths[:-1])
        self.stages = nn.ModuleList(map(conv_stage, inputs, widths, depths, strides))
        if tokens is not None:
            if tokens.channels != widths[-1]:
                raise ValueError(f"expected tokens of the last stage's {widths[-1]} channels, got {tokens.channels}")
            self.stages[-1] = nn.Sequential(self.stages[-1], tokens)
        self.stride, self.has_tokens = cumulative[-1], tokens is not None
        self.first_level = len(cumulative) - 1 - cumulative[::-1].index(out_stride)
        self.factors = [int(stride) for stride in strides]
        self.laterals = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths[self.first_level :])
        self.smooth = nn.Sequential(group_norm(out_channels), nn.ReLU(), *conv_norm_relu(out_channels, out_channels))
        self.finer = _finer(out_channels, upsample) if upsample > 1 else nn.Identity()

    def forward(self, bev: Float[Tensor, "b c ny nx"]) -> Float[Tensor, "b d my mx"]:
        levels = []
        for stage in self.stages:
            bev = stage(bev)
            levels.append(bev)
        return self.neck(levels)

    def neck(self, levels: list[Tensor]) -> Float[Tensor, "b d my mx"]:
        """The output from the stages' maps, finest first."""
        merged = None
        for level in range(len(levels) - 1, self.first_level - 1, -1):
            lateral = self.laterals[level - self.first_level](levels[level])
            merged = lateral if merged is None else lateral + enlarged(merged, lateral, self.factors[level + 1])
        return self.finer(self.smooth(merged))

    def gflops(self, shape: tuple[int, int]) -> float:
        """Forward GFLOPs of one sample on a BEV of ``shape`` (rows, columns)."""
        return counted_gflops(self, (1, self.in_channels, *shape)) + self._token_gflops(shape)

    def saved_gflops(self) -> list[float] | None:
        """What each sample of the last pass saved of ``gflops`` by tokens that took no part; None without tokens."""
        saves = self.has_tokens and hasattr(self.stages[-1][1], "saved_gflops")
        return self.stages[-1][1].saved_gflops() if saves else None

    def _token_gflops(self, shape: tuple[int, int]) -> float:
        if not self.has_tokens:
            return 0.0
        return self.stages[-1][1].price(tuple(math.ceil(side / self.stride) for side in shape))


def _finer(channels: int, factor: int) -> nn.Sequential:
    up = nn.ConvTranspose2d(channels, channels, factor, factor, bias=False)
    return nn.Sequential(up, group_norm(channels), nn.ReLU(inplace=True))
