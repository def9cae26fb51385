"""Choosing among an explicit list of configurations instead of unit by unit: subsets of sensors, nested paths."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fusion.routing.budget import RouteTable, checked_budget
from fusion.routing.gate_inputs import Glance
from fusion.routing.plan import NUM_BRANCHES, SKIP, RoutingPlan
from fusion.routing.policies import route_of
from fusion.routing.relaxations import log_probs_of
from fusion.routing.router import Router
from sensors.rig import UNITS


class ConfigurationRouter(Router):
    """A router with one logit per configuration (DynMM's paths, HydraFusion's and EcoFusion's configurations).

    The logit of a configuration is the sum of its units' logits plus one of its own that depends on the mean of the
    units' features, so that what a subset is worth need not be a sum. The relaxation acts on the configurations.
    A configuration that wants an absent unit runs without it. One that costs more than the budget is never chosen;
    where none fits, the cheapest is cut until it does.

    Args:
        configurations: mappings unit -> branch; ``CAMERAS`` names the six views; what is not named is skipped.
        options: of ``Router``. Its floor must be in every configuration. A policy is not asked: policies choose among
            all routes (``ConfigurationPolicy`` takes a list).

    Raises:
        ValueError: fewer than two configurations, two alike, an empty one, or one without the floor.
    """

    def __init__(self, configurations: Sequence[Mapping[str, str]], **options):
        super().__init__(**options)
        table = torch.tensor([route_of(given) for given in configurations])
        if len(table) < 2 or len(torch.unique(table, dim=0)) < len(table):
            raise ValueError(f"expected at least two configurations, all different, got {len(table)}")
        if bool((table == SKIP).all(dim=1).any()):
            raise ValueError("expected configurations that run something, got an empty one")
        for unit in self.floor:
            if bool((table[:, UNITS.index(unit)] == SKIP).any()):
                raise ValueError(f"expected every configuration to run {unit}, which is on the floor; add it")
        self.register_buffer("table", table, persistent=False)
        self.own = nn.Linear(self.mix.out_features + 1, len(table))
        nn.init.zeros_(self.own.weight)
        nn.init.zeros_(self.own.bias)

    def forward(
        self, glance: Glance, routes: RouteTable, budget: float | Tensor = 1.0, generator: torch.Generator | None = None
    ) -> RoutingPlan:
        """As ``Router.forward``; ``probs`` are those of the units under the configurations' probabilities."""
        asked = checked_budget(budget, len(glance.available), routes.min_budget).to(glance.available.device)
        if not self.training:
            generator = None
        elif generator is None:
            generator = self._keyed_generator()
        with torch.autocast(glance.available.device.type, enabled=False):
            offered = torch.where(glance.available[:, None], self.table, SKIP)  # b f u
            logits = self.configuration_logits(glance, routes, asked.float())
            logits = logits.masked_fill(~self.affordable(offered, routes, asked), -torch.inf)[:, None]  # b 1 f
            scores = self.relaxation.scores(logits, generator)
            number = scores.argmax(dim=-1)  # b 1
            one_hot = nn.functional.one_hot(offered, NUM_BRANCHES).float()  # b f u k
            gates = (self.relaxation.gates(scores, number)[:, 0, :, None, None] * one_hot).sum(dim=1)
            log_probs = log_probs_of(self.relaxation, logits)[:, 0]
            probs = (log_probs.exp()[:, :, None, None] * one_hot).sum(dim=1)
            wanted = offered[torch.arange(len(offered), device=offered.device), number[:, 0]]
            choice = routes.capped(wanted, routes.possible(glance.available), asked)
            # Where the cap had to cut, the gates are those of what is left.
            cut = (choice != wanted).any(dim=1)[:, None, None]
            return RoutingPlan(
                choice=choice,
                gates=torch.where(cut, nn.functional.one_hot(choice, NUM_BRANCHES).float(), gates),
                probs=probs,
                log_prob=log_probs.gather(-1, number)[:, 0],
                budget=asked.float(),
                expected_cost=routes.expected_cost(probs),
            )

    def affordable(
        self, offered: Int64[Tensor, "b f u"], routes: RouteTable, budget: Float[Tensor, "b"]
    ) -> Bool[Tensor, "b f"]:
        """Configurations within the budget that run something; the cheapest one where there is none."""
        cost = torch.stack([routes.prices.cost_of(offered[:, f]) for f in range(offered.shape[1])], dim=1)
        runs = (offered != SKIP).any(dim=-1)
        cost = torch.where(runs, cost, torch.inf)
        fits = cost <= budget[:, None].to(cost) + 1e-6
        cheapest = nn.functional.one_hot(cost.argmin(dim=1), cost.shape[1]).bool()
        return fits | (cheapest & ~fits.any(dim=1, keepdim=True))

    def configuration_logits(
        self, glance: Glance, routes: RouteTable, budget: Float[Tensor, "b"]
    ) -> Float[Tensor, "b f"]:
        """Of every configuration, affordable or not. Minus these are predicted losses where trained by
        ``configuration_loss``.
        """
        units = self._unit_features(glance)
        available = glance.available.float()
        pooled = (units * available[..., None]).sum(dim=1) / available.sum(dim=1, keepdim=True).clamp_min(1)
        by_unit = self.logits(glance, routes, budget)
        one_hot = nn.functional.one_hot(self.table, NUM_BRANCHES).to(by_unit.dtype)
        return torch.einsum("buk,fuk->bf", by_unit, one_hot) + self.own(torch.cat([pooled, budget[:, None]], dim=-1))

    def gflops(self, *sizes) -> float:
        own = 2e-9 * (self.own.in_features + len(UNITS) * NUM_BRANCHES) * len(self.table)
        return super().gflops(*sizes) + own


def nested_paths(*steps: Mapping[str, str]) -> list[dict[str, str]]:
    """Paths of growing depth (DynMM): each adds its units to those of the one before.

    Raises:
        ValueError: a step that changes what a former one has set.
    """
    paths, so_far = [], {}
    for step in steps:
        changed = sorted(set(step) & set(so_far))
        if changed:
            raise ValueError(f"expected steps that add units, got {', '.join(changed)} again")
        so_far = {**so_far, **step}
        paths.append(dict(so_far))
    return paths
