"""Class channels: context that says which class is at a place of the picture, taught there and then lifted.

A detector that learns from its BEV alone teaches a camera through a depth that is not known yet. A loss in the picture
itself (perspective supervision: BEVFormer v2, Yang et al., CVPR 2023) needs no depth, and what it taught can be lifted
as evidence of a class (semantic lifting: SA-BEV, Zhang et al., ICCV 2023). Ours: the first ten channels of the context
are the scores of a centre heatmap; the lift, the merge and the head see them like any other channel.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sensors.boxes import DETECTION_NAMES

NUM_CLASS_CHANNELS = len(DETECTION_NAMES)
CLASS_SCALE = 4.0
"""Of the channels: scores are mostly small, and should not have to grow against the other channels."""
_FIRST_LOGIT = -2.19
"""Every cell starts at a score of 0.1, else the many negatives rule the first steps (Lin et al., ICCV 2017)."""
_LEAST = 1e-6


def with_class_channels(context: Float[Tensor, "r c fh fw"]) -> Float[Tensor, "r c fh fw"]:
    """The context with its first channels, logits, turned into scaled scores."""
    scores = (context[:, :NUM_CLASS_CHANNELS] + _FIRST_LOGIT).sigmoid()
    return torch.cat([CLASS_SCALE * scores, context[:, NUM_CLASS_CHANNELS:]], dim=1)


def center_map_loss(context: Float[Tensor, "r c fh fw"], center_maps: Float[Tensor, "r 10 dh dw"]) -> Float[Tensor, ""]:
    """Penalty-reduced focal loss (Law and Deng, ECCV 2018) of the class channels per centre in the pictures.

    Args:
        context: with class channels.
        center_maps: 1 at a centre. May be finer than the context by a whole factor: a cell then takes the highest of
            its parts.

    Raises:
        ValueError: sizes that do not divide.
    """
    size = tuple(context.shape[-2:])
    factor = center_maps.shape[-1] // size[1]
    if (size[0] * factor, size[1] * factor) != tuple(center_maps.shape[-2:]):
        raise ValueError(
            f"expected centre maps of a whole multiple of the features' {size}, got {tuple(center_maps.shape[-2:])}; "
            "set depth_stride to the view encoder's stride"
        )
    target = functional.max_pool2d(center_maps, factor) if factor > 1 else center_maps
    score = (context[:, :NUM_CLASS_CHANNELS].float() / CLASS_SCALE).clamp(_LEAST, 1 - _LEAST)
    is_center = target >= 1.0
    positive = (1 - score).square() * score.log()
    negative = (1 - target).pow(4) * score.square() * (1 - score).log()
    return -torch.where(is_center, positive, negative).sum() / is_center.sum().clamp(min=1)
