"""Policies with numbers of their own, one row per exit, which ``dynfusion adaptive`` finds on validation data.

Numbers that a configuration gives are kept. Until there are any, every score is NaN: nobody leaves.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.heads.center import NUM_CLASSES
from fusion.trunk.exits_peaks import Peaks, confidence
from fusion.trunk.exits_reliability import conformal_quantile

Table = tuple[tuple[float, ...], ...]


@runtime_checkable
class FittedPolicy(Protocol):
    """What a policy offers beside a score (``exits_policies.ExitPolicy``) so that its numbers are found and kept.

    Attributes:
        table: its numbers, a row for each exit but the last; None until they are known.
    """

    table: Table | None

    def set_table(self, table: Sequence[Sequence[float | int]]) -> None:
        """Numbers that were found before."""

    def fit(self, exits: Sequence[Peaks], truth: Sequence[Int64[Tensor, "r k"]]) -> None:
        """Find them.

        Args:
            exits: peaks of a validation set at each exit but the last, at the exits' temperatures.
            truth: what is there, from ``match_to_boxes``.
        """


def fitted_part(policy: object) -> FittedPolicy | None:
    """The policy itself, or the one inside of it (``Window``), where it has numbers to find; else None."""
    if policy is None or isinstance(policy, FittedPolicy):
        return policy
    return fitted_part(getattr(policy, "policy", None))


def table_of(policy: object) -> Table | None:
    """The numbers of a policy that has some."""
    fitted = fitted_part(policy)
    return None if fitted is None else fitted.table


def check_known(policy: object, thresholds: Sequence[float | int]) -> None:
    """That a policy has its numbers where its scores let anybody leave.

    Raises:
        ValueError: it has not.
    """
    fitted = fitted_part(policy)
    if fitted is not None and fitted.table is None and min(thresholds) < torch.inf:
        raise ValueError(
            f"expected numbers of the policy {type(fitted).__name__} before anybody may leave, got thresholds "
            f"{list(thresholds)} alone; run dynfusion adaptive, or give the policy its numbers"
        )


class ClassWise:
    """Mean lead of each peak's confidence over the threshold of its class (CBT, Sponner et al. 2024); leave from 0 on.

    Args:
        thresholds: per exit and class; None: found by ``class_thresholds``.
        low, high: between which they are found.
    """

    looks_back = False

    def __init__(self, thresholds: Sequence[Sequence[float | int]] | None = None, low: float = 0.5, high: float = 0.9):
        if not low < high:
            raise ValueError(f"expected class thresholds between low < high, got {low} and {high}")
        self.low, self.high = low, high
        self.table: Table | None = None
        if thresholds is not None:
            self.set_table(thresholds)

    def set_table(self, table: Sequence[Sequence[float | int]]) -> None:
        """A row of thresholds for each exit."""
        wrong = [len(row) for row in table if len(row) != NUM_CLASSES]
        if wrong or not len(table):
            raise ValueError(
                f"expected {NUM_CLASSES} thresholds for each exit, got rows of {wrong}; give one per class"
            )
        self.table = tuple(tuple(float(value) for value in row) for row in table)

    def fit(self, exits: Sequence[Peaks], truth: Sequence[Int64[Tensor, "r k"]]) -> None:
        """From how sure each exit is of each class."""
        self.set_table(class_thresholds(exits, self.low, self.high))

    def __call__(self, history: Sequence[Peaks | None]) -> Float[Tensor, "r"]:
        peaks = history[-1]
        if self.table is None:
            return _unknown(peaks)
        if len(history) > len(self.table):
            raise ValueError(f"expected thresholds of each exit, got {len(self.table)} and exit {len(history)}")
        wanted = torch.tensor(self.table[len(history) - 1], device=peaks.xy_m.device)[peaks.label]
        return peaks.mean(confidence(peaks) - wanted)


def class_thresholds(exits: Sequence[Peaks], low: float = 0.5, high: float = 0.9) -> list[list[float]]:
    """Thresholds of ``ClassWise`` from the peaks of a validation set, one Peaks per exit.

    Classes of which an exit is surer on average get lower thresholds, scaled to [low, high]; classes without a peak
    get ``high``.
    """
    table = []
    for peaks in exits:
        weight = (peaks.prob * peaks.is_peak).flatten()
        zeros = weight.new_zeros(NUM_CLASSES)
        total = zeros.index_add(0, peaks.label.flatten(), weight * confidence(peaks).flatten())
        count = zeros.index_add(0, peaks.label.flatten(), weight)
        means = total[count > 0] / count[count > 0]
        span = (means.max() - means.min()).clamp_min(1e-12)
        thresholds = torch.full_like(zeros, high)
        thresholds[count > 0] = high - (high - low) * (means - means.min()) / span
        table.append(thresholds.tolist())
    return table


class ConformalSets:
    """Leave where the hypotheses that cannot be ruled out are few (conformal prediction).

    At each peak the set of the hypotheses of at least 1 - qhat; the score is ``set_size`` minus the mean size, so the
    threshold of leaving is 0.

    Args:
        quantiles: qhat of each exit; None: found by ``exits_reliability.conformal_quantile``.
        set_size: mean size that is still good enough.
        miscoverage: share of peaks whose true hypothesis may be outside of the set, where quantiles are found.
    """

    looks_back = False

    def __init__(self, quantiles: Sequence[float | int] | None = None, set_size: float = 1.0, miscoverage: float = 0.1):
        if not 0 < miscoverage < 1:
            raise ValueError(f"expected a miscoverage in (0, 1), got {miscoverage}")
        self.set_size, self.miscoverage = set_size, miscoverage
        self.table: Table | None = None
        if quantiles is not None:
            self.set_table([[value] for value in quantiles])

    def set_table(self, table: Sequence[Sequence[float | int]]) -> None:
        """One quantile for each exit."""
        if not len(table) or any(len(row) != 1 for row in table):
            raise ValueError(f"expected one quantile for each exit, got {[list(row) for row in table]}")
        self.table = tuple((float(value),) for (value,) in table)

    def fit(self, exits: Sequence[Peaks], truth: Sequence[Int64[Tensor, "r k"]]) -> None:
        """So that the true hypothesis of a peak is outside of its set as seldom as was asked."""
        pairs = zip(exits, truth, strict=True)
        self.set_table([[conformal_quantile(peaks, true, self.miscoverage)] for peaks, true in pairs])

    def __call__(self, history: Sequence[Peaks | None]) -> Float[Tensor, "r"]:
        peaks, number = history[-1], len(history) - 1
        if self.table is None:
            return _unknown(peaks)
        if number >= len(self.table):
            raise ValueError(f"expected a quantile for each exit, got {len(self.table)} and exit {number + 1}")
        sizes = (peaks.hypotheses >= 1 - self.table[number][0]).sum(dim=-1)
        return self.set_size - peaks.mean(sizes.to(peaks.xy_m.dtype))


def _unknown(peaks: Peaks) -> Float[Tensor, "r"]:
    return peaks.xy_m.new_full((len(peaks),), torch.nan)
