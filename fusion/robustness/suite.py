"""Score one model under many scenarios and budgets; what is done stays done."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fusion.adaptive.allocation import shared_word
from fusion.report.gallery import save_sample_detections
from fusion.robustness.axes import Planned, Share, own_cells, planned_cells
from fusion.robustness.cells import CLEAN, ROUTER, Cell, append_cell, failed, read_cells
from fusion.robustness.detector import ForeignModel, evaluate_detector
from fusion.robustness.failover import failover_report
from fusion.robustness.fingerprint import code_word, dataset_word, joined_word, model_word
from fusion.robustness.gates import gate_histograms
from fusion.robustness.lock import only_writer
from fusion.robustness.policies import common_route, deciding, router_cell
from fusion.robustness.regret import Regrets
from fusion.robustness.reuse import EncoderReuse
from fusion.robustness.seen import seen_in_training, trained_faults
from fusion.run_directory import RunDirectory, without_nan
from fusion.scoring.breakdown import confidence_calibration
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


@dataclass(frozen=True)
class SuiteOptions:
    """How a suite runs.

    Attributes:
        policies: who chooses the routes (``fusion.robustness.policies``).
        plan_source: routes of a model whose router has not been trained; None for the model's own router.
        share: the part of the cells that this process runs.
        reuse_gb: memory for what cells compute alike; 0 computes every cell by itself.
        samples_gb: memory for samples as they were read and prepared; 0 reads them for every cell.
        regret: whether the router's cells also say what its routes lose to an oracle's. Cells that were done without
            are done again.
        settings: what was changed of the run's own settings, beside those of the data: other cells.
    """

    policies: tuple[str, ...] = (ROUTER,)
    plan_source: PlanSource | None = None
    share: Share = Share()
    reuse_gb: float = 2.0
    samples_gb: float = 2.0
    regret: bool = False
    settings: str = ""


def run_scenarios(
    model: nn.Module,
    datamodule: Evaluable,
    scorer: Scorer,
    scenarios: Sequence[Scenario],
    budgets: Sequence[float],
    run_dir: Path,
    progress: Progress | None = None,
    options: SuiteOptions | None = None,
) -> SuiteResult:
    """Evaluate and score every scenario at every budget, each cell written to ``robustness.jsonl`` as it ends.

    Clean data come first, also where no scenario asks for them: everything is compared with them. Cells that the file
    holds already, from the same weights, tables, configuration and code, are not run again; those that could not run
    are. A cell that cannot run is recorded with its reason and the rest goes on. Samples, and encoder outputs of
    sensors that a scenario leaves alone, come from the cells before it.

    Args:
        model: a FusionModel, or a ``fusion.robustness.detector.ForeignModel``.
        datamodule: gives the split of ``scorer``; the model stays on its device.
        budgets: shares of the full cost.
        run_dir: the run's folder; its ``config.yaml``, where there is one, tells what was seen in training.

    Raises:
        ValueError: a budget below what the model can keep to, or above 1; an unknown policy; regret without a router;
            or another suite is writing the folder.
    """
    options = options or SuiteOptions()
    for budget in budgets:
        if not model.min_budget <= budget <= 1:
            raise ValueError(
                f"expected budgets from {model.min_budget:.3f} (the model's minimum) to 1, got {budget}; change budgets"
            )
    planned = own_cells(planned_cells(scenarios, budgets, options.policies), options.share)
    with nullcontext() if options.share.count > 1 else only_writer(Path(run_dir)):
        return _run(model, datamodule, scorer, RunDirectory(Path(run_dir)), (planned, progress, options))


def _run(model, datamodule, scorer, run: RunDirectory, work: tuple) -> SuiteResult:
    planned, progress, options = work
    budgets = tuple(dict.fromkeys(plan.budget for plan in planned))
    suite = _Suite(
        model, datamodule, scorer, run, _run_word(model, datamodule, scorer, run, options.settings), options, budgets
    )
    done = {cell.key: cell for cell in read_cells(run.robustness) if cell.run == suite.word and suite.is_whole(cell)}
    blank = [suite.blank_cell(plan) for plan in planned]
    num_left = sum(cell.key not in done for cell in blank)
    cells = []
    with suite.samples_held() if num_left > 1 else nullcontext():
        for index, (plan, cell) in enumerate(zip(planned, blank, strict=True)):
            if cell.key in done:
                cell = done[cell.key]
            else:
                cell = suite.run_cell(plan.scenario, cell, cells, _shifted(progress, index, len(planned)))
                cell = warned(cell, cells)
                append_cell(run.robustness, cell)
            cells.append(cell)
    return SuiteResult(tuple(cells), len(planned) - num_left)


def collected(run_dir: Path, word: str, planned: Sequence[Planned]) -> SuiteResult:
    """The cells that several processes wrote, in the order of the plan, warnings made good.

    A share without clean data cannot tell whether a scenario changed anything; whoever collects can.
    """
    path = RunDirectory(Path(run_dir)).robustness
    newest = {
        (cell.scenario, cell.seed, cell.budget, cell.policy): cell for cell in read_cells(path) if cell.run == word
    }
    cells = []
    for plan in planned:
        seed = plan.scenario.seed
        cell = newest.get((plan.scenario.name, seed, plan.budget, plan.policy))
        if cell is None:
            blank = Cell(plan.scenario.name, steps_of(plan.scenario), seed, plan.budget, word, policy=plan.policy)
            cell = failed(blank, "the process that should have run this cell ended before it")
        fixed = warned(cell, cells)
        if fixed is not cell:
            append_cell(path, fixed)
        cells.append(fixed)
    return SuiteResult(tuple(cells), 0)


def _shifted(progress: Progress | None, index: int, num_cells: int) -> Progress | None:
    """Progress of one cell as that of the whole suite; all cells have the same number of batches."""
    if progress is None:
        return None
    return lambda label, done, total: progress(label, index * total + done, num_cells * total)


def warned(cell: Cell, before: Sequence[Cell]) -> Cell:
    """With a warning if the scenario changed nothing on any sample, by the clean cells among those before it."""
    clean = {other.inputs for other in before if other.is_clean and other.inputs}
    if cell.is_clean or cell.error is not None or cell.warning is not None or cell.inputs not in clean:
        return cell
    return replace(cell, warning="the scenario changed nothing on any sample: this is the score of clean data")


def steps_of(scenario: Scenario) -> tuple[dict, ...]:
    """A scenario's faults as plain values."""
    return tuple(
        {
            "fault": fault.name,
            "level": level,
            "unit": fault.unit,
            "family": fault.family,
            "channels": None if fault.channels is None else list(fault.channels),
        }
        for fault, level in scenario.steps
    )


def run_word(model: nn.Module, datamodule: Evaluable, scorer: Scorer, run_dir: Path, settings: str = "") -> str:
    """Stands for weights, data, settings and code: only cells of one word belong together.

    Args:
        settings: as in ``SuiteOptions``.
    """
    return _run_word(model, datamodule, scorer, RunDirectory(Path(run_dir)), settings)


def _run_word(model: nn.Module, datamodule: Evaluable, scorer: Scorer, run: RunDirectory, changed: str) -> str:
    settings = repr([getattr(datamodule, name, None) for name in _DATA_SETTINGS])
    config = run.config.read_text(encoding="utf-8") if run.config.is_file() else ""
    data = dataset_word(scorer.root, scorer.version)
    kind = model.word() if isinstance(model, ForeignModel) else shared_word(getattr(model, "shared_budget", None))
    return joined_word(model_word(model), kind, data, scorer.split, settings, config, changed, code_word())


class _Suite:
    """What all cells of this process share."""

    def __init__(
        self,
        model: nn.Module,
        datamodule: Evaluable,
        scorer: Scorer,
        run: RunDirectory,
        word: str,
        options: SuiteOptions,
        budgets: Sequence[float],
    ):
        self.model, self.datamodule, self.scorer, self.run, self.word = model, datamodule, scorer, run, word
        self.options = options
        self.trained = trained_faults(run.config)
        self.reuse = EncoderReuse(options.reuse_gb) if options.reuse_gb > 0 else None
        self.regrets = Regrets(model, datamodule, scorer.split, budgets) if options.regret and budgets else None

    def is_whole(self, cell: Cell) -> bool:
        """Whether a cell of the file holds what is asked for."""
        return cell.error is None and (self.regrets is None or cell.policy != ROUTER or cell.regret is not None)

    def blank_cell(self, plan: Planned) -> Cell:
        """What is known before the cell runs."""
        scenario = plan.scenario
        seen = seen_in_training(scenario, self.trained)
        return Cell(
            scenario.name,
            steps_of(scenario),
            scenario.seed,
            plan.budget,
            self.word,
            seen_in_training=seen,
            policy=plan.policy,
        )

    def samples_held(self) -> AbstractContextManager:
        """While it is open, samples are read once for all cells, where the data module can do that."""
        holding = getattr(self.datamodule, "holding", None)
        if holding is None or isinstance(self.model, ForeignModel) or self.options.samples_gb <= 0:
            return nullcontext()
        return holding(self.scorer.split, self.options.samples_gb)

    def run_cell(self, scenario: Scenario, cell: Cell, before: Sequence[Cell], progress: Progress | None) -> Cell:
        """Evaluate and score. Whatever goes wrong in one cell must not cost the others: it becomes the cell's error."""
        started = time.perf_counter()
        label = f"{cell.title}, budget {cell.budget:g}" + (f", {cell.policy}" if cell.policy != ROUTER else "")
        step = None if progress is None else lambda done, total: progress(label, done, total)
        try:
            with deciding(self.model, cell.policy, *self._of_router(cell, before)):
                result = self._evaluated(scenario, cell, step)
            filled = self._filled(cell, result)
            if cell.policy == ROUTER and self.regrets is not None:
                filled = replace(filled, regret=self.regrets.of(scenario, cell.budget, self._device))
            if cell.policy == ROUTER:
                save_sample_detections(self.run.path, scenario.name, cell.budget, result)
        except Exception as error:
            filled = failed(cell, _reason(error))
        return replace(filled, seconds=time.perf_counter() - started)

    def _evaluated(self, scenario: Scenario, cell: Cell, progress) -> EvaluationResult:
        corruptor = scenario if scenario.steps else None
        if isinstance(self.model, ForeignModel):
            return evaluate_detector(self.model, self.datamodule.frames(self.scorer.split), corruptor, progress)
        if self.reuse is not None:
            self.reuse.lasting = cell.is_clean
        return evaluate_model(
            self.model,
            self.datamodule.evaluation_loader(self.scorer.split, corruptor),
            budget=cell.budget,
            device=self._device,
            plan_source=self.options.plan_source if cell.policy == ROUTER else None,
            progress=progress,
            reuse=self.reuse,
        )

    def _of_router(self, cell: Cell, before: Sequence[Cell]) -> tuple[float | None, list[int] | None]:
        """What the router spent in the same cell, and its most frequent route on clean data."""
        if cell.policy == ROUTER:
            return None, None
        same = router_cell(before, cell.scenario, cell.budget)
        clean = router_cell(before, CLEAN, cell.budget)
        spent = None if same is None else min(1.0, same.gflops / float(self.model.prices().full_gflops))
        return spent, None if clean is None else common_route(clean.branch_shares)

    @property
    def _device(self) -> torch.device:
        return next((value.device for value in self.model.parameters()), torch.device("cpu"))

    def _filled(self, cell: Cell, result: EvaluationResult) -> Cell:
        device = self._device
        scored = self.scorer.evaluate(result.detections)
        return replace(
            cell,
            metrics=scored.metrics,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            calibration=without_nan(confidence_calibration(scored)["all"].to_json()),
            gates=gate_histograms(result),
            failover=None if cell.is_clean else without_nan(failover_report(result, scored)),
            **result.summary(),
        )


def _reason(error: Exception) -> str:
    """The last line of what went wrong: a loader wraps what its worker raised into a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if text.startswith(type(error).__name__) else f"{type(error).__name__}: {text}"
