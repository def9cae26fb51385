"""One cell of a suite: evaluate under a scenario, score, and put all that is known of it together."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fusion.report.gallery import save_sample_detections
from fusion.robustness.axes import Share
from fusion.robustness.cells import CLEAN, ROUTER, Cell, failed
from fusion.robustness.detector import ForeignModel, evaluate_detector
from fusion.robustness.failover import failover_report
from fusion.robustness.gates import gate_histograms
from fusion.robustness.policies import common_route, deciding, router_cell
from fusion.robustness.regret import Regrets
from fusion.robustness.reuse import EncoderReuse
from fusion.run_directory import RunDirectory, without_nan
from fusion.scoring.breakdown import confidence_calibration
from fusion.scoring.evaluate import EvaluationResult, PlanSource, evaluate_model
from fusion.scoring.scorer import Scorer
from sensors.faults.suites import Scenario

Progress = Callable[[str, int, int], None]
"""Called with what is running, and with batches done and batches in all."""


@runtime_checkable
class Evaluable(Protocol):
    """Where the data come from: a NuScenesDataModule, or anything with its evaluation loader."""

    def evaluation_loader(self, split: str, corruptor: Scenario | None = None):
        """Batches of a split, each sample once, harmed by the corruptor in the workers."""


@dataclass(frozen=True)
class SuiteOptions:
    """How a suite runs.

    Attributes:
        policies: who chooses the routes (``fusion.robustness.policies``).
        plan_source: routes of a model whose router has not been trained; None for the model's own router.
        share: the part of the cells that this process runs, for one that holds the folder's lock; None for all cells.
        reuse_gb: memory for what cells compute alike; 0 computes every cell by itself.
        samples_gb: memory for samples as they were read and prepared; 0 reads them for every cell.
        regret: whether the router's cells also say what its routes lose to an oracle's. Cells that were done without
            are done again.
        settings: what was changed of the run's own settings, beside those of the data: other cells.
    """

    policies: tuple[str, ...] = (ROUTER,)
    plan_source: PlanSource | None = None
    share: Share | None = None
    reuse_gb: float = 2.0
    samples_gb: float = 2.0
    regret: bool = False
    settings: str = ""


class CellRunner:
    """Runs the cells of one process, which share samples, encoder outputs and routes.

    Args:
        run: whose folder gets the samples that the report shows.
        budgets: of all its cells.
    """

    def __init__(
        self,
        model: nn.Module,
        datamodule: Evaluable,
        scorer: Scorer,
        run: RunDirectory,
        options: SuiteOptions,
        budgets: Sequence[float],
    ):
        self.model, self.datamodule, self.scorer, self.run = model, datamodule, scorer, run
        self.options = options
        self.reuse = EncoderReuse(options.reuse_gb) if options.reuse_gb > 0 else None
        self.regrets = Regrets(model, datamodule, scorer.split, budgets) if options.regret and budgets else None

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
