"""What a route should cost: terms that pull the expected cost of plans towards a budget.

All act on the *mean over the batch and all ranks* where the text says mean: a squared term per sample forces every
sample to the same cost, and the mean over ranks of squares per rank punishes ranks that drew costly samples. The mean
over ranks enters as a constant shift, so each rank keeps the gradient of its own costs, which DDP averages.

Costs are shares of the full cost, always-on part included; a budget may differ from sample to sample
(budget-conditioned training: the router sees the budget that it is held to, drawn anew at every step by
``Stage.budget``).
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fusion.routing.plan import SKIP, RoutingPlan

MeanOverRanks = Callable[[Tensor], Tensor]
"""A detached tensor -> its mean over all ranks."""


@runtime_checkable
class BudgetTerm(Protocol):
    """A loss on plans; see the module's text."""

    def __call__(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Tensor: ...


def shared_mean(value: Float[Tensor, "b ..."], mean_over_ranks: MeanOverRanks | None) -> Float[Tensor, "..."]:
    """Mean over the batch of all ranks (of equal batch sizes), with the gradient of this rank's own samples."""
    mean = value.mean(dim=0)
    return mean if mean_over_ranks is None else mean + (mean_over_ranks(mean.detach()) - mean.detach())


def mean_over_process_group(value: Tensor) -> Tensor:
    """Mean over the ranks of torch.distributed; the value itself where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


class LinearBudget:
    """Mean expected cost: a fixed price on computing, whatever the budget (AdaMML, EcoFusion)."""

    def __call__(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Float[Tensor, ""]:
        return shared_mean(plan.expected_cost, mean_over_ranks)


class HingeBudget:
    """max(0, mean excess over the budget) to a power: 1 is DynMM's, 2 the default of training here.

    ``per_sample`` holds every sample to its own budget: for hard caps, at the price of near-constant cost.
    """

    def __init__(self, power: int = 2, per_sample: bool = False):
        if power not in (1, 2):
            raise ValueError(f"expected power 1 or 2, got {power}")
        self.power, self.per_sample = power, per_sample

    def __call__(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Float[Tensor, ""]:
        excess = plan.expected_cost - plan.budget
        if not self.per_sample:
            excess = shared_mean(excess, mean_over_ranks)
        return excess.clamp_min(0).pow(self.power).mean()


class SquaredBudget:
    """(mean cost - mean budget)^2: also pulls up a router that spends too little (DynConv, LAUDNet)."""

    def __call__(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Float[Tensor, ""]:
        return shared_mean(plan.expected_cost - plan.budget, mean_over_ranks).square()


class CorridorBudget:
    """A corridor around a target rate for every unit, tight at first and open at ``opens_at``, plus SquaredBudget.

    DynConv's recipe against collapse (Verelst and Tuytelaars, CVPR 2020): with p = cos^2(pi/2 min(1, progress /
    opens_at)), each unit's mean rate is kept within [p * target, 1 - p (1 - target)] by squared hinges. Early on no
    unit may die or be always on; later only the total counts.

    Args:
        target: rate of running of every unit; None: the mean budget.
        opens_at: training progress at which the corridor is [0, 1].
    """

    def __init__(self, target: float | None = None, opens_at: float = 0.33):
        if not 0 < opens_at <= 1 or not (target is None or 0 < target < 1):
            raise ValueError(f"expected opens_at in (0, 1] and target in (0, 1), got {opens_at} and {target}")
        self.target, self.opens_at = target, opens_at

    def __call__(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Float[Tensor, ""]:
        tightness = math.cos(math.pi / 2 * min(1.0, progress / self.opens_at)) ** 2
        target = plan.budget.mean() if self.target is None else self.target
        low, high = tightness * target, 1 - tightness * (1 - target)
        rate = unit_rates(plan, mean_over_ranks)
        outside = (low - rate).clamp_min(0).square() + (rate - high).clamp_min(0).square()
        return outside.mean() + SquaredBudget()(plan, progress, mean_over_ranks)


class UnitRateBudget:
    """Mean over units of (target - mean rate)^2 (ConvNet-AIG, Veit and Belongie, ECCV 2018).

    Args:
        targets: rate of running, one for all units or one each.
    """

    def __init__(self, targets: float | Sequence[float]):
        self.targets = targets

    def __call__(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Float[Tensor, ""]:
        rate = unit_rates(plan, mean_over_ranks)
        targets = torch.as_tensor(self.targets, dtype=rate.dtype, device=rate.device)
        return (targets - rate).square().mean()


def unit_rates(plan: RoutingPlan, mean_over_ranks: MeanOverRanks | None) -> Float[Tensor, "u"]:
    """Mean probability of running, of each unit."""
    return shared_mean(1 - plan.probs[..., SKIP], mean_over_ranks)


class LagrangianBudget(nn.Module):
    """The price of computing as a dual variable: it rises while the mean cost is above the budget, and falls below it.

    The loss is price * mean excess, with the price a constant; each call in training is one step of dual ascent,
    price <- max(0, price + rate * excess + damping * change of the excess): integral and derivative control. The price
    is part of the state dict. No public system does this; the form is that of Stooke et al. (ICML 2020).

    Args:
        rate: of the price, per call and unit of excess.
        damping: against swinging.
        highest: bound on the price.
    """

    def __init__(self, rate: float = 0.05, damping: float = 0.0, highest: float = 100.0):
        super().__init__()
        if not (rate > 0 and damping >= 0 and highest > 0):
            raise ValueError(f"expected rate, highest > 0 and damping >= 0, got {rate}, {highest} and {damping}")
        self.rate, self.damping, self.highest = rate, damping, highest
        self.register_buffer("price", torch.zeros(()))
        self.register_buffer("last_excess", torch.zeros(()))

    def forward(
        self, plan: RoutingPlan, progress: float = 1.0, mean_over_ranks: MeanOverRanks | None = None
    ) -> Float[Tensor, ""]:
        excess = shared_mean(plan.expected_cost - plan.budget, mean_over_ranks)
        if self.training:
            now = excess.detach()
            step = self.rate * now + self.damping * (now - self.last_excess)
            self.price = (self.price + step).clamp(0.0, self.highest)
            self.last_excess = now
        return self.price * excess


def least_usage(plan: RoutingPlan, floor: float, mean_over_ranks: MeanOverRanks | None = None) -> Float[Tensor, ""]:
    """Hinge on units that run in less than a share ``floor`` of the samples: what hardly runs no longer learns
    (AdaViT).
    """
    return (floor - unit_rates(plan, mean_over_ranks)).clamp_min(0).mean()
