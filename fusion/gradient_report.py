"""Who gets how much gradient: shares of the sensors' encoders, agreement of the exits, and a balance on request."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from fusion.callbacks import append_rows, drop_rows_after
from fusion.stages import is_below
from fusion.trunk.exits_losses import gradient_agreement

ENCODERS = {"camera": "cameras", "lidar": "lidar", "radar": "radar"}
"""Sensor -> prefix of its encoders' parameters in a FusionModel."""
SHARED = ("merge", "trunk.stages.0")
"""Where the gradients of the exits are compared: what all of them stand on."""
DECAY = 0.9


class GradientReport(pl.Callback):
    """``gradients.csv``: each sensor's share of the gradient norm, and cosines between the gradients of the exits.

    With ``balance`` above 0 the encoders of sensors that get more than their equal share move less, so that a sensor
    that learns fast does not starve the others: the step of sensor m of M is scaled by min(1, (1 / (M share_m)) ^
    balance), shares being running means. The step is scaled, not the gradient: Adam and Muon do not see the latter's
    size. (After OGM-GE, Peng et al., CVPR 2022, which scales gradients by how far one modality is ahead.)

    A sensor whose encoders a stage freezes has no share in it, and counts neither for nor against the others; its
    running mean waits for the next stage that trains it. Exits that rest have cosines of NaN.

    Args:
        folder: of the run.
        every_n_steps: optimiser steps between two rows; None writes none.
        balance: 0 looks only.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None, balance: float = 0.0):
        if balance < 0 or (every_n_steps is not None and every_n_steps < 1):
            raise ValueError(
                "expected a modality_balance of at least 0 and gradients_every_n_steps of 1 or more (or null), "
                f"got {balance} and {every_n_steps}; change it"
            )
        self.folder, self.every_n_steps, self.balance = folder, every_n_steps, balance
        self.norms: dict[str, float] = {}
        self._learning: tuple[str, ...] = ()
        self._has_stepped = False
        self._cosines: dict[str, Tensor] = {}
        self._before: list[tuple[nn.Parameter, Tensor, float]] = []

    def shares(self) -> dict[str, float]:
        """Running mean of each sensor's gradient norm over that of all; of sensors that learn now and have learnt."""
        norms = {name: norm for name, norm in self.norms.items() if name in self._learning}
        total = sum(norms.values())
        return {name: norm / total for name, norm in norms.items()} if total > 0 else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.every_n_steps:
            drop_rows_after(self.folder / "gradients.csv", trainer.global_step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        pl_module.depth_terms.watched = self._is_due(trainer.global_step + 1)

    def on_before_backward(self, trainer, pl_module, loss: Tensor) -> None:
        losses, self._cosines = pl_module.depth_terms.watched_losses, {}
        if losses is None or not loss.requires_grad:
            return
        named = pl_module.model.named_parameters()
        shared = [p for name, p in named if p.requires_grad and any(is_below(name, prefix) for prefix in SHARED)]
        teaching = [number for number, one in enumerate(losses) if one.requires_grad]
        if shared and len(teaching) > 1:
            found = gradient_agreement([losses[number] for number in teaching], shared).detach()
            self._cosines = {
                f"cosine_{teaching[i]}_{teaching[j]}": found[i, j] for i, j in combinations(range(len(teaching)), 2)
            }
        pl_module.depth_terms.watched_losses = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        encoders = encoders_of(pl_module.model)
        self._learning = tuple(name for name, own in encoders.items() if any(one.requires_grad for one in own))
        self._has_stepped = True
        for name, parameters in encoders.items():
            norm = float(gradient_norm(parameters))
            if norm > 0:  # a sensor that did not run says nothing
                self.norms[name] = DECAY * self.norms.get(name, norm) + (1 - DECAY) * norm
        factors = balance_factors(self.shares(), self.balance)
        self._before = [
            (parameter, parameter.detach().clone(), factor)
            for name, factor in factors.items()
            if factor < 1
            for parameter in encoders[name]
            if parameter.grad is not None
        ]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        with torch.no_grad():
            for parameter, before, factor in self._before:
                parameter.copy_(torch.lerp(before, parameter, factor))
        stepped, self._has_stepped, self._before = self._has_stepped, False, []
        if stepped and self._is_due(trainer.global_step) and trainer.is_global_zero:
            self._write(trainer.global_step, pl_module.model)

    def _is_due(self, step: int) -> bool:
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def _write(self, step: int, model: nn.Module) -> None:
        shares = self.shares()
        factors = balance_factors(shares, self.balance)
        row = {"step": step, **{f"share_{name}": shares.get(name, 0.0) for name in ENCODERS}}
        row |= {f"factor_{name}": factors.get(name, 1.0) for name in ENCODERS}
        # All columns from the first row on: a table has those of its first row, and exits may rest until a later stage.
        exits = getattr(model, "exits", None)
        for i, j in combinations(range(len(exits.heads) + 1 if exits is not None else 0), 2):
            row[f"cosine_{i}_{j}"] = float(self._cosines.get(f"cosine_{i}_{j}", torch.nan))
        append_rows(self.folder / "gradients.csv", [row])

    def state_dict(self) -> dict:
        return {"norms": dict(self.norms)}

    def load_state_dict(self, state_dict: dict) -> None:
        self.norms = dict(state_dict["norms"])


def balance_factors(shares: Mapping[str, float], balance: float) -> dict[str, float]:
    """What each sensor's step is scaled by; see GradientReport."""
    return {name: min(1.0, (1 / (len(shares) * share)) ** balance) for name, share in shares.items() if share > 0}


def encoders_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters of each sensor's encoders."""
    found: dict[str, list[nn.Parameter]] = {name: [] for name in ENCODERS}
    for name, parameter in model.named_parameters():
        for sensor, prefix in ENCODERS.items():
            if is_below(name, prefix):
                found[sensor].append(parameter)
    return {name: parameters for name, parameters in found.items() if parameters}


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Over all of them; 0 without a gradient."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm() if gradients else torch.zeros(())
