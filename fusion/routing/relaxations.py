"""How a discrete choice gets a gradient. Noise belongs to training alone; everything here is float32."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@runtime_checkable
class Relaxation(Protocol):
    """Turns logits into scores whose argmax is the choice, and the choice into gates that carry a gradient.

    Between the two calls the route may be changed (a cost cap): the gates belong to what was chosen in the end.
    """

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]: ...

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]: ...


def log_probs_of(relaxation: Relaxation, logits: Float[Tensor, "b u k"]) -> Float[Tensor, "b u k"]:
    """Log-probability of each branch under the relaxation's own noise.

    The softmax of the logits, unless the relaxation draws from something else and says so by a method ``log_probs``.
    """
    if hasattr(relaxation, "log_probs"):
        return relaxation.log_probs(logits)
    return torch.log_softmax(logits, dim=-1)


class GumbelStraightThrough(nn.Module):
    """Straight-through Gumbel-softmax (Jang et al., ICLR 2017).

    Forward: one-hot of the choice. Backward: the softmax of the noisy scores at ``temperature``.

    Attributes:
        temperature: of the softmax; a schedule may set it between steps.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = positive_temperature(temperature)

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        """Logits plus Gumbel noise; the logits themselves where no generator is given (evaluation)."""
        if generator is None:
            return logits
        return logits + gumbel_noise(tuple(logits.shape), generator).to(logits.device)

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        return straight_through(torch.softmax(scores / self.temperature, dim=-1), choice)


class SoftmaxStraightThrough(nn.Module):
    """The same without noise (DynMM's DiffSoftmax): deterministic in training too."""

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = positive_temperature(temperature)

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        return logits

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        return straight_through(torch.softmax(scores / self.temperature, dim=-1), choice)


class SoftToHard(nn.Module):
    """Soft gates while the temperature is above ``hard_below``, straight-through ones from there on (DynMM's
    ``epoch_hard``): the temperature schedule of the stage says when. Evaluation is always hard.

    Soft gates mix all branches, so they want ``masked`` execution; ``sparse`` runs the likeliest branch alone, at its
    soft weight. A cost cap changes what runs, not the soft gates.

    Attributes:
        temperature: of the softmax.
        hard_below: from this temperature downwards the forward pass is one-hot.
    """

    def __init__(self, temperature: float = 1.0, hard_below: float = 0.7):
        super().__init__()
        self.temperature, self.hard_below = positive_temperature(temperature), hard_below

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        return logits

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        soft = torch.softmax(scores / self.temperature, dim=-1)
        return soft if self.training and self.temperature > self.hard_below else straight_through(soft, choice)


class SoftWeights(nn.Module):
    """No choice at all: whatever the budget lets run is run, and weighted by its probability of running.

    The soft sensor weights of CAFuser and its kin; they save nothing by themselves. A lite branch runs where the budget
    asks for it. Weights stay soft at evaluation.

    Attributes:
        temperature: of the weights.
    """

    _NEVER = 64.0  # a power of 2, small enough to keep the digits of the logits

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        self.temperature = positive_temperature(temperature)

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        """Logits with SKIP so low that it is taken only where nothing else is possible or affordable."""
        return torch.cat([logits[..., :1] - self._NEVER, logits[..., 1:]], dim=-1)

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        """The weight of the branch that runs; SKIP has the rest, and all where nothing runs."""
        logits = torch.cat([scores[..., :1] + self._NEVER, scores[..., 1:]], dim=-1)
        weight = 1 - torch.softmax(logits / self.temperature, dim=-1)[..., 0]
        hard = torch.nn.functional.one_hot(choice, scores.shape[-1]).to(scores.dtype)
        weight = weight * (1 - hard[..., 0])
        return torch.cat([1 - weight[..., None], weight[..., None] * hard[..., 1:]], dim=-1)


class ScoreFunction(nn.Module):
    """For REINFORCE: draws a route and gives its gates no gradient; the log-probability in the plan carries it.

    Draws come from ``bound * softmax + (1 - bound) * uniform`` over the possible branches, so that none dies out.
    For two branches that is BlockDrop's ``alpha p + (1 - alpha)(1 - p)`` (Wu et al., CVPR 2018) with alpha = (1 +
    bound) / 2. Where a cap changes the draw, the log-probability is that of what runs: exact only while the budget
    is not binding.

    Attributes:
        bound: share of the learned distribution.
        temperature: of the softmax.
    """

    def __init__(self, bound: float = 0.9, temperature: float = 1.0):
        super().__init__()
        if not 0 < bound <= 1:
            raise ValueError(f"expected bound in (0, 1], got {bound}")
        self.bound, self.temperature = bound, positive_temperature(temperature)

    def log_probs(self, logits: Float[Tensor, "b u k"]) -> Float[Tensor, "b u k"]:
        """Of the bounded distribution."""
        possible = logits > -torch.inf
        uniform = possible / possible.sum(dim=-1, keepdim=True).clamp_min(1)
        mixed = self.bound * torch.softmax(logits / self.temperature, dim=-1) + (1 - self.bound) * uniform
        return torch.where(possible, mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log(), -torch.inf)

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        """An exact draw by the Gumbel-max trick."""
        if generator is None:
            return logits
        return self.log_probs(logits).detach() + gumbel_noise(tuple(logits.shape), generator).to(logits.device)

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        return torch.nn.functional.one_hot(choice, scores.shape[-1]).to(scores.dtype)


def positive_temperature(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    return temperature


def gumbel_noise(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Standard Gumbel noise, drawn on the generator's device: -log of an exponential variable.

    Drawn on the CPU by the router, so that one key gives one route on every device.
    """
    exponential = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()


def straight_through(soft: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
    """One-hot of ``choice`` forward, the gradient of ``soft`` backward.

    ``soft - soft.detach()`` is exactly 0, so the forward value is exactly 0 or 1.
    """
    hard = torch.nn.functional.one_hot(choice, soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())
