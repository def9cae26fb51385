"""dynfusion robustness run=RUN[,RUN...] [suite=NAME] [budgets=1.0,0.7] [policy=router,random] [key=value ...]
dynfusion robustness run=FOLDER detector=MODULE.CLASS allow=MODULE.CLASS data.root=FOLDER [suite=NAME] [key=value ...]

Scores a run under every scenario of a suite (sensor failures, missing sensors) at every budget. Each cell is written to
robustness.jsonl as it ends: an interrupted suite goes on with the same command. Several runs are scored one after the
other and compared, the first being the baseline. Exit code 1 if a cell could not run.

regret=true adds what the router's routes lose to those of an oracle at the same mean cost, for one more pass over each
scenario.

Filters: scenarios=NAME,... faults=NAME|FAMILY|MODALITY,... severities=1,2,... (places on a fault's ladder, 1 the
mildest). Sharing out: devices=N starts N processes on this machine, launcher=joblib jobs=N runs N jobs by Hydra's
launcher of that name (joblib, submitit_local, submitit_slurm, ray). split=SPLIT, device=cpu|cuda. reuse_gb=2 is memory
for what cells compute alike, samples_gb=2 for samples as read and prepared; 0 for none. A detector from elsewhere is
built only where allow names it (docs/robustness.md).
"""

from dataclasses import dataclass, field

from fusion.commands.compose import parse_options, split_arguments

_LISTS = ("budgets", "policy", "scenarios", "faults", "severities", "allow", "run")


@dataclass
class Options:
    run: list[str] = field(default_factory=list)
    suite: str = ""
    budgets: list[float] = field(default_factory=lambda: [1.0])
    policy: list[str] = field(default_factory=lambda: ["router"])
    scenarios: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    severities: list[int] = field(default_factory=list)
    split: str = ""
    device: str = ""
    devices: int = 1
    launcher: str = ""
    jobs: int = 2
    share: str = ""
    reuse_gb: float = 2.0
    samples_gb: float = 2.0
    regret: bool = False
    detector: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.robustness.table import comparison_table, robustness_table

    own, overrides = split_arguments(arguments, Options)
    options = parse_options([as_list(argument) for argument in own], Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion robustness --help")
    console = Console()
    results = []
    for name in options.run:
        result = run_suite(options, overrides, console, name, results[0].cells if results else None)
        if result is None:  # a process that helps another one
            return 0
        results.append(result)
        console.print(robustness_table(result.cells, title=name if len(options.run) > 1 else "Robustness"))
        if result.num_skipped:
            console.print(f"{result.num_skipped} of {len(result.cells)} cells were there already")
        if result.left_out:
            console.print(result.left_out, markup=False, highlight=False, soft_wrap=True)
    if len(results) > 1:
        console.print(comparison_table(dict(zip(options.run, [result.cells for result in results], strict=True))))
    return max(result.exit_code for result in results)


def as_list(argument: str) -> str:
    """``budgets=1.0,0.5`` means ``budgets=[1.0,0.5]``."""
    key, equals, value = argument.partition("=")
    return f"{key}=[{value}]" if equals and key in _LISTS and not value.startswith("[") else argument


def run_suite(options: Options, overrides: list[str], console, name: str = "", baseline=None):
    """All cells of the suite, the samples that the report shows, and ``robustness.json``.

    Returns None in a process that only runs its share for another one.
    """
    from fusion.commands import suite_jobs, suite_target
    from fusion.robustness.axes import chosen_scenarios
    from fusion.robustness.cell_runner import SuiteOptions
    from fusion.robustness.suite import check_budgets

    if options.devices < 1 or (options.launcher and options.devices > 1):
        raise ValueError(f"expected devices of at least 1, and launcher= without it, got devices={options.devices}")
    name = name or options.run[0]
    target = suite_target.opened_target(options, overrides, name)
    scenarios = chosen_scenarios(options.suite or target.suite, options.scenarios, options.faults, options.severities)
    check_budgets(target.model, options.budgets)
    if options.regret and target.plan_source is not None:
        raise ValueError("expected a run whose router was trained for regret=true, got a fixed route; leave it out")
    suite_options = SuiteOptions(
        tuple(options.policy),
        target.plan_source,
        reuse_gb=options.reuse_gb,
        samples_gb=options.samples_gb,
        regret=options.regret,
        settings=target.settings,
    )
    work = suite_jobs.Work(target, scenarios, tuple(options.budgets), suite_options, console)
    if options.share:
        work.run(suite_jobs.share_named(options.share))
        return None
    if options.launcher:
        result = suite_jobs.launched(work, options, overrides, name)
    elif options.devices > 1:
        result = suite_jobs.on_devices(work, options.devices)
        if result is None:
            return None
    else:
        result = work.run()
    suite_target.keep(target, result, scenarios, baseline)
    return result
