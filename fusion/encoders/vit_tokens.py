"""Fewer tokens in a ViT: drop, fuse, merge or halt. A detector needs a map, so every patch gets a feature back:
its own, as it was when its token left, or that of the token it was merged into.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fusion.trunk.tokens_blocks import (
    after_attention,
    after_mlp,
    block_gflops,
    gathered,
    masked_block,
    projected,
    qkv_of,
    scattered,
)

Blocks = Sequence[nn.Module] | nn.Sequential
"""Of a ViT, in order."""


NO_CLASS = "expected a ViT with a class token for EVit, got one without; use ToMe or DynamicVit"


@runtime_checkable
class TokenMethod(Protocol):
    """How the blocks of a ViT are run.

    A method may have a ``check(vit)``, which raises ValueError where it does not fit; ``VitViewEncoder`` asks it first.
    """

    def __call__(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        """Features of all n patches from ``num_prefix`` class and register tokens followed by n patches."""

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        """Of the blocks, for one picture."""


class Dense:
    """Every block on every token."""

    def __call__(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        for block in blocks:
            tokens = block(tokens)
        return tokens[:, num_prefix:]

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        return depth * block_gflops(dim, num_prefix + num_patches, mlp_ratio)


class EVit:
    """Keep the patches that the class token looks at; fuse the rest into one token (EViT, Liang et al., ICLR 2022).

    Args:
        at: numbers of the blocks that drop, between their attention and their MLP.
        keep: share of the patches that stays, each time; 1 is the dense ViT.

    Attributes:
        rate: factor on ``keep``, set by ``VitViewEncoder.set_rate``.
    """

    def __init__(self, at: Sequence[int] = (3, 6, 9), keep: float | int = 0.7):
        if not 0 < keep <= 1:
            raise ValueError(f"expected keep in (0, 1], got {keep}")
        self.at, self.keep, self.rate = tuple(at), keep, 1.0

    def check(self, vit: nn.Module) -> None:
        """Raises ValueError for a ViT without a class token, or one that lacks a block of ``at``."""
        if getattr(vit, "cls_token", None) is None:  # prefix tokens may be registers alone
            raise ValueError(NO_CLASS)
        check_places("EVit", self.at, len(vit.blocks))

    def __call__(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        if num_prefix == 0:
            raise ValueError(NO_CLASS)
        canvas = tokens[:, num_prefix:]
        cells = torch.arange(canvas.shape[1], device=tokens.device).expand(len(tokens), -1)
        for number, block in enumerate(blocks):
            if number not in self.at or self.keep * self.rate == 1:
                tokens = block(tokens)
                continue
            tokens, scores = _attended_from_class(block, tokens, num_prefix)
            patches = tokens[:, num_prefix:]
            order = scores.argsort(dim=1, descending=True)
            count = _count(self.keep * self.rate, patches.shape[1])
            best, rest = order[:, :count].sort(dim=1).values, order[:, count:]
            gone, weight = gathered(patches, rest), scores.gather(1, rest)[..., None].to(patches.dtype)
            canvas = scattered(canvas, cells.gather(1, rest), gone)
            fused = (weight * gone).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(1e-6)
            cells = cells.gather(1, best)
            tokens = after_mlp(block, torch.cat([tokens[:, :num_prefix], fused, gathered(patches, best)], dim=1))
            num_prefix += 1  # what was fused is not dropped again
        return scattered(canvas, cells, tokens[:, num_prefix:])

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        """The block that drops counts its attention before and its MLP after."""
        total = 0.0
        for number in range(depth):
            before = num_prefix + num_patches
            if number in self.at and self.keep * self.rate < 1:
                num_patches, num_prefix = _count(self.keep * self.rate, num_patches), num_prefix + 1
            total += _split_gflops(dim, before, num_prefix + num_patches, mlp_ratio)
        return total


class ToMe:
    """Merge the most alike patches in every block; needs no training (ToMe, Bolya et al., ICLR 2023).

    Bipartite soft matching of the keys of even and odd patches; a merged token is the mean of its patches, and
    attention adds the logarithm of how many they are.

    Args:
        merged: patches merged away in each block, at most half; 0 is the dense ViT. One number for all blocks, or one
            for each of the first blocks (none are merged afterwards).

    Attributes:
        rate: set by ``VitViewEncoder.set_rate``; below 1 all blocks together merge away a further 1 - rate of the
            patches, each as many.
    """

    def __init__(self, merged: int | Sequence[int] = 32):
        self.merged, self.rate = merged if isinstance(merged, int) else tuple(merged), 1.0
        if min([merged] if isinstance(merged, int) else merged, default=0) < 0:
            raise ValueError(f"expected merged of at least 0, got {merged}")

    def check(self, vit: nn.Module) -> None:
        """Raises ValueError for more numbers than blocks."""
        if not isinstance(self.merged, int) and len(self.merged) > len(vit.blocks):
            raise ValueError(
                f"expected merged of ToMe for at most the {len(vit.blocks)} blocks of the ViT, got {len(self.merged)} "
                f"numbers, {list(self.merged)}; leave some out"
            )

    def counts(self, depth: int, num_patches: int) -> list[int]:
        """How many each of ``depth`` blocks merges away."""
        found, extra = [], (1 - self.rate) * num_patches / depth
        for number in range(depth):
            own = self.merged if isinstance(self.merged, int) else (*self.merged, *[0] * depth)[number]
            own += round(extra * (number + 1)) - round(extra * number)
            found.append(min(own, num_patches // 2))
            num_patches -= found[-1]
        return found

    def __call__(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        num_patches = tokens.shape[1] - num_prefix
        counts = self.counts(len(blocks), num_patches)
        if not any(counts):
            return Dense()(blocks, tokens, num_prefix)
        source = torch.arange(num_patches, device=tokens.device).expand(len(tokens), -1)
        size = tokens.new_ones(len(tokens), num_patches)
        for count, block in zip(counts, blocks, strict=True):
            query, key, value = (part.transpose(1, 2) for part in qkv_of(block.attn, block.norm1(tokens)))
            bias = functional.pad(size.log(), (num_prefix, 0))[:, None, None]
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
            tokens = after_attention(block, tokens, projected(block.attn, mixed.transpose(1, 2)))
            if count:
                patches, size, moved = merge_alike(tokens[:, num_prefix:], key.mean(dim=1)[:, num_prefix:], size, count)
                tokens = torch.cat([tokens[:, :num_prefix], patches], dim=1)
                source = moved.gather(1, source)
            tokens = after_mlp(block, tokens)
        return gathered(tokens[:, num_prefix:], source)

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        """With the products of the matching."""
        total = 0.0
        for count in self.counts(depth, num_patches):
            total += _split_gflops(dim, num_prefix + num_patches, num_prefix + num_patches - count, mlp_ratio)
            total += 2e-9 * (num_patches / 2) ** 2 * dim / 6 if count else 0.0  # heads are averaged: dim / heads
            num_patches -= count
        return total


def merge_alike(
    patches: Float[Tensor, "r n c"], keys: Float[Tensor, "r n d"], size: Float[Tensor, "r n"], count: int
) -> tuple[Float[Tensor, "r m c"], Float[Tensor, "r m"], Int64[Tensor, "r n"]]:
    """Merge the ``count`` even patches that are most alike an odd one into it.

    Returns:
        The patches left (unmerged even ones in order, then the odd ones), how many patches each stands for, and where
        each of the n went.
    """
    unit = functional.normalize(keys.detach().float(), dim=-1)
    likeness, target = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)  # r a
    order = likeness.argsort(dim=1, descending=True)
    gone, stay = order[:, :count], order[:, count:].sort(dim=1).values
    into = target.gather(1, gone)
    weighted = patches * size[..., None]
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    odd = odd.scatter_add(1, into[..., None].expand(-1, -1, odd.shape[-1]), gathered(even, gone))
    odd_size = size[:, 1::2].scatter_add(1, into, size[:, ::2].gather(1, gone))
    new_size = torch.cat([size[:, ::2].gather(1, stay), odd_size], dim=1)
    new_patches = torch.cat([gathered(even, stay), odd], dim=1) / new_size[..., None]
    num_stay = stay.shape[1]
    ranks = torch.arange(num_stay, device=stay.device).expand_as(stay)
    went_even = torch.zeros_like(order).scatter(1, stay, ranks).scatter(1, gone, num_stay + into)
    went_odd = num_stay + torch.arange(odd.shape[1], device=stay.device).expand(len(stay), -1)
    moved = torch.empty(size.shape, dtype=torch.int64, device=stay.device)
    moved[:, ::2], moved[:, 1::2] = went_even, went_odd
    return new_patches, new_size, moved


class GuidedKeep:
    """Keep the patches that another sensor points at, before the first block; the others stay patch embeddings.

    Scores that carry gradients (``guide_learned``, in training) make it run all patches, masked, with the gradient of
    sigmoid(score - that of the last patch that stays) in each one's gate.

    Args:
        keep: share of the patches; 1 is the dense ViT.

    Attributes:
        scores: of each patch, set for each batch, from ``guide_scores`` or a ``GuideScore``; higher stays.
        rate: factor on ``keep``, set by ``VitViewEncoder.set_rate``.
    """

    def __init__(self, keep: float | int = 0.5):
        if not 0 < keep <= 1:
            raise ValueError(f"expected keep in (0, 1], got {keep}")
        self.keep, self.rate = keep, 1.0
        self.scores: Tensor | None = None

    def __call__(self, blocks: Blocks, tokens: Float[Tensor, "r m c"], num_prefix: int) -> Float[Tensor, "r n c"]:
        if self.keep * self.rate == 1:
            return Dense()(blocks, tokens, num_prefix)
        canvas = tokens[:, num_prefix:]
        if self.scores is None or self.scores.shape != canvas.shape[:2]:
            got = None if self.scores is None else tuple(self.scores.shape)
            raise ValueError(f"expected scores of {tuple(canvas.shape[:2])} patches in GuidedKeep.scores, got {got}")
        top = self.scores.topk(_count(self.keep * self.rate, canvas.shape[1]), dim=1)
        if self.scores.requires_grad:
            hard = torch.zeros_like(self.scores).scatter(1, top.indices, 1.0)
            soft = torch.sigmoid(self.scores - top.values[:, -1:].detach())
            return _gated(blocks, tokens, num_prefix, (hard + soft - soft.detach()).float())
        best = top.indices.sort(dim=1).values
        kept = torch.cat([tokens[:, :num_prefix], gathered(canvas, best)], dim=1)
        return scattered(canvas, best, Dense()(blocks, kept, num_prefix))

    def gflops(self, dim: int, depth: int, num_prefix: int, num_patches: int, mlp_ratio: float | int) -> float:
        return Dense().gflops(dim, depth, num_prefix, _count(self.keep * self.rate, num_patches), mlp_ratio)


def _gated(blocks: Blocks, tokens: Tensor, num_prefix: int, gate: Float[Tensor, "r n"]) -> Float[Tensor, "r n c"]:
    """All blocks on all patches, of which the gates say what is seen and what goes on."""
    whole = functional.pad(gate, (num_prefix, 0), value=1.0)
    for block in blocks:
        worked = masked_block(block, tokens, whole)
        tokens = tokens + whole[..., None].to(tokens.dtype) * (worked - tokens)
    return tokens[:, num_prefix:]


def _attended_from_class(block: nn.Module, tokens: Tensor, num_prefix: int) -> tuple[Tensor, Tensor]:
    """Tokens after a block's attention, and what share of the class token's look each patch gets (mean of heads)."""
    query, key, value = (part.transpose(1, 2) for part in qkv_of(block.attn, block.norm1(tokens)))
    mixed = functional.scaled_dot_product_attention(query, key, value)
    look = ((query[:, :, :1] @ key.transpose(-2, -1)).float() * query.shape[-1] ** -0.5).softmax(dim=-1)
    after = after_attention(block, tokens, projected(block.attn, mixed.transpose(1, 2)))
    return after, look.mean(dim=1)[:, 0, num_prefix:]


def check_places(name: str, at: Sequence[int], depth: int) -> None:
    """Raises ValueError unless a method drops patches at some of the blocks that are there, at each once."""
    if not at or len(set(at)) < len(at) or not set(at) <= set(range(depth)):
        raise ValueError(
            f"expected at of {name} among the blocks of the ViT, 0 to {depth - 1}, each once, got {list(at)}; change it"
        )


def _count(keep: float | int, num_patches: int) -> int:
    return max(round(keep * num_patches), 1)


def _split_gflops(dim: int, before: int, after: int, mlp_ratio: float | int) -> float:
    """A block whose attention has ``before`` tokens and whose MLP has ``after``."""
    return block_gflops(dim, before, 0.0) + 4e-9 * after * dim * dim * mlp_ratio
