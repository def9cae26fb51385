"""A decision is data: what was decided beforehand (RoutingPlan) and what really ran (ExecutionTrace)."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sensors.rig import NUM_CAMERAS, UNITS

SKIP, LITE, FULL = 0, 1, 2
BRANCHES = ("skip", "lite", "full")
NUM_BRANCHES = len(BRANCHES)
DEPTH = "DEPTH"
"""Name, beside those of units, of the LiDAR points that give the views their depths."""


@dataclass(frozen=True, eq=False)
class RoutingPlan:
    """One branch for each of the eight units of each of B samples, decided before any encoder runs.

    Attributes:
        choice: SKIP, LITE or FULL.
        gates: one-hot of ``choice`` in the forward pass; carries the straight-through gradient of the choice backwards.
            The output of a branch is multiplied by its gate.
        probs: of each branch; 0 for branches that do not exist and for absent units (SKIP then has 1).
        log_prob: of the whole choice, for score-function estimators.
        budget: what was asked for, as a share of the full cost.
        expected_cost: differentiable cost share under ``probs``, always-on part included.
    """

    choice: Int64[Tensor, "b u"]
    gates: Float[Tensor, "b u k"]
    probs: Float[Tensor, "b u k"]
    log_prob: Float[Tensor, "b"]
    budget: Float[Tensor, "b"]
    expected_cost: Float[Tensor, "b"]

    @property
    def weight(self) -> Float[Tensor, "b u"]:
        """Gate of the chosen branch: 1 in the forward pass."""
        return self.gates.gather(-1, self.choice[..., None])[..., 0]

    def rows(self, unit: int, branch: int) -> Int64[Tensor, "r"]:
        """Samples that run this branch of this unit."""
        return torch.nonzero(self.choice[:, unit] == branch)[:, 0]

    def view_rows(self, branch: int) -> tuple[Int64[Tensor, "r"], Int64[Tensor, "r"]]:
        """Samples and views of the camera units that run this branch, sample-major."""
        chosen = torch.nonzero(self.choice[:, :NUM_CAMERAS] == branch)
        return chosen[:, 0], chosen[:, 1]


def fixed_plan(
    choice: Int64[Tensor, "b u"], unit_present: Bool[Tensor, "b u"], cost_share: Float[Tensor, "b"] | None = None
) -> RoutingPlan:
    """A plan that nobody learnt: the given branches where the unit is present, SKIP elsewhere."""
    choice = torch.where(unit_present, choice, SKIP)
    gates = torch.nn.functional.one_hot(choice, NUM_BRANCHES).float()
    num_samples = len(choice)
    ones = torch.ones(num_samples, device=choice.device)
    return RoutingPlan(
        choice=choice,
        gates=gates,
        probs=gates,
        log_prob=torch.zeros(num_samples, device=choice.device),
        budget=ones,
        expected_cost=ones if cost_share is None else cost_share,
    )


def full_plan(unit_present: Bool[Tensor, "b u"]) -> RoutingPlan:
    """Every present unit at FULL."""
    choice = torch.full(unit_present.shape, FULL, dtype=torch.int64, device=unit_present.device)
    return fixed_plan(choice, unit_present)


@dataclass(frozen=True)
class Execution:
    """One module that ran: ``rows`` samples (or sample-view pairs) at ``gflops_per_row`` each."""

    unit: str
    branch: str
    rows: tuple[int, ...]
    gflops_per_row: float


@dataclass
class ExecutionTrace:
    """What really ran in one forward pass. Costs, caps and reports read only this.

    Attributes:
        num_samples: batch size.
        executions: in order. ``rows`` hold the *sample* of every row; a sample with two views in one run appears twice.
            Always-on parts are recorded under the unit ``always``.
        left_out: (unit, sample, how many) of points that were left out so that the budget holds; under ``DEPTH`` those
            of the newest LiDAR sweep that would have measured depths for the views.
    """

    num_samples: int
    executions: list[Execution] = field(default_factory=list)
    left_out: list[tuple[str, int, int]] = field(default_factory=list)

    def add(self, unit: str, branch: str, rows: tuple[int, ...], gflops_per_row: float) -> None:
        self.executions.append(Execution(unit, branch, rows, gflops_per_row))

    def gflops(self) -> list[float]:
        """Executed GFLOPs of each sample."""
        total = [0.0] * self.num_samples
        for execution in self.executions:
            for row in execution.rows:
                total[row] += execution.gflops_per_row
        return total

    def ran(self, unit: str) -> list[bool]:
        """Whether any branch of this unit ran, per sample."""
        assert unit in UNITS, unit
        hit = {row for execution in self.executions if execution.unit == unit for row in execution.rows}
        return [row in hit for row in range(self.num_samples)]
