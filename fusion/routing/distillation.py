"""Sandwich training: the full route teaches the cheapest and some random ones (Yu and Huang, ICCV 2019)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.heads.center import HeadOutput
from fusion.routing.budget import RouteTable
from fusion.routing.plan import FULL, LITE, SKIP

_REGRESSIONS = ("height", "offset", "log_size", "heading", "velocity")


def sandwich_routes(
    routes: RouteTable, available: Tensor, generator: torch.Generator, num_random: int = 2
) -> list[Int64[Tensor, "b u"]]:
    """Full, cheapest, and ``num_random`` random routes at budgets drawn uniformly per sample."""
    possible = routes.possible(available)
    num_samples = len(available)
    rank = torch.zeros(possible.shape, device=available.device)
    rank[..., LITE], rank[..., FULL] = 1.0, 2.0
    full = routes.best(rank, possible, torch.ones(num_samples, device=available.device))
    shares = routes.shares(available.device).expand(num_samples, -1, -1)
    cheapest = routes.best(-shares, possible, torch.ones(num_samples, device=available.device))
    least = routes.min_budget
    drawn = []
    for _ in range(num_random):
        budget = least + (1 - least) * torch.rand(num_samples, generator=generator, dtype=torch.float64)
        drawn.append(routes.random(available, budget.clamp(least, 1.0), generator))
    assert not (full == SKIP).all() or not available.any()
    return [full, cheapest, *drawn]


def distillation_loss(student: HeadOutput, teacher: HeadOutput, temperature: float = 1.0) -> Float[Tensor, ""]:
    """How far a sub-route's maps are from the full route's, which get no gradient.

    Heatmap: binary cross-entropy with the teacher's scores minus their own entropy (a Kullback-Leibler divergence, 0
    for equal maps), times T^2. Regressions: L1, where the teacher sees something, weighted by its highest score in
    the cell.
    """
    wanted = (teacher.heatmap.detach().float() / temperature).sigmoid()
    given = student.heatmap.float() / temperature
    cross = torch.nn.functional.binary_cross_entropy_with_logits(given, wanted, reduction="none")
    own = torch.nn.functional.binary_cross_entropy(wanted, wanted, reduction="none")
    heat = wanted.amax(dim=1, keepdim=True)
    total = (cross - own).sum(dim=1).mul(heat[:, 0]).sum() * temperature**2
    num_groups = student.height.shape[1]
    for name in _REGRESSIONS:
        difference = (getattr(student, name).float() - getattr(teacher, name).detach().float()).abs()
        total = total + 0.25 * (difference * heat).sum() / num_groups
    return total / heat.sum().clamp_min(1.0)
