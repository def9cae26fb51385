"""From observations to allocations: for each budget, the settings of least loss among those that keep it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from fusion.adaptive.allocation import Allocation, bounded_route
from fusion.adaptive.mixing import spent_up
from fusion.adaptive.observe import Observation
from fusion.trunk.exits_calibration import exits_of

TECHNIQUES = ("router", "exits", "tokens")
_MOST_COMBINATIONS = 2000
_LEVELS_OF_ONE_EXIT, _LEVELS = 201, 41


@dataclass(frozen=True)
class Candidate:
    """One way to set everything, and what it gave on the calibration set.

    Attributes:
        allocation: with the mean cost and loss it had; its ``budget`` is that mean.
        uses: the techniques it makes use of.
        observed: what it was found on; None: nothing can be mixed with it.
        richer: the same settings under higher bounds on the route.
    """

    allocation: Allocation
    uses: frozenset[str]
    observed: Observation | None = None
    richer: tuple[Observation, ...] = ()


def candidates(observations: Sequence[Observation], num_levels: int | None = None) -> list[Candidate]:
    """Every observed setting with every combination of exit thresholds on a grid of quantiles.

    Args:
        num_levels: quantiles tried per exit, from everybody (0) to nobody (infinity); None for 201 with one exit and
            41 with two; fewer with more. With coarse steps a budget is kept, but not made use of.
    """
    return [one for own in observations for one in _of_setting(own, num_levels, _richer(own, observations))]


def _richer(own: Observation, observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """The same settings of the tokens under higher bounds on the route."""
    bound = own.setting.route_budget
    if bound is None:
        return ()
    same = [one for one in observations if replace(one.setting, route_budget=bound) == own.setting]
    return tuple(one for one in same if (one.setting.route_budget or 0.0) > bound)


def _of_setting(observed: Observation, num_levels: int | None, richer: tuple[Observation, ...]) -> list[Candidate]:
    num_early = observed.scores.shape[1]
    num_levels = num_levels or (_LEVELS_OF_ONE_EXIT if num_early == 1 else _LEVELS)
    num_levels = min(num_levels, max(int(_MOST_COMBINATIONS ** (1 / max(num_early, 1))), 3))
    columns = [_levels(observed.scores[:, number], num_levels) for number in range(num_early)]
    found = []
    for is_on in product((True, False), repeat=num_early):
        own = [[v for v in column if (v < math.inf) == on] for column, on in zip(columns, is_on, strict=True)]
        combinations = list(product(*own))
        if combinations:
            found += _of_pattern(observed, is_on, combinations, richer)
    return found


def _of_pattern(
    observed: Observation,
    is_on: tuple[bool, ...],
    combinations: Sequence[tuple[float, ...]],
    richer: tuple[Observation, ...],
) -> list[Candidate]:
    """Combinations in which the same exits are on, all at once."""
    setting, num_samples = observed.setting, len(observed.scores)
    limits = torch.tensor(combinations, dtype=torch.float64).view(len(combinations), 1, len(is_on))
    left = exits_of(observed.scores, limits)  # m n
    rows = torch.arange(num_samples)
    costs, losses = observed.costs_with(is_on)[rows, left], observed.losses[rows, left]  # m n
    errors = costs.std(dim=1) / num_samples**0.5 if num_samples > 1 else torch.full((len(costs),), math.nan)
    uses = {"exits"} if any(is_on) else set()
    uses |= set() if setting.route_budget is None else {"router"}
    uses |= {"tokens"} if setting.token_threshold > -math.inf or setting.view_rate < 1 else set()
    columns = (costs.mean(dim=1).tolist(), errors.tolist(), losses.mean(dim=1).tolist())
    return [
        Candidate(
            Allocation(
                budget=cost,
                route_budget=setting.route_budget,
                thresholds=thresholds,
                token_threshold=setting.token_threshold,
                view_rate=setting.view_rate,
                mean_cost=cost,
                standard_error=error,
                loss=loss,
                cap=1.0 if setting.route_budget is None else setting.route_budget,
            ),
            frozenset(uses),
            observed,
            richer,
        )
        for thresholds, cost, error, loss in zip(combinations, *columns, strict=True)
    ]


def allocated(
    found: Sequence[Candidate],
    budget: float,
    techniques: Sequence[str] = TECHNIQUES,
    cap: float = 1.0,
) -> Allocation | None:
    """The candidate of least loss that costs at most ``budget`` on average, with some of the techniques.

    What is left of the budget goes into richer routes of some samples, where these lose less (``mixing.spent_up``).

    With the router among them the router alone within the budget is always possible, observed or not.

    Args:
        cap: share of the full cost that no bound on a route may exceed, unless the budget itself does.

    Returns:
        None where these techniques cannot keep the budget.
    """
    fits = [one for one in found if one.uses <= set(techniques) and one.allocation.mean_cost <= budget + 1e-9]
    fits = [one for one in fits if one.allocation.cap <= max(cap, budget) + 1e-9]
    if not fits:
        return bounded_route(budget) if "router" in techniques else None
    best = min(fits, key=lambda one: (one.allocation.loss, one.allocation.mean_cost))
    own = replace(best.allocation, budget=float(budget))
    return own if best.observed is None else spent_up(own, best.observed, best.richer, budget, cap)


def _levels(scores: torch.Tensor, num_levels: int) -> list[float]:
    finite = scores[scores.isfinite()]
    if not len(finite):
        return [math.inf]
    quantiles = torch.linspace(0, 1, num_levels - 1, dtype=torch.float64)[:-1]
    # A little below: a score differs in its last bits with the number of rows that an encoder runs at once, and the
    # sample that a level was taken from must not go on for it.
    slack = 1e-6 * float(finite.abs().max())
    return sorted({*(torch.quantile(finite, quantiles) - slack).tolist(), math.inf})
