"""Router, exits and tokens alone, in pairs and together, at equal executed cost: really run, batch 1, cross-fitted."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from datamodules.batch import Batch
from fusion.adaptive.allocation import Allocation, SharedBudget
from fusion.adaptive.observe import Observation
from fusion.adaptive.search import TECHNIQUES, Candidate, allocated, candidates
from fusion.heads.decode import decode, to_global

MIXES = tuple(mix for size in (1, 2, 3) for mix in combinations(TECHNIQUES, size))
"""Each technique alone, pairs, all three."""


@dataclass(frozen=True)
class AblationCell:
    """One mix of techniques at one budget.

    Attributes:
        mix: names joined by ``+``, or the name of a control (``fusion.adaptive.controls``).
        budget: mean share of the full cost that was allowed.
        share: executed on average; ``gflops`` the same in GFLOPs.
        most: executed by the dearest sample, as a share.
        ms: median of single samples, forward and decoding; None where routes were replayed.
        nds, mean_ap: of the whole split.
        left: share of the samples that left at each exit, the model's own head last.
        tokens: mean share of the tokens that took part among the samples that went all the way; None without tokens,
            and of controls.
        views: camera views run per sample.
    """

    mix: str
    budget: float
    share: float
    gflops: float
    most: float
    ms: float | None
    nds: float
    mean_ap: float
    left: tuple[float, ...]
    tokens: float | None
    views: float


def folds_by_scene(batches: Sequence[Batch]) -> list[int]:
    """0 or 1 for each sample, whole scenes together, in turns."""
    scenes = [scene for batch in batches for scene in batch.scenes]
    order = {scene: place for place, scene in enumerate(dict.fromkeys(scenes))}
    if len(order) < 2:
        raise ValueError(f"expected at least two scenes to calibrate on one half and score the other, got {len(order)}")
    return [order[scene] % 2 for scene in scenes]


def fold_candidates(observations: Sequence[Observation], folds: Sequence[int]) -> dict[int, list[Candidate]]:
    """For each fold, candidates found on the samples of the other one."""
    of = torch.tensor(folds)
    return {fold: candidates([one.select(torch.nonzero(of != fold)[:, 0]) for one in observations]) for fold in (0, 1)}


def allocations_of(
    found: Mapping[int, Sequence[Candidate]], budget: float, mix: Sequence[str], cap: float
) -> dict[int, Allocation] | None:
    """Of both folds; None where the mix cannot keep the budget."""
    own = {fold: allocated(some, budget, mix, cap) for fold, some in found.items()}
    return None if any(one is None for one in own.values()) else own


@torch.inference_mode()
def run_cell(
    model: nn.Module,
    batches: Sequence[Batch],
    folds: Sequence[int],
    own: Mapping[int, Allocation],
    score: Callable[[dict], object],
    mix: Sequence[str],
    budget: float,
) -> AblationCell:
    """Run every sample by itself with its fold's allocation, and score the whole split.

    Args:
        batches: of one sample each.
        score: detections by token, in the global frame, to ``Metrics``.
    """
    full = model.prices().full_gflops
    found, gflops, ms, left, tokens, views = {}, [], [], [], [], 0
    shared = {fold: SharedBudget([one], (), "") for fold, one in own.items()}
    last = len(model.exits.heads) if model.exits is not None else 0
    for batch, fold in zip(batches, folds, strict=True):
        model.shared_budget = shared[fold]
        started = time.perf_counter()
        output = model(batch, budget=budget)
        boxes = decode(output.head, model.head.grid, None)
        ms.append(1e3 * (time.perf_counter() - started))
        gflops += output.trace.gflops()
        left.append(last if output.exits is None else int(output.exits.exit_of[0]))
        if left[-1] == last and getattr(model.trunk, "has_tokens", False):
            tokens.append(float(model.trunk.stages[-1][1].last_use.shares.mean()))
        views += sum(len(one.rows) for one in output.trace.executions if one.unit.startswith("CAM"))
        found[batch.tokens[0]] = to_global(boxes[0], batch.ego_from_ego_aug[0], batch.global_from_ego[0])
    model.shared_budget = None
    metrics = score(found)
    return AblationCell(
        mix="+".join(mix),
        budget=budget,
        share=sum(gflops) / len(gflops) / full,
        gflops=sum(gflops) / len(gflops),
        most=max(gflops) / full,
        ms=statistics.median(ms),
        nds=metrics.nds,
        mean_ap=metrics.mean_ap,
        left=tuple(left.count(number) / len(left) for number in range(last + 1)),
        tokens=sum(tokens) / len(tokens) if tokens else None,
        views=views / len(batches),
    )


def ablation_table(runs: Sequence[Sequence[AblationCell]]) -> str:
    """Markdown: mean over runs, and their spread (half of the range) where there are several."""
    lines = ["| budget | techniques | NDS | mAP | executed share | GFLOPs | ms | left early | views |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    keys = list(dict.fromkeys((cell.budget, cell.mix) for cells in runs for cell in cells))
    order = {"+".join(mix): place for place, mix in enumerate(MIXES)}  # controls stand behind, in their own order
    for budget, mix in sorted(keys, key=lambda key: (key[0], order.get(key[1], len(order)))):
        cells = [cell for own in runs for cell in own if (cell.budget, cell.mix) == (budget, mix)]
        columns = [
            _mean([cell.nds for cell in cells], 3),
            _mean([cell.mean_ap for cell in cells], 3),
            _mean([cell.share for cell in cells], 3),
            _mean([cell.gflops for cell in cells], 2),
            _mean([cell.ms for cell in cells], 1),
            _mean([1 - cell.left[-1] for cell in cells], 2),
            _mean([cell.views for cell in cells], 1),
        ]
        some = f" ({len(cells)} of {len(runs)} runs)" if len(cells) < len(runs) else ""
        lines.append(f"| {budget:.2f} | {mix.replace('+', ' + ')}{some} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float | None], digits: int) -> str:
    if None in values:
        return "–"
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"
