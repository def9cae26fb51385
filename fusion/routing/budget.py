"""The budget: what may be asked for, the hard cap on every route, and the loss that teaches the router to keep it."""

from dataclasses import dataclass, fields
from itertools import product

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fusion.routing.costs import Prices
from fusion.routing.plan import NUM_BRANCHES, SKIP, RoutingPlan
from sensors.rig import UNITS

_TOLERANCE = 1e-6
_SCORE_LIMIT = 1e6
_EMPTY_PENALTY = 1e12
_IMPOSSIBLE = 1e30
_TIE_STEP = 1e-10


def checked_budget(budget: float | Tensor, num_samples: int, min_budget: float) -> Float[Tensor, "b"]:
    """One budget per sample, in float64 on the budget's own device.

    Args:
        budget: share of the full cost, always-on part included; one for all samples or one each.

    Raises:
        ValueError: a budget below ``min_budget``, above 1 or NaN, or as many budgets as there are no samples.
    """
    asked = torch.as_tensor(budget, dtype=torch.float64)
    if asked.ndim > 1 or (asked.ndim == 1 and len(asked) not in (1, num_samples)):
        raise ValueError(
            f"expected one budget or one for each of {num_samples} samples, got shape {tuple(asked.shape)}"
        )
    fine = (asked >= min_budget - _TOLERANCE) & (asked <= 1 + _TOLERANCE)
    if not bool(fine.all()):
        wrong = asked.reshape(-1)[~fine.reshape(-1)][0].item()
        raise ValueError(
            f"expected a budget in [{min_budget:.4f}, 1] (share of the full cost; the always-on part and the cheapest "
            f"unit cost {min_budget:.4f}), got {wrong:g}; ask for a larger share or build a smaller always-on part"
        )
    return asked.expand(num_samples)


class RouteTable:
    """Every route of a model with its cost; finds the best one under a cap.

    There are at most 3^8 = 6561 routes, so the best route under a budget is found exactly, by one small matrix product
    and one argmax for the whole batch, without a loop and without waiting for the device. For independent branch
    scores that is the most probable route within the budget; with Gumbel noise in the scores it is a draw by
    perturb-and-MAP (Papandreou and Yuille, ICCV 2011). Since a branch that costs more is only ever given up, never
    added, it equals the router's own choice wherever that fits.

    Attributes:
        prices: what each branch costs.
        floor: names of units that are never skipped while they are present.
    """

    def __init__(self, prices: Prices, floor: tuple[str, ...] = ()):
        self.prices = prices
        self.floor = tuple(floor)
        self.min_budget = prices.min_budget(self.floor)
        self._on_device = {torch.device("cpu"): _Tables.of(prices, self.floor)}

    def __len__(self) -> int:
        return len(self._on_device[torch.device("cpu")].routes)

    @property
    def gflops(self) -> float:
        """One search: the matrix product."""
        return 2e-9 * self._on_device[torch.device("cpu")].one_hot.numel()

    def shares(self, device: torch.device) -> Float[Tensor, "u k"]:
        """``Prices.shares`` on a device."""
        return self._tables(device).shares

    def expected_cost(self, probs: Float[Tensor, "b u k"]) -> Float[Tensor, "b"]:
        """Share of the full cost under independent branch probabilities, always-on part included; differentiable."""
        return self.prices.always_share + (probs * self.shares(probs.device).to(probs.dtype)).sum(dim=(1, 2))

    def possible(self, available: Bool[Tensor, "b u"]) -> Bool[Tensor, "b u k"]:
        """Branches that may be chosen: of present units alone, existing ones alone, and no SKIP on the floor."""
        tables = self._tables(available.device)
        possible = tables.exists & available[..., None]
        possible[..., SKIP] = ~(tables.on_floor & available)
        return possible

    def best(
        self, scores: Float[Tensor, "b u k"], possible: Bool[Tensor, "b u k"], budget: Float[Tensor, "b"]
    ) -> Int64[Tensor, "b u"]:
        """The route with the highest total score whose cost is within the budget.

        Neither an impossible branch nor a route above the budget is ever chosen, whatever the scores, NaN and infinity
        included. The empty route is chosen only where nothing else fits (nothing present, or only units too dear).
        """
        tables = self._tables(scores.device)
        total = self.totals(scores, possible)
        within = tables.cost <= budget.to(total)[:, None] + _TOLERANCE
        return tables.routes[total.masked_fill(~within, -torch.inf).argmax(dim=1)]

    def totals(self, scores: Float[Tensor, "b u k"], possible: Bool[Tensor, "b u k"]) -> Float64[Tensor, "b n"]:
        """Total score of every route, with the preference that breaks ties; hopeless where a branch is impossible."""
        tables = self._tables(scores.device)
        # float64 and bounded scores: sums of equal terms stay equal at every batch size, so ties break the same way.
        bounded = scores.detach().double().nan_to_num(0.0).clamp(-_SCORE_LIMIT, _SCORE_LIMIT)
        bounded = torch.where(possible, bounded, -_IMPOSSIBLE)
        return bounded.flatten(1) @ tables.one_hot.T + tables.preference

    def routes(self, device: torch.device | str = "cpu") -> Int64[Tensor, "n u"]:
        """Every route, from all-on to all-off."""
        return self._tables(torch.device(device)).routes

    def costs(self, device: torch.device | str = "cpu") -> Float64[Tensor, "n"]:
        """Cost share of every route, always-on part included."""
        return self._tables(torch.device(device)).cost

    def capped(
        self, choice: Int64[Tensor, "b u"], possible: Bool[Tensor, "b u k"], cap: Float[Tensor, "b"]
    ) -> Int64[Tensor, "b u"]:
        """The route itself where it is possible and within the cap, else the most of it that is.

        Nothing is added, except the cheapest branch of a unit on the floor and the cheapest unit of an empty route.
        """
        fits = possible.gather(-1, choice[..., None])[..., 0].all(dim=1) & (choice != SKIP).any(dim=1)
        fits &= self.prices.cost_of(choice) <= cap.to(choice.device) + _TOLERANCE
        rows = torch.nonzero(~fits)[:, 0]
        if not len(rows):
            return choice
        return choice.index_copy(0, rows, self._cut(choice[rows], possible[rows], cap.to(choice.device)[rows]))

    def _cut(
        self, choice: Int64[Tensor, "b u"], possible: Bool[Tensor, "b u k"], cap: Float[Tensor, "b"]
    ) -> Int64[Tensor, "b u"]:
        shares = self.shares(choice.device).expand(len(choice), -1, -1)
        chosen = torch.nn.functional.one_hot(choice, NUM_BRANCHES).to(shares.dtype)
        allowed = possible & (shares <= (shares * chosen).sum(dim=-1, keepdim=True))
        is_empty = (choice == SKIP).all(dim=1)[:, None]
        added = is_empty | ~allowed.any(dim=-1)
        # As many of the chosen branches as fit; of what has to be degraded, the dearest that fits. What has to be added
        # costs as little as it may.
        scores = torch.where(added[..., None], -1e3 * shares, chosen + shares)
        return self.best(scores, torch.where(added[..., None], possible, allowed), cap)

    def random(
        self, available: Bool[Tensor, "b u"], budget: float | Tensor, generator: torch.Generator | None = None
    ) -> Int64[Tensor, "b u"]:
        """Branches drawn uniformly among the possible ones, given up at random where the budget asks for it.

        Args:
            generator: CPU generator.
        """
        asked = checked_budget(budget, len(available), self.min_budget).to(available.device)
        scores = torch.rand(len(available), len(UNITS), NUM_BRANCHES, generator=generator).to(available.device)
        return self.best(scores, self.possible(available), asked)

    def _tables(self, device: torch.device) -> "_Tables":
        if device not in self._on_device:
            self._on_device[device] = self._on_device[torch.device("cpu")].to(device)
        return self._on_device[device]


@dataclass(frozen=True, eq=False)
class _Tables:
    """Constants of a RouteTable on one device.

    Attributes:
        one_hot: of ``routes``, flattened: a product with scores sums them over each route.
        cost: share of the full cost.
        preference: breaks ties towards the richer route, and forbids the empty one unless nothing else fits.
    """

    routes: Int64[Tensor, "n u"]
    one_hot: Float64[Tensor, "n uk"]
    cost: Float64[Tensor, "n"]
    preference: Float64[Tensor, "n"]
    shares: Float64[Tensor, "u k"]
    exists: Bool[Tensor, "u k"]
    on_floor: Bool[Tensor, "u"]

    @classmethod
    def of(cls, prices: Prices, floor: tuple[str, ...]) -> "_Tables":
        exists = prices.exists()
        # From all-on to all-off, so that the first of equal routes is the richest.
        branches = [[k for k in reversed(range(NUM_BRANCHES)) if exists[unit, k]] for unit in range(len(UNITS))]
        routes = torch.tensor(list(product(*branches)), dtype=torch.int64)
        order = torch.arange(len(routes), dtype=torch.float64)
        return cls(
            routes=routes,
            one_hot=torch.nn.functional.one_hot(routes, NUM_BRANCHES).flatten(1).double(),
            cost=prices.cost_of(routes),
            preference=-_TIE_STEP * order - _EMPTY_PENALTY * (routes == SKIP).all(dim=1),
            shares=prices.shares(),
            exists=exists,
            on_floor=torch.tensor([unit in floor for unit in UNITS]),
        )

    def to(self, device: torch.device) -> "_Tables":
        return _Tables(*(getattr(self, item.name).to(device) for item in fields(self)))


def budget_loss(plan: RoutingPlan, per_sample: bool = False) -> Float[Tensor, ""]:
    """Squared hinge on what the route is expected to cost beyond its budget, (E[c] - b)^2_+.

    Over the batch by default: single samples may cost more than their budget as long as the mean does not (the cap
    bounds each sample anyway). ``per_sample`` pulls every sample below its own budget.
    """
    excess = plan.expected_cost - plan.budget
    if not per_sample:
        excess = excess.mean(dim=0, keepdim=True)
    return excess.clamp_min(0).square().mean()


def route_entropy(plan: RoutingPlan) -> Float[Tensor, ""]:
    """Mean entropy in nats of the branch probabilities, over the units that have more than one possible branch.

    0 where nothing can be chosen. Add it with a negative weight against collapse to one route.
    """
    probs = plan.probs
    entropy = -(probs * probs.clamp_min(1e-12).log()).sum(dim=-1)
    open_units = (probs > 0).sum(dim=-1) > 1
    return (entropy * open_units).sum() / open_units.sum().clamp_min(1)
