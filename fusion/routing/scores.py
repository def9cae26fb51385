"""A router's scores over a whole split: what thresholds are calibrated on. The encoders do not run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.routing.gate_inputs import glance_of


@dataclass(frozen=True, eq=False)
class SplitScores:
    """Attributes:
    scores: as the router gives them at evaluation, told each of f budgets.
    possible: branches that may be chosen.
    scenes: of each sample.
    """

    scores: Float[Tensor, "n f u k"]
    possible: Bool[Tensor, "n u k"]
    scenes: tuple[str, ...]


@torch.no_grad()
def scores_of_split(
    model: nn.Module, loader: Iterable[Batch], budgets: Sequence[float], device: torch.device | str = "cpu"
) -> SplitScores:
    """Scores of every sample at every budget, on the host.

    Raises:
        ValueError: no samples.
    """
    model = model.to(device).eval()
    scores, possible, scenes = [], [], []
    for batch in loader:
        batch = batch.to(device)
        available = model.available(batch)
        glance = glance_of(batch, available)
        told = [torch.full((len(batch),), float(budget), device=available.device) for budget in budgets]
        scores.append(torch.stack([model.router.logits(glance, model.routes, one) for one in told], dim=1).cpu())
        possible.append(model.routes.possible(available).cpu())
        scenes += batch.scenes
    if not scenes:
        raise ValueError("expected samples to score, got an empty split; choose another")
    return SplitScores(torch.cat(scores), torch.cat(possible), tuple(scenes))
