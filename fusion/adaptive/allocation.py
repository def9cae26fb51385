"""One budget for router, exits and tokens: what each of them is told so that all together keep it."""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from fusion.routing.budget import checked_budget
from fusion.trunk.exits_fitted import Table, fitted_part, table_of
from fusion.trunk.exits_policies import ExitPolicy


@dataclass(frozen=True)
class Allocation:
    """What router, exits and tokens are told at one budget, and what that spent where it was found.

    Attributes:
        budget: mean share of the full cost that was asked for.
        route_budget: most that the route of a sample may cost with every exit's head and all tokens; None: the full
            route, the router does not run.
        thresholds: of each exit; infinity for an exit that is off. Empty without exits.
        token_threshold: lead above which a token takes part.
        token_most: largest share of a sample's tokens that may take part.
        view_rate: share of its own rate at which a camera ViT's token method works.
        mean_cost, standard_error: executed share of the full cost on the calibration set.
        loss: mean detection loss there.
        cap: share of the full cost that no sample can exceed, whatever it shows.
        rich_route_budget, rich_share: bound of the route for this share of the samples, chosen by their tokens.
    """

    budget: float
    route_budget: float | None
    thresholds: tuple[float, ...] = ()
    token_threshold: float = -math.inf
    token_most: float = 1.0
    view_rate: float = 1.0
    mean_cost: float = math.nan
    standard_error: float = math.nan
    loss: float = math.nan
    cap: float = 1.0
    rich_route_budget: float | None = None
    rich_share: float = 0.0

    def exit_thresholds(self, num_early: int) -> tuple[float, ...]:
        """Of ``num_early`` exits: all off where it says nothing of them."""
        return self.thresholds or (math.inf,) * num_early

    def route_budgets(self, tokens: Sequence[str]) -> float | Float64[Tensor, "b"] | None:
        """Bound of each sample's route, one number where all have the same."""
        if not self.rich_share:
            return self.route_budget
        return torch.where(draws_of(tokens) < self.rich_share, self.rich_route_budget, self.route_budget).double()


def draws_of(tokens: Sequence[str]) -> Float64[Tensor, "b"]:
    """A number in [0, 1) of each sample, evenly spread, from its token alone."""
    digests = (hashlib.sha256(token.encode()).digest() for token in tokens)
    return torch.tensor([int.from_bytes(one[:6], "big") / 2**48 for one in digests], dtype=torch.float64)


class SharedBudget:
    """Allocations by budget, for one set of weights.

    A budget between two calibrated ones gets the lower one's allocation, a budget below all of them its own as a bound
    on every route: either way the mean stays within it, as far as the data are like those of the calibration.

    Args:
        allocations: any order.
        temperatures: of each exit, with which the thresholds were found.
        weights: word of the weights they belong to (``fusion.robustness.fingerprint.model_word``).
        policy: class name of the exits' policy; empty without exits.
        policy_table: the policy's own numbers (``exits_fitted``); None where it has none, or keeps what it has.
    """

    def __init__(
        self,
        allocations: Sequence[Allocation],
        temperatures: Sequence[float],
        weights: str,
        policy: str = "",
        policy_table: Table | None = None,
    ):
        self.policy_table = policy_table
        self.allocations = tuple(sorted(allocations, key=lambda one: one.budget))
        self.temperatures, self.weights, self.policy = tuple(temperatures), weights, policy

    def at(self, budget: float) -> Allocation:
        """The allocation for a budget."""
        place = bisect_right([one.budget for one in self.allocations], budget + 1e-9)
        return self.allocations[place - 1] if place else bounded_route(budget)

    def set(
        self, model: nn.Module, budget: float | Tensor | None, tokens: Sequence[str] = ()
    ) -> float | Float64[Tensor, "b"] | None:
        """Tell exits and tokens; the router's bound, one for all or one of each sample, or None for the full route.

        Args:
            budget: None where the route was decided elsewhere: then nobody leaves early and all tokens take part.
            tokens: of the samples.

        Raises:
            ValueError: a budget outside [b_min, 1], or different budgets in one batch.
        """
        if budget is None:
            open_all(model)
            return None
        asked = torch.as_tensor(budget, dtype=torch.float64).reshape(-1)
        checked_budget(asked, len(asked), model.min_budget)
        if not bool((asked == asked[0]).all()):
            raise ValueError(
                f"expected one budget for a batch with calibrated exits and tokens, got {float(asked.min()):g} to "
                f"{float(asked.max()):g}; run them one after the other"
            )
        if self.policy_table is not None and table_of(model.exits.policy) != self.policy_table:
            fitted_part(model.exits.policy).set_table(self.policy_table)
        allocation = self.at(float(asked[0]))
        apply(model, allocation, self.temperatures)
        return allocation.route_budgets(tokens)

    def check(self, model: nn.Module, weights: str) -> None:
        """That it belongs to a model.

        Raises:
            ValueError: calibrated on other weights, with another exit policy, another number of exits, or without the
            numbers that the policy needs.
        """
        if weights != self.weights:
            raise ValueError(
                f"expected settings calibrated on this checkpoint ({weights}), got those of {self.weights}; calibrate "
                "again: dynfusion adaptive run=RUN"
            )
        found = "" if model.exits is None else type(model.exits.policy).__name__
        if found != self.policy:
            raise ValueError(f"expected settings for the exit policy {found or 'none'}, got those of {self.policy}")
        count = 0 if model.exits is None else len(model.exits.heads)
        for one in self.allocations:
            if one.thresholds and len(one.thresholds) != count:
                raise ValueError(f"expected thresholds of {count} exits, got {len(one.thresholds)}; calibrate again")
        own = None if model.exits is None else fitted_part(model.exits.policy)
        rows = 0 if self.policy_table is None else len(self.policy_table)
        if (own is None and rows) or (own is not None and own.table is None and rows != count):
            raise ValueError(
                f"expected numbers of {0 if own is None else count} exits for the policy {found}, got {rows}; "
                "calibrate again: dynfusion adaptive run=RUN"
            )


def bounded_route(budget: float) -> Allocation:
    """The router alone within a budget: what is always allowed."""
    return Allocation(budget, budget, cap=budget)


def apply(model: nn.Module, allocation: Allocation, temperatures: Sequence[float] = ()) -> None:
    """Set a model's exits and tokens."""
    if model.exits is not None:
        thresholds = allocation.exit_thresholds(len(model.exits.heads))
        if tuple(thresholds) != model.exits.thresholds or (temperatures and model.exits.temperatures != temperatures):
            model.exits.set_thresholds(thresholds, temperatures or None)
    tokens = tokens_of(model)
    if tokens is not None:
        tokens.set_rate(allocation.token_threshold, allocation.token_most)
    views = views_of(model)
    if views is not None:
        views.set_rate(allocation.view_rate)
    elif allocation.view_rate < 1:
        raise ValueError(
            f"expected a view encoder that can keep {allocation.view_rate:g} of its tokens, got none; "
            "leave the encoder as it was calibrated (not compiled), or calibrate again"
        )


def open_all(model: nn.Module) -> None:
    """Nobody leaves early, all tokens take part."""
    apply(model, Allocation(1.0, 1.0))


def tokens_of(model: nn.Module) -> nn.Module | None:
    """The trunk's tokens whose rate can be set; None without any."""
    last = model.trunk.stages[-1] if getattr(model.trunk, "has_tokens", False) else None
    found = None if last is None else last[1]
    return found if getattr(found, "keep", 1) is None and hasattr(found, "set_rate") else None


def views_of(model: nn.Module) -> nn.Module | None:
    """The camera ViT whose token method has a rate; None without any."""
    encoder = getattr(getattr(model, "cameras", None), "encoder", None)
    return encoder if getattr(encoder, "has_rate", False) else None


def policy_name(policy: ExitPolicy | None) -> str:
    """Class name, as it is kept with thresholds."""
    return "" if policy is None else type(policy).__name__


def shared_word(shared: SharedBudget | None) -> str:
    """What makes two calibrations the same one; empty without any."""
    if shared is None:
        return ""
    table = () if shared.policy_table is None else (shared.policy_table,)
    return repr((shared.allocations, shared.temperatures, *table))
