"""Telling the cameras of a batch which patches to work on: by counted points, or by the BEV of a guide that has run."""

from collections.abc import Mapping

from jaxtyping import Bool
from torch import Tensor

from datamodules.batch import Batch
from fusion.encoders.guide import guide_points
from fusion.encoders.guide_learned import GuideBev
from fusion.routing.dispatch import Dispatch
from fusion.trunk.merge import SensorBev
from fusion.units import ViewBranches
from sensors.rig import NUM_CAMERAS, UNITS


def has_scorer(cameras: ViewBranches | None) -> bool:
    """Whether the guide's BEV is scored, which must then run before the cameras."""
    return getattr(cameras, "scorer", None) is not None


def guide_cameras(
    cameras: ViewBranches, guide: str | None, batch: Batch, dispatch: Dispatch, parts: Mapping[str, SensorBev]
) -> None:
    """Sets what chooses the cameras' patches in this batch.

    Args:
        guide: ``lidar`` or ``radar``; None for none.
        parts: BEVs of the sensors that have run.
    """
    if guide is None:
        return
    if not has_scorer(cameras):
        cameras.guide = guide_points(batch, guide)
        return
    part = parts.get(guide)
    cameras.guide_bev = None if part is None else GuideBev(part.bev, dispatch.chose(UNITS.index(guide.upper())))


def unguided(cameras: ViewBranches | None, guide: str | None, dispatch: Dispatch) -> Bool[Tensor, "b"] | None:
    """Samples whose cameras run without the BEV of their guide; None where no BEV is scored."""
    if not has_scorer(cameras):
        return None
    return dispatch.chose(slice(NUM_CAMERAS)) & ~dispatch.chose(UNITS.index(guide.upper()))
