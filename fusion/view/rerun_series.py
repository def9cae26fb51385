"""What happens over time in a Rerun recording: routes, cost, exits, tokens and faults as curves, events as words."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sensors.rig import UNITS

BRANCH_HEIGHT = {"skip": 0.0, "lite": 0.5, "full": 1.0}


@dataclass(frozen=True)
class Ran:
    """What a model computed for one keyframe.

    Attributes:
        branches: by unit, ``skip``, ``lite`` or ``full``.
        gflops: executed.
        exit: number of the exit at which the sample left; the last number is the whole trunk. None without exits.
        tokens: mean share of the trunk's tokens that took part over its blocks; 0 where the sample left before them,
            None for a model without.
    """

    branches: Mapping[str, str]
    gflops: float
    exit: int | None = None
    tokens: float | None = None


def branches_of(choice: Sequence[int] | Int[np.ndarray, "u"]) -> dict[str, str]:
    """Names of the branches of the eight units."""
    names = tuple(BRANCH_HEIGHT)
    return {unit: names[int(branch)] for unit, branch in zip(UNITS, choice, strict=True)}


def log_ran(rerun, recording, ran: Ran) -> None:
    """A value for every curve of the model."""
    for unit, branch in ran.branches.items():
        recording.log(f"routes/{unit}", rerun.Scalars(BRANCH_HEIGHT[branch]))
    recording.log("cost/gflops", rerun.Scalars(ran.gflops))
    if ran.exit is not None:
        recording.log("exits/number", rerun.Scalars(float(ran.exit)))
    if ran.tokens is not None:
        recording.log("tokens/kept", rerun.Scalars(ran.tokens))


def log_faults(rerun, recording, acting: Sequence[str], may_act: Sequence[str]) -> None:
    """A curve for each fault: 1 where it acts, 0 where it rests.

    Args:
        acting: names with their levels, as ``fog@0.3``.
        may_act: the same of all that the scenario holds.
    """
    now = {fault_of(name) for name in acting}
    for fault in dict.fromkeys(map(fault_of, (*may_act, *acting))):
        recording.log(f"faults/{fault}", rerun.Scalars(float(fault in now)))


def log_event(rerun, recording, acting: Sequence[str], ran: Ran | None) -> None:
    """One line of words; a warning where a fault acts."""
    words = [f"faults: {', '.join(acting) or 'none'}"]
    if ran is not None and ran.exit is not None:
        words.append(f"exit: {ran.exit}")
    recording.log("events", rerun.TextLog("; ".join(words), level="WARN" if acting else "INFO"))


def fault_of(name: str) -> str:
    """``camera_drop[CAM_BACK]@1.00`` as a part of a path: without its level, ``camera_drop-CAM_BACK``."""
    return re.sub(r"[^\w.-]+", "-", name.partition("@")[0]).strip("-")
