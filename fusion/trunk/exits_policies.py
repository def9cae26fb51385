"""When is an exit good enough? One protocol: a score per sample, and the sample leaves where it reaches a threshold.

A policy is a function of what the exits have said so far and keeps no state, so samples may leave and batches may be
cut in any way. A score of NaN never lets a sample go; a threshold of infinity switches an exit off. Policies with
numbers that validation data give are in ``exits_fitted``.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Configurations of runs from before name these two here.
from fusion.trunk.exits_fitted import ClassWise, ConformalSets  # noqa: F401
from fusion.trunk.exits_peaks import Peaks, certainty, confidence, energy, gate_features, margin, matched_shift_m

History = Sequence[Peaks | None]
"""Peaks of the same samples at every exit so far, this one last; None where an exit did not run."""


@runtime_checkable
class ExitPolicy(Protocol):
    """Gives the score of each sample at the last exit of a history.

    Attributes:
        looks_back: whether it needs earlier exits; if not, exits that are switched off are not computed.
    """

    looks_back: bool

    def __call__(self, history: History) -> Float[Tensor, "r"]:
        """Higher is surer. The exit's number is ``len(history) - 1``."""


class _PeakScore:
    """Mean over the peaks of how sure each is."""

    looks_back = False
    of_peak: Callable[[Peaks], Tensor]

    def __call__(self, history: History) -> Float[Tensor, "r"]:
        return history[-1].mean(type(self).of_peak(history[-1]))


class MaxProb(_PeakScore):
    """Probability of the likeliest hypothesis, in (0, 1]."""

    of_peak = confidence


class Entropy(_PeakScore):
    """1 minus the normalised entropy of the hypotheses (BranchyNet, Teerapittayanon et al., ICPR 2016), in [0, 1]."""

    of_peak = certainty


class Margin(_PeakScore):
    """Lead of the likeliest hypothesis over the second, in [0, 1]."""

    of_peak = margin


class Energy(_PeakScore):
    """Joint energy of the logits, above 0. Low where the exit sees nothing: empty frames go deeper."""

    of_peak = energy


class Patience:
    """How many times in a row the boxes stayed where they were (PABEE, Zhou et al., NeurIPS 2020, for boxes).

    The score is a whole number, 0 at the first exit; the threshold is the patience.

    Args:
        shift_m: mean matched-box shift below which two exits agree.
        radius_m: see ``matched_shift_m``.
    """

    looks_back = True

    def __init__(self, shift_m: float = 0.5, radius_m: float = 2.0):
        self.shift_m, self.radius_m = shift_m, radius_m

    def __call__(self, history: History) -> Float[Tensor, "r"]:
        count = history[-1].xy_m.new_zeros(len(history[-1]))
        for before, now in zip(history, history[1:], strict=False):
            count = torch.where(matched_shift_m(before, now, self.radius_m) < self.shift_m, count + 1, 0.0)
        return count


class AccumulatedConfidence:
    """Confidence summed over the exits that agree; starts again where the boxes move (BEEM, Bajpai and Hanawal 2025).

    Args:
        weights: of each exit's confidence.
        shift_m, radius_m: as in ``Patience``.
    """

    looks_back = True

    def __init__(self, weights: Sequence[float | int], shift_m: float = 0.5, radius_m: float = 2.0):
        self.weights, self.shift_m, self.radius_m = tuple(weights), shift_m, radius_m

    def __call__(self, history: History) -> Float[Tensor, "r"]:
        if len(history) > len(self.weights):
            raise ValueError(
                f"expected a weight for each exit, got {len(self.weights)} and exit {len(history)}; add one"
            )
        total = history[0].xy_m.new_zeros(len(history[0]))
        for number, now in enumerate(history):
            own = self.weights[number] * now.mean(confidence(now))
            agrees = number > 0 and matched_shift_m(history[number - 1], now, self.radius_m) < self.shift_m
            total = own if number == 0 else torch.where(agrees, total + own, own)
        return total


class Window:
    """Go deeper only where another score lies between two values; the threshold of leaving is 0.

    For tasks of uncertainty: what is clear and what is hopeless both end early.
    """

    def __init__(self, policy: ExitPolicy, low: float, high: float):
        if not low < high:
            raise ValueError(f"expected a window of low < high, got {low} and {high}")
        self.policy, self.low, self.high, self.looks_back = policy, low, high, policy.looks_back

    def __call__(self, history: History) -> Float[Tensor, "r"]:
        score = self.policy(history)
        return torch.maximum(self.low - score, score - self.high)


class LearnedGate(nn.Module):
    """Probability that an exit suffices, from four figures of its uncertainty (JEI-DNN, Regol et al., ICLR 2024).

    The features carry no gradient: the gate cannot make the exit look sure. Train it with ``exits_losses.gate_loss``.

    Args:
        num_exits: without the last, which always accepts.
    """

    looks_back = False

    def __init__(self, num_exits: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 1) for _ in range(num_exits))
        for layer in self.layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, history: History) -> Float[Tensor, "r"]:
        if len(history) > len(self.layers):
            raise ValueError(f"expected a gate for each exit, got {len(self.layers)} and exit {len(history)}")
        return self.logits(history[-1], len(history) - 1).sigmoid()

    def logits(self, peaks: Peaks, number: int) -> Float[Tensor, "r"]:
        """Before the sigmoid, of the exit of this number."""
        return self.layers[number](gate_features(peaks).detach())[:, 0]
