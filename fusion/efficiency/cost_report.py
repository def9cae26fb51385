"""Where the cost went: per sample, by condition, by fault; always-on part and overhead shown, not hidden."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from fusion.routing.costs import ALWAYS
from fusion.routing.plan import ExecutionTrace


@dataclass(frozen=True)
class GroupCost:
    """Executed GFLOPs of the samples of one condition or fault."""

    name: str
    num_samples: int
    mean: float
    deviation: float


@dataclass(frozen=True)
class CostReport:
    """Executed GFLOPs per sample.

    Attributes:
        mean, deviation: over the samples.
        quartiles: least, 25 %, 50 %, 75 %, most.
        edges, counts: histogram; ``edges`` has one more entry.
        by_condition: one group per word; a sample counts for each of its words.
        by_fault: one group per fault (level cut off), and ``clean``.
    """

    mean: float
    deviation: float
    quartiles: tuple[float, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    by_condition: tuple[GroupCost, ...]
    by_fault: tuple[GroupCost, ...]

    def as_markdown(self) -> str:
        """The groups as a table."""
        lines = ["| group | samples | GFLOPs | deviation |", "|---|---:|---:|---:|"]
        everybody = GroupCost("all", sum(self.counts), self.mean, self.deviation)
        for group in (everybody, *self.by_condition, *self.by_fault):
            lines.append(f"| {group.name} | {group.num_samples} | {group.mean:.3f} | {group.deviation:.3f} |")
        return "\n".join(lines)


def cost_report(
    gflops: Float[np.ndarray, "n"],
    conditions: Sequence[frozenset[str]],
    faults: Sequence[Sequence[str]],
    num_bins: int = 10,
) -> CostReport:
    """From what an evaluation recorded.

    Raises:
        ValueError: no samples.
    """
    if not len(gflops):
        raise ValueError("expected samples to report the cost of, got none")
    counts, edges = np.histogram(gflops, num_bins)
    words = [sorted(given) for given in conditions]
    names = [[fault.partition("@")[0] for fault in given] or ["clean"] for given in faults]
    return CostReport(
        mean=float(gflops.mean()),
        deviation=float(gflops.std()),
        quartiles=tuple(np.quantile(gflops, [0, 0.25, 0.5, 0.75, 1]).tolist()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        by_condition=_groups(gflops, words),
        by_fault=_groups(gflops, names),
    )


def _groups(gflops: np.ndarray, labels: Sequence[Sequence[str]]) -> tuple[GroupCost, ...]:
    groups = []
    for name in sorted({label for given in labels for label in given}):
        values = gflops[[name in given for given in labels]]
        groups.append(GroupCost(name, len(values), float(values.mean()), float(values.std())))
    return tuple(groups)


def cost_shares(trace: ExecutionTrace) -> dict[str, float]:
    """Share of the executed GFLOPs of a batch that each unit, and each always-on part, took."""
    total: dict[str, float] = {}
    for execution in trace.executions:
        part = f"{ALWAYS}/{execution.branch}" if execution.unit == ALWAYS else execution.unit
        total[part] = total.get(part, 0.0) + execution.gflops_per_row * len(execution.rows)
    everything = sum(total.values())
    return {part: gflops / everything for part, gflops in total.items()} if everything else {}
