"""dynfusion summary [model=base] [key=value ...]

Prints parameters and GFLOPs of a model: every unit and branch, the always-on part, and the least budget it can keep.
"""

from fusion.commands.compose import compose, instantiate


def run(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    from fusion.efficiency.summary import summary_of

    config = compose(arguments)
    model = instantiate(config.model)
    table = Table(title="parameters and forward GFLOPs of one sample (1 MAC = 2 FLOPs)")
    for heading in ("part", "parameters", "GFLOPs", "share"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for row in summary_of(model):
        table.add_row(row.name, f"{row.parameters:,}", f"{row.gflops:.3f}", f"{row.share:.1%}")
    table.caption = f"least budget: {model.min_budget:.3f}"
    Console().print(table)
    return 0
