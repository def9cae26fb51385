"""dynfusion adaptive run=RUN [budgets=[0.45,...]] [cap=1.0] [split=SPLIT] [ablation=true] [key=value ...]
dynfusion adaptive run=RUN controls=true [split=SPLIT] [key=value ...]
dynfusion adaptive merge=[RUN,...] [out=FILE.md]

One budget for router, early exits and tokens. Runs a labelled split under a grid of routes and token rates, chooses for
each budget the bound on the route, the exits' thresholds and the token rate of least loss that keep it on average, and
writes RUN/adaptive.json: evaluate, robustness and stream then use it wherever they are given a budget. cap is the most
that a bound on a route may be, as a share of the full cost; a budget above it is its own. It also says how well the
exits' probabilities are calibrated, and what budgets cost on scenes that their settings were not found on.

ablation=true also scores router, exits and tokens alone, in pairs and together at every budget, each sample with
settings found on other scenes, one sample at a time, and writes RUN/ablation.json. controls=true adds to that file what
random routes, the best static route and an oracle over static routes give for at most what all three executed; with
ablation=true it follows at once. merge joins the tables of several runs; all rows of them are written beside out, as
.jsonl.
"""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fusion.commands.adaptive_ablation import ablated, control_run, merged, origin_of, write_ablation
from fusion.commands.compose import parse_options, split_arguments

DEFAULT_BUDGETS = (0.45, 0.55, 0.7, 0.85, 1.0)


@dataclass
class Options:
    run: str = ""
    budgets: list[float] = field(default_factory=list)
    cap: float = 1.0
    split: str = ""
    ablation: bool = False
    controls: bool = False
    merge: list[str] = field(default_factory=list)
    out: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    console = Console()
    if options.merge:
        text = merged(options)
        console.print(text, markup=False, soft_wrap=True)
        return 0
    if not options.run:
        raise ValueError("expected run=RUN or merge=[RUN,...], got neither; see dynfusion adaptive --help")
    if options.ablation or not options.controls:
        calibrate_run(options, overrides, console)
    if options.controls:
        control_run(options, overrides, console)
    return 0


def calibrate_run(options: Options, overrides: list[str], console) -> None:
    """Observe, allocate, write; and the ablation where it is asked for."""
    from fusion.adaptive.ablation import ablation_table, fold_candidates
    from fusion.adaptive.allocation import SharedBudget, policy_name
    from fusion.adaptive.files import FILE, write_shared_budget
    from fusion.adaptive.search import allocated, candidates
    from fusion.commands.runs import open_run
    from fusion.efficiency.replay import require_replayable
    from fusion.robustness.fingerprint import model_word
    from fusion.trunk.exits_fitted import table_of

    opened = open_run(Path(options.run), overrides, options.allow, calibrated=False)
    model, split = opened.model, options.split or opened.config.data.val_split
    if opened.plan_source is not None:
        raise ValueError(
            f"expected a run whose last stage trains the router, got {options.run}; train it with stages=adaptive"
        )
    budgets = checked_budgets(options, model.min_budget)
    if options.controls:
        require_replayable(model)
    # Each sample by itself, kept in memory: they are run many times.
    batches = list(opened.data.evaluation_loader(split, batch_size=1))
    folds = scene_halves(batches, needed=options.ablation)
    started = time.monotonic()
    with console.status("") as status:
        calibrated = calibrated_exits(model, batches, folds, status.update)
        observations = observed(model, batches, status.update)
        found = candidates(observations)
        chosen = [allocated(found, budget, cap=options.cap) for budget in budgets]
        exits = model.exits
        shared = SharedBudget(
            chosen,
            () if exits is None else exits.temperatures,
            model_word(model),
            policy_name(None if exits is None else exits.policy),
            None if exits is None else table_of(exits.policy),
        )
        halves = None if folds is None else fold_candidates(observations, folds)
        report, tables = reported(observations, chosen, calibrated, halves, folds, options.cap)
        write_shared_budget(opened.directory.path / FILE, shared, split, len(batches), report)
        for table in tables:
            console.print(table)
        if options.ablation:
            asked = replace(options, split=split, budgets=budgets)
            cells = ablated(opened, batches, halves, folds, asked, status.update)
            write_ablation(opened.directory.path / "ablation.json", cells, origin_of(opened, split, len(batches)))
    if options.ablation:
        console.print(ablation_table([cells]), markup=False, soft_wrap=True)
    console.print(f"done in {(time.monotonic() - started) / 60:.1f} minutes", highlight=False)


def scene_halves(batches: list, needed: bool) -> list[int] | None:
    """0 or 1 for each sample, whole scenes together; None for a single scene, of which nothing can be held out.

    Raises:
        ValueError: a single scene where halves are ``needed``.
    """
    from fusion.adaptive.ablation import folds_by_scene

    several = len({scene for batch in batches for scene in batch.scenes}) > 1
    return folds_by_scene(batches) if several or needed else None


def calibrated_exits(model, batches: list, folds: list[int] | None, say) -> list:
    """Temperatures of all exits at the full route, and numbers of their policy: scores are taken with both."""
    from fusion.adaptive.fit_policy import fit_policy
    from fusion.adaptive.observe import observe
    from fusion.adaptive.reliable import calibrate_exits, set_temperatures
    from fusion.adaptive.settings import TokenLevel

    say("temperatures of the exits")
    (full,) = observe(model, batches, [None], [TokenLevel()])
    found = calibrate_exits(full.peaks, folds)
    set_temperatures(model, found)
    say("numbers of the exit policy")
    fit_policy(model, batches)
    return found


def reported(observations, chosen: list, calibrated: list, halves, folds: list[int] | None, cap: float):
    """What adaptive.json says beside the settings, and the tables to print."""
    from fusion.adaptive.held_out import held_out
    from fusion.adaptive.mixing import as_run
    from fusion.adaptive.reliable import calibrate_answers
    from fusion.adaptive.tables import allocation_table, held_out_table, reliability_table

    runs = {place: as_run(observations, one) for place, one in enumerate(chosen)}
    tables = {place: (one.scores, one.peaks) for place, one in runs.items() if one is not None}
    placed = list(enumerate(chosen))
    answers = calibrate_answers(tables, placed, [one.temperature for one in calibrated])
    report = {"exits": [asdict(one) for one in calibrated], "answers": [asdict(one) for one in answers]}
    shown = [allocation_table(chosen), reliability_table(calibrated, answers, folds is not None)]
    if folds is not None:
        rows = [held_out(observations, halves, folds, one.budget, cap) for one in chosen]
        rows = [row for row in rows if row is not None]
        report["held_out"] = [row.row() for row in rows]
        shown.append(held_out_table(rows))
    return report, shown


def checked_budgets(options: Options, min_budget: float) -> list[float]:
    """The budgets asked for, or the default ones that the model can keep.

    Raises:
        ValueError: a budget or a cap that is not possible.
    """
    budgets = options.budgets or [budget for budget in DEFAULT_BUDGETS if budget >= min_budget]
    wrong = [budget for budget in budgets if not min_budget - 1e-6 <= budget <= 1 + 1e-6]
    if wrong:
        raise ValueError(
            f"expected budgets in [{min_budget:.4f}, 1] (from the least that the always-on part, every exit's head "
            f"among it, and the cheapest unit cost), got {wrong[0]:g}"
        )
    if not min_budget <= options.cap <= 1:
        raise ValueError(f"expected cap in [{min_budget:.4f}, 1], got {options.cap:g}")
    return sorted(budgets)


def observed(model, batches: list, say):
    """Observations over a grid of routes and token rates."""
    from fusion.adaptive.observe import observe
    from fusion.adaptive.settings import token_levels

    least = model.min_budget
    bounds = [least + (1 - least) * step / 7 for step in range(8)]
    levels = token_levels(model, batches[:: max(len(batches) // 16, 1)])
    return observe(
        model,
        batches,
        [None, *bounds],
        levels,
        progress=lambda done: say(f"observing: sample {done} of {len(batches)}"),
    )
