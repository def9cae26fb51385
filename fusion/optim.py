"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fusion.muon import MuonAdamW
from fusion.stages import is_below

SCHEDULES = ("onecycle", "constant")
METHODS = ("adamw", "muon")
ROUTER_PREFIX = "router"
LAST_LAYERS = ("head.heatmaps", "head.regressions")
"""Below these, of the model's head and of every exit's, AdamW stays: Muon is for layers between others."""
EXIT_HEADS = "exits.heads"


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW or Muon, and the schedule.

    Attributes:
        method: ``adamw``, or ``muon`` for the weights between the first and the last layers (see MuonAdamW).
        learning_rate: peak of everything but the router.
        router_learning_rate: peak of the router.
        weight_decay: of weights; never of biases, norms and the router.
        schedule: ``onecycle`` or ``constant`` (after the warm-up).
        warm_up_steps: optimiser steps until the peak.
        muon_learning_rate: peak of the weights that Muon moves; by its measure five times AdamW's is a good start.
        betas: of the running means of gradient and squared gradient; a shorter second memory (0.99) suits short runs.
    """

    learning_rate: float = 1e-3
    router_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "onecycle"
    warm_up_steps: int = 50
    betas: Sequence[float] = (0.9, 0.999)
    method: str = "adamw"
    muon_learning_rate: float = 0.02

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"expected method to be one of {', '.join(METHODS)}, got '{self.method}'")
        for name in ("learning_rate", "router_learning_rate", "muon_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} above 0, got {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"expected weight_decay of at least 0, got {self.weight_decay}")
        learning_rate_factor(self.schedule, 1, self.warm_up_steps)

    def build(
        self, model: nn.Module, factor: Callable[[int, str], float], extra: Sequence[nn.Parameter] = ()
    ) -> tuple[torch.optim.AdamW, object]:
        """The optimiser, and the scheduler that multiplies each group's learning rate by ``factor(step, group)``.

        Args:
            extra: further parameters, such as those of custom steps, moved by AdamW without weight decay.
        """
        groups = parameter_groups(model, self.learning_rate, self.router_learning_rate, self.weight_decay)
        if extra:
            rates = {"lr": self.learning_rate, "weight_decay": 0.0, "muon": False}
            groups.append({"name": "custom", "params": list(extra), **rates})
        if self.method == "muon":
            optimizer = MuonAdamW(with_muon_group(model, groups, self.muon_learning_rate), betas=tuple(self.betas))
        else:
            optimizer = torch.optim.AdamW(groups, betas=tuple(self.betas))
        factors = [partial(_of_group, factor, group["name"]) for group in optimizer.param_groups]
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def _of_group(factor: Callable[[int, str], float], group: str, step: int) -> float:
    return factor(step, group)


def parameter_groups(
    model: nn.Module, learning_rate: float, router_learning_rate: float, weight_decay: float
) -> list[dict]:
    """Groups for AdamW: weights, then biases and norms, then the router; only the first decays.

    Frozen parameters are in their groups as well: without a gradient the optimiser leaves them alone.
    """
    groups = {
        "weights": {"name": "weights", "params": [], "lr": learning_rate, "weight_decay": weight_decay},
        "biases": {"name": "biases", "params": [], "lr": learning_rate, "weight_decay": 0.0},
        "router": {"name": "router", "params": [], "lr": router_learning_rate, "weight_decay": 0.0},
    }
    for name, parameter in model.named_parameters():
        if is_below(name, ROUTER_PREFIX):
            key = "router"
        else:
            key = "biases" if parameter.ndim <= 1 or name.endswith(".bias") else "weights"
        groups[key]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def with_muon_group(model: nn.Module, groups: list[dict], learning_rate: float) -> list[dict]:
    """The groups with the inner weights taken out of ``weights`` into a group ``inner`` of their own, for Muon."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def is_inner(parameter: nn.Parameter) -> bool:
        name = names[id(parameter)]
        if is_below(name, EXIT_HEADS):  # exits.heads.0.head.heatmaps... -> head.heatmaps...
            name = name.removeprefix(f"{EXIT_HEADS}.").partition(".")[2]
        return name.endswith(".weight") and not any(is_below(name, prefix) for prefix in LAST_LAYERS)

    split = []
    for group in groups:
        inner = [parameter for parameter in group["params"] if group["name"] == "weights" and is_inner(parameter)]
        chosen = {id(parameter) for parameter in inner}
        rest = [parameter for parameter in group["params"] if id(parameter) not in chosen]
        split += [{**group, "params": rest, "muon": False}] if rest else []
        if inner:
            split.append({**group, "params": inner, "name": "inner", "lr": learning_rate, "muon": True})
    return split


def learning_rate_factor(schedule: str, num_steps: int, warm_up_steps: int) -> Callable[[int], float]:
    """Step -> factor on the learning rate.

    ``onecycle`` rises from 1/25 to 1 over the warm-up and falls to 1/10000 by half cosines (Smith and Topin, 2018);
    ``constant`` rises linearly and stays.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"expected schedule to be one of {', '.join(SCHEDULES)}, got '{schedule}'")
    if warm_up_steps < 0:
        raise ValueError(f"expected warm_up_steps of at least 0, got {warm_up_steps}")
    warm_up = min(warm_up_steps, num_steps)

    def constant(step: int) -> float:
        return min(1.0, (step + 1) / (warm_up + 1))

    def one_cycle(step: int) -> float:
        if step < warm_up:
            return _half_cosine(1 / 25, 1.0, step / warm_up)
        return _half_cosine(1.0, 1e-4, min(1.0, (step - warm_up) / max(1, num_steps - 1 - warm_up)))

    return constant if schedule == "constant" else one_cycle


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
