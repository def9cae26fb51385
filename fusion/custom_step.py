"""The hook for training methods that no list of stages can say, such as bilevel ones."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from datamodules.batch import Batch
from fusion.model import FusionOutput

if TYPE_CHECKING:
    from fusion.task import FusionTask


@runtime_checkable
class CustomStep(Protocol):
    """What a stage does with a batch in place of one forward pass along a route.

    A step that is an ``nn.Module`` keeps what it learns (weights of samples, meta-parameters) in its parameters: they
    are in the optimiser (at the rates of ``others``), in every checkpoint, and in all ranks' means, so that a run that
    was stopped goes on exactly. Parameters that want no gradient are left to the step: it may have an optimiser of its
    own, whose state it keeps in the checkpoint by ``get_extra_state``. Anything else it must draw from ``generator``.
    What it changes in the model it must put back before it returns; ``torch.func.functional_call`` evaluates the model
    at other weights without changing it. See ``fusion.sample_weighting`` for one.

    A step may name its terms beforehand in an attribute ``terms``: they then have weights and a column in every table.
    Methods ``check(stage, model)`` and ``check_data(stage, data)`` may refuse what does not fit (ValueError) before
    anything runs.
    """

    def __call__(
        self, task: "FusionTask", batch: Batch, generator: torch.Generator
    ) -> tuple[FusionOutput, dict[str, Tensor]]:
        """The output that the task's own losses are taken from, and further loss terms by name.

        The terms are added with weight 1 to the losses of the output; a stage's ``losses`` switch the latter off.
        ``task.loss_terms(output, batch)`` gives them for other outputs.

        Args:
            generator: CPU generator of this step's draws, keyed by (seed, step, rank).
        """


def named_terms(steps: Sequence[object], others: Sequence[str] = ()) -> tuple[str, ...]:
    """The other terms, then those that steps name, each once."""
    return tuple(dict.fromkeys([*others, *(name for step in steps for name in getattr(step, "terms", ()))]))


def modules_of(steps: Sequence[object]) -> list[nn.Module]:
    """Those steps that have parameters, each once."""
    return list(dict.fromkeys(step for step in steps if isinstance(step, nn.Module)))
