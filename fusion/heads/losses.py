"""How far the head's maps are from the targets: focal loss on the heatmap, L1 and cross-entropy at box centres."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional

from fusion.heads.center import HeadOutput
from fusion.heads.targets import CenterTargets
from sensors.boxes import NO_ATTRIBUTE

LOSS_WEIGHTS = {
    "heatmap": 1.0,
    "height": 0.25,
    "offset": 0.25,
    "log_size": 0.25,
    "heading": 0.25,
    "velocity": 0.05,
    "attribute": 0.1,
}
"""CenterPoint's: 0.25 for the box, a fifth of that for velocity; the attribute is our own."""


def center_loss(output: HeadOutput, targets: CenterTargets, per_sample: bool = False) -> dict[str, Tensor]:
    """Unweighted terms by the names of LOSS_WEIGHTS, each a sum over cells or boxes divided by max(boxes, 1).

    Computed in float32 whatever the maps' type. Values and gradients are finite without any box and with unknown
    velocities.

    Args:
        output: of B samples.
        targets: of the same samples, on the same grid.
        per_sample: return each sample's share (b,) instead of the sum. The shares are divided by the *batch's* number
            of boxes, so they add up to the sum.
    """
    values = output.at(targets.sample, targets.label, targets.cell)
    terms = {
        name: (getattr(values, name).float() - getattr(targets, name)).abs().sum(dim=1)
        for name in ("height", "offset", "log_size", "heading")
    }
    terms["velocity"] = _known_l1(values.velocity.float(), targets.velocity)
    terms["attribute"] = functional.cross_entropy(
        values.attribute.float(), targets.attribute, ignore_index=NO_ATTRIBUTE, reduction="none"
    )
    shares = {"heatmap": focal_loss(output.heatmap, targets)}
    for name, per_box in terms.items():
        shares[name] = per_box.new_zeros(len(targets)).index_add(0, targets.sample, per_box)
    num_boxes = max(len(targets.sample), 1)
    return {name: (share if per_sample else share.sum()) / num_boxes for name, share in shares.items()}


def weighted_sum(losses: Mapping[str, Tensor], weights: Mapping[str, float] | None = None) -> Tensor:
    """The terms times their weights, added up; LOSS_WEIGHTS for what ``weights`` does not name.

    Raises:
        ValueError: a weight of no such term.
    """
    unknown = set(weights or {}) - set(LOSS_WEIGHTS)
    if unknown:
        raise ValueError(f"expected loss weights among {sorted(LOSS_WEIGHTS)}, got {sorted(unknown)}; check the names")
    chosen = {**LOSS_WEIGHTS, **(weights or {})}
    return torch.stack([chosen[name] * loss for name, loss in losses.items()]).sum(dim=0)


def focal_loss(logits: Float[Tensor, "b 10 ny nx"], targets: CenterTargets) -> Float32[Tensor, "b"]:
    """Penalty-reduced focal loss of each sample (Law and Deng, ECCV 2018, equation 1; alpha 2, beta 4), not normalised.

    A box adds -(1 - p)^2 log p at its cell; any other cell adds -(1 - y)^4 p^2 log(1 - p), spared cells nothing.
    """
    logits = logits.float()
    score = logits.sigmoid()
    reduced = (1 - targets.heatmap).pow(4).masked_fill(targets.spared, 0.0)  # 0 at the boxes' own cells
    negative = (reduced * score.square() * functional.softplus(logits)).sum(dim=(1, 2, 3))  # softplus = -log(1 - p)
    at_boxes = logits.flatten(2)[targets.sample, targets.label, targets.cell]
    positive = (1 - at_boxes.sigmoid()).square() * functional.softplus(-at_boxes)
    return negative.index_add(0, targets.sample, positive)


def _known_l1(predicted: Float32[Tensor, "m 2"], target: Float32[Tensor, "m 2"]) -> Float32[Tensor, "m"]:
    """L1 over the finite components; the target is cleaned first, since NaN * 0 is NaN in the gradient too."""
    known = target.isfinite()
    difference = (predicted - torch.where(known, target, 0.0)).abs()
    return torch.where(known, difference, 0.0).sum(dim=1)
