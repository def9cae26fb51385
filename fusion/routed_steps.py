"""Training steps that run a batch along several routes: a router taught by what routes cost, sub-routes taught by
the full one.

Both need a model with a ``routes`` table (``fusion.routing.budget.RouteTable``), as FusionModel has.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.heads.losses import LOSS_WEIGHTS, center_loss
from fusion.heads.targets import center_targets
from fusion.model import FusionOutput
from fusion.routing.budget import checked_budget
from fusion.routing.distillation import distillation_loss, sandwich_routes
from fusion.routing.router import glance_of
from fusion.routing.supervision import paired_regression_loss


@dataclass(frozen=True, eq=False)
class RoutedStep:
    """What a step with several routes gives.

    Attributes:
        output: of the route that the detection loss is taken from.
        choices: every route that was run, for counting what was used.
        terms: further losses by name.
    """

    output: FusionOutput
    choices: tuple[Int64[Tensor, "b u"], ...]
    terms: dict[str, Tensor]


def paired_step(
    model: nn.Module, batch: Batch, budget: Float[Tensor, "b"], generator: torch.Generator, weights: Mapping[str, float]
) -> RoutedStep:
    """Two random routes of every sample; the router learns from the difference of their losses (term ``router``).

    The detector learns along the first, where its parameters train; the second runs without a gradient.

    Args:
        budget: what the router is told; the routes are drawn within it.
        generator: CPU generator of the routes.
        weights: of the detection losses.
    """
    available = model.available(batch)
    asked = checked_budget(budget, len(batch), model.min_budget)
    pair = tuple(model.routes.random(available, asked, generator) for _ in range(2))
    output = model(batch, plan=model.plan_of(pair[0], available))
    with torch.no_grad():
        other = model(batch, plan=model.plan_of(pair[1], available))
    losses = tuple(sample_losses(out, batch, model, weights) for out in (output, other))
    scores = model.router.logits(glance_of(batch, available), model.routes, asked.float().to(available.device))
    return RoutedStep(output, pair, {"router": paired_regression_loss(scores, pair, losses)})


def sandwich_step(model: nn.Module, batch: Batch, generator: torch.Generator, num_random: int = 1) -> RoutedStep:
    """The full route learns from labels, the cheapest and some random ones from the full one (term
    ``distillation``).
    """
    available = model.available(batch)
    full, *others = sandwich_routes(model.routes, available, generator, num_random)
    output = model(batch, plan=model.plan_of(full, available))
    distances = [
        distillation_loss(model(batch, plan=model.plan_of(choice, available)).head, output.head) for choice in others
    ]
    return RoutedStep(output, (full, *others), {"distillation": torch.stack(distances).mean()})


def sample_losses(
    output: FusionOutput, batch: Batch, model: nn.Module, weights: Mapping[str, float]
) -> Float[Tensor, "b"]:
    """Detection loss of each sample, detached, on the scale of the batch's loss: their mean is that loss."""
    targets = center_targets(batch.boxes, len(batch), model.head.grid)
    terms = center_loss(output.head, targets, per_sample=True)
    return torch.stack([weights[name] * terms[name].detach() for name in LOSS_WEIGHTS]).sum(dim=0) * len(batch)
