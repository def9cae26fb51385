"""What every setting of router, exits and tokens would give and cost on a calibration set, sample by sample."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.adaptive.allocation import Allocation, apply, draws_of
from fusion.adaptive.reliable import NUM_PEAKS, PeakTable, joined_tables, peak_table
from fusion.adaptive.settings import Setting, TokenLevel
from fusion.heads.center import HeadOutput
from fusion.heads.targets import CenterTargets, center_targets
from fusion.model import FusionOutput
from fusion.robustness.reuse import EncoderReuse
from fusion.routing.costs import ALWAYS
from fusion.routing.plan import ExecutionTrace
from fusion.trunk.exits_losses import exit_losses


@dataclass(frozen=True, eq=False)
class Observation:
    """One setting on N samples; K exits, the model's own head last.

    Attributes:
        scores: of each early exit.
        losses: detection loss at each exit, on the scale of the mean over the set.
        costs: executed share of the full cost up to each exit, all early heads and merges run.
        head_costs: of each early exit's head; what is saved where an exit is off.
        merge_cost: of each sample, the merge for the first exit, saved where that exit is off.
        peaks: of every exit.
        draws: number of each sample, from its token (``allocation.draws_of``); None: its bound cannot be mixed.
    """

    setting: Setting
    scores: Float64[Tensor, "n e"]
    losses: Float64[Tensor, "n k"]
    costs: Float64[Tensor, "n k"]
    head_costs: tuple[float, ...]
    merge_cost: Float64[Tensor, "n"]
    peaks: PeakTable
    draws: Float64[Tensor, "n"] | None = None

    def costs_with(self, is_on: Sequence[bool]) -> Float64[Tensor, "n k"]:
        """Costs where only some of the exits run."""
        costs = self.costs.clone()
        for number, on in enumerate(is_on):
            if not on:
                costs[:, number:] -= self.head_costs[number] + (self.merge_cost[:, None] if number == 0 else 0.0)
        return costs

    def select(self, rows: Tensor) -> "Observation":
        """Some of the samples."""
        parts = (getattr(self, name)[rows] for name in ("scores", "losses", "costs"))
        draws = None if self.draws is None else self.draws[rows]
        return Observation(self.setting, *parts, self.head_costs, self.merge_cost[rows], self.peaks.select(rows), draws)


@dataclass
class _Rows:
    scores: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    costs: list[Tensor] = field(default_factory=list)
    merges: list[Tensor] = field(default_factory=list)
    peaks: list[PeakTable] = field(default_factory=list)


@torch.inference_mode()
def observe(
    model: nn.Module,
    batches: Iterable[Batch],
    route_budgets: Sequence[float | None],
    levels: Sequence[TokenLevel],
    progress: Callable[[int], None] | None = None,
) -> list[Observation]:
    """Run a labelled set under every pair of a bound on the route and a level of the tokens, nobody leaving early.

    What bounds have in common runs once: encoders on the same input; but view encoders that say afterwards what they
    cost, such as ViTs, once for each bound, and for each rate. For each further threshold of the BEV tokens only what
    comes after the last exit runs once more.

    Args:
        model: a FusionModel, in evaluation mode; left with everything open.
        progress: called with the number of batches done.

    Raises:
        ValueError: no samples, or samples without labels.
    """
    rows = {_setting(bound, level): _Rows() for bound in route_budgets for level in levels}
    num_boxes = num_samples = 0
    tokens: list[str] = []
    shared, model.shared_budget = model.shared_budget, None
    try:
        for done, batch in enumerate(batches, start=1):
            if batch.boxes is None:
                raise ValueError("expected labels to calibrate on, got a split without any; choose another")
            targets = center_targets(batch.boxes, len(batch), model.head.grid)
            tokens += batch.tokens
            num_boxes, num_samples = num_boxes + len(targets.sample), num_samples + len(batch)
            with EncoderReuse().applied(model):  # of this batch: no other has its inputs
                for bound in route_budgets:
                    for setting, output in _passes(model, batch, bound, levels):
                        _note(rows[setting], model, output, targets)
            if progress is not None:
                progress(done)
    finally:
        model.shared_budget = shared
        apply(model, Allocation(1.0, 1.0))
        if model.exits is not None:
            model.exits.observing = False
    if not num_samples:
        raise ValueError("expected samples to calibrate on, got none; choose a split that has samples")
    full, scale = model.prices().full_gflops, num_samples / max(num_boxes, 1)
    heads = () if model.exits is None else tuple(gflops / full for gflops in model.exits.exit_gflops)
    return [
        Observation(
            setting,
            torch.cat(own.scores).double(),
            torch.cat(own.losses).double() * scale,
            torch.cat(own.costs) / full,
            heads,
            torch.cat(own.merges) / full,
            joined_tables(own.peaks),
            draws_of(tokens),
        )
        for setting, own in rows.items()
    ]


def _setting(bound: float | None, level: TokenLevel) -> Setting:
    return Setting(bound, level.threshold, level.view_rate)


def _passes(model: nn.Module, batch: Batch, bound: float | None, levels: Sequence[TokenLevel]):
    """(setting, output) of one batch under one bound; every exit answers for every sample."""
    repeats = model.exits is None or (model.exits.combine is None and not model.exits.cascade)
    kept: list[Tensor] = []
    hooks = [stage.register_forward_pre_hook(lambda _, given: kept.append(given[0])) for stage in model.trunk.stages]
    try:
        output = _run(model, batch, bound, levels[0])
    finally:
        for hook in hooks:
            hook.remove()
    yield _setting(bound, levels[0]), output
    maps, first_saved = kept[1:], _saved(model)
    for level in levels[1:]:
        if not repeats or level.view_rate != levels[0].view_rate:
            yield _setting(bound, level), _run(model, batch, bound, level)
            continue
        _apply(model, level)
        head = model.head(model.trunk.neck([*maps, model.trunk.stages[-1](maps[-1])]))
        yield (
            _setting(bound, level),
            _again(output, head, [new - old for new, old in zip(_saved(model), first_saved, strict=True)]),
        )


def _apply(model: nn.Module, level: TokenLevel) -> None:
    apply(model, Allocation(1.0, 1.0, token_threshold=level.threshold, view_rate=level.view_rate))


def _run(model: nn.Module, batch: Batch, bound: float | None, level: TokenLevel) -> FusionOutput:
    _apply(model, level)
    if model.exits is not None:
        model.exits.observing = True
    plan = model.full_plan(batch) if bound is None else None
    return model(batch, budget=1.0 if bound is None else bound, plan=plan, is_capped=True)


def _saved(model: nn.Module) -> list[float]:
    return getattr(model.trunk, "saved_gflops", lambda: None)() or []


def _again(output: FusionOutput, head: HeadOutput, saved: list[float]) -> FusionOutput:
    """The same pass with another last answer, which cost less by ``saved``."""
    trace = ExecutionTrace(output.trace.num_samples, list(output.trace.executions))
    for row, gflops in enumerate(saved):
        trace.add(ALWAYS, "trunk", (row,), -gflops)
    run = output.exits
    if run is not None:
        run = type(run)(run.exit_of, run.scores, (*run.outputs[:-1], head))
    return FusionOutput(head, output.plan, trace, None, run)


def _note(rows: _Rows, model: nn.Module, output: FusionOutput, targets: CenterTargets) -> None:
    run = output.exits
    answers = [output.head] if run is None else list(run.outputs)
    costs, merges = costs_by_exit(output.trace, len(answers) - 1)
    rows.scores.append(output.head.heatmap.new_zeros(len(costs), 0) if run is None else run.scores)
    rows.losses.append(exit_losses(answers, targets) * max(len(targets.sample), 1))
    rows.costs.append(costs)
    num_peaks = NUM_PEAKS if model.exits is None else model.exits.num_peaks
    rows.peaks.append(peak_table(answers, targets, model.head.grid, num_peaks))
    rows.merges.append(torch.where(merges > 1, model.prices().always["merge"], 0.0).double())


def costs_by_exit(trace: ExecutionTrace, num_early: int) -> tuple[Float64[Tensor, "b k"], Float64[Tensor, "b"]]:
    """GFLOPs spent by each sample up to each exit in a pass in which nobody left, and how often it was merged."""
    spent = torch.zeros(trace.num_samples, dtype=torch.float64)
    merges, visits = torch.zeros_like(spent), [0] * trace.num_samples
    costs = torch.zeros(trace.num_samples, num_early + 1, dtype=torch.float64)
    router = torch.zeros_like(spent)
    for execution in trace.executions:
        for row in execution.rows:
            if (execution.unit, execution.branch) == (ALWAYS, "router"):
                router[row] += execution.gflops_per_row
                continue
            spent[row] += execution.gflops_per_row
            if execution.unit == ALWAYS and execution.branch == "merge":
                merges[row] += 1
            if execution.unit == ALWAYS and execution.branch == "exits":
                costs[row, visits[row]] = spent[row]
                visits[row] += 1
    costs[:, -1] = spent
    return costs + router[:, None], merges
