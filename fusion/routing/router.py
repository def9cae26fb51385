"""From a glance at the sensors to a route: which branch of which unit each sample runs."""

from collections.abc import Sequence
from math import log

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from fusion.draws import keyed_generator
from fusion.routing.budget import RouteTable, checked_budget
from fusion.routing.costs import conv_gflops, linear_gflops
from fusion.routing.gate_inputs import DEFAULT_INPUTS, PREVIOUS_FIELDS, Glance, checked_inputs, glance_of
from fusion.routing.plan import BRANCHES, NUM_BRANCHES, RoutingPlan
from fusion.routing.policies import Policy, Proposal, decided
from fusion.routing.relaxations import GumbelStraightThrough, Relaxation, log_probs_of
from sensors.health import HEALTH_FIELDS, THUMBNAIL_SIZE_PX
from sensors.rig import CAMERAS, CHANNELS, NUM_CAMERAS, UNITS

_OPEN_PROBS = {"skip": 0.15, "lite": 0.35, "full": 0.5}
"""What a router that has learnt nothing believes: 85 % open, so that every unit learns before any is given up.

From skip to lite there is more to gain than from lite to full: an untrained router that must save makes units lite
before it leaves any out, and both branches learn.
"""

_MEAN_WORTH = 1.6
"""Logit of the dearest branch over skip, averaged over units, where a router starts from prices: about 85 % open."""

_SPEED_UNIT_MPS = 10.0

__all__ = ("Glance", "Router", "glance_of")


class Router(nn.Module):
    """One small network that scores the branches of every unit; always float32.

    Each unit's features (health of its channels, its thumbnail, its prices, who it is) meet a summary of all units and
    the budget in one shared head. Training draws by the relaxation's noise, evaluation takes the best route; both
    keep to the budget as a hard cap on every sample.

    Args:
        hidden: width.
        num_health: fields per channel.
        relaxation: how the choice gets its gradient.
        floor: names of units that are never skipped while present.
        inputs: which of GATE_INPUTS it looks at; thumbnails that are not looked at are neither computed nor priced.
        policy: who decides at evaluation; None for the best route within the budget. May be set at any time.

    Attributes:
        previous: PREVIOUS_FIELDS of the last frame, set by a runner that goes through a scene in order, for the input
            ``previous``; None where there was no last frame.
    """

    def __init__(
        self,
        hidden: int = 32,
        num_health: int = len(HEALTH_FIELDS),
        relaxation: Relaxation | None = None,
        floor: Sequence[str] = (),
        inputs: Sequence[str] = DEFAULT_INPUTS,
        policy: Policy | None = None,
    ):
        super().__init__()
        self.floor, self.inputs, self.policy = tuple(floor), checked_inputs(inputs), policy
        self.relaxation = GumbelStraightThrough() if relaxation is None else relaxation
        self.previous: Float32[Tensor, "b u 3"] | None = None
        if "thumbnails" in self.inputs:
            self.thumbnail = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GELU()
            )
        self.channel = nn.Linear(num_health + 16 + 1, hidden)
        self.who = nn.Parameter(torch.randn(len(UNITS), hidden) * 0.1)
        self.prices = nn.Linear(NUM_BRANCHES, hidden, bias=False)
        self.summary = nn.Sequential(nn.Linear(hidden + len(UNITS) + 3, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.mix = nn.Linear(2 * hidden, hidden)
        self.score = nn.Linear(hidden, NUM_BRANCHES)
        nn.init.normal_(self.score.weight, std=0.01)
        nn.init.zeros_(self.score.bias)
        open_logits = torch.tensor([log(_OPEN_PROBS[name]) for name in BRANCHES])
        self.bias = nn.Parameter(open_logits.expand(len(UNITS), -1).clone())
        if "previous" in self.inputs:
            self.outcome = nn.Linear(len(PREVIOUS_FIELDS), hidden, bias=False)
        self._noise_key, self._num_draws = (0, 0, 0), 0

    def open_by_price(self, shares: Float[Tensor, "u k"]) -> None:
        """Start from branches that are worth what they cost, still open on the whole.

        With equal scores for all units a tight budget would first give up the dearest one, since that saves most for
        one score; scores in proportion to cost make all routes of equal cost equally likely, so that what is learnt
        decides and not the number of units.

        Args:
            shares: cost of each branch as a share of the full cost (``Prices.shares``).
        """
        full = shares.max(dim=1).values
        if bool((full > 0).any()):
            self.bias.data.copy_(_MEAN_WORTH * shares / full[full > 0].mean())

    def set_noise_key(self, seed: int, step: int, rank: int) -> None:
        """Fixes the noise of the coming training step, so that a resumed run draws the same routes."""
        self._noise_key, self._num_draws = (int(seed), int(step), int(rank)), 0

    def forward(
        self, glance: Glance, routes: RouteTable, budget: float | Tensor = 1.0, generator: torch.Generator | None = None
    ) -> RoutingPlan:
        """The plan of every sample of the batch.

        Args:
            routes: the model's routes and prices.
            budget: share of the full cost, one or one per sample.
            generator: CPU generator of the training noise; None: by ``set_noise_key``. Evaluation draws none.
        """
        asked = checked_budget(budget, len(glance.available), routes.min_budget).to(glance.available.device)
        if not self.training:
            generator = None
        elif generator is None:
            generator = self._keyed_generator()
        with torch.autocast(glance.available.device.type, enabled=False):
            possible = routes.possible(glance.available)
            logits = self.logits(glance, routes, asked.float()).masked_fill(~possible, -torch.inf)
            scores = self.relaxation.scores(logits, generator)
            choice = self._choice(Proposal(scores, possible, asked, glance), routes)
            log_probs = log_probs_of(self.relaxation, logits)
            probs = log_probs.exp()
            return RoutingPlan(
                choice=choice,
                gates=self.relaxation.gates(scores, choice),
                probs=probs,
                log_prob=log_probs.gather(-1, choice[..., None]).sum(dim=(1, 2)),
                budget=asked.float(),
                expected_cost=routes.expected_cost(probs),
            )

    def _choice(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        """The best route within the budget, or at evaluation the policy's, held to its cap."""
        if self.training or self.policy is None:
            return routes.best(proposal.scores, proposal.possible, proposal.budget)
        return decided(self.policy, proposal, routes)

    def logits(self, glance: Glance, routes: RouteTable, budget: Float32[Tensor, "b"]) -> Float32[Tensor, "b u k"]:
        """Scores of every branch, possible or not."""
        units = self._unit_features(glance)
        units = units + self.who + self.prices(routes.shares(units.device).float())
        if "previous" in self.inputs and self.previous is not None:
            units = units + self.outcome(self.previous.to(units))
        available = glance.available.float()
        speed = glance.ego_speed_mps.float() / _SPEED_UNIT_MPS
        speed = speed if "speed" in self.inputs else torch.zeros_like(speed)
        state = torch.stack([budget, budget.log(), speed], dim=-1)
        pooled = (units * available[..., None]).sum(dim=1) / available.sum(dim=1, keepdim=True).clamp_min(1)
        summary = self.summary(torch.cat([pooled, available, state], dim=-1))
        joint = torch.cat([units, summary[:, None].expand(-1, len(UNITS), -1)], dim=-1)
        mixed = nn.functional.gelu(self.mix(nn.functional.gelu(joint)))
        return self.score(mixed) + self.bias

    def _unit_features(self, glance: Glance) -> Float32[Tensor, "b u c"]:
        """One vector per unit; the radar set is the mean of its present radars."""
        present = glance.channel_present.float()[..., None]
        health = glance.health.float()
        health = health if "health" in self.inputs else torch.zeros_like(health)
        views = health.new_zeros(len(health), len(CHANNELS), self.channel.in_features - health.shape[-1] - 1)
        if "thumbnails" in self.inputs:
            seen = self.thumbnail(glance.thumbnails.float().flatten(0, 1)).mean(dim=(2, 3))
            seen = seen.unflatten(0, (-1, NUM_CAMERAS))
            views = nn.functional.pad(seen, (0, 0, 0, len(CHANNELS) - NUM_CAMERAS))
        channels = self.channel(torch.cat([health, views, present], dim=-1)) * present
        radars, radars_present = channels[:, NUM_CAMERAS + 1 :], present[:, NUM_CAMERAS + 1 :]
        radar_set = radars.sum(dim=1) / radars_present.sum(dim=1).clamp_min(1)
        return torch.cat([channels[:, : NUM_CAMERAS + 1], radar_set[:, None]], dim=1)

    def gflops(self, thumbnail_size_px: tuple[int, int] = THUMBNAIL_SIZE_PX) -> float:
        """Analytic GFLOPs of one sample, without the search of the RouteTable."""
        total, (height, width) = 0.0, thumbnail_size_px
        for conv in (self.thumbnail[0], self.thumbnail[2]) if "thumbnails" in self.inputs else ():
            height, width = (height + 1) // 2, (width + 1) // 2
            total += len(CAMERAS) * conv_gflops(conv.in_channels, conv.out_channels, 3, height * width)
        per_sample = [(self.channel, len(CHANNELS)), (self.summary[0], 1), (self.summary[2], 1)]
        per_sample += [(self.mix, len(UNITS)), (self.score, len(UNITS)), (self.prices, len(UNITS))]
        per_sample += [(self.outcome, len(UNITS))] if "previous" in self.inputs else []
        return total + sum(linear_gflops(layer.in_features, layer.out_features, rows) for layer, rows in per_sample)

    def _keyed_generator(self) -> torch.Generator:
        """Every forward pass of a step draws anew, in a fixed order."""
        self._num_draws += 1
        return keyed_generator("router", *self._noise_key, self._num_draws)
