"""Inline SVG whose colours come from the page, so that it fits light and dark."""

from dataclasses import dataclass

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 720.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 150.0, 28.0, 40.0


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels."""

    low: float
    high: float
    first_px: float
    last_px: float

    def px(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.first_px + share * (self.last_px - self.first_px)

    def ticks(self) -> list[float]:
        """Round values in the range, four to eight of them."""
        step = _round_step((self.high - self.low) / 5)
        first = int(self.low / step) + (self.low % step > 1e-9)
        return [round(k * step, 10) for k in range(first, int(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    power = 1.0
    while power > rough:
        power /= 10
    while power * 10 <= rough:
        power *= 10
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def quality_plot(lines: list[dict]) -> Markup:
    """NDS over executed GFLOPs, one line per scenario, one point per budget; clean data stand out."""
    gflops = [point[0] for line in lines for point in line["points"]]
    nds = [point[1] for line in lines for point in line["points"]]
    x = Axis(0.0, max(gflops) * 1.05 or 1.0, _LEFT, _WIDTH - _RIGHT)
    y = Axis(0.0, max(max(nds) * 1.1, 0.05), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg class="plot" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="NDS over executed GFLOPs">',
        *_frame(x, y),
    ]
    named = _named(lines, y)
    for line in reversed(lines):
        path = " ".join(f"{x.px(g):.1f},{y.px(n):.1f}" for g, n, _ in line["points"])
        parts.append(f'<g class="line{" clean" if line["is_clean"] else ""}"><polyline points="{path}"/>')
        for g, n, budget in line["points"]:
            text = escape(f"{line['title']}, budget {budget:g}: NDS {n:.3f}, {g:.1f} GFLOPs")
            parts.append(f'<circle cx="{x.px(g):.1f}" cy="{y.px(n):.1f}" r="4"><title>{text}</title></circle>')
        if line["title"] in named:
            g, n, _ = line["points"][-1]
            start, height = x.px(g) + 8, y.px(n)
            if start < x.last_px - 20:  # ends early: led to the margin, where the names stand
                parts.append(
                    f'<line class="leader" x1="{start:.1f}" x2="{x.last_px}" y1="{height:.1f}" y2="{height:.1f}"/>'
                )
            parts.append(f'<text x="{x.last_px + 6:.1f}" y="{height + 4:.1f}">{escape(line["title"])}</text>')
        parts.append("</g>")
    return Markup("".join([*parts, "</svg>"]))


def _named(lines: list[dict], y: Axis) -> set[str]:
    """Titles that find a place beside their last point, none over another; earlier lines first."""
    taken, named = [], set()
    for line in lines:
        height = y.px(line["points"][-1][1])
        if all(abs(height - other) > 13 for other in taken):
            taken.append(height)
            named.add(line["title"])
    return named


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value in y.ticks():
        height = y.px(value)
        parts.append(f'<line class="rule" x1="{x.first_px}" x2="{x.last_px}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{x.first_px - 8}" y="{height + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x.ticks():
        parts.append(
            f'<text class="tick" x="{x.px(value):.1f}" y="{y.first_px + 18}" text-anchor="middle">{value:g}</text>'
        )
    middle = (x.first_px + x.last_px) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">executed GFLOPs</text>')
    parts.append('<text class="tick" x="4" y="12">NDS</text>')
    return parts
