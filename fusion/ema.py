"""A running average of the weights: smoother than the last step, used for validation and evaluation."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class WeightAverage(pl.Callback):
    """Exponential moving average of the parameters, in float32, after every optimiser step.

    ``average += (1 - d) (weights - average)`` with ``d = min(decay, (1 + n) / (10 + n))`` at update n, so the start is
    forgotten soon. Validation runs on the average; training goes on with the weights. The checkpoint holds both, and a
    resumed run goes on exactly.
    """

    def __init__(self, decay: float = 0.99):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"expected the decay of the weights' average in [0, 1), got {decay}; try 0.99")
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] | None = None
        self._last_step = -1

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parameters = dict(pl_module.model.named_parameters())
        loaded = self.average
        self.average = {
            name: loaded.get(name, value).detach().to(value.device, torch.float32, copy=True)
            for name, value in parameters.items()
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        with torch.no_grad():
            weights = [value.detach().float() for value in pl_module.model.parameters()]
            torch._foreach_lerp_(list(self.average.values()), weights, 1.0 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.num_updates:
            self._weights = {name: value.detach().clone() for name, value in pl_module.model.named_parameters()}
            put_weights(pl_module.model, self.average)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._put_back(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._put_back(pl_module)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict) -> None:
        assert self._weights is None, "a checkpoint during validation would hold the average as the weights"

    def state_dict(self) -> dict:
        return {"num_updates": self.num_updates, "average": dict(self.average)}

    def load_state_dict(self, state_dict: dict) -> None:
        self.num_updates = state_dict["num_updates"]
        self.average = state_dict["average"]

    def _put_back(self, pl_module: pl.LightningModule) -> None:
        if self._weights is not None:
            put_weights(pl_module.model, self._weights)
            self._weights = None


@torch.no_grad()
def put_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model's parameters, in place and in the parameters' own precision."""
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
