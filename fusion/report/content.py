"""What the page says, as plain values: read from a run's folder and nothing else."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from fusion.report.colours import CLASS_COLOURS
from fusion.robustness.cells import CLEAN, ROUTER, Cell, newest_cells, read_cells
from fusion.robustness.metrics import clean_cell, mean_resilience, resilience
from fusion.robustness.table import section_of
from fusion.run_directory import RunDirectory
from fusion.scoring.metrics import TP_ERROR_NAMES, Metrics
from sensors.rig import UNITS

UNIT_TITLES = ("front", "front right", "back right", "back", "back left", "front left", "LiDAR", "radar")
TOWN_NOTICE = (
    "These are scores on a synthetic town. They are not nuScenes scores and cannot be compared with any published ones."
)
POLICY_TITLES = {
    ROUTER: "router",
    "random": "random at equal cost",
    "static": "one route for all",
    "full": "all that fits",
}
USE_NOTICE = "Research software, not for the control of a vehicle."


@dataclass(frozen=True)
class RunContent:
    """What a run's folder holds.

    Attributes:
        config: ``config.yaml`` as plain values; empty without one.
        evaluation: ``metrics.json``; None without one.
        cells: of the newest robustness run; where there is none, one cell made from ``metrics.json``.
    """

    path: Path
    config: dict
    evaluation: dict | None
    cells: tuple[Cell, ...]

    @property
    def budgets(self) -> list[float]:
        """Largest first."""
        return sorted({cell.budget for cell in self.cells}, reverse=True)

    @property
    def headline(self) -> Cell | None:
        """Clean data at the largest budget that could run."""
        found = (clean_cell(self.cells, budget) for budget in self.budgets)
        return next((cell for cell in found if cell is not None), None)

    @property
    def version(self) -> str:
        """The data set's version, as far as the folder tells."""
        data = self.config.get("data") or {}
        return str(data.get("version") or (self.evaluation or {}).get("version") or "")

    @property
    def split(self) -> str:
        data = self.config.get("data") or {}
        return str((self.evaluation or {}).get("split") or data.get("val_split") or "")

    @property
    def is_town(self) -> bool:
        return "town" in self.version


def read_run(path: Path) -> RunContent:
    """Read a run's folder.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no scores, or a file that cannot be read.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"expected a run's folder, got none at {path}; give the run_dir of a training")
    run = RunDirectory(path)
    config = yaml.safe_load(run.config.read_text(encoding="utf-8")) if run.config.is_file() else {}
    evaluation = _read_evaluation(run.metrics) if run.metrics.is_file() else None
    cells = newest_cells(read_cells(run.robustness))
    if not cells and evaluation:
        cells = [_cell_of(evaluation)]
    if not cells:
        raise ValueError(
            f"expected scores in {path}, got neither metrics.json nor robustness.jsonl; first run: "
            f"dynfusion robustness run={path}"
        )
    return RunContent(path, config or {}, evaluation, tuple(cells))


def name_of(run: RunContent) -> str:
    return run.path.resolve().name


def names_of(runs: Sequence[RunContent]) -> list[str]:
    """Of the folders; the whole paths where two have one name."""
    names = [name_of(run) for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _read_evaluation(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content, "metrics": Metrics.from_json(content["metrics"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected the scores of an evaluation in {path}, got something else ({error})") from None


def _cell_of(evaluation: dict) -> Cell:
    return Cell(
        CLEAN,
        (),
        0,
        float(evaluation.get("budget", 1.0)),
        "",
        metrics=evaluation["metrics"],
        num_samples=evaluation.get("num_samples", 0),
        gflops=evaluation.get("gflops_per_sample", 0.0),
        ms=evaluation.get("ms_per_sample", 0.0),
        device=evaluation.get("device", ""),
        sensor_shares=evaluation.get("sensor_shares"),
        branch_shares=evaluation.get("branch_shares"),
    )


def cards(run: RunContent) -> list[dict]:
    """The headline: a number, its unit, what it is."""
    clean = run.headline
    if clean is None:
        return []
    full = (run.evaluation or {}).get("full_gflops")
    compute_note = f"of {full:.1f} with everything on" if full else "per sample, as executed"
    found = [
        _card("mAP", f"{clean.metrics.mean_ap:.3f}", f"all sensors, {clean.num_samples} samples"),
        _card("NDS", f"{clean.metrics.nds:.3f}", "nuScenes detection score"),
        _card("GFLOPs", f"{clean.gflops:.1f}", compute_note),
        _card("ms per sample", f"{clean.ms:.0f}", f"forward and decoding, {clean.device}"),
    ]
    lost = [
        cell
        for cell in run.cells
        if cell.scenario == "camera+radar" and cell.budget == clean.budget and cell.policy == ROUTER
    ]
    if lost and lost[0].metrics is not None:
        found.append(_card("mAP, LiDAR lost", f"{lost[0].metrics.mean_ap:.3f}", "cameras and radar go on"))
    kept = mean_resilience(run.cells, clean.budget)
    if not math.isnan(kept):
        found.append(_card("of clean NDS", f"{kept:.0%}", "kept on average over all failures"))
    return found


def _card(title: str, value: str, note: str) -> dict:
    return {"title": title, "value": value, "note": note}


def rows(run: RunContent) -> list[dict]:
    """One per cell, for the table, the heat map and the routes."""
    most_gflops = max((cell.gflops for cell in run.cells), default=0.0) or 1.0
    most_ms = max((cell.ms for cell in run.cells), default=0.0) or 1.0
    found = []
    for cell in run.cells:
        row = {
            "title": cell.title if cell.policy == ROUTER else f"{cell.title} ({cell.policy})",
            "words": _words(cell),
            "section": section_of(cell),
            "budget": cell.budget,
            "error": cell.error,
            "warning": cell.warning,
            "seen": {"neither": "unseen", "family": "family seen", "fault": "seen"}.get(cell.seen_in_training),
            "steps": [_step_text(step) for step in cell.steps],
        }
        if cell.metrics is not None:
            kept = resilience(cell, run.cells)
            row |= {
                "map": cell.metrics.mean_ap,
                "nds": cell.metrics.nds,
                "kept": None if math.isnan(kept) else kept,
                "gflops": cell.gflops,
                "gflops_share": cell.gflops / most_gflops,
                "ms": cell.ms,
                "ms_share": cell.ms / most_ms,
                "shares": cell.sensor_shares or {},
                "units": _units(cell),
                "class_ap": cell.metrics.class_ap,
            }
        found.append(row)
    return found


def _words(cell: Cell) -> str:
    """What the page's filter looks through."""
    parts = [cell.title, cell.scenario, cell.policy, "failed" if cell.error else ""]
    parts.append({"neither": "unseen", "family": "family seen", "fault": "seen"}.get(cell.seen_in_training or "", ""))
    parts += [f"{step['fault']} {step.get('family', '')}" for step in cell.steps]
    return " ".join(parts).replace("_", " ").lower() + " " + " ".join(step["fault"] for step in cell.steps)


def _step_text(step: dict) -> str:
    where = f" on {', '.join(step['channels'])}" if step.get("channels") else ""
    return f"{step['fault'].replace('_', ' ')} at {step['level']:g} {step.get('unit', '')}{where}".strip()


def _units(cell: Cell) -> list[dict]:
    """Shares of full, lite and skip of each unit."""
    units = []
    for unit, title in zip(UNITS, UNIT_TITLES, strict=True):
        shares = (cell.branch_shares or {}).get(unit, {})
        full, lite = shares.get("full", 0.0), shares.get("lite", 0.0)
        units.append({"title": title, "full": full, "lite": lite, "skip": max(0.0, 1 - full - lite)})
    return units


def classes(cell: Cell) -> list[dict]:
    """One per class: AP, by distance, errors, counts."""
    metrics = cell.metrics
    return [
        {
            "name": name.replace("_", " "),
            "colour": CLASS_COLOURS[name],
            "ap": ap,
            "by_distance": metrics.class_ap_by_distance_m.get(name, {}),
            "errors": [metrics.class_tp_errors.get(name, {}).get(error) for error in TP_ERROR_NAMES],
            "num_labels": metrics.num_labels.get(name, 0),
        }
        for name, ap in metrics.class_ap.items()
    ]


def quality_points(cells: Sequence[Cell]) -> list[dict]:
    """By scenario, (GFLOPs, NDS) at each budget, for scenarios that ran at two or more budgets; clean data first."""
    scenarios = dict.fromkeys(cell.scenario for cell in cells)
    lines = []
    for scenario in scenarios:
        found = [
            cell for cell in cells if cell.scenario == scenario and cell.policy == ROUTER and cell.metrics is not None
        ]
        if len({cell.budget for cell in found}) > 1:
            points = sorted((cell.gflops, cell.metrics.nds, cell.budget) for cell in found)
            lines.append({"title": found[0].title, "is_clean": found[0].is_clean, "points": points})
    return sorted(lines, key=lambda line: not line["is_clean"])
