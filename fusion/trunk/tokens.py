"""Keep and reactivate: transformer blocks over the BEV in which each cell decides, block by block, to take part.

A dense task must not lose tokens: a skipped cell keeps its content and may take part again in the next block (SViT, Liu
et al., WACV 2024). How many take part depends on the frame; only their mean over the batch is pulled to a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fusion.trunk.tokens_blocks import block_gflops, kept_block, masked_block, straight_through


@dataclass(frozen=True, eq=False)
class TokenUse:
    """How many tokens took part.

    Attributes:
        shares: of each block and sample; in training they carry the gradients of the choice.
        num_tokens: of each sample.
    """

    shares: Float[Tensor, "l b"]
    num_tokens: int

    def ratio_loss(self, target: float) -> Float[Tensor, ""]:
        """Squared distance between the mean share and its target, over the batch: single frames may differ."""
        return (self.shares.mean(dim=1) - target).square().mean()


class TokenSelector(nn.Module):
    """Two logits per token, skip and keep, from two layers. Starts by keeping most (logit 2)."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = max(dim // 4, 8)
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 2))
        nn.init.normal_(self.layers[-1].weight, std=0.02)
        with torch.no_grad():
            self.layers[-1].bias.copy_(torch.tensor([0.0, 2.0]))

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n 2"]:
        return self.layers(tokens)


class KeepTokens(nn.Module):
    """Transformer blocks over the cells of a BEV, on the cells that each block's selector keeps.

    Args:
        channels: of the map, in and out; a multiple of ``num_heads``.
        depth: blocks.
        num_heads: of attention.
        keep: None: a cell takes part where its keep logit wins, as many as the frame asks for. A share in (0, 1]: that
            share of the cells with the highest lead, in every frame; 1 is the dense block.
        temperature: of the straight-through gradient in training.

    Attributes:
        last_use: tokens that took part in the last forward pass; for the ratio loss and for the trace.
    """

    def __init__(
        self,
        channels: int,
        depth: int = 1,
        num_heads: int = 4,
        keep: float | int | None = None,
        mlp_ratio: float | int = 4.0,
        temperature: float = 1.0,
    ):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"expected channels that are a multiple of num_heads, got {channels} and {num_heads}")
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"expected keep in (0, 1] or None, got {keep}")
        self.channels, self.keep, self.mlp_ratio, self.temperature = channels, keep, float(mlp_ratio), temperature
        self.blocks = nn.ModuleList(Block(channels, num_heads, float(mlp_ratio), qkv_bias=True) for _ in range(depth))
        self.selectors = nn.ModuleList(TokenSelector(channels) for _ in range(depth))
        self.last_use: TokenUse | None = None

    def forward(self, bev: Float[Tensor, "b c ny nx"], execution: str = "sparse") -> Float[Tensor, "b c ny nx"]:
        """In training masked and with noise; at evaluation sparse, or ``masked`` to compare."""
        if bev.is_meta:
            return bev  # priced by ``gflops``, not by a counter of layers
        tokens = bev.flatten(2).transpose(1, 2)
        shares = []
        for block, selector in zip(self.blocks, self.selectors, strict=True):
            if self.keep == 1:
                tokens = block(tokens)
                shares.append(tokens.new_ones(len(tokens), dtype=torch.float32))
                continue
            logits = selector(tokens)
            if self.training:
                gate = self._gate(logits, noisy=self.keep is None)
                tokens = _mixed(tokens, masked_block(block, tokens, gate), gate)
                shares.append(gate.mean(dim=1))
                continue
            keep = self.kept(logits)
            shares.append(keep.float().mean(dim=1))
            if execution == "masked":
                tokens = _mixed(tokens, masked_block(block, tokens, keep.float()), keep.float())
            else:
                tokens = kept_block(block, tokens, keep)
        self.last_use = TokenUse(torch.stack(shares), tokens.shape[1])
        return tokens.transpose(1, 2).unflatten(2, bev.shape[2:])

    def kept(self, logits: Float[Tensor, "b n 2"]) -> Bool[Tensor, "b n"]:
        """Without noise."""
        lead = logits[..., 1] - logits[..., 0]
        if self.keep is None:
            return lead > 0
        best = lead.topk(max(round(self.keep * lead.shape[1]), 1), dim=1).indices
        return torch.zeros_like(lead, dtype=torch.bool).scatter(1, best, True)

    def gflops(self, num_cells: int, shares: Sequence[float] | None = None) -> float:
        """Of one sample; selectors run on all cells, blocks on their share of them (None: on all, the most)."""
        shares = [1.0] * len(self.blocks) if shares is None else shares
        hidden = self.selectors[0].layers[1].out_features
        selectors = 0.0 if self.keep == 1 else 2e-9 * num_cells * (self.channels + 2) * hidden * len(self.blocks)
        return selectors + sum(block_gflops(self.channels, share * num_cells, self.mlp_ratio) for share in shares)

    def price(self, shape: tuple[int, int]) -> float:
        """The most that one sample can cost on a map of ``shape``: all cells, or the fixed share of them."""
        return self.gflops(shape[0] * shape[1])

    def saved_gflops(self) -> list[float]:
        """Of each sample of the last forward pass, compared with all tokens in every block."""
        use, most = self.last_use, self.gflops(self.last_use.num_tokens)
        return [most - self.gflops(use.num_tokens, shares) for shares in use.shares.detach().T.tolist()]

    def __getstate__(self) -> dict:
        """Copies do not take the last pass along: it may hang on a graph."""
        return {**self.__dict__, "last_use": None}

    def _gate(self, logits: Tensor, noisy: bool) -> Tensor:
        if noisy:
            return straight_through(logits, self.temperature)
        # A fixed share: the same tokens as at evaluation, with the softmax's gradient.
        soft = (logits.float() / self.temperature).softmax(dim=-1)[..., 1]
        return self.kept(logits).float() + soft - soft.detach()


def _mixed(before: Tensor, after: Tensor, gate: Tensor) -> Tensor:
    """z * after + (1 - z) * before."""
    return before + gate[..., None].to(before.dtype) * (after - before)
