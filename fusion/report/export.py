"""What is downloaded from the page and what the text tables hold: every cell with plain values."""

import csv
import io
import json
from collections.abc import Sequence

from markupsafe import Markup

from fusion.report.content import RunContent, name_of, names_of
from fusion.robustness.metrics import compute_inflation, resilience
from fusion.robustness.summary import summary_of
from fusion.run_directory import without_nan

COLUMNS = (
    *("run", "scenario", "faults", "levels", "budget", "policy", "seen_in_training", "mAP", "NDS", "kept", "GFLOPs"),
    *("inflation", "regret", "ms", "samples", "error", "warning"),
)


def table_rows(runs: Sequence[RunContent]) -> list[dict]:
    """One per cell with plain values: what is downloaded and what the text tables hold."""
    return [
        without_nan(
            {
                "run": name_of(run),
                "scenario": cell.scenario,
                "faults": " + ".join(step["fault"] for step in cell.steps),
                "levels": " + ".join(f"{step['level']:g}" for step in cell.steps),
                "budget": cell.budget,
                "policy": cell.policy,
                "seen_in_training": cell.seen_in_training,
                "mAP": None if cell.metrics is None else cell.metrics.mean_ap,
                "NDS": None if cell.metrics is None else cell.metrics.nds,
                "kept": resilience(cell, run.cells),
                "GFLOPs": cell.gflops,
                "inflation": compute_inflation(cell, run.cells),
                "regret": None if cell.regret is None else cell.regret["regret"],
                "ms": cell.ms,
                "samples": cell.num_samples,
                "error": cell.error,
                "warning": cell.warning,
            }
        )
        for run in runs
        for cell in run.cells
    ]


def as_csv(rows: Sequence[dict]) -> str:
    """RFC 4180; a missing value is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: "" if row[name] is None else row[name] for name in COLUMNS} for row in rows)
    return text.getvalue()


def as_json(runs: Sequence[RunContent]) -> Markup:
    """Everything the page was made of but pictures, fit for a script element."""
    summaries = [summary_of(run.cells, runs[0].cells if run is not runs[0] else None) for run in runs]
    content = {"rows": table_rows(runs), "summaries": dict(zip(names_of(runs), summaries, strict=True))}
    text = json.dumps(without_nan(content), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
