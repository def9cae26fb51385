"""Training steps that teach a router from the losses of routes: what a stage's ``route`` may name beside ``paired``.

- ``reinforce``: a route drawn from the router's own probabilities against its greedy one (self-critical REINFORCE).
- ``oracle``: of several routes within the budget, the one with the least loss + price * cost is the label.
- ``faults``: a unit that a fault has hit should be skipped (MoME); the detector learns along random routes.
- ``median``: the cheapest route against the dearest within the budget; who gains more than the median goes dear
  (DynamicDet).
- ``configurations``: a ``ConfigurationRouter`` predicts the loss of each configuration (HydraFusion, EcoFusion).

In all of them the detector learns along one route where its parameters train; the others run without a gradient. The
router gets the term ``router``. Losses of samples that the detector was fitted to make cheap routes look good: teach
the router on others where there are enough.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.model import FusionOutput
from fusion.routed_steps import RoutedStep, sample_losses
from fusion.routing.budget import checked_budget
from fusion.routing.configurations import ConfigurationRouter
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.relaxations import ScoreFunction
from fusion.routing.router import glance_of
from fusion.routing.supervision import (
    MedianLossRule,
    configuration_loss,
    fault_label_loss,
    loss_reward,
    oracle_labels,
    oracle_loss,
    self_critical_loss,
)
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS


class RouterLessons(nn.Module):
    """Teaches a model's router, and remembers what a lesson needs from step to step.

    Args:
        cost_weight: price of the full cost in units of the detection loss, for ``reinforce`` and ``oracle``. The budget
            caps every route anyway; a price above 0 also makes a cheaper route better within it.
        num_routes: that ``oracle`` compares and ``configurations`` runs, the greedy one included; at least 2.
        least_severity: of a channel's fault from which ``faults`` calls it broken; 1 is the fifth level or a loss.
        bound: share of the router's own distribution in what ``reinforce`` draws from.
        window: of differences that ``median`` looks back on.
    """

    def __init__(
        self,
        cost_weight: float = 0.0,
        num_routes: int = 3,
        least_severity: float = 0.5,
        bound: float = 0.9,
        window: int = 1000,
    ):
        super().__init__()
        if not (cost_weight >= 0 and num_routes >= 2 and least_severity > 0):
            raise ValueError(
                "expected cost_weight >= 0, num_routes >= 2 and least_severity above 0 for a router's lessons, got "
                f"{cost_weight}, {num_routes} and {least_severity}"
            )
        self.cost_weight, self.num_routes, self.least_severity = cost_weight, num_routes, least_severity
        self.draw, self.median = ScoreFunction(bound), MedianLossRule(window)

    def forward(
        self,
        lesson: str,
        model: nn.Module,
        batch: Batch,
        budget: Float[Tensor, "b"],
        generator: torch.Generator,
        weights: Mapping[str, float],
    ) -> RoutedStep:
        """One step of a lesson.

        Args:
            lesson: one of ``fusion.stages.LESSONS``, except ``paired``.
            budget: what the router is told; every route is held to it.
            generator: CPU generator of all draws.
            weights: of the detection losses.

        Raises:
            ValueError: the lesson does not fit the router, or the batch says nothing about faults.
        """
        if (lesson == "configurations") != isinstance(model.router, ConfigurationRouter):
            raise ValueError(
                f"expected route: configurations for a ConfigurationRouter and another for others, got route: {lesson} "
                f"for {type(model.router).__name__}"
            )
        asked = checked_budget(budget, len(batch), model.min_budget)
        return getattr(self, f"_{lesson}")(_Lesson(model, batch, asked, generator, weights))

    def _reinforce(self, lesson: "_Lesson") -> RoutedStep:
        log_probs = self.draw.log_probs(lesson.logits.masked_fill(~lesson.possible, -torch.inf))
        noisy = self.draw.scores(lesson.logits.masked_fill(~lesson.possible, -torch.inf), lesson.generator)
        drawn, greedy = lesson.best(noisy), lesson.best(lesson.logits)
        output, losses = lesson.run([drawn, greedy])
        reward = [
            loss_reward(loss, lesson.cost(choice), self.cost_weight)
            for loss, choice in zip(losses, (drawn, greedy), strict=True)
        ]
        log_prob = log_probs.gather(-1, drawn[..., None])[..., 0].sum(dim=1)
        return RoutedStep(output, (drawn, greedy), {"router": self_critical_loss(log_prob, *reward)})

    def _oracle(self, lesson: "_Lesson") -> RoutedStep:
        choices = [lesson.random() for _ in range(self.num_routes - 1)] + [lesson.best(lesson.logits)]
        output, losses = lesson.run(choices)
        costs = torch.stack([lesson.cost(choice) for choice in choices], dim=1)
        labels = oracle_labels(torch.stack(losses, dim=1), costs, self.cost_weight)
        totals = torch.stack([lesson.total(choice) for choice in choices], dim=1)
        return RoutedStep(output, tuple(choices), {"router": oracle_loss(totals, labels)})

    def _faults(self, lesson: "_Lesson") -> RoutedStep:
        severity = lesson.batch.fault_severity
        if severity is None:
            raise ValueError(
                "expected batches that say how strongly each channel was harmed for route: faults, got none"
            )
        choice = lesson.random()
        output, _ = lesson.run([choice])
        probs = torch.softmax(lesson.logits.masked_fill(~lesson.possible, -torch.inf), dim=-1)
        broken = broken_by_severity(severity, lesson.batch.channel_present, self.least_severity)
        return RoutedStep(output, (choice,), {"router": fault_label_loss(probs, broken, lesson.available)})

    def _median(self, lesson: "_Lesson") -> RoutedStep:
        shares = lesson.model.routes.shares(lesson.device).expand(len(lesson.batch), -1, -1)
        rank = torch.zeros_like(shares)
        rank[..., LITE], rank[..., FULL] = 1.0, 2.0
        cheap, dear = lesson.best(-shares), lesson.best(rank)
        output, losses = lesson.run([dear, cheap])
        prefers_cheap = torch.sigmoid(lesson.total(cheap) - lesson.total(dear))
        return RoutedStep(output, (dear, cheap), {"router": self.median(prefers_cheap, losses[1], losses[0])})

    def _configurations(self, lesson: "_Lesson") -> RoutedStep:
        router, routes = lesson.model.router, lesson.model.routes
        offered = torch.where(lesson.available[:, None], router.table.to(lesson.device), SKIP)  # b f u
        logits = router.configuration_logits(lesson.glance, routes, lesson.told)
        affordable = router.affordable(offered, routes, lesson.asked.to(lesson.device))
        noise = torch.rand(affordable.shape, generator=lesson.generator).to(lesson.device)
        number = min(self.num_routes, affordable.shape[1])
        order = noise.masked_fill(~affordable, -1.0).topk(number, dim=1).indices  # b n
        rows = torch.arange(len(offered), device=lesson.device)
        # Where fewer are affordable, the first one is run again and counts once.
        order = torch.where(affordable[rows[:, None], order], order, order[:, :1])
        choices = [
            routes.capped(offered[rows, order[:, place]], lesson.possible, lesson.asked.to(lesson.device))
            for place in range(number)
        ]
        output, losses = lesson.run(choices)
        observed, known = torch.zeros_like(logits), torch.zeros_like(affordable)
        for place, loss in enumerate(losses):
            observed[rows, order[:, place]], known[rows, order[:, place]] = loss.to(observed), True
        return RoutedStep(output, tuple(choices), {"router": configuration_loss(-logits, observed, known)})


class _Lesson:
    """What all lessons ask of one batch."""

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        asked: Float[Tensor, "b"],
        generator: torch.Generator,
        weights: Mapping[str, float],
    ):
        self.model, self.batch, self.asked, self.generator, self.weights = model, batch, asked, generator, weights
        self.available = model.available(batch)
        self.device = self.available.device
        self.possible = model.routes.possible(self.available)
        self.glance, self.told = glance_of(batch, self.available), asked.float().to(self.device)
        self.logits = model.router.logits(self.glance, model.routes, self.told)

    def best(self, scores: Float[Tensor, "b u k"]) -> Int64[Tensor, "b u"]:
        return self.model.routes.best(scores, self.possible, self.asked.to(self.device))

    def random(self) -> Int64[Tensor, "b u"]:
        return self.model.routes.random(self.available, self.asked, self.generator)

    def cost(self, choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b"]:
        return self.model.prices().cost_of(choice).float()

    def total(self, choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b"]:
        """The router's total score of a route."""
        return self.logits.gather(-1, choice[..., None])[..., 0].sum(dim=1)

    def run(self, choices: list[Int64[Tensor, "b u"]]) -> tuple[FusionOutput, list[Float[Tensor, "b"]]]:
        """The output along the first route, for the detector to learn from, and the losses along all."""
        output = self.model(self.batch, plan=self.model.plan_of(choices[0], self.available))
        with torch.no_grad():
            others = [self.model(self.batch, plan=self.model.plan_of(one, self.available)) for one in choices[1:]]
        return output, [sample_losses(one, self.batch, self.model, self.weights) for one in (output, *others)]


def broken_by_severity(
    severity: Float[Tensor, "b 12"], channel_present: Bool[Tensor, "b 12"], least: float
) -> Bool[Tensor, "b u"]:
    """Units hit by a fault of at least this severity; the radar set where at least half of its present radars are."""
    hit = severity >= least
    radars, there = hit[:, LIDAR_UNIT + 1 :], channel_present[:, LIDAR_UNIT + 1 :]
    share = (radars & there).sum(dim=1) / there.sum(dim=1).clamp_min(1)
    return torch.cat([hit[:, : NUM_CAMERAS + 1], (share >= 0.5)[:, None]], dim=1)
