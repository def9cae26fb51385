"""Further parts of the page as plain values and charts: severities, controls, failover, parts, runs side by side."""

import csv
import io
import json
import math
from collections.abc import Sequence

from markupsafe import Markup

from fusion.report.charts import Line, chart, front
from fusion.report.content import RunContent
from fusion.robustness.cells import CLEAN, ROUTER, Cell
from fusion.robustness.metrics import compute_inflation, resilience
from fusion.robustness.summary import corruption_of, failover_row, summary_of
from fusion.run_directory import without_nan

SEEN_MARKS = {"fault": "seen", "family": "family seen", "neither": "unseen"}
POLICY_TITLES = {
    ROUTER: "router",
    "random": "random at equal cost",
    "static": "one route for all",
    "full": "all that fits",
}
PR_DISTANCE_M = "2"


def severity_map(run: RunContent) -> list[dict]:
    """One row per corruption at the largest budget: NDS and share of clean at each severity, and the mark."""
    top = run.budgets[0]
    rows: dict[str, dict] = {}
    for cell in run.cells:
        if cell.is_clean or cell.kept_sensors or cell.budget != top or cell.policy != ROUTER:
            continue
        row = rows.setdefault(corruption_of(cell), {"title": "", "seen": None, "cells": []})
        row["seen"] = row["seen"] or SEEN_MARKS.get(cell.seen_in_training or "")
        kept = resilience(cell, run.cells)
        row["cells"].append(
            {
                "title": cell.title,
                "levels": ", ".join(f"{step['level']:g} {step.get('unit', '')}".strip() for step in cell.steps),
                "nds": None if cell.metrics is None else cell.metrics.nds,
                "kept": None if math.isnan(kept) else kept,
                "error": cell.error,
            }
        )
    for row in rows.values():
        titles = [cell["title"] for cell in row["cells"]]
        row["title"] = titles[0] if len(titles) == 1 else titles[0].rstrip("0123456789.@ ").rstrip("-")
    return sorted(rows.values(), key=lambda row: -len(row["cells"]))


def controls_chart(run: RunContent) -> Markup | None:
    """NDS on clean data over the budget, the router beside its controls; None with fewer than two points."""
    lines = []
    for number, (policy, title) in enumerate(POLICY_TITLES.items()):
        points = sorted(
            (cell.budget, cell.metrics.nds)
            for cell in run.cells
            if cell.is_clean and cell.policy == policy and cell.metrics is not None
        )
        if points:
            lines.append(Line(title, points, number))
    if sum(len(line.points) for line in lines) < 2:
        return None
    return chart(lines, ("budget, share of the full cost", "NDS"), ((0.0, 1.05), None))


def pareto_chart(runs: Sequence[RunContent]) -> Markup | None:
    """NDS over executed GFLOPs of everything scored on clean data, and the front over all runs."""
    lines, everything = [], []
    for number, run in enumerate(runs):
        for policy in POLICY_TITLES:
            points = [
                (cell.gflops, cell.metrics.nds)
                for cell in run.cells
                if cell.is_clean and cell.policy == policy and cell.metrics is not None and cell.gflops > 0
            ]
            if points:
                name = POLICY_TITLES[policy] if len(runs) == 1 else f"{name_of(run)}, {POLICY_TITLES[policy]}"
                lines.append(Line(name, sorted(points), number * len(POLICY_TITLES) + len(lines), "dots"))
                everything += points
    if len(everything) < 2:
        return None
    return chart([Line("Pareto front", front(everything), 9, "line"), *lines], ("executed GFLOPs", "NDS"))


def failover_parts(run: RunContent) -> list[dict]:
    """One time line per scenario with an onset: recall, share of scenes that let go, and when the sensor was harmed."""
    parts = []
    for cell in run.cells:
        if not cell.failover or cell.policy != ROUTER or cell.budget != run.budgets[0]:
            continue
        frames = cell.failover["frames"]
        lines = [
            Line("recall at 2 m", [(float(k), frame["recall_2m"]) for k, frame in enumerate(frames)], 0, "line"),
            Line("router has let go", [(float(k), frame["let_go"]) for k, frame in enumerate(frames)], 3, "line"),
        ]
        bands = [(k - 0.5, k + 0.5) for k, frame in enumerate(frames) if frame["harmed"] >= 0.5]
        limits = ((-0.5, len(frames) - 0.5), (0.0, 1.0))
        drawn = chart(lines, ("keyframe", ""), limits, (420, 190), bands)
        parts.append({"title": cell.title, "chart": drawn, **failover_row(cell)})
    return parts


def precision_recall_chart(run: RunContent) -> Markup | None:
    """One curve per class at 2 m; None where the folder has none."""
    curves = ((run.evaluation or {}).get("breakdown") or {}).get("precision_recall") or {}
    lines = []
    for number, (name, by_distance) in enumerate(curves.items()):
        precision = by_distance.get(PR_DISTANCE_M)
        if precision and any(precision):
            last = max(k for k, value in enumerate(precision) if value)
            points = [(k / 100, value) for k, value in enumerate(precision[: last + 1])]
            lines.append(Line(name.replace("_", " "), points, number, "line"))
    return chart(lines, ("recall", "precision"), ((0.0, 1.0), (0.0, 1.0))) if lines else None


def breakdown_tables(run: RunContent) -> list[dict]:
    """Headings and rows of the scores of parts."""
    content = (run.evaluation or {}).get("breakdown") or {}
    tables = []
    for key, title in (("by_distance", "distance"), ("by_condition", "condition")):
        rows = [
            [name, part["num_labels"], _text(part.get("mean_ap_of_labelled")), _text(part["nds"])]
            for name, part in (content.get(key) or {}).items()
        ]
        tables.append({"heads": [title, "labels", "mAP of labelled", "NDS"], "rows": rows})
    for key, title in (("by_visibility", "visible"), ("by_view", "view")):
        rows = [
            [name, part["num_labels"], _text(part["recall_2m"]), _text(part["recall_4m"])]
            for name, part in (content.get(key) or {}).items()
        ]
        tables.append({"heads": [title, "labels", "recall at 2 m", "at 4 m"], "rows": rows})
    rows = [
        [name, part["num_labels"], _text(part["mean_ap"]), _text(part["recall_2m"])]
        for name, part in (content.get("by_road_user") or {}).items()
    ]
    tables.append({"heads": ["road user", "labels", "mAP", "recall at 2 m"], "rows": rows})
    routes = [
        [name, part["num_samples"], *(f"{part['sensor_shares'][key]:.0%}" for key in ("camera", "lidar", "radar"))]
        + [f"{part['gflops']:.2f}"]
        for name, part in ((run.evaluation or {}).get("routes_by_condition") or {}).items()
    ]
    heads = ["routes by condition", "samples", "camera", "LiDAR", "radar", "GFLOPs"]
    tables.append({"heads": heads, "rows": routes})
    return [table for table in tables if table["rows"]]


def interval_rows(run: RunContent) -> list[dict]:
    """95 % intervals of the headline scores, for the bars; empty where there are none."""
    intervals = (run.evaluation or {}).get("intervals") or {}
    metrics = run.evaluation["metrics"] if intervals else None
    titles = {"mean_ap": "mAP", "nds": "NDS"}
    rows = []
    for name, interval in intervals.items():
        value = getattr(metrics, name) if name in titles else metrics.class_ap[name]
        shown = name in titles or metrics.num_labels[name]
        if shown and None not in (interval["low"], interval["high"]):
            title = titles.get(name, name.replace("_", " "))
            rows.append({"title": title, "value": value, "low": interval["low"], "high": interval["high"]})
    return rows


def measures(run: RunContent, baseline: RunContent | None = None, with_regret: bool = False) -> list[dict]:
    """mRA, mRR, AP_cor, mCE, mRRA, gate AUROC at each budget and policy, and the mean regret where it is shown."""
    rows = []
    for part in summary_of(run.cells, None if baseline is None else baseline.cells)["at"]:
        gates = part["gates"]["all"]
        values = {
            "mRA": part["nds"].get("mRA"),
            "mRA (mAP)": part["mean_ap"].get("mRA"),
            "mRR": part["nds"].get("mRR"),
            "AP_cor": part["mean_ap"].get("AP_cor"),
            "mCE": part["nds"].get("mCE"),
            "mRRA": part["nds"].get("mRRA"),
            "gate AUROC": gates["auroc"],
        }
        if with_regret:
            values["regret"] = part.get("mean_regret")
        shown = {name: _text(value) for name, value in values.items()}
        if any(shown.values()):
            rows.append({"policy": POLICY_TITLES[part["policy"]], "budget": part["budget"], "values": shown})
    return rows


def regret_table(run: RunContent) -> dict | None:
    """By scenario and budget, what the router's routes lose to an oracle's at the same cost; None where unknown."""
    known = {(cell.scenario, cell.budget): cell for cell in run.cells if cell.regret is not None}
    if not known:
        return None
    budgets = [budget for budget in run.budgets if any(budget == key[1] for key in known)]
    most = max(cell.regret["regret"] for cell in known.values())
    rows = []
    for scenario in dict.fromkeys(scenario for scenario, _ in known):
        found = [known.get((scenario, budget)) for budget in budgets]
        title = next(cell.title for cell in found if cell is not None)
        rows.append({"title": title, "values": [None if cell is None else _regret_cell(cell, most) for cell in found]})
    return {"budgets": budgets, "rows": rows}


def _regret_cell(cell: Cell, most: float) -> dict:
    """The number, its share of the greatest for the shade, and what it is made of."""
    regret = cell.regret["regret"]
    note = (
        f"router {cell.regret['router_loss']:.3f}, oracle {cell.regret['oracle_loss']:.3f} per labelled box at "
        f"{cell.regret['router_gflops']:.2f} GFLOPs"
    )
    return {"text": f"{regret:.3f}", "share": max(regret / most, 0.0) if most > 0 else 0.0, "note": note}


def comparison(runs: Sequence[RunContent]) -> list[dict]:
    """By scenario and budget, each run's NDS."""
    if len(runs) < 2:
        return []
    tables = [{_place(cell): cell for cell in run.cells if cell.policy == ROUTER} for run in runs]
    rows = []
    for key in dict.fromkeys(key for table in tables for key in table):
        found = [table.get(key) for table in tables]
        values = [None if cell is None or cell.metrics is None else cell.metrics.nds for cell in found]
        title = next(cell.title for cell in found if cell is not None)
        rows.append({"title": title, "budget": key[1], "values": values, "best": _best(values)})
    return rows


def _best(values: Sequence[float | None]) -> float | None:
    """None where only one run has the cell: nothing is compared."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) > 1 else None


def name_of(run: RunContent) -> str:
    return run.path.resolve().name


def _place(cell: Cell) -> tuple[str, float]:
    return (CLEAN if cell.is_clean else cell.scenario), cell.budget


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
    names = [name_of(run) for run in runs]
    keys = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    summaries = [summary_of(run.cells, runs[0].cells if run is not runs[0] else None) for run in runs]
    content = {"rows": table_rows(runs), "summaries": dict(zip(keys, summaries, strict=True))}
    text = json.dumps(without_nan(content), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
