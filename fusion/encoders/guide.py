"""Points of LiDAR or radar that choose which patches of the cameras are worked on."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from datamodules.batch import Batch, PointBatch
from fusion.encoders.vit_tokens import GuidedKeep
from fusion.ops.projection import PosedViews, seen_by_own_views

GUIDES = ("lidar", "radar")


def checked_guide(name: str | None, cameras: nn.Module | None) -> str | None:
    """The name itself, if the cameras can be guided.

    Raises:
        ValueError: an unknown sensor, or cameras whose encoder takes no guide; or a guide that nobody gives.
    """
    method = getattr(getattr(cameras, "encoder", None), "method", None)
    if getattr(cameras, "scorer", None) is not None and not (name in GUIDES and isinstance(method, GuidedKeep)):
        raise ValueError(
            f"expected camera_guide: lidar or radar and cameras with GuidedKeep for a scorer, got {name} and "
            f"{type(method).__name__}; set both or leave the scorer out"
        )
    if name is None:
        if isinstance(method, GuidedKeep) and method.keep < 1:
            raise ValueError("expected camera_guide: lidar or radar for cameras with GuidedKeep, got none; set it")
        return None
    if name not in GUIDES:
        raise ValueError(f"expected camera_guide to be one of {', '.join(GUIDES)}, got {name!r}")
    if not isinstance(method, GuidedKeep):
        raise ValueError(
            f"expected a camera encoder VitViewEncoder with method GuidedKeep for camera_guide {name}, got "
            f"{type(getattr(cameras, 'encoder', None)).__name__}; leave camera_guide out or change the encoder"
        )
    return name


def check_scorer(scorer: nn.Module, name: str, branches: nn.Module | None, exits: nn.Module | None) -> None:
    """That a ``GuideScore`` fits the model's guide.

    Raises:
        ValueError: a model without the sensor, another BEV, or exits that run the cameras before the guide.
    """
    if branches is None:
        raise ValueError(f"expected a model with {name} for camera_guide {name} with a scorer, got one without; add it")
    have, want = (branches.full.channels, branches.full.out_grid), (scorer.channels, scorer.grid)
    if have[0] != want[0] or not have[1].is_same(want[1]):
        raise ValueError(
            f"expected a scorer for the {name}'s {have[0]} channels on {have[1]}, got {want[0]} on {want[1]}; change it"
        )
    first = () if exits is None else exits.first_group
    if "camera" in first and name not in first:
        raise ValueError(
            f"expected {name}, which guides the cameras, among the sensors that run with them before the first exit, "
            f"got first_group {list(first)}; add it"
        )


def guide_points(batch: Batch, name: str) -> PointBatch:
    """The guide's points, before any encoder: without a scorer they count whether or not the route runs the guide.

    What was not read cannot count: a stream, which does not open what the route skips, has no such points there.

    Raises:
        ValueError: the batch holds no such sensor at all.
    """
    points = getattr(batch, name)
    if points is None:
        raise ValueError(f"expected {name} points to guide the cameras, the data have none; set data.{name}_sweeps")
    return points


def guide_scores(points: PointBatch, views: PosedViews, size: tuple[int, int]) -> Float[Tensor, "r n"]:
    """Points in each patch of each view row; of equal patches the lower ones count more, where the ground is.

    Args:
        points: in the ego frame of the views.
        size: patches, lines and columns.
    """
    return point_scores(points, views, size) + lower_first(size, views.sample.device)


def point_scores(points: PointBatch, views: PosedViews, size: tuple[int, int]) -> Float[Tensor, "r n"]:
    """How many points fall into each patch; arguments as of ``guide_scores``."""
    num_patches = size[0] * size[1]
    scores = torch.zeros(len(views) * num_patches, device=views.sample.device)
    seen = seen_by_own_views(points, views, size)
    scores = scores.index_add(0, seen.view * num_patches + seen.cell, torch.ones_like(seen.depth_m))
    return scores.view(len(views), num_patches)


def lower_first(size: tuple[int, int], device: torch.device) -> Float[Tensor, "n"]:
    """Scores below a whole point that order the patches by their lines, the lowest first."""
    line = torch.arange(size[0], device=device).repeat_interleave(size[1])
    return 0.5 * line / size[0]
