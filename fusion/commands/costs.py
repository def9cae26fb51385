"""dynfusion costs run=RUN [budgets=[1.0]] [split=SPLIT] [faults=false] [rows=[1,2,4,6]] [repeats=5] [key=value ...]

What a run costs on this machine. Writes latency.json (milliseconds of every unit, branch and number of rows at batch 1,
which policy=deadline of dynfusion stream uses), latency-B.json for further batches=[4,16], and costs.json: for every
budget the executed GFLOPs per sample with their histogram, by condition and by fault, the share of every part (the
always-on ones by name), the time of router and dispatch, and joules per sample: by the machine's counters (NVML, RAPL)
where they can be read, else by the documented model.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    budgets: list[float] = field(default_factory=lambda: [1.0])
    batches: list[int] = field(default_factory=lambda: [1])
    rows: list[int] = field(default_factory=lambda: [1, 2, 4, 6])
    repeats: int = 5
    split: str = ""
    faults: bool = False
    device: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion costs --help")
    if not options.batches or min(options.batches) < 1:
        raise ValueError(f"expected batches of at least 1 sample, got {options.batches}")
    console = Console()
    for text in measured(options, overrides, console):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def measured(options: Options, overrides: list[str], console) -> list[str]:
    """Measure, write the files, and return what to show."""
    from fusion.commands.runs import device_named, open_run
    from fusion.run_directory import write_json

    opened = open_run(Path(options.run), overrides, options.allow)
    split = options.split or opened.config.data.val_split
    opened.corruptor(options.faults)  # a mistake is told before anything is timed
    device = device_named(options.device)
    opened.model.to(device)
    with console.status("timing every part"):
        tables = latency_tables(opened, split, options, device)
    shown, budgets = [latency_text(tables[0])], {}
    for budget in options.budgets:
        with console.status(f"running the split at budget {budget:g}"):
            content, text = budget_costs(opened, split, options, device, budget)
        budgets[f"{budget:g}"] = content
        shown.append(text)
    prices = opened.model.prices()
    write_json(
        opened.directory.path / "costs.json",
        {
            "device": tables[0].device,
            "date": tables[0].date,
            "split": split,
            "full_gflops": prices.full_gflops,
            "always_gflops": dict(prices.always),
            "always_share": prices.always_share,
            "dispatch_ms": tables[0].parts["dispatch"],
            "budgets": budgets,
        },
    )
    return shown


def latency_tables(opened, split: str, options: Options, device) -> list:
    """One table per batch size, written beside the configuration."""
    from fusion.efficiency.latency import measure_latency
    from fusion.run_directory import write_text

    tables = []
    for size in options.batches:
        batch = next(iter(opened.data.evaluation_loader(split, batch_size=size))).to(device)
        rows = sorted({min(count, 6) * len(batch) for count in options.rows} | ({1} if size == 1 else set()))
        tables.append(measure_latency(opened.model, batch, rows, options.repeats))
        name = "latency.json" if size == 1 else f"latency-{size}.json"
        write_text(opened.directory.path / name, tables[-1].to_json())
    return tables


def budget_costs(opened, split: str, options: Options, device, budget: float) -> tuple[dict, str]:
    """Costs of the split at one budget, as plain data and as text."""
    from fusion.efficiency.cost_report import cost_report
    from fusion.efficiency.energy import EnergyModel, energy_reader
    from fusion.scoring.evaluate import evaluate_model

    loader = opened.data.evaluation_loader(split, opened.corruptor(options.faults))
    reader = energy_reader(device.type)
    result = evaluate_model(opened.model, loader, budget=budget, device=device, plan_source=opened.plan_source)
    report = cost_report(result.gflops, result.conditions, result.faults)
    model = EnergyModel()
    modelled = sum(model.computing_j(gflops) for gflops in result.gflops) / len(result.gflops)
    joules = {"computing_by_model": modelled, "measured": None, "counter": None}
    if reader is not None:
        joules |= {"measured": reader.joules() / len(result.tokens), "counter": type(reader).__name__}
    content = {**asdict(report), "branch_shares": result.branch_shares(), "joules": joules, "ms": result.median_ms}
    prices = opened.model.prices()
    measured_j = (
        "no counter is readable" if joules["measured"] is None else f"{joules['measured']:.2f} J by the counter"
    )
    text = (
        f"\nbudget {budget:g}: {report.mean:.3f} GFLOPs per sample, of which always on {prices.always_gflops:.3f}; "
        f"{modelled:.3f} J by the model (nominal), {measured_j} (loading included)\n{report.as_markdown()}\n"
        f"{histogram_text(report)}"
    )
    return content, text


def histogram_text(report) -> str:
    """One line per bin."""
    most = max(report.counts)
    lines = [
        f"{low:9.3f} .. {high:9.3f} GFLOPs  {count:5d} {'#' * round(40 * count / most)}"
        for low, high, count in zip(report.edges, report.edges[1:], report.counts, strict=False)
    ]
    return "\n".join(lines)


def latency_text(table) -> str:
    """Milliseconds as a Markdown table."""
    lines = [f"{table.device}, {table.threads} threads, {table.date}", "| part | rows | ms |", "|---|---:|---:|"]
    for part, sizes in table.parts.items():
        lines += [f"| {part} | {rows} | {ms:.2f} |" for rows, ms in sizes.items()]
    return "\n".join(lines)
