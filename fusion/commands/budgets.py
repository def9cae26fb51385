"""dynfusion budgets run=RUN [budgets=[0.4,0.6,1.0]] [policy=argmax] [faults=false] [split=SPLIT] [key=value ...]
dynfusion budgets runs=[RUN,RUN,...] [faults=false] [out=FILE]

One checkpoint at several budgets, beside what a router has to beat at equal executed cost: random routes, its own
routes dealt out to other samples, the best static route, and an oracle (an upper bound). NDS, mAP, executed GFLOPs,
milliseconds, distinct routes and what they have to do with weather and faults. Writes budgets.jsonl into the run
directory (budgets-faults.jsonl with faults=true) and prints a Markdown table.

budgets=[] takes five from the model's least budget to 1. policy=threshold keeps the budget on average by a price that
is calibrated on the other half of the scenes. faults=true lets the sensors fail as at the end of training. draws=1 is
the number of draws of the controls, timed=12 the number of samples whose milliseconds are measured. Early exits and
kept tokens are at rest: nobody leaves early, tokens take part at the rate they learnt (dynfusion adaptive scores them).

With runs=[...] the rows of several runs (seeds) become one table with mean and spread; out=FILE writes it.
"""

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    runs: list[str] = field(default_factory=list)
    budgets: list[float] = field(default_factory=list)
    policy: str = "argmax"
    faults: bool = False
    split: str = ""
    draws: int = 1
    timed: int = 12
    seed_of_controls: int = 0
    device: str = ""
    out: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.efficiency.budget_table import as_markdown, merged, read_rows
    from fusion.run_directory import write_text

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if bool(options.run) == bool(options.runs):
        raise ValueError("expected run=RUN or runs=[RUN,RUN,...]; see dynfusion budgets --help")
    console = Console()
    if options.run:
        runs = [study_run(options, overrides, console)]
    else:
        runs = [read_rows(rows_file(Path(path), options)) for path in options.runs]
    table = as_markdown(merged(runs), len(runs))
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    if options.out:
        write_text(Path(options.out), table + "\n")
    return 0


def rows_file(run_path: Path, options: Options) -> Path:
    """Where the rows of a run lie."""
    return run_path / ("budgets-faults.jsonl" if options.faults else "budgets.jsonl")


def study_run(options: Options, overrides: list[str], console):
    """Study one run and write its rows."""
    from fusion.commands.runs import device_named, open_run
    from fusion.efficiency.budget_run import study_budgets
    from fusion.efficiency.budget_study import StudySettings
    from fusion.efficiency.budget_table import rows_of, write_rows
    from fusion.efficiency.latency import device_name
    from fusion.robustness.fingerprint import model_word
    from fusion.scoring.scorer import Scorer

    opened = open_run(Path(options.run), overrides, options.allow, calibrated=False)
    opened.require_router()
    model, config = opened.model, opened.config
    split = options.split or config.data.val_split
    device = device_named(options.device)
    loader = opened.data.evaluation_loader(split, opened.corruptor(options.faults), batch_size=1)
    scorer = Scorer(config.data.root, config.data.version, split)
    budgets = options.budgets or five_budgets(model.min_budget)
    settings = StudySettings(budgets, options.policy, options.draws, options.timed, options.seed_of_controls)
    with console.status("") as status:
        study = study_budgets(
            model,
            lambda: loader,
            settings,
            device,
            progress=lambda what, done: status.update(f"{what}: sample {done} of {len(loader)}"),
        )
        status.update("scoring")

        def score(detections) -> tuple[float, float]:
            metrics = scorer.score(detections)
            return metrics.nds, metrics.mean_ap

        rows = rows_of(
            study,
            score,
            run=opened.directory.path.name,
            checkpoint=model_word(model),
            data=opened.data_name(split, options.faults),
            full_gflops=float(model.prices().full_gflops),
            device=device_name(device),
            clock="processor time of one thread" if device.type == "cpu" else "wall time",
            date=datetime.date.today().isoformat(),
        )
    write_rows(rows_file(opened.directory.path, options), rows)
    return rows


def five_budgets(least: float) -> list[float]:
    """From the least to 1 in equal steps; the first one step above the least, where there is something to choose."""
    return [round(least + (1 - least) * share, 3) for share in (0.1, 0.3, 0.5, 0.75, 1.0)]
