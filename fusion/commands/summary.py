"""dynfusion summary [model=base] [key=value ...]

Prints parameters and GFLOPs of a model: every unit and branch, the always-on part, and the least budget it can keep.
"""

from fusion.commands.compose import compose, instantiate


def run(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from fusion.efficiency.summary import summarize
    from fusion.ops.pretrained import without_fetching

    with without_fetching():
        summary = summarize(instantiate(compose(arguments).model))
    table = Table(title="parameters and forward GFLOPs of one sample (1 MAC = 2 FLOPs)")
    for heading in ("unit", "part", "parameters", "GFLOPs", "share"):
        table.add_column(heading, justify="left" if heading in ("unit", "part") else "right")
    for row in summary.rows:
        table.add_row(row.unit, row.part, f"{row.num_parameters:,}", f"{row.gflops:.3f}", f"{row.share:.1%}")
    table.add_section()
    table.add_row("all", "full", f"{summary.num_parameters:,}", f"{summary.full_gflops:.3f}", "100.0%")
    table.caption = f"least budget: {summary.min_budget:.3f}"
    Console().print(table)
    return 0
