"""dynfusion robustness run=RUN [suite=NAME] [budgets=[1.0,0.5]] [scenarios=[NAME,...]] [split=SPLIT] [key=value ...]

Scores a run under every scenario of a suite (sensor failures, missing sensors) at every budget. Each cell is written to
robustness.jsonl as it ends: an interrupted suite goes on with the same command. Exit code 1 if a cell could not run.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    suite: str = ""
    budgets: list[float] = field(default_factory=lambda: [1.0])
    scenarios: list[str] = field(default_factory=list)
    split: str = ""
    device: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.robustness.table import robustness_table

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion robustness --help")
    console = Console()
    result = run_suite(options, overrides, console)
    console.print(robustness_table(result.cells))
    if result.num_skipped:
        console.print(f"{result.num_skipped} of {len(result.cells)} cells were there already")
    return result.exit_code


def run_suite(options: Options, overrides: list[str], console):
    """All cells of the suite, and the samples that the report shows."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fusion.commands.runs import device_named, open_run
    from fusion.report.gallery import save_report_samples
    from fusion.robustness.suite import run_scenarios
    from fusion.scoring.scorer import Scorer

    opened = open_run(Path(options.run), overrides, options.allow)
    scenarios = chosen_scenarios(options.suite or opened.config.suite, options.scenarios)
    split = options.split or opened.config.data.val_split
    opened.model.to(device_named(options.device))
    frames = opened.data.frames(split)
    scorer = Scorer(opened.config.data.root, opened.config.data.version, split)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("robustness", total=None)
        result = run_scenarios(
            opened.model,
            opened.data,
            scorer,
            scenarios,
            options.budgets,
            opened.directory.path,
            progress=lambda label, done, total: bar.update(task, description=label, completed=done, total=total),
            plan_source=opened.plan_source,
        )
    save_report_samples(opened.directory.path, frames, scenarios)
    return result


def chosen_scenarios(suite: str, names: list[str]):
    """Scenarios of a suite, or those among them that are named.

    Raises:
        ValueError: an unknown suite or scenario.
    """
    from sensors.faults.suites import suite_named

    scenarios = suite_named(suite)
    unknown = sorted(set(names) - {scenario.name for scenario in scenarios})
    if unknown:
        known = ", ".join(scenario.name for scenario in scenarios)
        raise ValueError(f"expected scenarios among {known}, got {', '.join(unknown)}")
    return [scenario for scenario in scenarios if not names or scenario.name in names]
