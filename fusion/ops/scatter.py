"""Sums, means and maxima of points that fall into the same row, accumulated in float32 at least.

On a CPU the results are the same from run to run; CUDA adds with atomics, in no fixed order, unless
``torch.use_deterministic_algorithms`` is on.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened: scatter does not mix dtypes, and sums of many bf16 values lose their low bits."""
    return values if values.dtype == torch.float64 else values.float()


def scatter_sum(values: Float[Tensor, "n c"], rows: Int64[Tensor, "n"], num_rows: int) -> Float[Tensor, "r c"]:
    """Sum of the values of each row; 0 where none fell."""
    values = at_least_float32(values)
    return values.new_zeros(num_rows, values.shape[1]).index_add(0, rows, values)


def scatter_mean(values: Float[Tensor, "n c"], rows: Int64[Tensor, "n"], num_rows: int) -> Float[Tensor, "r c"]:
    """Mean of the values of each row; 0 where none fell."""
    counts = row_counts(rows, num_rows)
    return scatter_sum(values, rows, num_rows) / counts.clamp(min=1)[:, None]


def scatter_max(values: Float[Tensor, "n c"], rows: Int64[Tensor, "n"], num_rows: int) -> Float[Tensor, "r c"]:
    """Largest value of each row and column; 0 where none fell. Equal winners share the gradient."""
    return _ScatterMax.apply(at_least_float32(values), rows, num_rows)


def row_counts(rows: Int64[Tensor, "n"], num_rows: int) -> Float[Tensor, "r"]:
    """How many points fell into each row."""
    ones = torch.ones(len(rows), device=rows.device)
    return ones.new_zeros(num_rows).index_add(0, rows, ones)


class _ScatterMax(torch.autograd.Function):
    """``scatter_reduce(..., "amax")`` with a backward pass that moves whole rows: half its time on a CPU."""

    @staticmethod
    def forward(ctx, values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
        lowest = values.new_full((num_rows, values.shape[1]), -torch.inf)
        top = lowest.scatter_reduce_(0, rows[:, None].expand_as(values), values, "amax")
        top.masked_fill_(top.isneginf(), 0.0)
        ctx.save_for_backward(values, rows, top)
        return top

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        values, rows, top = ctx.saved_tensors
        winners = (values == top.index_select(0, rows)).to(gradient.dtype)
        num_winners = torch.zeros_like(top).index_add_(0, rows, winners)
        share = gradient.contiguous() / num_winners.clamp_(min=1)
        return winners.mul_(share.index_select(0, rows)), None, None
