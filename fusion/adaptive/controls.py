"""What router, exits and tokens together have to beat at equal executed cost: routes that look at nothing.

The controls are those of ``fusion.efficiency.budget_routes``: routes drawn by chance, the best static one, and an
oracle over the static ones, which sees the labels. Nobody leaves early, and tokens take part at the rate that they
learnt. Chance spends the same on average, static routes and the oracle at most as much; where samples leave so early
that no whole route is as cheap, all three take the cheapest, which costs more.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from datamodules.batch import Batch
from fusion.adaptive.ablation import MIXES, AblationCell
from fusion.efficiency.budget_routes import oracle_columns, random_choice, static_columns, two_folds
from fusion.efficiency.budget_run import measured_routes, run_sample
from fusion.efficiency.budget_study import Measured, Outcome, StudySettings
from fusion.efficiency.replay import at_rest
from fusion.routing.plan import SKIP
from sensors.rig import NUM_CAMERAS

RANDOM, STATIC, ORACLE = "random routes", "static route", "oracle over static routes"
CONTROLS = (RANDOM, STATIC, ORACLE)


@torch.no_grad()
def run_controls(
    model: nn.Module,
    batches: Sequence[Batch],
    cells: Sequence[AblationCell],
    score: Callable[[dict], object],
) -> list[AblationCell]:
    """Every control at every budget, within what all techniques together executed there on average.

    Args:
        batches: of one sample each, in the order of ``cells``' split.
        cells: of an ablation; those of all techniques together say the costs.
        score: detections by token, in the global frame, to ``Metrics``.

    Raises:
        ValueError: no cell of all techniques together, or a model whose routes cannot be replayed.
    """
    together = [cell for cell in cells if cell.mix == "+".join(MIXES[-1])]
    if not together:
        raise ValueError(
            f"expected an ablation with cells of {' + '.join(MIXES[-1])}, got none; run ablation=true again"
        )
    with at_rest(model):
        measured = measured_routes(model, batches, StudySettings([1.0]))
        outcomes = {
            (name, place, 0): Outcome(choice)
            for place, cell in enumerate(together)
            for name, choice in _choices(model, measured, cell.gflops, seed=place).items()
        }
        for number, batch in enumerate(batches):
            run_sample(model, batch, number, outcomes)
    return [_cell(model, together[place], name, one, score) for (name, place, _), one in outcomes.items()]


def _choices(model: nn.Module, measured: Measured, mean_gflops: float, seed: int) -> dict[str, torch.Tensor]:
    """Routes of every control at a mean cost, always-on part included."""
    candidates, available = measured.candidates, torch.stack(measured.available)
    losses = np.stack(measured.losses)[:, : len(candidates)]
    gflops = np.stack(measured.gflops)[:, : len(candidates)]
    unit_gflops = torch.stack(measured.unit_gflops)
    own = unit_gflops[:, None].expand(-1, len(candidates), -1, -1)
    own = own.gather(-1, candidates.expand(len(own), -1, -1)[..., None]).sum(dim=(2, 3)).numpy()
    always = (gflops - own).mean(axis=1)  # tokens make it differ a little from route to route
    runs = ((candidates != SKIP) & available[:, None]).any(dim=-1).numpy()
    static = static_columns(losses, gflops, np.full(len(losses), mean_gflops), two_folds(measured.scenes), runs)
    oracle = oracle_columns(losses, gflops, mean_gflops)
    generator = np.random.default_rng(seed)
    return {
        RANDOM: random_choice(model.routes, available, unit_gflops, mean_gflops - always, generator),
        STATIC: torch.where(available, candidates[torch.from_numpy(static)], SKIP),
        ORACLE: torch.where(available, candidates[torch.from_numpy(oracle)], SKIP),
    }


def _cell(
    model: nn.Module, together: AblationCell, name: str, outcome: Outcome, score: Callable[[dict], object]
) -> AblationCell:
    metrics, full = score(outcome.detections), model.prices().full_gflops
    gflops = sum(outcome.gflops) / len(outcome.gflops)
    return AblationCell(
        mix=name,
        budget=together.budget,
        share=gflops / full,
        gflops=gflops,
        most=max(outcome.gflops) / full,
        ms=None,
        nds=metrics.nds,
        mean_ap=metrics.mean_ap,
        left=(0.0,) * (len(together.left) - 1) + (1.0,),
        tokens=None,
        views=float((outcome.choice[:, :NUM_CAMERAS] != SKIP).sum(dim=1).double().mean()),
    )
