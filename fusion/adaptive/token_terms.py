"""What token methods, and the teachers of those in a camera ViT, add to the loss of a training step."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LAST = (
    "last_use",
    "last_shares",
    "last_share",
    "last_kept",
    "last_ponder",
    "last_halting",
    "last_terms",
    "last_rows",
)
"""Attributes in which token methods and teachers keep what the last pass did."""


def forget_tokens(model: nn.Module) -> None:
    """Before a training pass: a method that this pass does not reach has nothing to say.

    An encoder may run several times in one pass (views at full size, then small ones). Its methods and its teacher keep
    the mean over the rows of all these calls, from here on.
    """
    if not model.training:
        return
    for module in _methods(model):
        for name in _LAST:
            if hasattr(module, name):
                setattr(module, name, None)


def token_loss(model: nn.Module) -> Float[Tensor, ""] | None:
    """Sum over the token methods that ran in this training pass and have a target; None without any."""
    if not model.training:
        return None
    losses = [module.token_loss() for module in _methods(model)]
    losses = [loss for loss in losses if loss is not None]
    return torch.stack(losses).sum() if losses else None


def has_token_loss(model: nn.Module) -> bool:
    """Whether a training of this model has a term ``tokens``."""
    return any(getattr(module, "target", 0.0) is not None for module in _methods(model))


def _methods(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if module is not model and hasattr(module, "token_loss")]
