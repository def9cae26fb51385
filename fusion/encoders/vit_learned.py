"""Fewer tokens in a ViT, by layers that learn which: DynamicViT's predictors and A-ViT's halting."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion.encoders.vit_tokens import Blocks, Dense, check_places
from fusion.ops.rows import mean_so_far
from fusion.trunk.tokens_blocks import (
    block_gflops,
    gathered,
    masked_block,
    ragged_block,
    scattered,
    straight_through,
)


class DynamicVit(nn.Module):
    """Predictors drop patches at some blocks (DynamicViT, Rao et al., NeurIPS 2021).

    In training all tokens stay, masked, with noise; at evaluation the best are gathered, as many of each picture.

    Args:
        dim: width of the ViT's tokens.
        at: blocks before which patches are dropped.
        keep: share of the remaining patches that stays each time; 1 is the dense ViT.

    Attributes:
        rate: factor on ``keep`` at evaluation, set by ``VitViewEncoder.set_rate``; None where ``keep`` is 1, whose
            predictors nothing has taught.
        last_shares: mean of the kept shares, one per predictor, with gradients, over all rows in training since it was
            None, as ``forget_tokens`` makes it at the start of a training pass.
        last_rows: how many these are.
        last_kept: which patches of the last call were kept to the end, 1 or 0, without gradients.
    """

    def __init__(self, dim: int, at: Sequence[int] = (3, 6, 9), keep: float | int = 0.7):
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"expected keep in (0, 1], got {keep}")
        self.dim, self.at, self.keep, self.rate = dim, tuple(at), keep, 1.0 if keep < 1 else None
        self.local = nn.ModuleList(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU()) for _ in self.at)
        self.score = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 2)) for _ in self.at
        )
        self.last_shares: Tensor | None = None
        self.last_rows: int | None = None
        self.last_kept: Tensor | None = None

    def forward(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        if self.keep == 1:
            return Dense()(blocks, tokens, num_prefix)
        return (self.masked if self.training else self._gathered)(blocks, tokens, num_prefix)

    def check(self, vit: nn.Module) -> None:
        """Raises ValueError for a ViT of another width, or one that lacks a block of ``at``."""
        if self.dim != vit.embed_dim:
            raise ValueError(
                f"expected dim of DynamicVit to be {vit.embed_dim}, the width of the ViT, got {self.dim}; change it"
            )
        check_places("DynamicVit", self.at, len(vit.blocks))

    def ratio_loss(self) -> Float[Tensor, ""]:
        """Squared distance of the kept shares of the last training batch from keep, keep^2, ..."""
        wanted = [self.keep ** (number + 1) for number in range(len(self.at))]
        return (self.last_shares - self.last_shares.new_tensor(wanted)).square().mean()

    def token_loss(self) -> Float[Tensor, ""] | None:
        """The ratio loss, where a training batch has run."""
        return None if self.last_shares is None else self.ratio_loss()

    def logits(
        self, number: int, patches: Float[Tensor, "r n c"], gate: Float[Tensor, "r n"]
    ) -> Float[Tensor, "r n 2"]:
        """Drop and keep; half of the features are the mean over the kept patches."""
        own, shared = self.local[number](patches).chunk(2, dim=-1)
        weight = gate[..., None].to(shared.dtype)
        mean = (shared * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return self.score[number](torch.cat([own, mean.expand_as(shared)], dim=-1))

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        total = 0.0
        for number in range(depth):
            if number in self.at and self.keep < 1:
                total += 2e-9 * num_patches * (dim * dim + dim * (dim // 2) + dim)
                num_patches = self._count(num_patches)
            total += block_gflops(dim, num_prefix + num_patches, mlp_ratio)
        return total

    def __getstate__(self) -> dict:
        """Copies do not take the last batch along: it may hang on a graph."""
        return {**self.__dict__, "last_shares": None, "last_rows": None, "last_kept": None}

    def masked(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        """All tokens, masked. In training with noise; else the same patches as gathered, to compare."""
        gate = torch.ones_like(tokens[:, num_prefix:, 0], dtype=torch.float32)
        shares = []
        for number, block in enumerate(blocks):
            if number in self.at:
                logits = self.logits(self.at.index(number), tokens[:, num_prefix:], gate)
                gate = gate * (straight_through(logits) if self.training else self._best(logits, gate))
                shares.append(gate.mean())
            whole = torch.cat([torch.ones_like(gate[:, :1]).expand(-1, num_prefix), gate], dim=1)
            worked = masked_block(block, tokens, whole)
            tokens = tokens + whole[..., None].to(tokens.dtype) * (worked - tokens)
        if self.training:
            means = mean_so_far(self.last_shares, self.last_rows, torch.stack(shares), len(tokens))
            (self.last_shares, self.last_rows), self.last_kept = means, gate.detach()
        return tokens[:, num_prefix:]

    def _best(self, logits: Float[Tensor, "r n 2"], gate: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """1 for the patches that stay of those that are still there, as many in every picture."""
        lead = (logits[..., 1] - logits[..., 0]).masked_fill(gate == 0, -torch.inf)
        best = lead.topk(self._count(int(gate[0].sum())), dim=1).indices
        return torch.zeros_like(gate).scatter(1, best, 1.0)

    def _count(self, num_patches: int) -> int:
        return max(round(self.keep * self.rate * num_patches), 1)

    def _gathered(self, blocks: Blocks, tokens: Tensor, num_prefix: int) -> Tensor:
        canvas = tokens[:, num_prefix:]
        cells = torch.arange(canvas.shape[1], device=tokens.device).expand(len(tokens), -1)
        for number, block in enumerate(blocks):
            if number in self.at:
                patches = tokens[:, num_prefix:]
                canvas = scattered(canvas, cells, patches)
                logits = self.logits(self.at.index(number), patches, torch.ones_like(patches[..., 0]))
                lead = logits[..., 1] - logits[..., 0]
                best = lead.topk(self._count(lead.shape[1]), dim=1).indices.sort(dim=1).values
                cells = cells.gather(1, best)
                tokens = torch.cat([tokens[:, :num_prefix], gathered(patches, best)], dim=1)
            tokens = block(tokens)
        return scattered(canvas, cells, tokens[:, num_prefix:])


class AVit(nn.Module):
    """Patches halt when they have gathered enough (A-ViT, Yin et al., CVPR 2022; adaptive computation time).

    After each block the first feature of a token says how much it halts, sigmoid(gamma x_0 + beta). A token stops where
    the sum reaches 1 - epsilon; its output is the mean of its states weighted by the halting values and, at last, by
    what is missing to 1. At evaluation halted patches are gone from what comes after, as many as the picture lets.

    Args:
        gamma, beta: scale and start of the halting value; beta rises in training.
        epsilon: see above.
        never: patches never halt: the dense ViT.
        ponder_weight: of the blocks per patch in ``token_loss``; the paper's.
        target_depth: block, from 1, at which patches should halt on average: pulls the distribution of the halting over
            the blocks to a normal one around it, so that patches neither all go on nor all stop at once; None for not.
        prior_spread: standard deviation of that, in blocks.
        prior_weight: of the divergence in ``token_loss``; the paper's.

    Attributes:
        last_ponder: mean of blocks per patch and remainder, with gradients: add it to the loss. In training over all
            rows since it was None, as ``forget_tokens`` makes it at the start of a pass; else over the last batch.
        last_rows: how many these are.
        last_depths: blocks that each patch of the last batch went through.
        last_halting: of each block, the share of the outputs of the same rows that it gave, with gradients; sums to 1.
    """

    def __init__(
        self,
        gamma: float | int = 5.0,
        beta: float | int = -10.0,
        epsilon: float = 0.01,
        never: bool = False,
        ponder_weight: float = 5e-4,
        *,
        target_depth: float | int | None = None,
        prior_spread: float | int = 1.0,
        prior_weight: float | int = 0.1,
    ):
        super().__init__()
        if prior_spread <= 0 or (target_depth is not None and target_depth < 1):
            raise ValueError(
                f"expected target_depth from 1 and prior_spread above 0, got {target_depth} and {prior_spread}"
            )
        self.ponder_weight, self.target_depth = ponder_weight, target_depth
        self.prior_spread, self.prior_weight = prior_spread, prior_weight
        self.gamma, self.epsilon, self.never = gamma, epsilon, never
        self.beta = nn.Parameter(torch.tensor(float(beta)))
        self.last_ponder: Tensor | None = None
        self.last_rows: int | None = None
        self.last_depths: Tensor | None = None
        self.last_halting: Tensor | None = None

    def forward(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        if self.never:
            return Dense()(blocks, tokens, num_prefix)
        alive = torch.ones_like(tokens[..., 0], dtype=torch.bool)
        total = torch.zeros_like(tokens[..., 0], dtype=torch.float32)
        output, depths, remainder = torch.zeros_like(tokens), torch.zeros_like(total), torch.zeros_like(total)
        shares = []
        for number, block in enumerate(blocks):
            depths = depths + alive
            tokens = self._block(block, tokens, alive)
            halting = torch.sigmoid(self.gamma * tokens[..., 0].float() + self.beta)
            last = number == len(blocks) - 1
            stops = alive & ((total + halting >= 1 - self.epsilon) | last)
            stops[:, :num_prefix] = last
            weight = torch.where(stops, 1 - total, halting) * alive
            shares.append(weight[:, num_prefix:].mean())
            remainder = remainder + torch.where(stops, 1 - total, 0.0)
            output = output + weight[..., None].to(tokens.dtype) * tokens
            total = total + halting * alive
            alive = alive & ~stops
        self.last_depths = depths[:, num_prefix:]
        self._remember((depths + remainder)[:, num_prefix:].mean(), torch.stack(shares), len(tokens))
        return output[:, num_prefix:]

    def check(self, vit: nn.Module) -> None:
        """Raises ValueError for a target depth below the last block."""
        if self.target_depth is not None and self.target_depth > len(vit.blocks):
            raise ValueError(
                f"expected target_depth of AVit from 1 to {len(vit.blocks)}, the blocks of the ViT, got "
                f"{self.target_depth}; lower it"
            )

    def _remember(self, ponder: Float[Tensor, ""], halting: Float[Tensor, "l"], num_rows: int) -> None:
        """Of one call; outside training it stands alone."""
        before = (self.last_ponder, self.last_halting) if self.training else (None, None)
        self.last_ponder, _ = mean_so_far(before[0], self.last_rows, ponder, num_rows)
        self.last_halting, self.last_rows = mean_so_far(before[1], self.last_rows, halting, num_rows)

    def token_loss(self) -> Float[Tensor, ""] | None:
        """Weighted ponder of the last batch, where one has run, and with a target depth the divergence from it."""
        if self.last_ponder is None:
            return None
        ponder = self.ponder_weight * self.last_ponder
        return ponder if self.target_depth is None else ponder + self.prior_weight * self.halting_divergence()

    def halting_divergence(self) -> Float[Tensor, ""]:
        """KL(p || q), p the ``last_halting``, q proportional to exp(-(block - target depth)^2 / (2 spread^2))."""
        share = self.last_halting
        block = torch.arange(1, len(share) + 1, device=share.device)
        prior = (-0.5 * ((block - self.target_depth) / self.prior_spread).square()).log_softmax(dim=0)
        return (share * (share.clamp_min(1e-8).log() - prior)).sum()

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        """Of a picture in which nothing halts: the most."""
        return Dense().gflops(dim, depth, num_prefix, num_patches, mlp_ratio)

    def saved_gflops(self, dim: int, depth: int, num_prefix: int, mlp_ratio: float | int) -> Float[Tensor, "r"] | None:
        """What each picture of the last batch saved of that by patches that had halted; None where all went on."""
        if self.never or self.last_depths is None:
            return None
        rows, num_patches = self.last_depths.shape
        saved = [depth * block_gflops(dim, num_prefix + num_patches, mlp_ratio)] * rows
        for number in range(depth):
            going = (self.last_depths > number).sum(dim=1).tolist()
            saved = [
                left - block_gflops(dim, num_prefix + count, mlp_ratio)
                for left, count in zip(saved, going, strict=True)
            ]
        return torch.tensor(saved, dtype=torch.float64)

    def __getstate__(self) -> dict:
        """Copies do not take the last batch along: it may hang on a graph."""
        return {**self.__dict__, "last_ponder": None, "last_depths": None, "last_halting": None, "last_rows": None}

    def _block(self, block: nn.Module, tokens: Tensor, alive: Tensor) -> Tensor:
        if self.training:
            keep = alive.float()
            worked = masked_block(block, tokens, keep)
            return torch.where(alive[..., None], worked, tokens)
        counts = alive.sum(dim=1).tolist()
        if min(counts) == tokens.shape[1]:
            return block(tokens)
        rows = torch.nonzero(alive.flatten())[:, 0]
        if not len(rows):
            return tokens
        flat = tokens.flatten(0, 1)
        worked = ragged_block(block, flat.index_select(0, rows), [count for count in counts if count])
        return flat.index_copy(0, rows, worked.to(flat.dtype)).view(tokens.shape)
