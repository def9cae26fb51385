"""Who chooses the routes of a cell: the run's own router, or a control that it has to beat."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import nn

from fusion.robustness.cells import ROUTER, Cell
from fusion.routing.plan import FULL
from fusion.routing.temporal_policies import RandomPolicy, StaticPolicy
from sensors.rig import UNITS

POLICIES = {
    ROUTER: "the routes that the run was trained for",
    "full": "everything on, as far as the budget goes",
    "random": "routes drawn blindly at the mean cost that the router spends on the same data",
    "static": "one route for all samples: the one that the router takes most often on clean data",
}


@contextmanager
def deciding(model: nn.Module, policy: str, spent: float | None, route: Sequence[int] | None) -> Iterator[None]:
    """While it is open, the policy decides in the model's router.

    Args:
        spent: mean cost of the router in the same cell, as a share of the full cost: what ``random`` may spend.
        route: of ``static``.

    Raises:
        ValueError: a model without a router, or a control that lacks the router's own cell.
    """
    if policy == ROUTER:
        yield
        return
    router = getattr(model, "router", None)
    if router is None:
        raise ValueError(f"expected a model with a router for policy {policy}, this one has none; use policy=router")
    before, router.policy = router.policy, _policy(policy, spent, route)
    try:
        yield
    finally:
        router.policy = before


def _policy(name: str, spent: float | None, route: Sequence[int] | None):
    if name == "full":
        return StaticPolicy([FULL] * len(UNITS))
    needed = spent if name == "random" else route
    if needed is None:
        raise ValueError(f"expected the router's own cell before {name} can be compared with it; add policy=router")
    return RandomPolicy(spent) if name == "random" else StaticPolicy(list(route))


def common_route(branch_shares: Mapping[str, Mapping[str, float]]) -> list[int]:
    """Of each unit, the branch that most samples ran."""
    route = []
    for unit in UNITS:
        lite, full = (branch_shares[unit].get(name, 0.0) for name in ("lite", "full"))
        shares = [1.0 - lite - full, lite, full]
        route.append(max(range(len(shares)), key=lambda branch: (shares[branch], branch)))
    return route


def router_cell(cells: Sequence[Cell], scenario: str, budget: float) -> Cell | None:
    """The router's own cell that a control is compared with."""
    found = [
        cell
        for cell in cells
        if (cell.scenario, cell.budget, cell.policy) == (scenario, budget, ROUTER) and cell.metrics is not None
    ]
    return found[-1] if found else None
