"""The ablation of dynfusion adaptive: run, kept, compared with controls, joined over runs."""

import json
from dataclasses import asdict, replace
from pathlib import Path


def ablated(opened, batches: list, halves, folds: list[int], options, say) -> list:
    """Every mix of techniques at every budget of ``options`` that it can keep."""
    from fusion.adaptive.ablation import MIXES, allocations_of, run_cell
    from fusion.scoring.scorer import Scorer

    data = opened.config.data
    scorer = Scorer(data.root, data.version, options.split)
    cells, done = [], {}
    for budget in options.budgets:
        for mix in MIXES:
            say(f"ablation: budget {budget:.2f}, {' + '.join(mix)}")
            own = allocations_of(halves, budget, mix, options.cap)
            if own is None:
                continue
            # What is set the same runs the same: it is not run again.
            names = ("route_budget", "thresholds", "token_threshold", "view_rate", "rich_route_budget", "rich_share")
            key = repr([[getattr(one, name) for name in names] for one in own.values()])
            if key not in done:
                done[key] = run_cell(opened.model, batches, folds, own, scorer.score, mix, budget)
            cells.append(replace(done[key], mix="+".join(mix), budget=budget))
    return cells


def control_run(options, overrides: list[str], console) -> None:
    """Add the controls to a run's ablation.

    Raises:
        FileNotFoundError: a run without an ablation.
        ValueError: an ablation of other weights, of another data set or split, or settings that controls do not have.
    """
    from fusion.adaptive.ablation import ablation_table
    from fusion.adaptive.controls import CONTROLS, run_controls
    from fusion.commands.runs import open_run
    from fusion.scoring.scorer import Scorer

    if not options.ablation and (options.budgets or options.cap != 1.0):
        raise ValueError("expected controls=true at the budgets of the ablation, got budgets or cap; leave them out")
    path = Path(options.run) / "ablation.json"
    content, cells = read_ablation(path)
    opened = open_run(Path(options.run), overrides, options.allow, calibrated=False)
    data, split = opened.config.data, options.split or opened.config.data.val_split
    batches = list(opened.data.evaluation_loader(split, batch_size=1))
    origin = origin_of(opened, split, len(batches))
    if origin != {name: content.get(name) for name in origin}:
        raise ValueError(
            f"expected an ablation of these weights and of the {len(batches)} samples of {split} in {data.root}, "
            f"got one of others in {path}; run ablation=true again, or give the split and data.root that it had"
        )
    cells = [cell for cell in cells if cell.mix not in CONTROLS]
    with console.status("routes of random, static and oracle controls"):
        cells += run_controls(opened.model, batches, cells, Scorer(data.root, data.version, split).score)
    write_ablation(path, cells, origin)
    console.print(ablation_table([cells]), markup=False, soft_wrap=True)


def read_ablation(path: Path) -> tuple[dict, list]:
    """What ``write_ablation`` wrote, and its cells.

    Raises:
        FileNotFoundError: there is none.
    """
    from fusion.adaptive.ablation import AblationCell

    if not path.is_file():
        raise FileNotFoundError(
            f"expected an ablation at {path}, there is none; run dynfusion adaptive run={path.parent} ablation=true"
        )
    content = json.loads(path.read_text(encoding="utf-8"))
    return content, [AblationCell(**{**cell, "left": tuple(cell["left"])}) for cell in content["cells"]]


def origin_of(opened, split: str, num_samples: int) -> dict:
    """What an ablation belongs to: weights, data set, split and number of samples."""
    from fusion.robustness.fingerprint import dataset_word, model_word

    data = opened.config.data
    tables = dataset_word(Path(data.root), data.version)
    return {"weights": model_word(opened.model), "tables": tables, "split": split, "num_samples": num_samples}


def write_ablation(path: Path, cells: list, origin: dict) -> None:
    from fusion.run_directory import write_text

    content = {**origin, "cells": [asdict(cell) for cell in cells]}
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


REPORTED = ("held_out", "exits", "answers")
"""Tables of adaptive.json beside the settings."""


def merged(options) -> str:
    """The Markdown table over several runs, also written to ``out``; beside it, as ``.jsonl``, the rows of every run.

    Raises:
        FileNotFoundError: a run without an ablation.
        ValueError: an ``out`` that is no ``.md`` file.
    """
    from fusion.adaptive.ablation import ablation_table
    from fusion.run_directory import write_text

    if options.out and Path(options.out).suffix != ".md":
        raise ValueError(f"expected out=FILE.md, got out={options.out}; the rows are written beside it, as .jsonl")
    runs = {name: read_ablation(Path(name) / "ablation.json")[1] for name in options.merge}
    text = ablation_table(list(runs.values())) + "\n"
    if options.out:
        rows = [row for name, cells in runs.items() for row in _rows_of(Path(name), cells)]
        write_text(Path(options.out), text)
        write_text(Path(options.out).with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
    return text


def _rows_of(run: Path, cells: list) -> list[dict]:
    """Cells of a run's ablation, and the tables of the calibration that it has beside them."""
    from fusion.adaptive.files import FILE

    rows = []
    for cell in cells:
        left = {"left_early": 1 - cell.left[-1]}
        values = {name: value for name, value in asdict(cell).items() if name != "left"}
        rows.append({"run": run.name, "table": "ablation", **values, **left})
    if not (run / FILE).is_file():
        return rows
    content = json.loads((run / FILE).read_text(encoding="utf-8"))
    return rows + [{"run": run.name, "table": name, **row} for name in REPORTED for row in content.get(name, [])]
