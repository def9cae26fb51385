"""Residual blocks that each picture may skip: h = x + z f(x) with a gate z per block and picture.

ConvNet-AIG (Veit and Belongie, ECCV 2018): a gate sees the block's input, pooled; straight-through Gumbel noise in
training, none at evaluation, where the block runs on the rows whose gate is open and on no others. Only blocks that
keep the shape of their input can be skipped.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion.encoders.views import ViewEncoder
from fusion.ops.flops import counted_gflops
from fusion.ops.rows import mean_so_far

_OPEN_BIAS = 1.7
"""85 % open at first, so that every block learns before any is given up."""


class GatedBlock(nn.Module):
    """A residual block with its gate.

    Args:
        block: of equal input and output shape; its own shortcut included.
        channels: of its input.
        target: share of the rows that should run it, over the batch; None leaves it to the other losses.

    Attributes:
        last_use: share of rows that ran it, with its gradient, over all rows in training since it was None, as
            ``forget_tokens`` makes it at the start of a training pass.
        last_rows: how many these are.
    """

    def __init__(self, block: nn.Module, channels: int, target: float | None):
        super().__init__()
        self.block, self.target = block, target
        self.gate = nn.Sequential(nn.Linear(channels, 16), nn.ReLU(), nn.Linear(16, 1))
        nn.init.zeros_(self.gate[2].weight)
        nn.init.constant_(self.gate[2].bias, _OPEN_BIAS)
        self.last_use: Tensor | None = None
        self.last_rows: int | None = None
        self._saved: Tensor | None = None
        self._gflops: dict[tuple[int, ...], float] = {}

    def forward(self, x: Float[Tensor, "r c h w"]) -> Float[Tensor, "r c h w"]:
        logit = self.gate(x.mean(dim=(2, 3)).float())[:, 0]
        if x.is_meta:  # where FLOPs are counted: the block runs
            return self.block(x)
        return self._trained(x, logit) if self.training else self._sparse(x, logit)

    def token_loss(self) -> Float[Tensor, ""] | None:
        """(use - target)^2 of the last training pass: over the batch, so that pictures may differ."""
        if self.last_use is None or self.target is None:
            return None
        return (self.last_use - self.target).square()

    def saved_gflops(self) -> Float[Tensor, "r"] | None:
        """What each row of the last pass at evaluation saved; None after one in training."""
        return self._saved

    def _trained(self, x: Float[Tensor, "r c h w"], logit: Float[Tensor, "r"]) -> Float[Tensor, "r c h w"]:
        uniform = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid(logit + uniform.log() - (-uniform).log1p())
        z = (soft >= 0.5).to(soft) + (soft - soft.detach())
        self.last_use, self.last_rows = mean_so_far(self.last_use, self.last_rows, z.mean(), len(z))
        self._saved = None
        return x + z.to(x.dtype)[:, None, None, None] * (self.block(x) - x)

    def _sparse(self, x: Float[Tensor, "r c h w"], logit: Float[Tensor, "r"]) -> Float[Tensor, "r c h w"]:
        runs = logit >= 0
        rows = torch.nonzero(runs)[:, 0]
        self._saved = (~runs).double().cpu() * self._price(tuple(x.shape[1:]))
        if len(rows) == len(x):
            return self.block(x)
        # A copy: the block's input may be looked at elsewhere, too.
        return x.index_copy(0, rows, self.block(x[rows])) if len(rows) else x

    def _price(self, shape: tuple[int, ...]) -> float:
        if shape not in self._gflops:
            self._gflops[shape] = counted_gflops(self.block, (1, *shape))
        return self._gflops[shape]


class SkippingViewEncoder(ViewEncoder):
    """A ``ViewEncoder`` whose backbone skips blocks, picture by picture.

    Its price is that of all blocks; what was skipped is taken off in the trace. Not to be compiled in buckets: then the
    price stands.

    Args:
        block_target: share of the rows that should run each block in training (the loss term ``tokens``).
        options: of ``ViewEncoder``; the backbone needs residual blocks (ResNets).

    Raises:
        ValueError: a backbone without a block that can be skipped, or a target outside (0, 1].
    """

    def __init__(self, *arguments, block_target: float | None = 0.7, **options):
        super().__init__(*arguments, **options)
        if block_target is not None and not 0 < block_target <= 1:
            raise ValueError(f"expected block_target in (0, 1], got {block_target}")
        for parent in [module for module in self.backbone.modules() if isinstance(module, nn.Sequential)]:
            for name, child in list(parent.named_children()):
                if hasattr(child, "conv1") and getattr(child, "downsample", self) is None:
                    parent.add_module(name, GatedBlock(child, child.conv1.in_channels, block_target))
        self.gated = [module for module in self.modules() if isinstance(module, GatedBlock)]
        if not self.gated:
            raise ValueError("expected a backbone with residual blocks of equal shape (a ResNet), found none to skip")
        self.to(memory_format=torch.channels_last)

    def saved_gflops(self) -> Float[Tensor, "r"] | None:
        """What each row of the last pass saved of ``gflops``; None after a pass in training."""
        saved = [block.saved_gflops() for block in self.gated]
        return None if any(one is None for one in saved) else torch.stack(saved).sum(dim=0)
