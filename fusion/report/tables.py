"""Tables of the page as plain values: breakdowns, intervals, measures, regret, runs side by side."""

import math
from collections.abc import Sequence

from fusion.report.content import POLICY_TITLES, RunContent
from fusion.robustness.cells import CLEAN, ROUTER, Cell
from fusion.robustness.summary import summary_of


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


def _place(cell: Cell) -> tuple[str, float]:
    return (CLEAN if cell.is_clean else cell.scenario), cell.budget


def _text(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
