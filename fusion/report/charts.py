"""Line and point charts as inline SVG; colours come from the page, so that they fit light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from fusion.report.plots import Axis

NUM_COLOURS = 10
_TOP, _BOTTOM = 30.0, 48.0  # room for words of 16 px, as on a phone


@dataclass(frozen=True)
class Line:
    """A named row of points.

    Attributes:
        points: (x, y); a y of None breaks the line.
        colour: number of a page colour; None for the next one.
        style: ``line``, ``dashes``, ``steps`` (with dots) or ``dots``.
    """

    title: str
    points: Sequence[tuple[float, float | None]]
    colour: int | None = None
    style: str = "steps"


def chart(
    lines: Sequence[Line],
    titles: tuple[str, str],
    ranges: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None),
    size_px: tuple[int, int] = (560, 300),
    bands: Sequence[tuple[float, float]] = (),
) -> Markup:
    """A chart with a legend under it.

    Args:
        titles: of the x and the y axis.
        ranges: of x and y; None: from 0 (or below) to what the points need.
        bands: stretches of x that are shaded.
    """
    width, height = size_px
    points = [(x, y) for line in lines for x, y in line.points if y is not None]
    x = _axis([p[0] for p in points], ranges[0], 46.0, width - 14.0)
    y = _axis([p[1] for p in points], ranges[1], height - _BOTTOM, _TOP)
    label = escape(" over ".join(titles[::-1]))
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">']
    for low, high in bands:
        place = f'x="{x.px(low):.1f}" width="{x.px(high) - x.px(low):.1f}"'
        parts.append(f'<rect class="band" y="{_TOP}" height="{height - _TOP - _BOTTOM}" {place}/>')
    parts += _grid(x, y, titles, height)
    for number, line in enumerate(lines):
        parts += _line(line, number if line.colour is None else line.colour, x, y)
    legend = "".join(
        f'<span><i class="s{(n if line.colour is None else line.colour) % NUM_COLOURS}"></i>{escape(line.title)}</span>'
        for n, line in enumerate(lines)
        if line.title
    )
    return Markup("".join([*parts, f'</svg><p class="legend">{legend}</p>']))


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (cost, score): no other point costs at most as much and scores more; by cost."""
    kept: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or score > kept[-1][1]:
            kept.append((cost, score))
    return kept


def _axis(values: list[float], wanted: tuple[float, float] | None, first_px: float, last_px: float) -> Axis:
    low, high = wanted or (min([0.0, *values]), max(values, default=1.0) * 1.06)
    return Axis(low, high if high > low else low + 1.0, first_px, last_px)


def _grid(x: Axis, y: Axis, titles: tuple[str, str], height: int) -> list[str]:
    parts = []
    for value in y.ticks():
        level = f"{y.px(value):.1f}"
        parts.append(f'<line class="rule" x1="{x.first_px}" x2="{x.last_px}" y1="{level}" y2="{level}"/>')
        parts.append(f'<text x="{x.first_px - 7}" y="{y.px(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x.ticks():
        parts.append(f'<text x="{x.px(value):.1f}" y="{height - 28}" text-anchor="middle">{value:g}</text>')
    middle = (x.first_px + x.last_px) / 2
    parts.append(f'<text x="{middle:g}" y="{height - 6}" text-anchor="middle">{escape(titles[0])}</text>')
    parts.append(f'<text x="4" y="14">{escape(titles[1])}</text>')
    return parts


def _line(line: Line, colour: int, x: Axis, y: Axis) -> list[str]:
    dashed = " dashed" if line.style == "dashes" else ""
    parts = [f'<g class="s{colour % NUM_COLOURS}{dashed}">']
    if line.style != "dots":
        for run in _runs(line.points):
            path = " ".join(f"{x.px(a):.1f},{y.px(b):.1f}" for a, b in run)
            parts.append(f'<polyline points="{path}"/>')
    if line.style not in ("line", "dashes"):
        for a, b in line.points:
            if b is not None:
                text = escape(f"{line.title}: {a:g}, {b:.3f}")
                parts.append(f'<circle cx="{x.px(a):.1f}" cy="{y.px(b):.1f}" r="3.5"><title>{text}</title></circle>')
    return [*parts, "</g>"]


def _runs(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Stretches without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            runs.append([])
        else:
            runs[-1].append((x, y))
    return [run for run in runs if run]
