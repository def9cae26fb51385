"""What early exits and token methods add to the loss of a training step, as named terms."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fusion.adaptive.token_terms import has_token_loss
from fusion.heads.center import HeadOutput
from fusion.heads.targets import CenterTargets
from fusion.model import FusionOutput
from fusion.trunk.exits_losses import JointLoss, exit_losses, gate_loss, gate_targets
from fusion.trunk.exits_peaks import find_peaks
from fusion.trunk.exits_policies import LearnedGate

GATE_PRICE = 1.0
"""Detection loss that a learned gate thinks the whole way from the first to the last exit is worth."""


@runtime_checkable
class ExitLoss(Protocol):
    """From the answers of all exits, the last one included, to one number; see ``fusion.trunk.exits_losses``."""

    def __call__(self, outputs: Sequence[HeadOutput], targets: CenterTargets) -> Tensor: ...


class DepthTerms:
    """The terms ``exits`` (early exits), ``exit_gate`` (a learned gate among their policies) and ``tokens``.

    Args:
        model: any; a model without exits and token methods has none of the terms.
        exit_loss: None for ``JointLoss(with_last=False)``.

    Raises:
        ValueError: an exit loss for a model without exits, or one that counts the last exit.

    Attributes:
        names: of the terms that this model has.
        watched: whether the next step keeps the losses of all exits, with their graph, in ``watched_losses``.
    """

    def __init__(self, model: nn.Module, exit_loss: ExitLoss | None = None):
        self._exits = getattr(model, "exits", None)
        if exit_loss is not None and self._exits is None:
            raise ValueError(
                f"expected a model with exits for the exit loss {type(exit_loss).__name__}, got one without; choose "
                "model=tiny_exits or leave exit_loss out"
            )
        if getattr(exit_loss, "with_last", False):
            raise ValueError(
                f"expected {type(exit_loss).__name__} with with_last: false, got true: the detection loss teaches the "
                "last exit already"
            )
        self._loss = JointLoss(with_last=False) if exit_loss is None else exit_loss
        gated = self._exits is not None and isinstance(self._exits.policy, LearnedGate)
        own = {"exits": self._exits is not None, "exit_gate": gated, "tokens": has_token_loss(model)}
        self.names = tuple(name for name, is_there in own.items() if is_there)
        self.watched, self.watched_losses = False, None

    def rest(self, weights: Mapping[str, float]) -> None:
        """Exits whose terms weigh nothing in a stage are not computed in it."""
        if self._exits is not None:
            self._exits.resting = not any(weights[name] for name in self.names if name != "tokens")

    def __call__(self, output: FusionOutput, targets: CenterTargets) -> dict[str, Tensor]:
        """The terms; 0 at evaluation and while the exits rest."""
        none = output.head.heatmap.new_zeros(())
        terms = dict.fromkeys(self.names, none)
        answers = None if output.exits is None else output.exits.outputs
        if answers is not None and len(answers) > 1:
            terms["exits"] = self._loss(answers, targets)
            self.watched_losses = list(exit_losses(answers, targets).sum(dim=0)) if self.watched else None
            if "exit_gate" in terms:
                terms["exit_gate"] = self._gate_loss(answers, targets)
        if "tokens" in terms and output.token_loss is not None:
            terms["tokens"] = output.token_loss
        return terms

    def _gate_loss(self, answers: Sequence[HeadOutput], targets: CenterTargets) -> Tensor:
        """A gate learns to open from the exit on that has the least loss + price * share of the way."""
        exits = self._exits
        num_samples = len(targets)
        losses = num_samples * exit_losses(answers, targets).detach()
        way = torch.linspace(0, 1, len(answers), device=losses.device)
        wanted = gate_targets(losses, way, GATE_PRICE)
        grid = exits.heads[0].head.grid
        temperatures = zip(answers, exits.temperatures, strict=False)
        peaks = [find_peaks(answer, grid, exits.num_peaks, temperature) for answer, temperature in temperatures]
        return gate_loss(exits.policy, peaks, wanted)
