"""A study of budgets as data: how it is done, what was measured, what came of every policy."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from fusion.efficiency.replay import require_replayable
from fusion.model import FusionModel
from sensors.boxes import Boxes

POLICIES = ("learned", "random", "shuffled", "static", "oracle")
ROUTER_POLICIES = ("argmax", "threshold")


@dataclass(frozen=True)
class StudySettings:
    """How a study is done.

    Attributes:
        budgets: shares of the full cost that the router is given.
        policy: ``argmax`` (the budget caps every sample) or ``threshold`` (it is kept on average; the price is
            calibrated on the other half of the scenes).
        draws: of the random and the shuffled control.
        num_timed: samples whose milliseconds are measured, at batch 1, all routes in turns.
        seed: of the controls.
    """

    budgets: Sequence[float]
    policy: str = "argmax"
    draws: int = 1
    num_timed: int = 12
    seed: int = 0

    def check(self, model: FusionModel) -> None:
        """Raises ValueError where the settings do not fit the model."""
        require_replayable(model)
        for budget in self.budgets:
            if not model.min_budget - 1e-6 <= budget <= 1:
                raise ValueError(f"expected budgets in [{model.min_budget:.4f}, 1], got {budget:g}; change budgets")
        if self.policy not in ROUTER_POLICIES or self.draws < 1 or self.num_timed < 0:
            raise ValueError(
                f"expected policy among {', '.join(ROUTER_POLICIES)}, draws >= 1 and timed >= 0, got {self.policy}, "
                f"{self.draws} and {self.num_timed}"
            )


@dataclass(eq=False)
class Measured:
    """What the first pass saw; lists have one entry per sample.

    ``losses`` and ``gflops`` have one column per candidate route, then one per budget (the router's route).
    """

    candidates: Int64[Tensor, "r u"]
    learned: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)
    gflops: list[np.ndarray] = field(default_factory=list)
    unit_gflops: list[Tensor] = field(default_factory=list)
    available: list[Tensor] = field(default_factory=list)
    num_boxes: list[int] = field(default_factory=list)
    scenes: list[str] = field(default_factory=list)
    conditions: list[frozenset[str]] = field(default_factory=list)
    faults: list[tuple[str, ...]] = field(default_factory=list)


@dataclass(eq=False)
class Outcome:
    """One policy at one budget (one draw of it).

    Attributes:
        choice: route of each sample.
        detections: by token, in the global frame.
        losses: detection loss of each sample, summed over its boxes.
        gflops: executed by each sample; the learned router's with the router.
        ms: of the timed samples.
    """

    choice: Int64[Tensor, "n u"]
    detections: dict[str, Boxes] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Study:
    """Attributes:
    measured: the first pass.
    outcomes: (policy, place of the budget, draw) -> what came of it.
    """

    settings: StudySettings
    measured: Measured
    outcomes: dict[tuple[str, int, int], Outcome]
