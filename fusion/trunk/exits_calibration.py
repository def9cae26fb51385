"""Who leaves at given thresholds, and geometric shares of exits. Thresholds: ``fusion.adaptive.search``."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def exits_of(
    scores: Float[Tensor, "n e"], thresholds: Sequence[float] | Float[Tensor, "m 1 e"]
) -> Int64[Tensor, "*m n"]:
    """Where each sample leaves: the first exit whose score reaches its threshold, else the last.

    Args:
        thresholds: of the early exits; or M combinations of them at once, which gives a row for each.
    """
    limits = torch.as_tensor(thresholds, dtype=scores.dtype, device=scores.device)
    accepts = (scores >= limits) & (limits < math.inf)
    last = accepts.new_ones(*accepts.shape[:-1], 1)
    return torch.cat([accepts, last], dim=-1).int().argmax(dim=-1)


def geometric_shares(ratio: float, num_exits: int) -> list[float]:
    """q_k proportional to ratio^k, summing to 1: the one-parameter family of MSDNet's budgeted batches."""
    powers = [(number + 1) * math.log(ratio) for number in range(num_exits)]
    highest = max(powers)
    weights = [math.exp(power - highest) for power in powers]
    return [weight / sum(weights) for weight in weights]
