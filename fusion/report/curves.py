"""Charts of the page: controls, Pareto front, failover, precision over recall."""

from collections.abc import Sequence

from markupsafe import Markup

from fusion.report.charts import Line, chart, front
from fusion.report.content import POLICY_TITLES, RunContent, names_of
from fusion.robustness.cells import ROUTER, Cell
from fusion.robustness.summary import failover_row

PR_DISTANCE_M = "2"
NUM_RUN_COLOURS = 9
"""The tenth is the front's."""


def controls_chart(run: RunContent) -> Markup | None:
    """NDS on clean data over the budget, the router beside its controls; None with fewer than two points."""
    lines = []
    for number, (policy, title) in enumerate(POLICY_TITLES.items()):
        points = sorted(
            (cell.budget, cell.metrics.nds)
            for cell in run.cells
            if cell.is_clean and cell.policy == policy and cell.metrics is not None
        )
        if points:
            lines.append(Line(title, points, number))
    if sum(len(line.points) for line in lines) < 2:
        return None
    return chart(lines, ("budget, share of the full cost", "NDS"), ((0.0, 1.05), None))


def pareto_chart(runs: Sequence[RunContent]) -> Markup | None:
    """NDS over executed GFLOPs of everything scored on clean data, and the front over all runs."""
    lines, everything = [], []
    for run, name in zip(runs, names_of(runs), strict=True):
        for policy, title in POLICY_TITLES.items():
            points = [
                (cell.gflops, cell.metrics.nds)
                for cell in run.cells
                if cell.is_clean and cell.policy == policy and cell.metrics is not None and cell.gflops > 0
            ]
            if points:
                shown = title if len(runs) == 1 else name if policy == ROUTER else f"{name}, {title}"
                lines.append(Line(shown, sorted(points), len(lines) % NUM_RUN_COLOURS, "dots"))
                everything += points
    if len(everything) < 2:
        return None
    return chart([Line("Pareto front", front(everything), NUM_RUN_COLOURS, "line"), *lines], ("executed GFLOPs", "NDS"))


def failover_parts(runs: Sequence[RunContent]) -> list[dict]:
    """One time line per scenario with an onset: recall, share of scenes that let go, and when the sensor was harmed.

    Several runs lie over one another: a colour each, recall drawn through and letting go dashed.
    """
    found: dict[str, list[tuple[int, Cell]]] = {}
    for number, run in enumerate(runs):
        for cell in run.cells:
            if cell.failover and cell.policy == ROUTER and cell.budget == run.budgets[0]:
                found.setdefault(cell.scenario, []).append((number, cell))
    names = names_of(runs)
    parts = []
    for own in found.values():
        many = len(runs) > 1
        lines = [line for number, cell in own for line in _failover_lines(cell, names[number], number, many)]
        frames = own[0][1].failover["frames"]
        most = max(len(cell.failover["frames"]) for _, cell in own)
        bands = [(k - 0.5, k + 0.5) for k, frame in enumerate(frames) if frame["harmed"] >= 0.5]
        drawn = chart(lines, ("keyframe", ""), ((-0.5, most - 0.5), (0.0, 1.0)), (420, 190), bands)
        captions = [{"run": names[number] if many else "", **_caption(cell)} for number, cell in own]
        parts.append({"title": own[0][1].title, "chart": drawn, "captions": captions})
    return parts


def _failover_lines(cell: Cell, name: str, number: int, many: bool) -> list[Line]:
    frames = cell.failover["frames"]
    recall = [(float(k), frame["recall_2m"]) for k, frame in enumerate(frames)]
    let_go = [(float(k), frame["let_go"]) for k, frame in enumerate(frames)]
    if many:
        return [Line(name, recall, number, "line"), Line("", let_go, number, "dashes")]
    return [Line("recall at 2 m", recall, 0, "line"), Line("router has let go", let_go, 3, "line")]


def _caption(cell: Cell) -> dict:
    """As ``failover_row``; a phase without samples has no score."""
    row = failover_row(cell)
    scores = {
        name: phase["mean_ap"] if phase.get("num_samples", 1) else None for name, phase in row.pop("phases").items()
    }
    return {**row, "scores": scores}


def precision_recall_chart(run: RunContent) -> Markup | None:
    """One curve per class at 2 m; None where the folder has none."""
    curves = ((run.evaluation or {}).get("breakdown") or {}).get("precision_recall") or {}
    lines = []
    for number, (name, by_distance) in enumerate(curves.items()):
        precision = by_distance.get(PR_DISTANCE_M)
        if precision and any(precision):
            last = max(k for k, value in enumerate(precision) if value)
            points = [(k / 100, value) for k, value in enumerate(precision[: last + 1])]
            lines.append(Line(name.replace("_", " "), points, number, "line"))
    return chart(lines, ("recall", "precision"), ((0.0, 1.0), (0.0, 1.0))) if lines else None
