"""Which parameters belong to which branch of which unit, and letting those rest that nobody used."""

from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from fusion.routing.plan import FULL, LITE, NUM_BRANCHES, RoutingPlan
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS

_VIEWS = tuple((unit, branch) for unit in range(NUM_CAMERAS) for branch in (LITE, FULL))
_OWNERS = {
    "cameras": _VIEWS,
    "lidar.lite": ((LIDAR_UNIT, LITE),),
    "lidar.full": ((LIDAR_UNIT, FULL),),
    "radar.lite": ((RADAR_UNIT, LITE),),
    "radar.full": ((RADAR_UNIT, FULL),),
}
"""Prefix of a FusionModel's parameters -> the (unit, branch) pairs that use them; the views share theirs."""


def rows_by_branch(plan: RoutingPlan) -> Int64[Tensor, "u k"]:
    """How many samples of the batch chose each branch of each unit."""
    return torch.nn.functional.one_hot(plan.choice, NUM_BRANCHES).sum(dim=0)


def parameters_by_owner(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters of each prefix that the model has."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        for prefix in _OWNERS:
            if name.startswith(prefix + "."):
                found.setdefault(prefix, []).append(parameter)
    return found


def branches_of(name: str) -> tuple[tuple[int, int], ...]:
    """The (unit, branch) pairs that use a FusionModel's parameter of this name; none for what always runs."""
    return next((pairs for prefix, pairs in _OWNERS.items() if name.startswith(prefix + ".")), ())


def rest_unused(
    model: nn.Module, rows: Int64[Tensor, "u k"], sum_over_ranks: Callable[[Tensor], Tensor] | None = None
) -> dict[str, int]:
    """Takes the gradient from parameters of units that no row on any rank chose; call it before the optimiser's step.

    A gradient of zeros is not no gradient: momentum and weight decay would still move the weights.

    Args:
        rows: chosen since the last step, by unit and branch (``rows_by_branch``).
        sum_over_ranks: gives the sum over all ranks; None for one process.

    Returns:
        Rows of each group of parameters over all ranks.
    """
    total = rows if sum_over_ranks is None else sum_over_ranks(rows)
    used = {}
    for prefix, parameters in parameters_by_owner(model).items():
        used[prefix] = sum(int(total[unit, branch]) for unit, branch in _OWNERS[prefix])
        if not used[prefix]:
            for parameter in parameters:
                parameter.grad = None
    return used


assert set(range(len(UNITS))) == {unit for pairs in _OWNERS.values() for unit, _ in pairs}
