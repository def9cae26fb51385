"""A study of budgets as rows, several runs as one table: does the router beat chance by more than seeds differ?"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fusion.efficiency.budget_study import POLICIES, Outcome, Study
from fusion.routing.diversity import route_diversity
from fusion.routing.plan import BRANCHES, NUM_BRANCHES, SKIP
from fusion.run_directory import write_text
from sensors.boxes import Boxes
from sensors.rig import UNITS

Score = Callable[[dict[str, Boxes]], tuple[float, float]]
"""Detections of a split -> (NDS, mAP)."""


@dataclass(frozen=True)
class BudgetRow:
    """One policy at one budget; plain values.

    Attributes:
        run, checkpoint: the run's name, and a word of its weights.
        data: version, split and what was done to the samples.
        budget: share of the full cost that the router was given.
        router_policy: ``argmax`` or ``threshold``.
        policy: one of POLICIES.
        nds, mean_ap, loss: of the split; means over the draws where there are several. The loss is per box.
        gflops: executed per sample.
        full_gflops: nominal, with everything on.
        ms: mean of the timed samples, glance to boxes at batch 1; None where nothing was timed.
        num_timed: how many these were.
        device, clock, date: of the milliseconds.
        num_routes: distinct routes.
        condition_information, fault_information: mutual information of the route with light and weather and with the
            faults, in nats, less the bias of chance; None where all samples have the same.
        routes: the most frequent ones with their shares.
        num_samples: of the split.
        draws: of the control.
    """

    run: str
    checkpoint: str
    data: str
    budget: float
    router_policy: str
    policy: str
    nds: float
    mean_ap: float
    loss: float
    gflops: float
    full_gflops: float
    ms: float | None
    num_timed: int
    device: str
    clock: str
    date: str
    num_routes: int
    condition_information: float | None
    fault_information: float | None
    routes: dict[str, float]
    num_samples: int
    draws: int


def rows_of(study: Study, score: Score, **common) -> list[BudgetRow]:
    """Scores everything; ``common`` are the fields that all rows share."""
    rows = []
    for place, budget in enumerate(study.settings.budgets):
        for policy in POLICIES:
            drawn = [outcome for (name, at, _), outcome in study.outcomes.items() if (name, at) == (policy, place)]
            scores = [score(outcome.detections) for outcome in drawn]
            nds, mean_ap = (float(np.mean(values)) for values in zip(*scores, strict=True))
            measured = study.measured
            rows.append(
                BudgetRow(
                    budget=float(budget),
                    router_policy=study.settings.policy,
                    policy=policy,
                    nds=nds,
                    mean_ap=mean_ap,
                    loss=float(np.mean([sum(one.losses) for one in drawn]) / max(sum(measured.num_boxes), 1)),
                    gflops=float(np.mean([np.mean(one.gflops) for one in drawn])),
                    ms=statistics.fmean(drawn[0].ms) if drawn[0].ms else None,
                    num_timed=len(drawn[0].ms),
                    **_variety(drawn[0], study),
                    num_samples=len(measured.learned),
                    draws=len(drawn),
                    **common,
                )
            )
    return rows


def _variety(outcome: Outcome, study: Study) -> dict:
    """Distinct routes, what they have to do with the scene, and the most frequent ones."""
    certain = torch.nn.functional.one_hot(outcome.choice, NUM_BRANCHES).float()
    found = route_diversity(outcome.choice, certain, study.measured.conditions)
    words = [
        frozenset(name.partition("@")[0] for name in names) or frozenset({"clean"}) for names in study.measured.faults
    ]
    faults = route_diversity(outcome.choice, certain, words)
    routes, counts = torch.unique(outcome.choice, dim=0, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:3]
    return {
        "num_routes": found.num_routes,
        "condition_information": found.condition_information,
        "fault_information": faults.condition_information,
        "routes": {route_name(routes[row].tolist()): float(counts[row]) / len(outcome.choice) for row in order},
    }


def route_name(route: Sequence[int]) -> str:
    """Such as ``CAM_FRONT lite, LIDAR full``; ``nothing`` for the empty route."""
    parts = [f"{unit} {BRANCHES[branch]}" for unit, branch in zip(UNITS, route, strict=True) if branch != SKIP]
    return ", ".join(parts) or "nothing"


def write_rows(path: Path, rows: Sequence[BudgetRow]) -> None:
    """One JSON line each; the file is whole or not there."""
    write_text(path, "".join(json.dumps(asdict(row), allow_nan=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[BudgetRow]:
    """What ``write_rows`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no row.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"expected budget rows at {path}, there are none; write them: dynfusion budgets run=..."
        )
    try:
        return [BudgetRow(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (ValueError, TypeError) as error:
        raise ValueError(f"expected budget rows in {path}, got another line ({error}); write it anew") from None


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over runs; the deviation is None for one run."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int = 4) -> str:
        if self.deviation is None:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class MergedBudget:
    """One budget over several runs.

    Attributes:
        nds, mean_ap, gflops, ms: by policy; ``ms`` lacks what was not timed.
        num_routes, information: of the learned router; information is the greater of that with conditions and with
            faults, None where there was neither.
        gain: NDS of the learned router less that of the random one, run by run.
        beats: whether the mean gain exceeds the spread, the greater of the deviations of the learned NDS and of the
            gain; None with one run.
    """

    budget: float
    nds: dict[str, Spread]
    mean_ap: dict[str, Spread]
    gflops: dict[str, Spread]
    ms: dict[str, Spread]
    num_routes: Spread
    information: Spread | None
    gain: Spread
    beats: bool | None


def merged(runs: Sequence[Sequence[BudgetRow]]) -> list[MergedBudget]:
    """Budgets over several runs (seeds) of one recipe.

    Raises:
        ValueError: no runs, or runs that differ in budgets, data or policy.
    """
    if not runs:
        raise ValueError("expected the rows of at least one run to merge, got none")
    kinds = [sorted({(row.budget, row.policy, row.router_policy, row.data) for row in rows}) for rows in runs]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("expected runs with the same budgets, policies and data, got different ones; run them alike")
    return [_merged_budget(runs, budget) for budget in sorted({row.budget for row in runs[0]})]


def _merged_budget(runs: Sequence[Sequence[BudgetRow]], budget: float) -> MergedBudget:
    by_policy = {policy: [_row(rows, budget, policy) for rows in runs] for policy in POLICIES}
    learned = by_policy["learned"]
    gain = Spread.of([one.nds - other.nds for one, other in zip(learned, by_policy["random"], strict=True)])
    nds = {policy: Spread.of([row.nds for row in rows]) for policy, rows in by_policy.items()}
    information = [
        max(known)
        for row in learned
        if (known := [i for i in (row.condition_information, row.fault_information) if i is not None])
    ]
    beats = None if gain.deviation is None else gain.mean > max(gain.deviation, nds["learned"].deviation)
    return MergedBudget(
        budget=budget,
        nds=nds,
        mean_ap={policy: Spread.of([row.mean_ap for row in rows]) for policy, rows in by_policy.items()},
        gflops={policy: Spread.of([row.gflops for row in rows]) for policy, rows in by_policy.items()},
        ms={
            policy: Spread.of([row.ms for row in rows])
            for policy, rows in by_policy.items()
            if all(row.ms is not None for row in rows)
        },
        num_routes=Spread.of([float(row.num_routes) for row in learned]),
        information=Spread.of(information) if information else None,
        gain=gain,
        beats=beats,
    )


def _row(rows: Sequence[BudgetRow], budget: float, policy: str) -> BudgetRow:
    return next(row for row in rows if (row.budget, row.policy) == (budget, policy))


def as_markdown(budgets: Sequence[MergedBudget], num_runs: int) -> str:
    """One line per budget, for ``docs/results.md``."""
    head = [f"NDS {policy}" for policy in POLICIES]
    lines = [
        f"| budget | GFLOPs | GFLOPs random | GFLOPs static | ms | {' | '.join(head)} | mAP learned | routes | "
        "information, nats | gain over random | beats random by more than the spread |",
        "|---:" * (len(head) + 9) + "|---|",
    ]
    for one in budgets:
        ms = one.ms["learned"].text(1) if "learned" in one.ms else "-"
        cells = [
            f"{one.budget:.3g}",
            one.gflops["learned"].text(3),
            one.gflops["random"].text(3),
            one.gflops["static"].text(3),
            ms,
            *(one.nds[policy].text() for policy in POLICIES),
        ]
        cells += [one.mean_ap["learned"].text(), f"{one.num_routes.mean:.0f}"]
        cells += ["-" if one.information is None else f"{one.information.mean:.3f}", one.gain.text()]
        cells += [{None: "one run", True: "yes", False: "no"}[one.beats]]
        lines.append(f"| {' | '.join(cells)} |")
    won = sum(bool(one.beats) for one in budgets)
    lines += ["", _note(num_runs, won, len(budgets))]
    return "\n".join(lines)


def _note(num_runs: int, won: int, num_budgets: int) -> str:
    note = (
        "GFLOPs executed and milliseconds of the learned router, its own price included. Random routes cost the same "
        "sample by sample, within 1 % of the full cost; the others at most the same on average, the static one on the "
        "scenes it was chosen on. It is chosen by loss on one half of the scenes and scored on the other; the oracle "
        "looks at the labels and is an upper bound in loss, not in NDS."
    )
    if num_runs == 1:
        return note + " One run: no spread."
    return (
        note
        + f" {num_runs} runs: mean ± standard deviation; random is beaten by more at {won} of {num_budgets} budgets."
    )
