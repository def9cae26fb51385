"""What is tried when a budget is calibrated: bounds on the route, and levels of fewer and fewer tokens."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from datamodules.batch import Batch
from fusion.adaptive.allocation import Allocation, apply, tokens_of, views_of

TOKEN_SHARES = (1.0, 0.6, 0.3, 0.0)
"""Mean shares of BEV tokens that are tried."""
VIEW_RATES = (1.0, 0.85, 0.7, 0.5)
"""Rates of a camera ViT that go with them."""


@dataclass(frozen=True)
class TokenLevel:
    """One place on the one axis along which the tokens of BEV and cameras become fewer together.

    Attributes:
        threshold: lead above which BEV tokens take part.
        view_rate: share of its own rate at which the camera ViT's token method works.
    """

    threshold: float = -math.inf
    view_rate: float = 1.0


@dataclass(frozen=True)
class Setting:
    """Of the router and the tokens; what exits do is read from the scores.

    Attributes:
        route_budget: bound on every route; None: the full route without a router.
        token_threshold, view_rate: as in TokenLevel.
    """

    route_budget: float | None
    token_threshold: float = -math.inf
    view_rate: float = 1.0

    def belongs_to(self, allocation: Allocation) -> bool:
        """Whether an allocation tells router and tokens the same."""
        told = (allocation.route_budget, allocation.token_threshold, allocation.view_rate, allocation.token_most)
        return told == (self.route_budget, self.token_threshold, self.view_rate, 1.0)


def token_thresholds(
    model: nn.Module, batches: Iterable[Batch], shares: Sequence[float] = TOKEN_SHARES
) -> tuple[float, ...]:
    """Leads above which about these shares of all tokens of a set lie, at the full route; (-inf,) without tokens."""
    tokens, leads = tokens_of(model), []
    if tokens is None:
        return (-math.inf,)
    apply(model, Allocation(1.0, 1.0))
    with torch.inference_mode():
        for batch in batches:
            model(batch, plan=model.full_plan(batch))
            leads.append(tokens.last_use.leads.flatten().float())
    every = torch.cat(leads).sort(descending=True).values
    places = [min(int(share * len(every)), len(every) - 1) for share in shares]
    ends = {1.0: -math.inf, 0.0: math.inf}
    return tuple(ends.get(share, float(every[place])) for share, place in zip(shares, places, strict=True))


def token_levels(model: nn.Module, batches: Iterable[Batch]) -> tuple[TokenLevel, ...]:
    """The levels that are tried: all tokens first, then fewer and fewer in BEV and cameras, where these can."""
    thresholds, views = token_thresholds(model, batches), views_of(model)
    if views is None:
        return tuple(TokenLevel(threshold) for threshold in thresholds)
    thresholds = thresholds * len(VIEW_RATES) if len(thresholds) == 1 else thresholds
    sizes = [(px[0] // views.stride) * (px[1] // views.stride) for px in model.cameras.sizes_px.values()]

    def saves(rate: float) -> bool:
        """A rate that costs more than it saves, as matching few tokens may, would break the cap."""
        return all(views.block_gflops(size, rate) <= views.block_gflops(size) for size in sizes)

    pairs = zip(thresholds, VIEW_RATES, strict=True)
    return tuple(dict.fromkeys(TokenLevel(threshold, rate if saves(rate) else 1.0) for threshold, rate in pairs))
