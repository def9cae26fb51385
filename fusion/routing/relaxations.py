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


class GumbelStraightThrough(nn.Module):
    """Straight-through Gumbel-softmax (Jang et al., ICLR 2017).

    Forward: one-hot of the choice. Backward: the softmax of the noisy scores at ``temperature``.

    Attributes:
        temperature: of the softmax; a schedule may set it between steps.
    """

    def __init__(self, temperature: float = 1.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"expected a temperature above 0, got {temperature}")
        self.temperature = temperature

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
        if not temperature > 0:
            raise ValueError(f"expected a temperature above 0, got {temperature}")
        self.temperature = temperature

    def scores(self, logits: Float[Tensor, "b u k"], generator: torch.Generator | None) -> Float[Tensor, "b u k"]:
        return logits

    def gates(self, scores: Float[Tensor, "b u k"], choice: Int64[Tensor, "b u"]) -> Float[Tensor, "b u k"]:
        return straight_through(torch.softmax(scores / self.temperature, dim=-1), choice)


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
