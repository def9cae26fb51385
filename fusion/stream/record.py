"""What a stream says of its frames, one by one and in sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from fusion.routing.plan import BRANCHES, SKIP
from sensors.boxes import Boxes
from sensors.rig import UNITS

PARTS = ("glance", "route", "read", "prepare", "encode", "trunk", "decode")
"""Glance: reduced pictures and health. Route: router and policy. Read: files and full decoding of what was chosen.
Prepare: crops, gathered points, copy to the device. Encode: voxelising and encoders. Trunk: merge, exits, trunk, head.
A part that comes twice, since a frame did not leave before the other sensors were read, is the sum.
"""


@dataclass(frozen=True, eq=False)
class StreamedFrame:
    """One keyframe as it was dealt with.

    Attributes:
        chosen: branch of every unit, as it was decided.
        route: the same of what ran before the frame left.
        exit: early exit that the frame left at, counted from 0; None: it went all the way.
        ms: wall milliseconds by PARTS; the first frame of a process warms up.
        wake_ms: added for sensors that had to wake up.
        missed: whether all of that was later than the deadline; None without one.
        gflops, share: executed, and as a share of the full cost.
        opened: channels whose files were opened.
        joules: of the energy model.
        boxes: in the global frame.
    """

    token: str
    scene: str
    chosen: Int64[Tensor, "u"]
    route: Int64[Tensor, "u"]
    exit: int | None
    ms: dict[str, float]
    wake_ms: float
    missed: bool | None
    gflops: float
    share: float
    opened: tuple[str, ...]
    joules: float
    boxes: Boxes

    @property
    def total_ms(self) -> float:
        return sum(self.ms.values()) + self.wake_ms

    def line(self) -> dict:
        """Plain values for a JSON line; boxes as their number."""
        units = {unit: BRANCHES[branch] for unit, branch in zip(UNITS, self.route.tolist(), strict=True) if branch}
        return {
            "token": self.token,
            "scene": self.scene,
            "route": units,
            "exit": self.exit,
            "ms": {name: round(value, 3) for name, value in self.ms.items()},
            "total_ms": round(self.total_ms, 3),
            "wake_ms": self.wake_ms,
            "missed": self.missed,
            "gflops": self.gflops,
            "share": self.share,
            "opened": list(self.opened),
            "joules": self.joules,
            "num_boxes": len(self.boxes),
        }


@dataclass(frozen=True)
class StreamSummary:
    """Of all frames but the first, which warms up (of that one, where there is no other).

    Attributes:
        num_frames: all of them.
        mean_ms, p95_ms: by part, and ``total``.
        num_missed: of all frames; None without a deadline.
        share, joules: means.
        ran_share: share of frames in which each unit ran.
        left_share: share of frames that left at an early exit.
        num_switches: frames for which another route was chosen than for the one before in the scene.
    """

    num_frames: int
    mean_ms: dict[str, float]
    p95_ms: dict[str, float]
    num_missed: int | None
    share: float
    joules: float
    ran_share: dict[str, float]
    left_share: float
    num_switches: int


def summary_of(frames: Sequence[StreamedFrame]) -> StreamSummary:
    """Raises ValueError without frames."""
    if not frames:
        raise ValueError("expected frames to sum up, got none; choose a scene that has keyframes")
    warm = frames[1:] or frames
    columns = {name: np.array([frame.ms[name] for frame in warm]) for name in PARTS}
    columns["total"] = np.array([frame.total_ms for frame in warm])
    missed = [frame.missed for frame in frames]
    pairs = zip(frames, frames[1:], strict=False)
    ran = np.array([[branch != SKIP for branch in frame.route.tolist()] for frame in frames])
    return StreamSummary(
        num_frames=len(frames),
        mean_ms={name: float(values.mean()) for name, values in columns.items()},
        p95_ms={name: float(np.percentile(values, 95)) for name, values in columns.items()},
        num_missed=None if missed[0] is None else sum(map(bool, missed)),
        share=float(np.mean([frame.share for frame in frames])),
        joules=float(np.mean([frame.joules for frame in frames])),
        ran_share={unit: float(ran[:, row].mean()) for row, unit in enumerate(UNITS)},
        left_share=float(np.mean([frame.exit is not None for frame in frames])),
        num_switches=sum(a.scene == b.scene and not torch.equal(a.chosen, b.chosen) for a, b in pairs),
    )
