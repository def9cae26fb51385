"""What the router's routes lose to those of an oracle that looks at the labels, at the same mean cost.

The loss is the detection loss per labelled box. The oracle takes for each sample the best of the routes that were
measured (``fusion.efficiency.budget_routes.candidate_routes`` and the router's own at all budgets), together within
what the router spent. It is an upper bound, not a router. Exits and kept tokens are at rest, as they are for
``dynfusion budgets``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from fusion.efficiency.budget_routes import oracle_columns
from fusion.efficiency.budget_run import measured_routes
from fusion.efficiency.budget_study import Measured, StudySettings
from sensors.faults.suites import Scenario


class Regrets:
    """Regret in the cells of a suite. All budgets of a scenario come from one pass over it, encoders once per sample.

    Args:
        datamodule: with ``evaluation_loader(split, corruptor, batch_size)``.
        budgets: of the suite.

    Raises:
        ValueError: a model without a router, or whose routes cannot be replayed.
    """

    def __init__(self, model: nn.Module, datamodule, split: str, budgets: Sequence[float]):
        if getattr(model, "router", None) is None:
            raise ValueError("expected a model with a router for regret=true, this one has none; leave it out")
        self.settings = StudySettings(tuple(budgets))
        self.settings.check(model)
        self._model, self._datamodule, self._split = model, datamodule, split
        self._scenario: Scenario | None = None
        self._measured: Measured | None = None

    def of(self, scenario: Scenario, budget: float, device: torch.device | str = "cpu") -> dict:
        """Regret at one of the budgets, as plain values."""
        if self._scenario is not scenario:
            corruptor = scenario if scenario.steps else None
            loader = self._datamodule.evaluation_loader(self._split, corruptor, batch_size=1)
            self._measured = measured_routes(self._model, loader, self.settings, device)
            self._scenario = scenario
        return route_regret(self._measured, self.settings.budgets.index(budget))


def route_regret(measured: Measured, place: int) -> dict:
    """Loss per labelled box and GFLOPs per sample of the router at one budget, of the oracle, and the regret.

    The oracle is the optimum up to one sample's rounding: on a handful of samples the regret may be a little below 0.

    Args:
        place: of the budget.
    """
    losses, gflops = np.stack(measured.losses), np.stack(measured.gflops)
    learned = len(measured.candidates) + place
    best = oracle_columns(losses, gflops, float(gflops[:, learned].mean()))
    rows, num_boxes = np.arange(len(losses)), max(sum(measured.num_boxes), 1)
    router_loss = float(losses[:, learned].sum()) / num_boxes
    oracle_loss = float(losses[rows, best].sum()) / num_boxes
    return {
        "regret": router_loss - oracle_loss,
        "router_loss": router_loss,
        "oracle_loss": oracle_loss,
        "router_gflops": float(gflops[:, learned].mean()),
        "oracle_gflops": float(gflops[rows, best].mean()),
        "num_routes": losses.shape[1],
    }
