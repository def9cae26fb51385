"""All published and own robustness measures of a suite's cells, as one table of plain values (``robustness.json``)."""

import math
from collections.abc import Mapping, Sequence

from fusion.robustness import metrics
from fusion.robustness.cells import ROUTER, Cell
from fusion.robustness.gates import gate_report

SCORES = ("nds", "mean_ap")


def summary_of(cells: Sequence[Cell], baseline: Sequence[Cell] | None = None) -> dict:
    """Measures by policy and budget, and over the budgets.

    Args:
        cells: of one run.
        baseline: of another run under the same suite, for CE and RRA; None leaves them out.
    """
    policies = list(dict.fromkeys(cell.policy for cell in cells))
    by_policy = {policy: [cell for cell in cells if cell.policy == policy] for policy in policies}
    parts = []
    for policy, own in by_policy.items():
        for budget in sorted({cell.budget for cell in own}, reverse=True):
            here = [cell for cell in own if cell.budget == budget]
            parts.append({"policy": policy, "budget": budget, **_measures(here, _same(baseline, policy, budget))})
    return {
        "at": parts,
        "budget_curves": {policy: budget_curves(own) for policy, own in by_policy.items()},
        "surface": [
            {"policy": policy, **row}
            for policy, own in by_policy.items()
            for row in metrics.quality_compute_surface(own)
        ],
        "failed": [
            {"scenario": cell.scenario, "budget": cell.budget, "error": cell.error} for cell in cells if cell.error
        ],
    }


def score_table(cells: Sequence[Cell], score: str = "nds") -> dict[str, tuple[float, ...]]:
    """One row per corruption with its scores at each severity, mildest first; NaN for a cell that could not run.

    A corruption is a set of faults on the same channels; levels are its severities.
    """
    rows: dict[str, list[tuple[tuple, float]]] = {}
    for cell in cells:
        if not cell.is_clean:
            value = math.nan if cell.metrics is None else float(getattr(cell.metrics, score))
            rows.setdefault(corruption_of(cell), []).append((tuple(step["level"] for step in cell.steps), value))
    return {name: tuple(value for _, value in row) for name, row in rows.items()}


def corruption_of(cell: Cell) -> str:
    """What a cell shares with the other severities of the same corruption."""
    parts = [
        step["fault"] + (f" on {','.join(step['channels'])}" if step.get("channels") else "") for step in cell.steps
    ]
    return " + ".join(parts)


def _measures(cells: Sequence[Cell], baseline: Sequence[Cell]) -> dict:
    """Of one policy at one budget."""
    clean = next((cell for cell in cells if cell.is_clean and cell.metrics is not None), None)
    found: dict = {"gates": gate_report(cells), "by_seen": by_seen(cells)}
    for score in SCORES:
        table = score_table(cells, score)
        part: dict = {"AP_cor" if score == "mean_ap" else "mean_over_corruptions": metrics.corrupted_ap(table)}
        reference = 0.0 if clean is None else float(getattr(clean.metrics, score))
        if reference > 0 and table:
            part["clean"] = reference
            part["RA"] = metrics.resistance_ability(table, reference)
            part["mRA"] = metrics.mean_over(part["RA"])
            part["RR"] = metrics.resilience_rate(table, reference)
            part["mRR"] = metrics.mean_over(part["RR"])
            part["RCE"] = metrics.relative_corruption_error(table, reference)
        part |= _against(table, score_table(baseline, score))
        found[score] = part
    inflation = {cell.scenario: metrics.compute_inflation(cell, cells) for cell in cells if not cell.is_clean}
    found["compute_inflation"] = inflation
    regrets = {cell.scenario: cell.regret for cell in cells if cell.regret is not None}
    if regrets:
        found["regret"] = regrets
        found["mean_regret"] = metrics.mean_over({name: part["regret"] for name, part in regrets.items()})
    found["failover"] = {cell.scenario: failover_row(cell) for cell in cells if cell.failover}
    found["calibration_error"] = {
        cell.scenario: cell.calibration["expected_error"] for cell in cells if cell.calibration is not None
    }
    return found


def _against(table: Mapping[str, tuple[float, ...]], baseline: Mapping[str, tuple[float, ...]]) -> dict:
    """CE and RRA where the baseline has the same corruptions at as many severities, and scored above 0."""
    if not table or any(len(baseline.get(name, ())) != len(row) for name, row in table.items()):
        return {}
    part = {}
    if all(math.fsum(1 - value for value in baseline[name]) > 0 for name in table):
        part["CE"] = metrics.corruption_error(table, baseline)
        part["mCE"] = metrics.mean_over(part["CE"])
    if all(math.fsum(baseline[name]) > 0 for name in table):
        part["RRA"] = metrics.relative_resistance(table, baseline)
        part["mRRA"] = metrics.mean_over(part["RRA"])
    return part


def by_seen(cells: Sequence[Cell]) -> dict[str, dict]:
    """Mean share of clean NDS kept, apart for faults that training had, their families, and neither."""
    groups: dict[str, list[float]] = {}
    for cell in cells:
        if cell.seen_in_training is not None:
            groups.setdefault(cell.seen_in_training, []).append(metrics.resilience(cell, cells))
    return {name: {"num": len(values), "kept": math.fsum(values) / len(values)} for name, values in groups.items()}


def budget_curves(cells: Sequence[Cell]) -> dict[str, dict]:
    """By scenario that ran at two or more budgets: area under NDS and mAP over the budget."""
    curves = {}
    for scenario in dict.fromkeys(cell.scenario for cell in cells):
        own = [cell for cell in cells if cell.scenario == scenario and cell.metrics is not None]
        budgets = [cell.budget for cell in own]
        if len(set(budgets)) > 1 and len(set(budgets)) == len(budgets):
            curves[scenario] = {
                score: metrics.budget_curve_area(budgets, [getattr(cell.metrics, score) for cell in own])
                for score in SCORES
            }
    return curves


def failover_row(cell: Cell) -> dict:
    """Scores by phase and medians of the frames to react and to recover; None where a scene never did."""
    report = cell.failover or {}
    return {
        "phases": report.get("phases", {}),
        "react_frames": _median(report.get("react_frames", {}).values()),
        "recover_frames": _median(report.get("recover_frames", {}).values()),
    }


def _median(values) -> float | None:
    """Never counts as longer than anything."""
    ordered = sorted(math.inf if value is None else float(value) for value in values)
    if not ordered:
        return None
    middle = ordered[(len(ordered) - 1) // 2]
    return None if math.isinf(middle) else middle


def _same(baseline: Sequence[Cell] | None, policy: str, budget: float) -> list[Cell]:
    """The baseline's cells at the same budget, by the same policy or else by its router."""
    there = [cell for cell in baseline or () if cell.budget == budget]
    return [cell for cell in there if cell.policy == policy] or [cell for cell in there if cell.policy == ROUTER]
