"""Teaching a router by what its routes cost in quality: losses of routes, oracles, labels of faults, rewards.

Everything here takes losses *per sample*, detached: it teaches the router, not the detector. Use losses of samples that
the detector was not fitted to (held out or cross-fitted) where there are enough of them: losses of training samples
make cheap routes look better than they are.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fusion.routing.plan import NUM_BRANCHES, SKIP
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS


def paired_regression_loss(
    scores: Float[Tensor, "b u k"],
    choices: tuple[Int64[Tensor, "b u"], Int64[Tensor, "b u"]],
    losses: tuple[Float[Tensor, "b"], Float[Tensor, "b"]],
) -> Float[Tensor, ""]:
    """Scores such that minus the total score of a route predicts its loss, up to a constant of the sample.

    The sound form of configuration-loss regression (HydraFusion, EcoFusion) for thousands of configurations: the
    loss of a route is modelled as a sum over units, and two routes of one sample are compared, so that how hard the
    sample is cancels. Huber loss of (S(r1) - S(r2)) - (L(r2) - L(r1)). With such scores the search under a cap
    gives the route with the least predicted loss. (The papers regress one output per configuration: see
    ``configuration_loss``.)

    Args:
        scores: the router's logits; finite where a route uses them.
        choices: two routes of every sample.
        losses: of the detector under each.
    """
    totals = [scores.gather(-1, choice[..., None])[..., 0].sum(dim=1) for choice in choices]
    gain = (losses[1] - losses[0]).detach()
    return torch.nn.functional.smooth_l1_loss(totals[0] - totals[1], gain)


def configuration_loss(
    predicted: Float[Tensor, "b f"], observed: Float[Tensor, "b f"], known: Bool[Tensor, "b f"]
) -> Float[Tensor, ""]:
    """Huber regression of each configuration's loss, over those that were run (HydraFusion, EcoFusion)."""
    error = torch.nn.functional.smooth_l1_loss(predicted, observed.detach(), reduction="none")
    return torch.where(known, error, 0.0).sum() / known.sum().clamp_min(1)


def expected_route_loss(
    totals: Float[Tensor, "b r"], losses: Float[Tensor, "b r"], fits: Bool[Tensor, "b r"]
) -> Float[Tensor, ""]:
    """Mean over samples of sum_r p_r L_r, p the softmax of the total scores over the routes that fit.

    The expectation of the loss of a route drawn in proportion to exp(score), exact where policy gradients draw: its
    gradient is p_r (L_r - sum_s p_s L_s). Samples for which no route fits say nothing.

    Args:
        totals: the router's score of each of R routes.
        losses: of the detector under each.
    """
    probs = torch.softmax(totals.masked_fill(~fits, -1e9), dim=1)
    some = fits.any(dim=1)
    return ((probs * losses.detach().to(probs)).sum(dim=1) * some).sum() / some.sum().clamp_min(1)


def oracle_labels(
    losses: Float[Tensor, "b f"],
    costs: Float[Tensor, "f"] | Float[Tensor, "b f"],
    cost_weight: float,
    budget: Float[Tensor, "b"] | None = None,
) -> Int64[Tensor, "b"]:
    """argmin over configurations of loss + cost_weight * cost, among those within the budget.

    Where none is within it, the cheapest.

    Args:
        costs: of the configurations, the same for all samples or of each sample.
    """
    joint = losses + cost_weight * costs
    if budget is not None:
        fits = costs <= budget[:, None] + 1e-6
        fits |= ~fits.any(dim=1, keepdim=True) & (costs == costs.amin(dim=-1, keepdim=True))
        joint = joint.masked_fill(~fits, torch.inf)
    return joint.argmin(dim=1)


def oracle_loss(logits: Float[Tensor, "b f"], labels: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
    """Cross-entropy of the configuration logits against the oracle's choice."""
    return torch.nn.functional.cross_entropy(logits, labels)


def fault_label_loss(
    probs: Float[Tensor, "b u k"], broken: Bool[Tensor, "b u"], available: Bool[Tensor, "b u"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy: a unit that a fault has hit should be skipped, a sound one should run (MoME's supervision).

    MoME (Park et al., CVPR 2025) labels queries by three corruption classes; here each unit has its own label, and each
    of the two classes the same total weight, since few units are broken.
    """
    keep = (1 - probs[..., SKIP]).clamp(1e-6, 1 - 1e-6)
    wrong = torch.where(broken, -(1 - keep).log(), -keep.log())
    terms = []
    for chosen in (broken & available, ~broken & available):
        if chosen.any():
            terms.append(wrong[chosen].mean())
    return torch.stack(terms).mean() if terms else probs.sum() * 0.0


def broken_units(
    faults: Sequence[Sequence[str]], modality_of: Mapping[str, str], least_level: float = 0.0
) -> Bool[Tensor, "b u"]:
    """Units hit by the faults that a batch carries, ``name`` or ``name@level``.

    Args:
        faults: names of each sample.
        modality_of: fault -> ``camera``, ``lidar`` or ``radar``; all units of it count as hit. Faults not in it (such
            as weather) hit nothing in particular.
        least_level: faults below this level do no harm worth avoiding; names without a level count as the worst.
    """
    rows = {"camera": list(range(NUM_CAMERAS)), "lidar": [LIDAR_UNIT], "radar": [RADAR_UNIT]}
    broken = torch.zeros(len(faults), len(UNITS), dtype=torch.bool)
    for sample, names in enumerate(faults):
        for text in names:
            name, _, level = text.partition("@")
            if name in modality_of and (not level or float(level) >= least_level):
                broken[sample, rows[modality_of[name]]] = True
    return broken


class MedianLossRule(nn.Module):
    """DynamicDet's rule without hyper-parameters (Lin et al., CVPR 2023): who gains more than the median goes deep.

    L = s (L_cheap - D / 2) + (1 - s) (L_dear + D / 2) with s the probability of the cheap route and D the running
    median of L_cheap - L_dear; losses are detached. With the median half of the samples go each way, whatever the
    scale.

    Args:
        window: of past differences that the median is taken over.
    """

    def __init__(self, window: int = 1000):
        super().__init__()
        self.window = window
        self.register_buffer("differences", torch.zeros(0))

    def forward(
        self, cheap: Float[Tensor, "b"], cheap_loss: Float[Tensor, "b"], dear_loss: Float[Tensor, "b"]
    ) -> Float[Tensor, ""]:
        """Mean over the samples; the window takes in their differences first.

        Args:
            cheap: probability of the cheap route.
        """
        cheap_loss, dear_loss = cheap_loss.detach().float(), dear_loss.detach().float()
        self.differences = torch.cat([self.differences, cheap_loss - dear_loss])[-self.window :]
        half = torch.quantile(self.differences, 0.5) / 2
        return (cheap * (cheap_loss - half) + (1 - cheap) * (dear_loss + half)).mean()

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        # The window grows: take whatever length was saved.
        self.differences = state_dict.get(prefix + "differences", self.differences).clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)


def self_critical_loss(
    log_prob: Float[Tensor, "b"], reward: Float[Tensor, "b"], greedy_reward: Float[Tensor, "b"]
) -> Float[Tensor, ""]:
    """REINFORCE with the reward of the greedy route as its baseline (Rennie et al., CVPR 2017; BlockDrop).

    Minimised: -(R(drawn) - R(greedy)) log p(drawn), averaged.
    """
    advantage = (reward - greedy_reward).detach()
    return -(advantage * log_prob).mean()


def block_drop_reward(cost: Float[Tensor, "b"], is_right: Bool[Tensor, "b"], penalty: float) -> Float[Tensor, "b"]:
    """1 - cost^2 where the result is right, -penalty where it is not (BlockDrop, equation 3; cost as a share)."""
    return torch.where(is_right, 1 - cost.square(), -penalty)


def loss_reward(loss: Float[Tensor, "b"], cost: Float[Tensor, "b"], cost_weight: float) -> Float[Tensor, "b"]:
    """The reward for a detector, whose results are not just right or wrong: -(loss + cost_weight * cost)."""
    return -(loss + cost_weight * cost)


def per_unit_labels(choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
    """One-hot of routes, to teach unit-wise probabilities by cross-entropy with an oracle's routes."""
    return torch.nn.functional.one_hot(choice, NUM_BRANCHES).float()
