"""Muon for the weights inside the network, AdamW for everything else, as one optimiser."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5 that drives singular values towards 1 (Jordan et al., 2024)."""
_NUM_ITERATIONS = 5


class MuonAdamW(torch.optim.AdamW):
    """Groups whose ``muon`` is true step along their orthogonalised momentum, the others as AdamW's do.

    Muon (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024) replaces the momentum of a
    matrix by the nearest matrix with orthonormal rows or columns, so that rare directions learn as fast as frequent
    ones. A convolution counts as the matrix (out, in * height * width). The step is scaled by 0.2 sqrt(longer side),
    which makes its size that of AdamW's (Liu et al., "Muon is scalable for LLM training", 2025, equation 4), so both
    share one learning rate. Weight decay is decoupled in both.

    Args:
        groups: parameter groups, each with ``muon``; in those that have it true, every parameter has two dimensions
            or more.
        momentum: of Muon, Nesterov's.
        betas: of AdamW.
    """

    def __init__(self, groups: list[dict], momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.999)):
        flat = [p for group in groups if group["muon"] for p in group["params"] if p.ndim < 2]
        if flat:
            raise ValueError(
                f"expected matrices or convolutions in a Muon group, got a shape of {tuple(flat[0].shape)}"
            )
        super().__init__(groups, betas=betas)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        used = []
        for group in self.param_groups:
            if group["muon"]:
                chosen = [parameter for parameter in group["params"] if parameter.grad is not None]
                for parameter in chosen:
                    self._muon_step(parameter, group["lr"], group["weight_decay"])
                used += [(parameter, parameter.grad) for parameter in chosen]
        for parameter, _ in used:
            parameter.grad = None  # AdamW passes over what has none
        try:
            super().step()
        finally:
            for parameter, gradient in used:
                parameter.grad = gradient
        return loss

    def _muon_step(self, parameter: Tensor, learning_rate: float, weight_decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["step"] = torch.zeros(())  # AdamW reads it of every parameter when a checkpoint is loaded
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        mean = state["momentum"].lerp_(gradient, 1 - self.momentum)
        matrix = gradient.lerp(mean, self.momentum).flatten(1)
        direction = orthogonalized(matrix) * (0.2 * math.sqrt(max(matrix.shape)))
        parameter.mul_(1 - learning_rate * weight_decay)
        parameter.add_(direction.view_as(parameter), alpha=-learning_rate)


def orthogonalized(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """About the nearest matrix whose rows (or columns, where they are fewer) are orthonormal; zeros stay zeros.

    Five Newton-Schulz steps leave the singular values between about 0.7 and 1.2, which serves as well as 1.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * (square @ square)) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
