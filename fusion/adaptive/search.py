"""From observations to allocations: for each budget, the settings of least loss among those that keep it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch

from fusion.adaptive.allocation import Allocation, bounded_route
from fusion.adaptive.observe import Observation
from fusion.trunk.exits_calibration import exits_of

TECHNIQUES = ("router", "exits", "tokens")


@dataclass(frozen=True)
class Candidate:
    """One way to set everything, and what it gave on the calibration set.

    Attributes:
        allocation: with the mean cost and loss it had; its ``budget`` is that mean.
        uses: the techniques it makes use of.
    """

    allocation: Allocation
    uses: frozenset[str]


def candidates(observations: Sequence[Observation], num_levels: int = 13) -> list[Candidate]:
    """Every observed setting with every combination of exit thresholds on a grid of quantiles.

    Args:
        num_levels: quantiles tried per exit, from everybody (0) to nobody (infinity).
    """
    return [one for observed in observations for one in _of_setting(observed, num_levels)]


def _of_setting(observed: Observation, num_levels: int) -> list[Candidate]:
    setting, found = observed.setting, []
    columns = [_levels(observed.scores[:, number], num_levels) for number in range(observed.scores.shape[1])]
    base = set() if setting.route_budget is None else {"router"}
    base |= {"tokens"} if setting.token_threshold > -math.inf else set()
    for thresholds in product(*columns):
        costs = observed.costs_with([threshold < math.inf for threshold in thresholds])
        left = exits_of(observed.scores, thresholds)[:, None]
        cost, loss = costs.gather(1, left)[:, 0], observed.losses.gather(1, left).mean()
        error = float(cost.std() / len(cost) ** 0.5) if len(cost) > 1 else math.nan
        uses = base | ({"exits"} if any(threshold < math.inf for threshold in thresholds) else set())
        cap = 1.0 if setting.route_budget is None else setting.route_budget
        allocation = Allocation(
            budget=float(cost.mean()),
            route_budget=setting.route_budget,
            thresholds=tuple(thresholds),
            token_threshold=setting.token_threshold,
            mean_cost=float(cost.mean()),
            standard_error=error,
            loss=float(loss),
            cap=cap,
        )
        found.append(Candidate(allocation, frozenset(uses)))
    return found


def allocated(
    found: Sequence[Candidate],
    budget: float,
    techniques: Sequence[str] = TECHNIQUES,
    cap: float = 1.0,
) -> Allocation | None:
    """The candidate of least loss that costs at most ``budget`` on average, with some of the techniques.

    With the router among them the router alone within the budget is always possible, observed or not.

    Args:
        cap: share of the full cost that no single sample may exceed.

    Returns:
        None where these techniques cannot keep the budget.
    """
    fits = [one for one in found if one.uses <= set(techniques) and one.allocation.mean_cost <= budget + 1e-9]
    fits = [one for one in fits if one.allocation.cap <= max(cap, budget) + 1e-9]
    if not fits:
        return bounded_route(budget) if "router" in techniques else None
    best = min(fits, key=lambda one: (one.allocation.loss, one.allocation.mean_cost))
    values = {**vars(best.allocation), "budget": float(budget)}
    return Allocation(**values)


def _levels(scores: torch.Tensor, num_levels: int) -> list[float]:
    finite = scores[scores.isfinite()]
    if not len(finite):
        return [math.inf]
    quantiles = torch.linspace(0, 1, num_levels - 1, dtype=torch.float64)[:-1]
    return sorted({*torch.quantile(finite, quantiles).tolist(), math.inf})
