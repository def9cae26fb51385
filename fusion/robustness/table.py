"""The robustness table in the terminal."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fusion.robustness.cells import CLEAN, ROUTER, SENSOR_NAMES, Cell
from fusion.robustness.metrics import resilience
from fusion.robustness.summary import summary_of

SECTIONS = ("clean", "sensor subsets", "faults")


def section_of(cell: Cell) -> str:
    """Which part of the table a cell belongs to."""
    if cell.is_clean:
        return SECTIONS[0]
    return SECTIONS[1] if cell.kept_sensors else SECTIONS[2]


def robustness_table(cells: Sequence[Cell], title: str = "Robustness") -> Table:
    """Rows: clean data, the sensor subsets, the faults; scores, cost and which sensors ran.

    A cell that could not run has its reason instead of numbers; a doubtful one is marked with ``!``.
    """
    show_budget = len({cell.budget for cell in cells}) > 1
    # Narrow enough for 80 columns, also where the output is a file.
    layout = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table(title=title, title_justify="left", header_style="bold", **layout)
    # The only column that may wrap: numbers are never cut.
    table.add_column("scenario", no_wrap=not show_budget)
    if show_budget:
        table.add_column("budget", justify="right", no_wrap=True)
    for name in ("mAP", "NDS", "kept", "GFLOPs", "ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in SENSOR_NAMES.values():
        table.add_column(name, justify="right", no_wrap=True)
    for section in SECTIONS:
        rows = [cell for cell in cells if section_of(cell) == section]
        for index, cell in enumerate(rows):
            title = cell.title if cell.policy == ROUTER else f"{cell.title} ({cell.policy})"
            name = Text(title + (" !" if cell.warning else ""), style="bold" if cell.is_clean else "")
            budget = [f"{cell.budget:g}"] if show_budget else []
            table.add_row(name, *budget, *_values(cell, cells), end_section=index == len(rows) - 1)
    table.caption = _caption(cells)
    table.caption_justify = "left"
    return table


def _values(cell: Cell, cells: Sequence[Cell]) -> list[str | Text]:
    if cell.metrics is None:
        return [Text("failed", style="bold red")] + [Text("-", style="dim")] * 7
    kept = resilience(cell, cells)
    shares = [cell.sensor_shares[name] for name in SENSOR_NAMES]
    return [
        f"{cell.metrics.mean_ap:.3f}",
        f"{cell.metrics.nds:.3f}",
        "" if math.isnan(kept) else f"{kept:.0%}",
        f"{cell.gflops:.2f}" if cell.gflops else "-",
        f"{cell.ms:.1f}",
        *(Text(f"{share:.0%}", style="dim" if share == 0 else "") for share in shares),
    ]


def _caption(cells: Sequence[Cell]) -> str:
    lines = [
        "kept: NDS relative to all sensors. GFLOPs executed and ms (forward + decoding) per sample.",
        "camera, LiDAR, radar: share of samples that ran anything of the sensor.",
    ]
    lines += [f"! {cell.title}: {cell.warning}" for cell in cells if cell.warning]
    lines += [f"failed: {cell.title}, budget {cell.budget:g}: {cell.error}" for cell in cells if cell.error]
    return "\n".join(lines)


def comparison_table(runs: Mapping[str, Sequence[Cell]]) -> Table:
    """NDS of several runs side by side, then their mRA, and mCE and mRRA against the first."""
    layout = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    table = Table(title="NDS, side by side", title_justify="left", header_style="bold", **layout)
    table.add_column("scenario", no_wrap=True)
    for name in runs:
        table.add_column(name, justify="right")
    keys = list(dict.fromkeys(_place(cell) for cells in runs.values() for cell in cells))
    for key in keys:
        found = [next((cell for cell in cells if _place(cell) == key), None) for cells in runs.values()]
        title = next(cell.title for cell in found if cell is not None)
        mark = "" if key[1] == 1 else f" @{key[1]:g}"
        mark += "" if key[2] == ROUTER else f" ({key[2]})"
        table.add_row(title + mark, *(_nds(cell) for cell in found))
    table.add_section()
    first = next(iter(runs.values()))
    summaries = [summary_of(cells, None if cells is first else first)["at"][0] for cells in runs.values()]
    for word in ("mRA", "mCE", "mRRA"):
        values = [summary["nds"].get(word) for summary in summaries]
        if any(value is not None for value in values):
            table.add_row(word, *("-" if value is None else f"{round(value, 3) + 0.0:.3f}" for value in values))
    return table


def _place(cell: Cell) -> tuple[str, float, str]:
    return cell.scenario if cell.steps else CLEAN, cell.budget, cell.policy


def _nds(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return "failed" if cell.metrics is None else f"{cell.metrics.nds:.3f}"
