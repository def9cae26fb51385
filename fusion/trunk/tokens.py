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

from fusion.trunk.tokens_blocks import kept_block, masked_block, straight_through
from fusion.trunk.tokens_windows import check_sides, joined_windows, split_windows


@dataclass(frozen=True, eq=False)
class TokenUse:
    """How many tokens took part.

    Attributes:
        shares: of each block and sample; in training they carry the gradients of the choice.
        num_tokens: of each sample.
        pairs: of each block and sample, how many pairs of tokens that see each other took part, as a share of all such
            pairs; None for the squares of the shares.
        leads: keep minus skip of each block, sample and token, at evaluation with a free rate; else None.
    """

    shares: Float[Tensor, "l b"]
    num_tokens: int
    pairs: Float[Tensor, "l b"] | None = None
    leads: Float[Tensor, "l b n"] | None = None

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
        window: side in cells of the squares inside which cells see each other; None for the whole map.
        target: of the mean share in training, for ``token_loss``.
        spread: in training the lead at which a sample's cells are kept is drawn from [-spread, spread], so that one set
            of weights serves every rate; the ratio loss then looks at the probabilities at a lead of 0.

    Attributes:
        threshold: lead above which a cell is kept at evaluation, for a free rate.
        most: largest share of a sample's cells that may be kept at evaluation, for a free rate.
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
        window: int | None = None,
        target: float | None = None,
        spread: float | int = 0.0,
    ):
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"expected channels that are a multiple of num_heads, got {channels} and {num_heads}")
        for name, share in (("keep", keep), ("target", target)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"expected {name} in (0, 1] or None, got {share}")
        if spread < 0 or (keep is not None and (spread or target is not None)):
            raise ValueError(f"expected spread and target with a free rate (keep: null), got keep {keep}; drop one")
        self.channels, self.keep, self.mlp_ratio, self.temperature = channels, keep, float(mlp_ratio), temperature
        self.window, self.target, self.spread = window, target, float(spread)
        # Queries and keys are normalised: from scratch and with large steps their products grow until training breaks.
        options = {"qkv_bias": True, "qk_norm": True}
        self.blocks = nn.ModuleList(Block(channels, num_heads, float(mlp_ratio), **options) for _ in range(depth))
        self.selectors = nn.ModuleList(TokenSelector(channels) for _ in range(depth))
        self.set_rate()
        self.last_use: TokenUse | None = None

    def set_rate(self, threshold: float = 0.0, most: float = 1.0) -> None:
        """Which cells are kept at evaluation, for a free rate; see ``threshold`` and ``most``."""
        if not 0 <= most <= 1:
            raise ValueError(f"expected at most a share in [0, 1] of the tokens, got {most}")
        self.threshold, self.most = float(threshold), float(most)

    def forward(self, bev: Float[Tensor, "b c ny nx"], execution: str = "sparse") -> Float[Tensor, "b c ny nx"]:
        """In training masked and with noise; at evaluation sparse, or ``masked`` to compare."""
        if bev.is_meta:
            return bev  # priced by ``gflops``, not by a counter of layers
        windows = bev.flatten(2).transpose(1, 2)[:, None] if self.window is None else split_windows(bev, self.window)
        tokens, uses = windows.flatten(0, 1), []  # (b w) s c
        for block, selector in zip(self.blocks, self.selectors, strict=True):
            if self.keep == 1:
                tokens = block(tokens)
                uses.append((tokens.new_ones(len(bev), dtype=torch.float32), tokens.new_ones(len(bev)), None))
                continue
            logits = selector(tokens).view(len(bev), -1, 2)
            if self.training:
                gate, share = self._gate(logits)
                gate = gate.view(tokens.shape[:2])
                tokens = _mixed(tokens, masked_block(block, tokens, gate), gate)
                uses.append((share, share.detach().square(), None))
                continue
            keep = self.kept(logits).view(tokens.shape[:2])
            uses.append((*_shares(keep, len(bev)), logits[..., 1] - logits[..., 0]))
            if execution == "masked":
                tokens = _mixed(tokens, masked_block(block, tokens, keep.float()), keep.float())
            else:
                tokens = kept_block(block, tokens, keep)
        shares, pairs, leads = zip(*uses, strict=True)
        leads = None if leads[0] is None else torch.stack(leads)
        self.last_use = TokenUse(torch.stack(shares), windows.shape[1] * windows.shape[2], torch.stack(pairs), leads)
        if self.window is None:
            return tokens.transpose(1, 2).unflatten(2, bev.shape[2:])
        return joined_windows(tokens.view(windows.shape), tuple(bev.shape[2:]))

    def kept(self, logits: Float[Tensor, "b n 2"]) -> Bool[Tensor, "b n"]:
        """Without noise."""
        lead = logits[..., 1] - logits[..., 0]
        share = self.most if self.keep is None else self.keep
        passes = lead > self.threshold if self.keep is None else torch.ones_like(lead, dtype=torch.bool)
        if share == 1:
            return passes
        # Rounded down, so that no sample costs more than it may; a fixed share keeps one cell at least.
        count = int(share * lead.shape[1] + 1e-6) if self.keep is None else self._fixed_count(lead.shape[1])
        best = lead.topk(count, dim=1).indices
        return passes & torch.zeros_like(passes).scatter(1, best, True)

    def token_loss(self) -> Float[Tensor, ""] | None:
        """Ratio loss of the last training pass; None without a target."""
        return None if self.target is None or self.last_use is None else self.last_use.ratio_loss(self.target)

    def gflops(
        self, num_cells: int, shares: Sequence[float] | None = None, pairs: Sequence[float] | None = None
    ) -> float:
        """Of one sample; selectors run on all cells, blocks on their share of them (None: on all, the most).

        Args:
            shares, pairs: of each block, as in TokenUse.
        """
        shares = [1.0] * len(self.blocks) if shares is None else shares
        pairs = [share * share for share in shares] if pairs is None else pairs
        hidden = self.selectors[0].layers[1].out_features
        selectors = 0.0 if self.keep == 1 else 2e-9 * num_cells * (self.channels + 2) * hidden * len(self.blocks)
        num_pairs = num_cells * (num_cells if self.window is None else self.window**2)
        linear = 2e-9 * num_cells * self.channels**2 * (4 + 2 * self.mlp_ratio)
        return selectors + linear * sum(shares) + 4e-9 * num_pairs * self.channels * sum(pairs)

    def price(self, shape: tuple[int, int]) -> float:
        """The most that one sample can cost on a map of ``shape``: all cells, or the fixed share of them.

        Cells inside windows cost the most where they fill as few windows as they can.

        Raises:
            ValueError: sides that are no multiples of the window.
        """
        if self.window is not None:
            check_sides(shape, self.window)
        return self._most_gflops(shape[0] * shape[1])

    def saved_gflops(self) -> list[float]:
        """Of each sample of the last forward pass, compared with its price."""
        use, most = self.last_use, self._most_gflops(self.last_use.num_tokens)
        shares = use.shares.detach()
        pairs = shares.square() if use.pairs is None else use.pairs
        # Shares are float32: what spends all of its price may lie a rounding above it.
        return [
            max(most - self.gflops(use.num_tokens, *own), 0.0)
            for own in zip(shares.T.tolist(), pairs.T.tolist(), strict=True)
        ]

    def __getstate__(self) -> dict:
        """Copies do not take the last pass along: it may hang on a graph."""
        return {**self.__dict__, "last_use": None}

    def _fixed_count(self, num_cells: int) -> int:
        return max(round(self.keep * num_cells), 1)

    def _most_gflops(self, num_cells: int) -> float:
        kept = num_cells if self.keep is None else self._fixed_count(num_cells)
        side = num_cells if self.window is None else self.window**2
        whole, rest = divmod(kept, side)
        pairs = (whole * side**2 + rest**2) / (num_cells * side)
        return self.gflops(num_cells, [kept / num_cells] * len(self.blocks), [pairs] * len(self.blocks))

    def _gate(self, logits: Float[Tensor, "b n 2"]) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b"]]:
        """Gate of every cell, and what the ratio loss looks at."""
        if self.keep is not None:
            # A fixed share: the same tokens as at evaluation, with the softmax's gradient.
            soft = (logits.float() / self.temperature).softmax(dim=-1)[..., 1]
            gate = self.kept(logits).float() + soft - soft.detach()
            return gate, gate.mean(dim=1)
        if not self.spread:
            gate = straight_through(logits, self.temperature)
            return gate, gate.mean(dim=1)
        drawn = self.spread * (2 * torch.rand(len(logits), 1, device=logits.device) - 1)
        gate = straight_through(torch.stack([logits[..., 0] + drawn, logits[..., 1]], dim=-1), self.temperature)
        return gate, logits.float().softmax(dim=-1)[..., 1].mean(dim=1)


def _shares(keep: Bool[Tensor, "r s"], num_samples: int) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Of each sample, the share of its cells that are kept, and of its pairs within a window."""
    shares = keep.float().mean(dim=1).view(num_samples, -1)
    return shares.mean(dim=1), shares.square().mean(dim=1)


def _mixed(before: Tensor, after: Tensor, gate: Tensor) -> Tensor:
    """z * after + (1 - z) * before."""
    return before + gate[..., None].to(before.dtype) * (after - before)
