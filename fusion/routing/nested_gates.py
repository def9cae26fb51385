"""Relaxations that decide first whether a unit runs at all, then on which branch.

The binary decision has the logit logsumexp(branches) - skip, so that without noise ``run`` has the same probability
as in the softmax over all branches; the branch, given that the unit runs, is a straight-through softmax. At
evaluation a unit runs where that probability is at least a half, and the likelier branch is taken.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from fusion.routing.plan import SKIP
from fusion.routing.relaxations import gumbel_noise, positive_temperature, straight_through

_FAR = 1e4
"""Stands for an infinite logit where infinities would give NaN."""


class GumbelSigmoid(nn.Module):
    """Straight-through Gumbel-sigmoid (Maddison et al., ICLR 2017, appendix B): logistic noise on the logit.

    Forward: 1 where logit + noise is at least 0. Backward: the sigmoid of that at ``temperature``.

    Attributes:
        temperature: of sigmoid and softmax; a schedule may set it between steps.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = positive_temperature(temperature)

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        keep, branch = _split(logits)
        if generator is not None:
            noise = gumbel_noise((*branch.shape[:-1], branch.shape[-1] + 2), generator).to(logits.device)
            keep, branch = keep + noise[..., 0] - noise[..., 1], branch + noise[..., 2:]
        return _scores(keep, branch, logits > -torch.inf)

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        soft = torch.sigmoid(_keep(scores) / self.temperature)
        return _gates(_hard(soft, choice != SKIP), scores, choice, self.temperature)


class SemanticHashing(nn.Module):
    """Improved semantic hashing (Kaiser and Bengio, 2018; the gates of GaterNet, Chen et al., CVPR 2019).

    With normal noise on the logit g, a = clip(1.2 sigmoid(g) - 0.1, 0, 1) and b = 1[g > 0]. Gradients go through a. In
    training a random half of the samples is given a forward, the others b; evaluation has b for all. A unit that does
    not run has the gate 0 in any case, so that both executions agree.

    Attributes:
        temperature: of the branch softmax alone.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = positive_temperature(temperature)
        self._is_soft: Tensor | None = None

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        keep, branch = _split(logits)
        self._is_soft = None
        if generator is not None:
            noise = torch.randn(keep.shape, generator=generator).to(keep)
            self._is_soft = (torch.rand(len(keep), 1, generator=generator) < 0.5).to(keep.device)
            keep = keep + noise
            branch = branch + gumbel_noise(tuple(branch.shape), generator).to(branch)
        return _scores(keep, branch, logits > -torch.inf)

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        runs = choice != SKIP
        saturating = (1.2 * torch.sigmoid(_keep(scores)) - 0.1).clamp(0.0, 1.0)
        keep = _hard(saturating, runs)
        if self._is_soft is not None:
            keep = torch.where(self._is_soft & runs, saturating, keep)
        return _gates(keep, scores, choice, self.temperature)


class HardConcrete(nn.Module):
    """The hard concrete distribution of L0 regularisation (Louizos et al., ICLR 2018, equations 10 to 13).

    A sigmoid stretched to (``low``, ``high``) and clipped to [0, 1]: exact zeros, exact ones, and a true gradient in
    between. A unit runs where the gate is above 0, at the gate's weight, in training and (without noise) at evaluation.

    Attributes:
        temperature: beta.
        low, high: gamma and zeta, ends of the stretched interval.
    """

    def __init__(self, temperature: float = 2 / 3, low: float = -0.1, high: float = 1.1):
        super().__init__()
        if not low < 0 < 1 < high:
            raise ValueError(f"expected low < 0 and high > 1, got {low} and {high}")
        self.temperature, self.low, self.high = positive_temperature(temperature), low, high

    @property
    def _threshold(self) -> float:
        """Of (logit + noise) / temperature: above it the gate is above 0."""
        return math.log(-self.low / self.high)

    def log_probs(self, logits: Float[Tensor, "b u k"]) -> Float[Tensor, "b u k"]:
        """P(gate > 0) = sigmoid(logit - temperature * log(-low / high)), times the softmax of the branches."""
        keep, branch = _split(logits)
        keep = keep - self.temperature * self._threshold
        runs = torch.nn.functional.logsigmoid(keep)[..., None] + torch.log_softmax(branch, dim=-1)
        together = torch.cat([torch.nn.functional.logsigmoid(-keep)[..., None], runs], dim=-1)
        return together.masked_fill(logits == -torch.inf, -torch.inf)

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        keep, branch = _split(logits)
        if generator is not None:
            noise = gumbel_noise((*branch.shape[:-1], branch.shape[-1] + 2), generator).to(logits.device)
            keep, branch = keep + noise[..., 0] - noise[..., 1], branch + noise[..., 2:]
        return _scores(keep - self.temperature * self._threshold, branch, logits > -torch.inf)

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        """What was changed by a cap is straight-through: 0 forward."""
        stretched = torch.sigmoid(_keep(scores) / self.temperature + self._threshold)
        gate = (stretched * (self.high - self.low) + self.low).clamp(0.0, 1.0)
        runs = choice != SKIP
        keep = torch.where(runs & (gate > 0), gate, _hard(gate, runs))
        return _gates(keep, scores, choice, self.temperature)


def _split(logits: Float[Tensor, "b u k"]) -> tuple[Float[Tensor, "b u"], Float[Tensor, "b u n"]]:
    """Logit of running, and finite logits of the n branches. What is certain (one way only) gets no gradient."""
    branch = logits[..., SKIP + 1 :]
    is_closed = (branch == -torch.inf).all(dim=-1)
    is_forced = logits[..., SKIP] == -torch.inf
    branch = branch.masked_fill(branch == -torch.inf, -10 * _FAR)
    keep = branch.logsumexp(dim=-1) - logits[..., SKIP].masked_fill(is_forced, 0.0)
    return torch.where(is_closed, -_FAR, torch.where(is_forced, _FAR, keep)), branch


def _scores(
    keep: Float[Tensor, "b u"], branch: Float[Tensor, "b u n"], possible: Bool[Tensor, "b u k"]
) -> Float[Tensor, "b u k"]:
    """Scores whose argmax is the nested decision: SKIP has 0, the best branch the logit of running."""
    below_best = branch - branch.amax(dim=-1, keepdim=True)
    together = torch.cat([torch.zeros_like(keep)[..., None], keep[..., None] + below_best], dim=-1)
    return together.masked_fill(~possible, -torch.inf)


def _keep(scores: Float[Tensor, "b u k"]) -> Float[Tensor, "b u"]:
    """The (noisy) logit of running, back from ``_scores``; finite."""
    finite = scores.masked_fill(scores == -torch.inf, -_FAR)
    return finite[..., SKIP + 1 :].amax(dim=-1) - finite[..., SKIP]


def _hard(soft: Float[Tensor, "b u"], runs: Bool[Tensor, "b u"]) -> Float[Tensor, "b u"]:
    """``runs`` forward, the gradient of ``soft`` backward."""
    return runs.to(soft.dtype) + (soft - soft.detach())


def _gates(
    keep: Float[Tensor, "b u"], scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"], temperature: float
) -> Float[Tensor, "b u k"]:
    """Gate of every branch: that of the unit times the straight-through one-hot of the branch."""
    branch = scores[..., SKIP + 1 :]
    branch = branch.masked_fill(branch == -torch.inf, -10 * _FAR)
    taken = torch.where(choice == SKIP, branch.argmax(dim=-1), choice - 1)
    share = straight_through(torch.softmax(branch / temperature, dim=-1), taken)
    return torch.cat([1 - keep[..., None], keep[..., None] * share], dim=-1)
