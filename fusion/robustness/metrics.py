"""What remains under failures: the published formulas, and those for cost and gates, as pure functions.

A ``Scores`` table holds one row per corruption and one score per severity; a score is NDS or mAP, greater is better.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from fusion.robustness.cells import ROUTER, Cell
from fusion.scoring.calibration import Calibration, calibration_of

Scores = Mapping[str, Sequence[float]]


def clean_cell(cells: Sequence[Cell], budget: float, policy: str = ROUTER) -> Cell | None:
    """The cell of undisturbed data at a budget; None where it is missing or could not run."""
    found = [
        cell
        for cell in cells
        if cell.is_clean and cell.budget == budget and cell.policy == policy and cell.metrics is not None
    ]
    return found[-1] if found else None


def resilience(cell: Cell, cells: Sequence[Cell], metric: str = "nds") -> float:
    """RA = M / M_clean at the same budget (MultiCorrupt, Beemelmanns et al., IV 2024); M is ``nds`` or ``mean_ap``.

    NaN where either is missing or the clean score is 0.
    """
    clean = clean_cell(cells, cell.budget, cell.policy)
    if cell.metrics is None or clean is None or getattr(clean.metrics, metric) == 0:
        return math.nan
    return getattr(cell.metrics, metric) / getattr(clean.metrics, metric)


def mean_resilience(cells: Sequence[Cell], budget: float, metric: str = "nds") -> float:
    """Mean RA of all disturbed cells at a budget; NaN as soon as one of them could not run: it is no clean score."""
    values = [
        resilience(cell, cells, metric)
        for cell in cells
        if cell.budget == budget and cell.policy == ROUTER and not cell.is_clean
    ]
    return math.fsum(values) / len(values) if values else math.nan


def resistance_ability(scores: Scores, clean: float) -> dict[str, float]:
    """RA of each corruption: mean over severities of M / M_clean (MultiCorrupt, Beemelmanns et al., IV 2024)."""
    return {name: _mean(row) / _positive(clean, "clean score") for name, row in scores.items()}


def relative_resistance(scores: Scores, baseline: Scores) -> dict[str, float]:
    """RRA of each corruption in percent: 100 (sum of M / sum of the baseline's M - 1) (MultiCorrupt)."""
    _check_same(scores, baseline)
    sums = {name: _positive(math.fsum(baseline[name]), "sum of the baseline's scores") for name in scores}
    return {name: 100 * (math.fsum(row) / sums[name] - 1) for name, row in scores.items()}


def corruption_error(scores: Scores, baseline: Scores) -> dict[str, float]:
    """CE of each corruption in percent: 100 sum of (1 - M) / sum of the baseline's (1 - M) (RoboBEV, Robo3D)."""
    _check_same(scores, baseline)
    sums = {name: _positive(math.fsum(1 - score for score in baseline[name]), "baseline's error") for name in scores}
    return {name: 100 * math.fsum(1 - score for score in row) / sums[name] for name, row in scores.items()}


def resilience_rate(scores: Scores, clean: float) -> dict[str, float]:
    """RR of each corruption in percent: 100 times mean of M over M_clean (RoboBEV, Robo3D)."""
    return {name: 100 * ability for name, ability in resistance_ability(scores, clean).items()}


def corrupted_ap(scores: Scores) -> float:
    """AP_cor: mean over corruptions of the mean over severities (Dong et al., CVPR 2023)."""
    return mean_over({name: _mean(row) for name, row in scores.items()})


def relative_corruption_error(scores: Scores, clean: float) -> dict[str, tuple[float, ...]]:
    """RCE of each corruption and severity: (AP_clean - AP) / AP_clean (Dong et al., CVPR 2023)."""
    return {name: tuple((clean - ap) / _positive(clean, "clean AP") for ap in row) for name, row in scores.items()}


def mean_over(values: Mapping[str, float]) -> float:
    """mRA, mRRA, mCE, mRR: the mean over corruptions; NaN as soon as one is: a missing cell is no clean score."""
    return _mean(tuple(values.values()))


def budget_curve_area(budgets: Sequence[float], scores: Sequence[float]) -> float:
    """Mean score over the budgets from the least to the greatest: area under the curve, by trapezia, over its width.

    Raises:
        ValueError: fewer than two budgets, the same one twice, or not as many scores.
    """
    if len(budgets) != len(scores) or len(set(budgets)) != len(budgets) or len(budgets) < 2:
        raise ValueError(f"expected a score for each of two or more budgets, got {list(budgets)} and {list(scores)}")
    order = np.argsort(budgets)
    x, y = np.asarray(budgets, float)[order], np.asarray(scores, float)[order]
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def quality_compute_surface(cells: Sequence[Cell], metric: str = "nds") -> list[dict]:
    """One row per cell that ran: scenario, steps' levels, budget, executed GFLOPs, score, share of clean, inflation."""
    return [
        {
            "scenario": cell.scenario,
            "levels": [step["level"] for step in cell.steps],
            "budget": cell.budget,
            "gflops": cell.gflops,
            metric: getattr(cell.metrics, metric),
            "kept": resilience(cell, cells, metric),
            "compute_inflation": compute_inflation(cell, cells),
        }
        for cell in cells
        if cell.metrics is not None
    ]


def compute_inflation(cell: Cell, cells: Sequence[Cell]) -> float:
    """C(s) / C(0): executed GFLOPs over those on clean data at the same budget; NaN where either is missing."""
    clean = clean_cell(cells, cell.budget, cell.policy)
    if cell.metrics is None or clean is None or clean.gflops == 0:
        return math.nan
    return cell.gflops / clean.gflops


def gate_auroc(weight: Float[np.ndarray, "n"], failed: Bool[np.ndarray, "n"]) -> float:
    """How well a gate tells failed sensors: chance that a failed one weighs less than a sound one, ties by half.

    The Mann-Whitney statistic, which is the area under the ROC curve of ``-weight`` against the injected failures. NaN
    where all or none failed.
    """
    num_failed, num_sound = int(failed.sum()), int((~failed).sum())
    if num_failed == 0 or num_sound == 0:
        return math.nan
    _, place, count = np.unique(-weight, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place.reshape(-1)]
    return float((rank[failed].sum() - num_failed * (num_failed + 1) / 2) / (num_failed * num_sound))


def gate_calibration(weight: Float[np.ndarray, "n"], sound: Bool[np.ndarray, "n"], num_bins: int = 10) -> Calibration:
    """A gate's weights in [0, 1], read as the chance that the sensor is sound, against the injected labels."""
    return calibration_of(weight, sound, num_bins)


def frames_until(reached: Bool[np.ndarray, "t"], start: int, hold: int = 1) -> int | None:
    """Frames from ``start`` until something holds for ``hold`` frames on end; 0 if at once, None if never.

    To react: from the failure until the gate lets go of the sensor. To recover: from its return until the score, or the
    gate, is back.
    """
    for place in range(start, len(reached) - hold + 1):
        if reached[place : place + hold].all():
            return place - start
    return None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if len(values) else math.nan


def _positive(value: float, what: str) -> float:
    if not value > 0:
        raise ValueError(f"expected a {what} above 0 to divide by, got {value}")
    return value


def _check_same(scores: Scores, baseline: Scores) -> None:
    """A baseline must have been scored in the same cells."""
    missing = [name for name in scores if name not in baseline or len(baseline[name]) != len(scores[name])]
    if missing:
        raise ValueError(f"expected the baseline's scores of {', '.join(missing)} at the same severities, got others")
