"""What a router may look at before anything is computed: chosen by configuration, each with its price."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from datamodules.batch import Batch
from fusion.routing.plan import FULL

GATE_INPUTS = ("health", "thumbnails", "speed", "previous")
"""Health statistics per channel; tiny pictures; the ego's speed; what the last frame's route found."""

DEFAULT_INPUTS = ("health", "thumbnails", "speed")
"""What every batch holds. ``previous`` needs a runner that goes through a scene in order."""

PREVIOUS_FIELDS = ("ran", "detections", "score")
"""Per unit: share of its full branch that ran; log10(1 + boxes) / 2 and mean score of the whole last frame."""


@dataclass(frozen=True, eq=False)
class Glance:
    """What the router may look at: cheap, and there before any encoder runs.

    Attributes:
        health: HEALTH_FIELDS per channel; zeros where absent.
        thumbnails: RGB in [0, 1]; zeros where absent.
        available: units that are present and that the model has.
    """

    health: Float32[Tensor, "b 12 k"]
    thumbnails: Float32[Tensor, "b 6 3 th tw"]
    ego_speed_mps: Float32[Tensor, "b"]
    channel_present: Bool[Tensor, "b 12"]
    available: Bool[Tensor, "b 8"]


def glance_of(batch: Batch, available: Bool[Tensor, "b 8"]) -> Glance:
    return Glance(batch.health, batch.thumbnails, batch.ego_speed_mps, batch.channel_present, available)


def checked_inputs(inputs: Sequence[str]) -> tuple[str, ...]:
    """The names, if there are such inputs.

    Raises:
        ValueError: an unknown or repeated name, or none at all.
    """
    if not inputs or set(inputs) - set(GATE_INPUTS) or len(set(inputs)) < len(inputs):
        raise ValueError(f"expected router inputs among {', '.join(GATE_INPUTS)}, each once, got {list(inputs)}")
    return tuple(inputs)


def previous_outcome(
    choice: Int64[Tensor, "b u"], num_boxes: Float[Tensor, "b"], mean_score: Float[Tensor, "b"]
) -> Float32[Tensor, "b u 3"]:
    """PREVIOUS_FIELDS of each unit, from the last frame's route and detections.

    Args:
        num_boxes: detections of each sample.
        mean_score: of them; 0 where there were none.
    """
    ran = choice.float() / FULL
    found = torch.stack([torch.log10(1 + num_boxes.float()) / 2, mean_score.float()], dim=-1)
    return torch.cat([ran[..., None], found[:, None].expand(-1, choice.shape[1], -1)], dim=-1)
