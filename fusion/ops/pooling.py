"""BEV pooling: depth-weighted sums of image features per BEV cell, without the outer product.

Lift-splat (Philion and Fidler, ECCV 2020) spreads the feature of a pixel over its depth bins and sums per cell. Written
as a sparse ``cells x pixels`` matrix times ``pixels x channels`` features, the product depth x feature never exists in
memory. PyTorch's fused form of it is ``embedding_bag`` with per-sample weights: on two cores 60 ms against 470 ms for
``index_add`` of the products, forward and backward (6 views of 16x44, 118 depths, 80 channels).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from fusion.ops.scatter import at_least_float32


def weighted_pool(
    features: Float[Tensor, "p c"],
    weights: Float[Tensor, "n"],
    pixels: Int64[Tensor, "n"],
    cells: Int64[Tensor, "n"],
    num_cells: int,
) -> Float[Tensor, "m c"]:
    """``out[cells[i]] += weights[i] * features[pixels[i]]`` for all i, in float32 at least; 0 where nothing fell.

    Args:
        features: of every pixel.
        weights: of every contribution, e.g. depth probabilities.
        pixels, cells: which pixel gives and which cell receives it.
    """
    features = at_least_float32(features)
    if len(cells) == 0:
        # Keeps the graph: a batch whose points all miss the grid must still have gradients (zeros).
        return features.new_zeros(num_cells, features.shape[1]) + 0.0 * features.sum()
    cells, order = torch.sort(cells, stable=True)
    starts = torch.searchsorted(cells, torch.arange(num_cells, device=cells.device))
    return functional.embedding_bag(
        pixels[order], features, starts, mode="sum", per_sample_weights=weights.to(features.dtype)[order]
    )
