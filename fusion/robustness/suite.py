"""Score one model under many scenarios and budgets; what is done stays done."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fusion.report.gallery import save_sample_detections
from fusion.robustness.cells import CLEAN, Cell, append_cell, failed, read_cells
from fusion.robustness.fingerprint import code_word, dataset_word, joined_word, model_word
from fusion.robustness.seen import seen_in_training, trained_faults
from fusion.run_directory import RunDirectory
from fusion.scoring.evaluate import EvaluationResult, PlanSource, evaluate_model
from fusion.scoring.scorer import Scorer
from sensors.faults.suites import Scenario

Progress = Callable[[str, int, int], None]
"""Called with what is running, and with batches done and batches in all."""


_DATA_SETTINGS = ("lidar_sweeps", "radar_sweeps", "missing", "clean_preparation")
"""Attributes of a data module that decide what the model is given."""


@runtime_checkable
class Evaluable(Protocol):
    """Where the data come from: a NuScenesDataModule, or anything with its evaluation loader."""

    def evaluation_loader(self, split: str, corruptor: Scenario | None = None):
        """Batches of a split, each sample once, harmed by the corruptor in the workers."""


@dataclass(frozen=True)
class SuiteResult:
    """All cells that were asked for, in order, whether run now or before."""

    cells: tuple[Cell, ...]
    num_skipped: int

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells that could not run."""
        return tuple(cell for cell in self.cells if cell.error is not None)

    @property
    def warned(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.warning is not None)

    @property
    def exit_code(self) -> int:
        """1 as soon as one cell could not run."""
        return 1 if self.failed else 0


def run_scenarios(
    model: nn.Module,
    datamodule: Evaluable,
    scorer: Scorer,
    scenarios: Sequence[Scenario],
    budgets: Sequence[float],
    run_dir: Path,
    progress: Progress | None = None,
    plan_source: PlanSource | None = None,
) -> SuiteResult:
    """Evaluate and score every scenario at every budget, each cell written to ``robustness.jsonl`` as it ends.

    Clean data come first, also where no scenario asks for them: everything is compared with them. Cells that the file
    holds already, from the same weights, tables, configuration and code, are not run again; those that could not run
    are. A cell that cannot run is recorded with its reason and the rest goes on.

    Args:
        datamodule: gives the split of ``scorer``; the model stays on its device.
        budgets: shares of the full cost.
        run_dir: the run's folder; its ``config.yaml``, where there is one, tells what was seen in training.

        plan_source: routes of a model whose router has not been trained; None for the model's own router.

    Raises:
        ValueError: a budget below what the model can keep to, or above 1.
    """
    for budget in budgets:
        if not model.min_budget <= budget <= 1:
            raise ValueError(
                f"expected budgets from {model.min_budget:.3f} (the model's minimum) to 1, got {budget}; change budgets"
            )
    run = RunDirectory(Path(run_dir))
    suite = _Suite(model, datamodule, scorer, run, _run_word(model, datamodule, scorer, run), plan_source)
    planned = _planned(scenarios, budgets)
    done = {cell.key: cell for cell in read_cells(run.robustness) if cell.run == suite.word and cell.error is None}
    cells, clean_inputs, num_skipped = [], None, 0
    for index, (scenario, budget) in enumerate(planned):
        cell = suite.blank_cell(scenario, budget)
        if cell.key in done:
            cell, num_skipped = done[cell.key], num_skipped + 1
        else:
            cell = _warned(suite.run_cell(scenario, cell, _shifted(progress, index, len(planned))), clean_inputs)
            append_cell(run.robustness, cell)
        clean_inputs = cell.inputs if cell.is_clean and cell.inputs else clean_inputs
        cells.append(cell)
    return SuiteResult(tuple(cells), num_skipped)


def _planned(scenarios: Sequence[Scenario], budgets: Sequence[float]) -> list[tuple[Scenario, float]]:
    """Clean data first and once per budget, then the scenarios in order, each with all budgets."""
    disturbed = [scenario for scenario in scenarios if scenario.steps]
    return [(scenario, float(budget)) for scenario in (Scenario(CLEAN), *disturbed) for budget in budgets]


def _shifted(progress: Progress | None, index: int, num_cells: int) -> Progress | None:
    """Progress of one cell as that of the whole suite; all cells have the same number of batches."""
    if progress is None:
        return None
    return lambda label, done, total: progress(label, index * total + done, num_cells * total)


def _warned(cell: Cell, clean_inputs: str | None) -> Cell:
    """With a warning if the scenario changed nothing on any sample."""
    if cell.is_clean or cell.error is not None or cell.inputs != clean_inputs:
        return cell
    return replace(cell, warning="the scenario changed nothing on any sample: this is the score of clean data")


def _run_word(model: nn.Module, datamodule: Evaluable, scorer: Scorer, run: RunDirectory) -> str:
    settings = repr([getattr(datamodule, name, None) for name in _DATA_SETTINGS])
    config = run.config.read_text(encoding="utf-8") if run.config.is_file() else ""
    data = dataset_word(scorer.root, scorer.version)
    return joined_word(model_word(model), data, scorer.split, settings, config, code_word())


@dataclass(frozen=True)
class _Suite:
    """What all cells share."""

    model: nn.Module
    datamodule: Evaluable
    scorer: Scorer
    run: RunDirectory
    word: str
    plan_source: PlanSource | None = None

    def blank_cell(self, scenario: Scenario, budget: float) -> Cell:
        """What is known before the cell runs."""
        steps = tuple(
            {
                "fault": fault.name,
                "level": level,
                "unit": fault.unit,
                "family": fault.family,
                "channels": None if fault.channels is None else list(fault.channels),
            }
            for fault, level in scenario.steps
        )
        seen = seen_in_training(scenario, trained_faults(self.run.config))
        return Cell(scenario.name, steps, scenario.seed, budget, self.word, seen_in_training=seen)

    def run_cell(self, scenario: Scenario, cell: Cell, progress: Progress | None) -> Cell:
        """Evaluate and score. Whatever goes wrong in one cell must not cost the others: it becomes the cell's error."""
        started = time.perf_counter()
        label = f"{cell.title}, budget {cell.budget:g}"
        try:
            result = evaluate_model(
                self.model,
                self.datamodule.evaluation_loader(self.scorer.split, scenario if scenario.steps else None),
                budget=cell.budget,
                device=self._device,
                plan_source=self.plan_source,
                progress=None if progress is None else lambda done, total: progress(label, done, total),
            )
            filled = self._filled(cell, result)
            save_sample_detections(self.run.path, scenario.name, cell.budget, result)
        except Exception as error:
            filled = failed(cell, _reason(error))
        return replace(filled, seconds=time.perf_counter() - started)

    @property
    def _device(self) -> torch.device:
        return next((value.device for value in self.model.parameters()), torch.device("cpu"))

    def _filled(self, cell: Cell, result: EvaluationResult) -> Cell:
        device = self._device
        return replace(
            cell,
            metrics=self.scorer.score(result.detections),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            **result.summary(),
        )


def _reason(error: Exception) -> str:
    """The last line of what went wrong: a loader wraps what its worker raised into a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if text.startswith(type(error).__name__) else f"{type(error).__name__}: {text}"
