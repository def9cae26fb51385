"""Score one model under many scenarios and budgets; what is done stays done."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from torch import nn

from fusion.robustness.axes import Planned, own_cells, planned_cells
from fusion.robustness.cell_runner import CellRunner, Evaluable, Progress, SuiteOptions
from fusion.robustness.cells import append_cell
from fusion.robustness.lock import only_writer
from fusion.robustness.results import SuiteResult, cells_before, warned
from fusion.robustness.run_word import run_word
from fusion.robustness.seen import seen_in_training, trained_faults
from fusion.run_directory import RunDirectory
from fusion.scoring.scorer import Scorer
from sensors.faults.suites import Scenario


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
    holds already, from the same weights, data, configuration and code (``fusion.robustness.run_word``), are not run
    again; those that could not run are. A cell that cannot run is recorded with its reason and the rest goes on.
    Samples, and encoder outputs of sensors that a scenario leaves alone, come from the cells before it.

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
    check_budgets(model, budgets)
    planned = planned_cells(scenarios, budgets, options.policies)
    if options.share is not None:
        planned = own_cells(planned, options.share)
    with only_writer(Path(run_dir)) if options.share is None else nullcontext():
        run = RunDirectory(Path(run_dir))
        word = run_word(model, datamodule, scorer, run.path, options.settings)
        runner = CellRunner(model, datamodule, scorer, run, options, tuple(dict.fromkeys(map(float, budgets))))
        return _run(runner, planned, word, progress)


def check_budgets(model: nn.Module, budgets: Sequence[float]) -> None:
    """Raises ValueError for a budget below what the model can keep to, or above 1."""
    for budget in budgets:
        if not model.min_budget <= budget <= 1:
            raise ValueError(
                f"expected budgets from {model.min_budget:.3f} (the model's minimum) to 1, got {budget}; change budgets"
            )


def _run(runner: CellRunner, planned: Sequence[Planned], word: str, progress: Progress | None) -> SuiteResult:
    path, trained = runner.run.robustness, trained_faults(runner.run.config)
    before = cells_before(runner.run.path, word, runner.options.regret)
    num_done = before.num_done(planned, word)
    cells = []
    with runner.samples_held() if len(planned) - num_done > 1 else nullcontext():
        for index, plan in enumerate(planned):
            blank = plan.blank(word, seen_in_training(plan.scenario, trained))
            cell = before.done.get(blank.key)
            if cell is None:
                cell = runner.run_cell(plan.scenario, blank, cells, _shifted(progress, index, len(planned)))
                cell = warned(cell, cells)
                append_cell(path, cell)
            cells.append(cell)
    return SuiteResult(tuple(cells), num_done, before.left_out)


def _shifted(progress: Progress | None, index: int, num_cells: int) -> Progress | None:
    """Progress of one cell as that of the whole suite; all cells have the same number of batches."""
    if progress is None:
        return None
    return lambda label, done, total: progress(label, index * total + done, num_cells * total)
