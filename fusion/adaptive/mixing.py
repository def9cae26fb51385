"""Between two bounds on the route: some samples may spend the higher one, so that a budget is made use of.

Bounds are tried in steps, and between two of them nothing may cost what is asked. Then a share of the samples gets the
richer bound. Which ones follows from their tokens alone: the same in every run and batch, and nothing that a sample
shows can change it.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from fusion.adaptive.allocation import Allocation
from fusion.adaptive.observe import Observation
from fusion.adaptive.reliable import PeakTable
from fusion.trunk.exits_calibration import exits_of


def taken(observed: Observation, allocation: Allocation) -> tuple[Float64[Tensor, "n"], Float64[Tensor, "n"]]:
    """Cost and loss of each sample where it leaves under an allocation's thresholds."""
    thresholds = allocation.exit_thresholds(observed.scores.shape[1])
    costs = observed.costs_with([threshold < torch.inf for threshold in thresholds])
    left = exits_of(observed.scores, thresholds)[:, None]
    return costs.gather(1, left)[:, 0], observed.losses.gather(1, left)[:, 0]


def spent_up(
    allocation: Allocation, own: Observation, richer: Sequence[Observation], budget: float, cap: float
) -> Allocation:
    """The allocation itself, or with the richer bound for as many samples as the budget pays, where that loses less.

    Args:
        own: what the allocation was found on.
        richer: the same settings under higher bounds.
        cap: share of the full cost that no bound may exceed, unless the budget itself does.
    """
    if own.draws is None:
        return allocation
    best, order = allocation, own.draws.argsort()
    costs, losses = taken(own, allocation)
    for other in richer:
        if other.setting.route_budget > max(cap, budget) + 1e-9:
            continue
        rich_costs, rich_losses = taken(other, allocation)
        fits = costs.mean() + (rich_costs - costs)[order].cumsum(0) / len(order) <= budget + 1e-9
        count = int(torch.nonzero(fits)[-1]) + 1 if bool(fits.any()) else 0
        if not count:
            continue
        edges = torch.cat([own.draws[order], own.draws.new_ones(1)])
        share = float((edges[count - 1] + edges[count]) / 2) if count < len(order) else 1.0
        is_rich = own.draws < share
        loss = float(torch.where(is_rich, rich_losses, losses).mean())
        if loss < best.loss:
            spent = torch.where(is_rich, rich_costs, costs)
            best = replace(
                allocation,
                rich_route_budget=other.setting.route_budget,
                rich_share=share,
                mean_cost=float(spent.mean()),
                standard_error=float(spent.std() / len(spent) ** 0.5) if len(spent) > 1 else torch.nan,
                loss=loss,
                cap=other.setting.route_budget,
            )
    return best


def as_run(observations: Sequence[Observation], allocation: Allocation) -> Observation | None:
    """What an allocation runs on each sample, whichever bound that has; None where its settings were not observed."""
    own = next((one for one in observations if one.setting.belongs_to(allocation)), None)
    if own is None or not allocation.rich_share:
        return own
    rich = replace(allocation, route_budget=allocation.rich_route_budget)
    other = next((one for one in observations if one.setting.belongs_to(rich)), None)
    if other is None:
        return None
    is_rich = own.draws < allocation.rich_share
    parts = {name: _mixed(is_rich, getattr(own, name), getattr(other, name)) for name in ("scores", "losses", "costs")}
    peaks = PeakTable(*(_mixed(is_rich, getattr(own.peaks, n), getattr(other.peaks, n)) for n in ("logits", "truth")))
    return replace(own, **parts, merge_cost=_mixed(is_rich, own.merge_cost, other.merge_cost), peaks=peaks)


def _mixed(is_rich: Bool[Tensor, "n"], own: Tensor, other: Tensor) -> Tensor:
    return torch.where(is_rich.view(-1, *[1] * (own.ndim - 1)), other, own)
