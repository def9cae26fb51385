"""Maps fault x severity, every run beside the others: what is kept of clean NDS, and how far confidences are off."""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from fusion.report.charts import Line, chart
from fusion.report.content import RunContent, names_of
from fusion.robustness.cells import ROUTER, Cell
from fusion.robustness.metrics import clean_cell, resilience
from fusion.robustness.summary import corruption_of

SEEN_MARKS = {"fault": "seen", "family": "family seen", "neither": "unseen"}
STRONGEST_ERROR = 0.3
"""Calibration error with the full colour, unless one is greater."""
Drawn = Callable[[Cell, RunContent], dict | None]


def severity_map(runs: Sequence[RunContent]) -> dict:
    """Share of clean NDS kept at each run's largest budget; see ``fault_map``."""
    return fault_map(runs, _kept, lambda cell: not cell.is_clean and not cell.kept_sensors)


def calibration_map(runs: Sequence[RunContent]) -> dict:
    """Expected calibration error of the detections' scores at each run's largest budget, clean data first."""
    found = fault_map(runs, _error, lambda cell: cell.calibration is not None)
    errors = [cell["error_of_score"] for row in found["rows"] for block in row["blocks"] for cell in block]
    most = max([STRONGEST_ERROR, *(error for error in errors if error is not None)])
    for row in found["rows"]:
        for cell in (cell for block in row["blocks"] for cell in block):
            cell["share"] = None if cell["error_of_score"] is None else cell["error_of_score"] / most
    return found


def fault_map(runs: Sequence[RunContent], drawn: Drawn, wanted: Callable[[Cell], bool]) -> dict:
    """One row per corruption with a block of severities for each run, mildest on the left.

    Returns:
        ``rows`` with title, mark (seen in training or not, where the runs agree), marks of each run (where they do
        not) and blocks of cells; ``widths``, the most severities of each run; ``differ``, whether any row has marks.
    """
    rows: dict[str, dict] = {}
    for number, run in enumerate(runs):
        for cell in run.cells:
            if cell.budget != run.budgets[0] or cell.policy != ROUTER or not wanted(cell):
                continue
            row = rows.setdefault(_key(cell), {"cells": [[] for _ in runs], "blocks": [[] for _ in runs]})
            row["cells"][number].append(cell)
            row["blocks"][number].append(drawn(cell, run))
    for row in rows.values():
        cells = max(row["cells"], key=len)
        marks = [SEEN_MARKS.get(own[0].seen_in_training or "") if own else None for own in row.pop("cells")]
        known = {mark for mark in marks if mark}
        row |= {
            "title": cells[0].title if len(cells) == 1 else cells[0].title.rstrip("0123456789.@ ").rstrip("-"),
            "is_clean": cells[0].is_clean,
            "mark": known.pop() if len(known) == 1 else None,
            "marks": marks if len(set(filter(None, marks))) > 1 else None,
        }
    ordered = sorted(rows.values(), key=lambda row: (not row["is_clean"], -max(map(len, row["blocks"]))))
    return {
        "rows": ordered,
        "widths": [max((len(row["blocks"][number]) for row in ordered), default=0) for number in range(len(runs))],
        "differ": any(row["marks"] for row in ordered),
    }


def _key(cell: Cell) -> str:
    return cell.scenario if cell.is_clean or cell.kept_sensors else corruption_of(cell)


def _levels(cell: Cell) -> str:
    return ", ".join(f"{step['level']:g} {step.get('unit', '')}".strip() for step in cell.steps)


def _kept(cell: Cell, run: RunContent) -> dict:
    kept = resilience(cell, run.cells)
    nds = None if cell.metrics is None else cell.metrics.nds
    return {
        "levels": _levels(cell),
        "nds": nds,
        "kept": None if math.isnan(kept) else kept,
        "share": None if math.isnan(kept) else min(kept, 1.0),
        "text": "failed" if nds is None else f"{nds:.3f}" if math.isnan(kept) else f"{kept:.0%}",
        "note": _levels(cell) if nds is None else f"{_levels(cell)}: NDS {nds:.3f}",
        "error": cell.error,
    }


def _error(cell: Cell, run: RunContent) -> dict:
    error = cell.calibration["expected_error"]
    clean = clean_cell(run.cells, cell.budget)
    reference = None if clean is None or clean.calibration is None else clean.calibration["expected_error"]
    note = "clean data" if cell.is_clean else _levels(cell)
    if not cell.is_clean and None not in (reference, error):
        note += f": {error - reference:+.3f} against clean data"
    text = "–" if error is None else f"{error:.3f}"
    return {"error_of_score": error, "text": text, "note": note, "error": None}


def reliability_chart(runs: Sequence[RunContent]) -> Markup | None:
    """Share of hits over confidence on clean data, and where the error is greatest for a single run."""
    lines = []
    for number, (run, name) in enumerate(zip(runs, names_of(runs), strict=True)):
        own = [c for c in run.cells if c.calibration and c.budget == run.budgets[0] and c.policy == ROUTER]
        shown = [cell for cell in own if cell.is_clean]
        if len(runs) == 1:
            known = [cell for cell in own if not cell.is_clean and cell.calibration["expected_error"] is not None]
            shown += sorted(known, key=lambda cell: cell.calibration["expected_error"])[-1:]
        for cell in shown:
            points = zip(cell.calibration["confidence"], cell.calibration["hit_rate"], strict=True)
            known = [point for point in points if None not in point]
            title = name if len(runs) > 1 else "clean data" if cell.is_clean else cell.title
            lines.append(Line(title, known, number if len(runs) > 1 else 3 * len(lines)))
    if not lines:
        return None
    lines.append(Line("as sure as right", [(0.0, 0.0), (1.0, 1.0)], 9, "dashes"))
    return chart(lines, ("confidence", "share of hits at 2 m"), ((0.0, 1.0), (0.0, 1.0)))
