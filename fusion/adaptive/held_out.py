"""Whether budgets are kept on samples that their settings have not seen: router, exits and tokens together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from fusion.adaptive.allocation import Allocation
from fusion.adaptive.mixing import as_run, taken
from fusion.adaptive.observe import Observation
from fusion.adaptive.search import TECHNIQUES, Candidate, allocated

TOLERANCE = 0.03
"""Share of the asked mean by which the executed one may differ, where two standard errors are less."""


@dataclass(frozen=True)
class HeldOut:
    """One budget: each half of the scenes with the settings found on the other half.

    Attributes:
        asked: mean share of the full cost.
        expected: what the settings cost where they were found.
        mean, standard_error: executed on the held-out samples, all of both halves.
        most: executed by the dearest of them.
        num_samples: of them.
    """

    asked: float
    expected: float
    mean: float
    standard_error: float
    most: float
    num_samples: int

    @property
    def verdict(self) -> str:
        """``within`` 3 % of what was asked or two standard errors of it; else ``below`` or ``above``.

        Below is no fault: no setting that spends more lost less where the settings were found.
        """
        if abs(self.mean - self.asked) <= max(TOLERANCE * self.asked, 2 * self.standard_error):
            return "within"
        return "below" if self.mean < self.asked else "above"

    def row(self) -> dict:
        """For a file."""
        return {**asdict(self), "verdict": self.verdict}


def executed(observations: Sequence[Observation], allocation: Allocation) -> Float64[Tensor, "n"] | None:
    """What each sample costs under an allocation; None where its setting was not observed."""
    own = as_run(observations, allocation)
    return None if own is None else taken(own, allocation)[0]


def held_out(
    observations: Sequence[Observation],
    found: Mapping[int, Sequence[Candidate]],
    folds: Sequence[int],
    budget: float,
    cap: float = 1.0,
) -> HeldOut | None:
    """One budget; None where a half has no observed setting that keeps it.

    Args:
        found: for each fold, candidates of the samples of the other one (``ablation.fold_candidates``).
    """
    of, costs, expected = torch.tensor(list(folds)), [], 0.0
    for fold, some in found.items():
        rows = torch.nonzero(of == fold)[:, 0]
        allocation = allocated(some, budget, TECHNIQUES, cap)
        own = None if allocation is None else executed([one.select(rows) for one in observations], allocation)
        if own is None:
            return None
        costs.append(own)
        expected += allocation.mean_cost * len(rows) / len(of)
    every = torch.cat(costs)
    error = float(every.std() / len(every) ** 0.5) if len(every) > 1 else math.nan
    return HeldOut(float(budget), expected, float(every.mean()), error, float(every.max()), len(every))
