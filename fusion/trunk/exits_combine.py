"""What an exit gives out: its own maps, or those of all exits so far together."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fusion.heads.center import HeadOutput

_MAPS = tuple(item.name for item in fields(HeadOutput) if item.name != "group_of_class")


@runtime_checkable
class Combination(Protocol):
    """Raw outputs of the exits so far, for the same samples, to the answer of the last of them."""

    def __call__(self, said: Sequence[HeadOutput]) -> HeadOutput: ...


class Boosted:
    """Each exit adds to the sum of those before it: F_k = rho_k (o_k + F_{k-1}) (BoostedNet, Yu et al., AAAI 2023).

    F_{k-1} carries no gradient, so each head learns what is still wrong. Weak learners start as corrections: the last
    biases of all heads but the first are set to 0.

    Args:
        rescale: rho of each exit, the last one included; None for 1.
    """

    def __init__(self, rescale: Sequence[float | int] | None = None):
        self.rescale = None if rescale is None else tuple(rescale)

    def __call__(self, said: Sequence[HeadOutput]) -> HeadOutput:
        total = said[0] if self.rescale is None else _mapped(said[:1], lambda own: self.rescale[0] * own)
        for number, output in enumerate(said[1:], start=1):
            rho = 1.0 if self.rescale is None else self.rescale[number]
            total = _mapped((total, output), lambda before, own, rho=rho: rho * (own + before.detach()))
        return total

    def prepare(self, heads: Sequence[nn.Module]) -> None:
        """Zero the biases of the heads after the first."""
        for head in heads[1:]:
            for branch in (*head.heatmaps, *head.regressions):
                nn.init.zeros_(branch[-1].bias)


class MeanProbability:
    """Running mean of the exits' probabilities, weighted by what the exits cost or otherwise (multi-exit ensemble).

    Regressions are those of the deepest exit.

    Args:
        weights: of each exit, the last one included.
    """

    def __init__(self, weights: Sequence[float | int]):
        if not weights or min(weights) < 0 or weights[0] <= 0:
            raise ValueError(f"expected weights of at least 0, the first above 0, got {list(weights)}")
        self.weights = tuple(weights)

    def __call__(self, said: Sequence[HeadOutput]) -> HeadOutput:
        weights = _for_all(self.weights, len(said))
        pairs = zip(weights, said, strict=True)
        mean = sum(weight * output.heatmap.float().sigmoid() for weight, output in pairs) / sum(weights)
        return replace(said[-1], heatmap=torch.logit(mean, eps=1e-6).to(said[-1].heatmap.dtype))


class GeometricEnsemble(nn.Module):
    """Learned weighted product of the exits' probabilities, renormalised (ZTW, Wojcik et al., 2021).

    Renormalising a product of Bernoulli variables is adding logits: logit_k = sum_j exp(w_kj) logit_j + b_k.
    Starts as the plain mean. Regressions are those of the deepest exit.

    Args:
        num_exits: the last one included.
    """

    def __init__(self, num_exits: int):
        super().__init__()
        self.log_weights = nn.ParameterList(
            nn.Parameter(torch.full((number,), 1.0 / number).log()) for number in range(1, num_exits + 1)
        )
        self.biases = nn.Parameter(torch.zeros(num_exits))

    def forward(self, said: Sequence[HeadOutput]) -> HeadOutput:
        if len(said) > len(self.log_weights):
            raise ValueError(f"expected at most {len(self.log_weights)} exits, got {len(said)}; raise num_exits")
        weights = self.log_weights[len(said) - 1].exp()
        heatmap = sum(weight * output.heatmap for weight, output in zip(weights, said, strict=True))
        return replace(said[-1], heatmap=heatmap + self.biases[len(said) - 1])


def _for_all(weights: tuple[float | int, ...], num_exits: int) -> tuple[float | int, ...]:
    if len(weights) < num_exits:
        raise ValueError(f"expected a weight for each exit, got {len(weights)} for {num_exits}; add some")
    return weights[:num_exits]


def _mapped(outputs: Sequence[HeadOutput], function) -> HeadOutput:
    """A function of the same map of several outputs, for all maps."""
    maps: dict[str, Tensor] = {name: function(*(getattr(one, name) for one in outputs)) for name in _MAPS}
    return replace(outputs[-1], **maps)
