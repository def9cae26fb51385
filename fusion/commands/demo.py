"""dynfusion demo [town=towns/demo] [run=runs/demo] [workers=N] [key=value ...]

From nothing to a report: writes a small synthetic town, trains a camera + LiDAR + radar detector with a router on it,
scores it with all sensors, with every subset of sensors and under sensor faults, and writes RUN/report.html. Every step
that was finished before is not repeated; an interrupted one goes on. Keys of configs/experiment/demo.yaml can be set.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import compose, parse_options, split_arguments
from fusion.run_directory import RunDirectory

SMALLER_BUDGETS = [0.7, 0.5]
ALL_SENSORS = "camera+lidar+radar"


@dataclass
class Options:
    town: str = "towns/demo"
    run: str = "runs/demo"
    workers: int = 0


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.commands import evaluate, report, robustness, synth
    from fusion.robustness.table import robustness_table

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if options.workers < 0:
        raise ValueError(f"expected workers of at least 1 (or 0 for one per core), got {options.workers}")
    console = Console()
    started = time.monotonic()

    def headline(text: str) -> None:
        console.rule(f"[bold]{text}[/bold] ({time.monotonic() - started:.0f} s)", align="left")

    overrides = ["experiment=demo", f"data.root={options.town}", *overrides]
    config = compose(overrides)
    headline(f"1/4 a small town in {options.town}")
    workers = options.workers or os.cpu_count() or 1
    synth.run([f"root={options.town}", "preset=demo", f"workers={workers}"])

    headline(f"2/4 training in {options.run}")
    directory = RunDirectory(Path(options.run))
    if directory.last_checkpoint.is_file():
        console.print(f"going on with the run in {options.run}; remove that folder to train anew")
        training = [f"resume={options.run}"]
    else:
        directory.config.unlink(missing_ok=True)
        training = [*overrides, f"run_dir={options.run}"]
    # A command of its own: Lightning starts it again for the second process.
    done = subprocess.run([sys.executable, "-m", "fusion.cli", "train", *training], check=False)
    if done.returncode:
        return done.returncode

    headline("3/4 breaking sensors")
    evaluate.score_run(evaluate.Options(run=options.run), [], console)
    broken = robustness.run_suite(robustness.Options(run=[options.run], suite=config.suite), [], console)
    # The same weights with less to spend: what the router keeps.
    leaner = robustness.Options(run=[options.run], suite=config.suite, budgets=SMALLER_BUDGETS, scenarios=[ALL_SENSORS])
    budgets = robustness.run_suite(leaner, [], console)

    headline("4/4 the report")
    console.print(robustness_table(broken.cells))
    console.print(robustness_table([broken.cells[0], *budgets.cells], title="One checkpoint, three budgets"))
    report.run([f"run={options.run}"])
    console.print(f"done in {(time.monotonic() - started) / 60:.1f} minutes")
    return max(broken.exit_code, budgets.exit_code)
