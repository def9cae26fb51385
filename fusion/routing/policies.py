"""Who decides at evaluation: policies that turn a router's scores into routes. None of them draws noise.

A policy proposes; the hard cap disposes: ``decided`` degrades whatever a policy wants until it fits. A policy that
keeps a budget *on average* (a calibrated threshold, a token bucket) says by its ``cap`` how much one sample may cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fusion.routing.budget import RouteTable
from fusion.routing.gate_inputs import Glance
from fusion.routing.latency import LatencyTable
from fusion.routing.plan import BRANCHES, SKIP
from sensors.health import HEALTH_FIELDS
from sensors.rig import CAMERAS, CHANNELS, LIDAR, UNITS

_NEVER_MUTE = [channel in CAMERAS or channel == LIDAR for channel in CHANNELS]


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a policy decides from.

    Attributes:
        scores: of each branch; higher is better. -inf where impossible.
        possible: branches that may be chosen: present units, existing branches, no SKIP on the floor.
        budget: share of the full cost that was asked for.
        glance: what the router saw.
    """

    scores: Float[Tensor, "b u k"]
    possible: Bool[Tensor, "b u k"]
    budget: Float[Tensor, "b"]
    glance: Glance


@runtime_checkable
class Policy(Protocol):
    """Decides the routes of a batch; rows are independent samples, or lanes of time for a policy with a memory.

    Attributes:
        cap: most that one sample may cost, as a share of the full cost; None: the asked budget.
    """

    cap: float | None

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]: ...

    def reset(self) -> None:
        """Forgets what came before: called at the start of a scene."""
        ...


def decided(policy: Policy, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
    """The policy's routes, held to availability, floor and cap."""
    cap = proposal.budget if policy.cap is None else proposal.budget.clamp_min(policy.cap)
    return routes.capped(policy(proposal, routes), proposal.possible, cap)


class ArgmaxPolicy:
    """The highest total score within the budget of each sample: what a router does without a policy."""

    cap = None

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        return routes.best(proposal.scores, proposal.possible, proposal.budget)

    def reset(self) -> None: ...


class ThresholdPolicy:
    """A branch is worth running where its score per cost is above a threshold: easy samples cost less, hard ones more.

    Each unit takes argmax(score - price * cost). ``fusion.routing.calibration`` finds the price at which the mean cost
    over a validation set is the budget.

    Args:
        price: score per share of the full cost.
        cap: hard cap on each sample.
    """

    def __init__(self, price: float, cap: float = 1.0):
        self.price, self.cap = float(price), cap

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        return priced_choice(proposal.scores, proposal.possible, routes, self.price)

    def reset(self) -> None: ...


def priced_choice(
    scores: Float[Tensor, "b u k"], possible: Bool[Tensor, "b u k"], routes: RouteTable, price: float
) -> Int64[Tensor, "b u"]:
    """argmax of score - price * cost in every unit; ties go to the cheaper branch. May be empty."""
    net = scores.detach().double().nan_to_num(0.0) - price * routes.shares(scores.device)
    return net.masked_fill(~possible, -torch.inf).argmax(dim=-1)


class ConfigurationPolicy:
    """EcoFusion's rule (Malawade et al., DAC 2022): among the configurations whose predicted loss is at most ``margin``
    above the least, the one with the least (1 - energy_weight) * loss + energy_weight * cost.

    Both knobs belong to run time. The predicted loss of a route is minus its total score, so the scores must be in
    units of the loss (a router trained by ``paired_regression_loss``). The paper's formula was not checked at the
    source; cost here is the share of the full cost, to be weighed against a loss of order 1.

    Args:
        margin: in units of the predicted loss.
        energy_weight: in [0, 1].
        configurations: routes to choose from, each a mapping unit -> branch; None for all.
    """

    cap = None

    def __init__(
        self,
        margin: float = 0.1,
        energy_weight: float = 0.5,
        configurations: Sequence[Mapping[str, str]] | None = None,
    ):
        if not (margin >= 0 and 0 <= energy_weight <= 1):
            raise ValueError(f"expected margin >= 0 and energy_weight in [0, 1], got {margin} and {energy_weight}")
        self.margin, self.energy_weight = margin, energy_weight
        self.configurations = None if configurations is None else [route_of(given) for given in configurations]

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        device = proposal.scores.device
        table, costs = routes.routes(device), routes.costs(device)
        loss = -routes.totals(proposal.scores, proposal.possible)
        loss = loss.masked_fill(costs > proposal.budget[:, None].to(costs) + 1e-6, torch.inf)
        if self.configurations is not None:
            named = torch.tensor(self.configurations, device=device)
            is_named = (table[:, None] == named[None]).all(dim=-1).any(dim=1)
            loss = loss.masked_fill(~is_named, torch.inf)
        joint = (1 - self.energy_weight) * loss + self.energy_weight * costs
        near = loss <= loss.amin(dim=1, keepdim=True) + self.margin
        return table[joint.masked_fill(~near, torch.inf).argmin(dim=1)]

    def reset(self) -> None: ...


class DeadlinePolicy:
    """The highest total score among the routes that the latency table expects to be ready in time, within the budget.

    Where none is, the fastest possible one: a miss. At batch 1, as a vehicle runs it.

    Args:
        table: measured on the device that will run.
        deadline_ms: from the glance to the boxes.
    """

    cap = None

    def __init__(self, table: LatencyTable, deadline_ms: float):
        self.table, self.deadline_ms = table, deadline_ms
        self._route_ms: dict[int, Tensor] = {}

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        device = proposal.scores.device
        if id(routes) not in self._route_ms:
            self._route_ms = {id(routes): self.table.route_ms(routes.routes())}
        route_ms = self._route_ms[id(routes)].to(device)
        totals = routes.totals(proposal.scores, proposal.possible)
        fits = routes.costs(device) <= proposal.budget[:, None] + 1e-6
        # Hopeless totals are those of impossible routes and of the empty one.
        fits &= totals > -1e11
        in_time = fits & (route_ms <= self.deadline_ms)
        slowest_first = torch.where(fits, -route_ms, -torch.inf)
        ranked = torch.where(in_time.any(dim=1, keepdim=True), totals.masked_fill(~in_time, -torch.inf), slowest_first)
        return routes.routes(device)[ranked.argmax(dim=1)]

    def reset(self) -> None: ...


@dataclass(frozen=True)
class Rule:
    """One row of a rule table: a route, and the context in which it holds.

    Attributes:
        route: unit -> branch; units not named are skipped. ``CAMERAS`` names the six views.
        when: quantity -> [low, high], all of which must hold. Quantities: ``ego_speed_mps``, or ``CHANNEL.field`` with
            a field of HEALTH_FIELDS, such as ``CAM_FRONT.amount`` (brightness). Empty: always.
    """

    route: Mapping[str, str]
    when: Mapping[str, Sequence[float | int]] | None = None

    def holds(self, glance: Glance) -> Bool[Tensor, "b"]:
        """Rows whose context is within all intervals."""
        holds = torch.ones(len(glance.available), dtype=torch.bool, device=glance.available.device)
        for name, (low, high) in (self.when or {}).items():
            value = quantity_of(glance, name)
            holds &= (value >= low) & (value <= high)
        return holds


class RulePolicy:
    """Routes from a table keyed by context (HydraFusion's knowledge gate): the first rule that holds decides.

    Raises:
        ValueError: no rules, or the last one does not hold always.
    """

    cap = None

    def __init__(self, rules: Sequence[Rule]):
        if not rules or rules[-1].when:
            raise ValueError("expected rules that end with one for every context (without 'when'); add it")
        self.rules = tuple(rules)
        self._routes = [route_of(rule.route) for rule in rules]

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        choice = torch.zeros(proposal.possible.shape[:2], dtype=torch.int64, device=proposal.scores.device)
        for rule, route in reversed(list(zip(self.rules, self._routes, strict=True))):
            named = torch.tensor(route, device=choice.device)
            choice = torch.where(rule.holds(proposal.glance)[:, None], named, choice)
        return choice

    def reset(self) -> None: ...


class FailSafePolicy:
    """Another policy, except where the glance itself cannot be trusted: then the richest route within the cap.

    A glance is not trusted where a present channel is older than ``max_age_s`` or not a number, or where a camera
    that is present is pitch-black or a LiDAR that is present has no point: a broken glance cannot argue sensors
    away. A radar without targets is nothing unusual.

    Args:
        inner: decides elsewhere.
        max_age_s: of any present channel's newest measurement.
    """

    def __init__(self, inner: Policy, max_age_s: float = 0.3):
        self.inner, self.max_age_s, self.cap = inner, max_age_s, inner.cap

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        choice = self.inner(proposal, routes)
        shares = routes.shares(choice.device).expand(len(choice), -1, -1)
        rich = routes.best(shares, proposal.possible, proposal.budget)
        return torch.where(self.distrusted(proposal.glance)[:, None], rich, choice)

    def distrusted(self, glance: Glance) -> Bool[Tensor, "b"]:
        """Samples whose glance is stale or contradicts itself."""
        health, present = glance.health, glance.channel_present
        age_s = health[..., HEALTH_FIELDS.index("age")] * 0.1
        amount = health[..., HEALTH_FIELDS.index("amount")]
        is_mute = (amount <= 0) & torch.tensor(_NEVER_MUTE, device=health.device)
        wrong = ~health.isfinite().all(dim=-1) | (age_s > self.max_age_s) | is_mute
        return (wrong & present).any(dim=1)

    def reset(self) -> None:
        self.inner.reset()


def quantity_of(glance: Glance, name: str) -> Float[Tensor, "b"]:
    """A number about each sample's context, by name.

    Raises:
        ValueError: an unknown quantity.
    """
    if name == "ego_speed_mps":
        return glance.ego_speed_mps
    channel, _, field = name.partition(".")
    if channel not in CHANNELS or field not in HEALTH_FIELDS:
        raise ValueError(
            f"expected 'ego_speed_mps' or CHANNEL.FIELD with a field among {', '.join(HEALTH_FIELDS)}, got '{name}'"
        )
    return glance.health[:, CHANNELS.index(channel), HEALTH_FIELDS.index(field)]


def route_of(named: Mapping[str, str]) -> list[int]:
    """Branch of each unit from names; units that are not named are skipped, ``CAMERAS`` names the six views.

    Raises:
        ValueError: an unknown unit or branch.
    """
    unknown = sorted(set(named) - {*UNITS, "CAMERAS"}) + sorted(set(named.values()) - set(BRANCHES))
    if unknown:
        raise ValueError(
            f"expected units among CAMERAS, {', '.join(UNITS)} with branches {', '.join(BRANCHES)}, got {unknown}"
        )
    cameras = named.get("CAMERAS", BRANCHES[SKIP])
    names = [named.get(unit, cameras if unit.startswith("CAM") else BRANCHES[SKIP]) for unit in UNITS]
    return [BRANCHES.index(name) for name in names]
