"""What the exits learn from, given the outputs of all of them for the same samples.

Two-stage training ("separate") needs no loss of its own: ``EarlyExits(detach=True)``, or a stage that trains ``exits``
alone. Gradient equilibrium and boosting are settings of ``EarlyExits``; any loss here goes with them.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fusion.heads.center import HeadOutput
from fusion.heads.losses import LOSS_WEIGHTS, center_loss, weighted_sum
from fusion.heads.targets import CenterTargets
from fusion.trunk.exits_peaks import Peaks
from fusion.trunk.exits_policies import LearnedGate

TEACHERS = ("last", "later")


def exit_losses(
    outputs: Sequence[HeadOutput], targets: CenterTargets, weights: Mapping[str, float] | None = None
) -> Float[Tensor, "b k"]:
    """Detection loss of every sample at every exit; a column adds up to ``weighted_sum(center_loss(...))``."""
    return torch.stack([weighted_sum(center_loss(one, targets, per_sample=True), weights) for one in outputs], dim=1)


class JointLoss:
    """The weighted sum of all exits' losses.

    Args:
        weights: of each exit that counts; None for 1 (MSDNet). ``falling_weights`` favours early ones.
        with_last: whether the last exit counts; False where a detection loss on the model's own output is added anyway.
    """

    def __init__(self, weights: Sequence[float | int] | None = None, with_last: bool = True):
        self.weights = None if weights is None else tuple(weights)
        self.with_last = with_last

    def __call__(self, outputs: Sequence[HeadOutput], targets: CenterTargets) -> Float[Tensor, ""]:
        losses = exit_losses(outputs if self.with_last else outputs[:-1], targets).sum(dim=0)
        return (losses * _weights(self.weights, losses)).sum()


def falling_weights(num_exits: int) -> list[float]:
    """K, K-1, ..., 1: earlier exits weigh more, for warming up (JEI-DNN)."""
    return [float(num_exits - number) for number in range(num_exits)]


class DistillationLoss:
    """Early exits learn from labels and from deeper exits (IMTA, Li et al., ICCV 2019; dense: all later ones).

    L = L(o_K) + sum_{k<K} [(1 - share) L(o_k) + share T^2 KL(teacher || o_k)], teachers without gradient. The KL is
    that of independent Bernoulli variables, summed over cells and classes and divided by the number of boxes, as the
    focal loss is; regressions follow the teacher by L1 at the cells of boxes, with the weights of the detection loss.

    Args:
        teachers: ``last``, or ``later``: the mean over all later exits.
        share: of the teacher in an early exit's loss.
        temperature: T.
        with_last: as in JointLoss, for the term L(o_K).
    """

    def __init__(self, teachers: str = "last", share: float = 0.5, temperature: float = 1.0, with_last: bool = True):
        if teachers not in TEACHERS:
            raise ValueError(f"expected teachers to be one of {TEACHERS}, got {teachers!r}")
        if not 0 <= share <= 1 or not temperature > 0:
            raise ValueError(f"expected a share in [0, 1] and a temperature above 0, got {share} and {temperature}")
        self.teachers, self.share, self.temperature, self.with_last = teachers, share, temperature, with_last

    def __call__(self, outputs: Sequence[HeadOutput], targets: CenterTargets) -> Float[Tensor, ""]:
        losses = exit_losses(outputs, targets).sum(dim=0)
        total = losses[-1] if self.with_last else torch.zeros_like(losses[-1])
        for number in range(len(outputs) - 1):
            teachers = outputs[-1:] if self.teachers == "last" else outputs[number + 1 :]
            taught = [distance_to_teacher(outputs[number], one, targets, self.temperature) for one in teachers]
            total = total + (1 - self.share) * losses[number] + self.share * torch.stack(taught).mean()
        return total


def distance_to_teacher(
    student: HeadOutput, teacher: HeadOutput, targets: CenterTargets, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """See DistillationLoss; 0 where both say the same."""
    given, wanted = student.heatmap.float() / temperature, teacher.heatmap.detach().float() / temperature
    prob = wanted.sigmoid()
    # KL = p (log p - log q) + (1 - p)(log(1-p) - log(1-q)), in logits.
    divergence = prob * (wanted - given) + functional.softplus(given) - functional.softplus(wanted)
    total = temperature**2 * divergence.sum()
    places = (targets.sample, targets.label, targets.cell)
    own, other = student.at(*places), teacher.at(*places)
    for name in ("height", "offset", "log_size", "heading", "velocity"):
        difference = getattr(own, name).float() - getattr(other, name).detach().float()
        total = total + LOSS_WEIGHTS[name] * difference.abs().sum()
    return total / max(len(targets.sample), 1)


class SampleWeights(nn.Module):
    """Weights of samples at exits from all their losses (L2W-DEN, Han et al., ECCV 2022).

    w = 1 + reach * (m(l) - mean m(l)), m a small tanh network over the vector of the K exits' losses, without gradient
    into these; the mean is over the batch, so an exit's total weight stays that of the batch.

    Args:
        num_exits: the last one included.
        reach: of the weights around 1.
    """

    def __init__(self, num_exits: int, reach: float = 0.8, hidden: int = 16):
        super().__init__()
        self.reach = reach
        self.layers = nn.Sequential(nn.Linear(num_exits, hidden), nn.Tanh(), nn.Linear(hidden, num_exits), nn.Tanh())

    def forward(self, losses: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        raw = self.layers(losses.detach().float())
        return 1 + self.reach * (raw - raw.mean(dim=0, keepdim=True))


def virtual_step(parameters: Mapping[str, Tensor], loss: Float[Tensor, ""], learning_rate: float) -> dict[str, Tensor]:
    """Parameters after one step of plain gradient descent, through which gradients flow (for ``functional_call``).

    The bilevel recipe of L2W-DEN: weighted loss -> virtual step -> ``owned_loss`` of the stepped model -> backward into
    ``SampleWeights``.
    """
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
    stepped = zip(parameters.items(), gradients, strict=True)
    return {name: old if slope is None else old - learning_rate * slope for (name, old), slope in stepped}


def owners(scores: Float[Tensor, "b k"], shares: Sequence[float]) -> Int64[Tensor, "b"]:
    """The exit that each sample would leave at if a share q_k of all left at exit k, the surest first."""
    left = torch.full(scores.shape[:1], len(shares) - 1, dtype=torch.int64, device=scores.device)
    still = torch.arange(len(scores), device=scores.device)
    for number, share in enumerate(shares[:-1]):
        order = still[scores[still, number].argsort(descending=True, stable=True)]
        count = min(round(share * len(scores)), len(order))
        left[order[:count]] = number
        still = order[count:]
    return left


def owned_loss(losses: Float[Tensor, "b k"], owner: Int64[Tensor, "b"]) -> Float[Tensor, ""]:
    """Mean loss where each sample counts at its own exit alone."""
    return losses.gather(1, owner[:, None]).mean()


def gate_targets(losses: Float[Tensor, "b k"], costs: Float[Tensor, "k"], price: float) -> Float[Tensor, "b e"]:
    """1 from the best exit on, argmin of loss + price * cost, 0 before it; the last exit has no gate."""
    best = (losses.detach() + price * costs).argmin(dim=1)
    return (torch.arange(losses.shape[1] - 1, device=losses.device) >= best[:, None]).to(losses.dtype)


def gate_loss(gate: LearnedGate, exits: Sequence[Peaks], wanted: Float[Tensor, "b e"]) -> Float[Tensor, ""]:
    """Binary cross entropy of the gates; positives weigh as much as negatives at every exit.

    Args:
        exits: peaks of every exit but the last, of the same samples.
        wanted: from ``gate_targets``.
    """
    logits = torch.stack([gate.logits(peaks, number) for number, peaks in enumerate(exits)], dim=1)
    positives = wanted.sum(dim=0)
    balance = (len(wanted) - positives).clamp_min(1) / positives.clamp_min(1)
    return functional.binary_cross_entropy_with_logits(logits, wanted.to(logits), pos_weight=balance.to(logits))


def exit_probabilities(gates: Float[Tensor, "b e"]) -> Float[Tensor, "b k"]:
    """P(exit k) = max(0, min(g_k, 1 - sum_{j<k} g_j)), the rest at the last exit: rows sum to 1 (JEI-DNN)."""
    before = gates.cumsum(dim=1) - gates
    early = torch.minimum(gates, 1 - before).clamp_min(0)
    return torch.cat([early, 1 - early.sum(dim=1, keepdim=True)], dim=1)


def gradient_agreement(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Float[Tensor, "k k"]:
    """Cosines between the gradients of several losses in shared parameters; below 0 they pull apart."""
    flat = []
    for loss in losses:
        slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, slopes, strict=True)
        flat.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs]))
    unit = functional.normalize(torch.stack(flat), dim=1)
    return unit @ unit.T


def _weights(weights: tuple[float | int, ...] | None, like: Tensor) -> Tensor:
    if weights is None:
        return torch.ones_like(like)
    if len(weights) != len(like):
        raise ValueError(f"expected a weight for each of {len(like)} exits that count, got {list(weights)}")
    return like.new_tensor(weights)
