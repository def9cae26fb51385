"""What ``gradients.csv`` of a training says: each sensor's share of the gradient, and whether the exits agree."""

import csv
import re
from pathlib import Path

from markupsafe import Markup

from fusion.report.charts import Line, chart

SENSORS = {"camera": ("camera", 0), "lidar": ("LiDAR", 2), "radar": ("radar", 1)}
"""By name in the file: title and colour, as everywhere on the page."""
MOST_POINTS = 300
Columns = dict[str, list[tuple[float, float | None]]]


def gradient_charts(run_dir: Path) -> list[dict]:
    """Charts with titles; empty where the run kept no gradients.

    Raises:
        ValueError: the file is something else.
    """
    path = Path(run_dir) / "gradients.csv"
    if not path.is_file():
        return []
    columns = read_columns(path)
    drawn = [
        ("Share of each sensor", _shares(columns)),
        ("Agreement of the exits' gradients, cosine", _cosines(columns)),
        ("What the step of each sensor is scaled by", _factors(columns)),
    ]
    return [{"title": title, "chart": one} for title, one in drawn if one is not None]


def read_columns(path: Path) -> Columns:
    """(step, value) of every column, thinned evenly to MOST_POINTS rows; None where a row has no value.

    Raises:
        ValueError: a line is none of numbers.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    step = max(1, -(-len(rows) // MOST_POINTS))
    columns: Columns = {}
    for number, row in list(enumerate(rows, start=2))[::step]:
        try:
            at = float(row["step"])
            for name, text in row.items():
                if name != "step":
                    columns.setdefault(name, []).append((at, float(text) if text else None))
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"expected numbers with a column 'step' in line {number} of {path}, got something else; "
                "delete the line or the file"
            ) from None
    return columns


def _shares(columns: Columns) -> Markup | None:
    lines = _sensor_lines(columns, "share")
    lines = [line for line in lines if any(value for _, value in line.points)]  # a sensor that the model lacks has 0
    if not lines:
        return None
    steps = [at for at, _ in lines[0].points]
    equal = 1 / len(lines)
    lines.append(Line(f"equal share, {equal:.2f}", [(steps[0], equal), (steps[-1], equal)], 9, "dashes"))
    return chart(lines, ("step", "share of the gradient norm"), (None, (0.0, 1.0)))


def _factors(columns: Columns) -> Markup | None:
    """Only of a training that was balanced."""
    lines = _sensor_lines(columns, "factor")
    balanced = any(value is not None and value < 1 for line in lines for _, value in line.points)
    return chart(lines, ("step", "factor"), (None, (0.0, 1.05))) if balanced else None


def _sensor_lines(columns: Columns, kind: str) -> list[Line]:
    return [
        Line(title, columns[f"{kind}_{name}"], colour, "line")
        for name, (title, colour) in SENSORS.items()
        if f"{kind}_{name}" in columns
    ]


def _cosines(columns: Columns) -> Markup | None:
    """Below 0 two exits pull what they share in opposite ways."""
    lines = []
    for name, points in columns.items():
        found = re.fullmatch(r"cosine_(\d+)_(\d+)", name)
        if found and any(value is not None for _, value in points):
            known = [point for point in points if point[1] is not None]
            lines.append(Line(f"exits {found[1]} and {found[2]}", known, len(lines), "line"))
    return chart(lines, ("step", "cosine"), (None, (-1.0, 1.0))) if lines else None
