"""Analytic forward FLOPs of convolutions and linear layers: 1 MAC = 2 FLOPs.

Norms, activations and other elementwise work are left out, as in PyTorch's own counter; pooling and scatter are
counted by the modules that do them, since no counter sees those.
"""

import copy
import math

import torch
from torch import nn

GIGA = 1e9


def counted_gflops(module: nn.Module, *input_shapes: tuple[int, ...]) -> float:
    """GFLOPs of one forward pass, counted on a copy without storage (the meta device).

    Args:
        module: takes tensors of ``input_shapes``; each call of a Conv2d, ConvTranspose2d or Linear in it counts.
    """
    shadow = copy.deepcopy(module).to("meta")
    total = [0.0]

    def count(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        total[0] += _layer_flops(layer, inputs[0], output)

    for layer in shadow.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        shadow(*(torch.empty(shape, device="meta") for shape in input_shapes))
    return total[0] / GIGA


def _layer_flops(layer: nn.Module, given: torch.Tensor, output: torch.Tensor) -> float:
    if isinstance(layer, nn.Linear):
        return 2.0 * output.numel() * layer.in_features
    # A transposed convolution multiplies its kernel once per input value, a plain one once per output value.
    positions, fan = (
        (given.numel(), layer.out_channels)
        if isinstance(layer, nn.ConvTranspose2d)
        else (output.numel(), layer.in_channels)
    )
    return 2.0 * positions * fan / layer.groups * math.prod(layer.kernel_size)
