"""A transformer block on some of the tokens: masked where gradients are needed, gathered where time is to be saved.

The blocks are timm's (pre-norm attention and MLP), so a ViT of timm and our own BEV blocks are run by the same code.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional


def qkv_of(attention: nn.Module, tokens: Float[Tensor, "... c"]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of timm's attention, each ``... heads head_dim`` (heads after the tokens)."""
    parts = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = parts.unbind(-3)
    return attention.q_norm(query), attention.k_norm(key), value


def projected(attention: nn.Module, mixed: Float[Tensor, "... h d"]) -> Float[Tensor, "... c"]:
    """What timm's attention does after the values are mixed."""
    return attention.proj_drop(attention.proj(attention.norm(mixed.flatten(-2))))


def after_attention(block: nn.Module, tokens: Tensor, attended: Tensor) -> Tensor:
    """The first residual."""
    return tokens + block.drop_path1(block.ls1(attended))


def after_mlp(block: nn.Module, tokens: Tensor) -> Tensor:
    """The MLP and the second residual."""
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


def ragged_block(block: nn.Module, flat: Float[Tensor, "t c"], counts: Sequence[int]) -> Float[Tensor, "t c"]:
    """A block over samples of different numbers of tokens, one after the other in ``flat``; no padding, no mask.

    Linear layers run once over all tokens; attention runs per sample, or once where all counts are equal.
    """
    if len(set(counts)) == 1:
        return block(flat.view(len(counts), counts[0], -1)).view(flat.shape)
    query, key, value = qkv_of(block.attn, block.norm1(flat))  # t h d
    mixed = []
    for part in zip(*(whole.split(list(counts)) for whole in (query, key, value)), strict=True):
        q, k, v = (one.transpose(0, 1)[None] for one in part)  # 1 h n d
        mixed.append(functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
    return after_mlp(block, after_attention(block, flat, projected(block.attn, torch.cat(mixed))))


def masked_block(
    block: nn.Module, tokens: Float[Tensor, "b n c"], keep: Float[Tensor, "b n"]
) -> Float[Tensor, "b n c"]:
    """A block in which tokens look at kept ones and at themselves alone; ``keep`` may carry gradients.

    A_ij = exp(a_ij) G_ij / sum_k exp(a_ik) G_ik with G_ij = keep_j and G_ii = 1 (DynamicViT, Rao et al., NeurIPS 2021),
    softmax in float32. For kept tokens it equals the block on the kept tokens alone. The gradient of a key that is not
    kept is held to what keeping it could change at most, v_j minus the output: exp(a_ij) over the sum of the kept ones
    has no bound, and a key far above these would drown every other gradient and at last divide by zero.
    """
    query, key, value = (part.transpose(1, 2) for part in qkv_of(block.attn, block.norm1(tokens)))  # b h n d
    logits = (query @ key.transpose(-2, -1)).float() * query.shape[-1] ** -0.5
    own = torch.eye(tokens.shape[1], dtype=keep.dtype, device=keep.device)
    seen = (keep[:, None] * (1 - own) + own)[:, None].float()  # b 1 n n
    # The log of the sum over the seen keys, one's own at least: it cancels. Seen ones lie below it, so that the clamp
    # holds the gradients of unseen ones alone.
    whole = logits.detach().masked_fill(seen == 0, -torch.inf).logsumexp(dim=-1, keepdim=True)
    weights = torch.exp((logits - whole).clamp(max=0.0)) * seen
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(value.dtype)
    attended = projected(block.attn, (weights @ value).transpose(1, 2))
    return after_mlp(block, after_attention(block, tokens, attended))


def gathered(tokens: Float[Tensor, "b n c"], index: Int64[Tensor, "b k"]) -> Float[Tensor, "b k c"]:
    """Tokens by number, as many of each sample."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def scattered(
    canvas: Float[Tensor, "b n c"], index: Int64[Tensor, "b k"], tokens: Float[Tensor, "b k c"]
) -> Float[Tensor, "b n c"]:
    """The canvas with tokens put at their numbers; the others keep their content."""
    return canvas.scatter(1, index[..., None].expand(-1, -1, canvas.shape[-1]), tokens)


def kept_block(block: nn.Module, tokens: Float[Tensor, "b n c"], keep: Bool[Tensor, "b n"]) -> Float[Tensor, "b n c"]:
    """The block on the kept tokens alone, the others unchanged. All kept: the block itself."""
    counts = keep.sum(dim=1).tolist()  # waits for the device, and so does nonzero
    if min(counts, default=0) == tokens.shape[1]:
        return block(tokens)
    rows = torch.nonzero(keep.flatten())[:, 0]
    if not len(rows):
        return tokens
    flat = tokens.flatten(0, 1)
    worked = ragged_block(block, flat.index_select(0, rows), [count for count in counts if count])
    return flat.index_copy(0, rows, worked.to(flat.dtype)).view(tokens.shape)


def straight_through(
    logits: Float[Tensor, "... 2"], temperature: float = 1.0, noisy: bool = True
) -> Float[Tensor, "..."]:
    """1 where the second logit wins, else 0; backwards the gradient of the (Gumbel-)softmax. In float32."""
    logits = logits.float()
    if noisy:
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits - torch.log(-torch.log(uniform))
    soft = (logits / temperature).softmax(dim=-1)[..., 1]
    hard = (logits[..., 1] > logits[..., 0]).float()
    return hard + soft - soft.detach()


def block_gflops(dim: int, num_tokens: float | int, mlp_ratio: float | int = 4.0) -> float:
    """One block over ``num_tokens`` of one sample: qkv, attention (both products), projection and MLP; 1 MAC = 2."""
    linear = 2.0 * num_tokens * dim * dim * (4 + 2 * mlp_ratio)
    return (linear + 4.0 * num_tokens * num_tokens * dim) / 1e9
