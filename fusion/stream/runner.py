"""Stream: batch 1, scene order, sensors still on disk. What the route leaves out is not read, decoded or voxelised."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from fusion.efficiency.energy import EnergyModel
from fusion.heads.decode import DecodeOptions, decode, to_global
from fusion.model import FusionModel
from fusion.routing.gate_inputs import Glance, previous_outcome
from fusion.routing.plan import BRANCHES, SKIP
from fusion.stream.senses import Keyframe, SceneSenses
from sensors.boxes import Boxes
from sensors.rig import UNITS

PARTS = ("glance", "route", "read", "prepare", "encode", "trunk", "decode")
"""Glance: reduced pictures and health. Route: router and policy. Read: files and full decoding of what was chosen.
Prepare: crops, gathered points, copy to the device. Encode: voxelising and encoders. Trunk: merge, trunk and head.
"""


@dataclass(frozen=True)
class StreamSettings:
    """How a stream runs.

    Attributes:
        budget: share of the full cost that the router is given.
        deadline_ms: from the first byte to the boxes; a later frame is a miss. None for no deadline.
        wake_ms: time that a unit needs when it runs and did not in the frame before; the first frame of a scene finds
            everything awake. Units wake together.
        energy: model of joules; sensors that were not opened count as switched off.
    """

    budget: float = 1.0
    deadline_ms: float | None = None
    wake_ms: float = 0.0
    energy: EnergyModel = EnergyModel(sensors_switch_off=True)


@dataclass(frozen=True, eq=False)
class StreamedFrame:
    """One keyframe as it was dealt with.

    Attributes:
        route: branch of every unit.
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
    route: Int64[Tensor, "u"]
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


RouteOf = Callable[[Keyframe], Int64[Tensor, "u"]]


class Stream:
    """Runs a model over scenes as a vehicle would.

    Args:
        model: in evaluation mode, on its device; its router's policy decides and may have a memory.
        senses: reads.
        settings: see there.
        route_of: routes decided elsewhere, such as a fixed one; nothing is then looked at beforehand. None for the
            model's router, which sees the outcome of the frame before if it looks at ``previous``.

    Raises:
        ValueError: a budget that the model cannot keep.
    """

    def __init__(
        self, model: FusionModel, senses: SceneSenses, settings: StreamSettings, route_of: RouteOf | None = None
    ):
        if route_of is None and not model.min_budget - 1e-6 <= settings.budget <= 1:
            raise ValueError(f"expected a budget in [{model.min_budget:.4f}, 1], got {settings.budget:g}")
        self.model, self.senses, self.settings, self.route_of = model.eval(), senses, settings, route_of
        self.device = next(model.parameters()).device
        self._options, self._awake = DecodeOptions(), None

    def run(self, frames: Sequence[int]) -> Iterator[StreamedFrame]:
        """Keyframes in order, given by their place in the split; memories are cleared where a scene begins."""
        scene = None
        try:
            for i in frames:
                keyframe = self.senses.keyframe(int(i))
                if keyframe.frame.scene != scene:
                    scene = keyframe.frame.scene
                    self._begin_scene()
                yield self._step(keyframe)
        finally:
            self.model.router.previous = None

    def _begin_scene(self) -> None:
        self.senses.forget()
        self.model.router.previous, self._awake = None, None
        if self.model.router.policy is not None:
            self.model.router.policy.reset()

    @torch.inference_mode()
    def _step(self, keyframe: Keyframe) -> StreamedFrame:
        ms: dict[str, float] = {}
        watch = _Watch(self.device)
        choice = self._routed(keyframe, ms, watch)
        self.senses.read(keyframe, choice.numpy())
        ms["read"] = watch.lap()
        batch = self.senses.batch(keyframe).to(self.device)
        ms["prepare"] = watch.lap()

        def encoded(*_) -> None:
            ms.setdefault("encode", watch.lap())

        hook = self.model.merge.register_forward_pre_hook(encoded)
        try:
            available = self.model.available(batch)
            plan = self.model.plan_of(choice[None].to(self.device), available)
            # As where the model routes by itself: a route given from elsewhere, or a budget of 1, asks for no bound.
            is_capped = self.route_of is None and self.settings.budget < 1
            output = self.model(batch, plan=plan, is_capped=is_capped)
        finally:
            hook.remove()
        ms["trunk"] = watch.lap()
        found = decode(output.head, self.model.head.grid, self._options)[0]
        boxes = to_global(found, batch.ego_from_ego_aug[0].cpu(), batch.global_from_ego[0].cpu())
        ms["decode"] = watch.lap()
        ms = {name: ms.get(name, 0.0) for name in PARTS}
        self._remember(choice, found)
        return self._record(keyframe, choice, ms, output.trace.gflops()[0], boxes)

    def _routed(self, keyframe: Keyframe, ms: dict[str, float], watch: "_Watch") -> Int64[Tensor, "u"]:
        """The route, on the host; SKIP for what is absent."""
        available = torch.from_numpy(keyframe.unit_present) & self.model.has_unit.cpu()
        if self.route_of is not None:
            choice = torch.where(available, self.route_of(keyframe), SKIP)
            ms["route"] = watch.lap()
            return choice
        health, thumbnails = self.senses.glance(keyframe)
        ms["glance"] = watch.lap()
        glance = _glance(keyframe, health, thumbnails, available)
        glance = Glance(**{name: value.to(self.device) for name, value in vars(glance).items()})
        choice = self.model.router(glance, self.model.routes, self.settings.budget).choice[0].cpu()
        ms["route"] = watch.lap()
        return choice

    def _remember(self, choice: Int64[Tensor, "u"], found: Boxes) -> None:
        if self.route_of is None and "previous" in self.model.router.inputs:
            mean = float(found.score.mean()) if len(found) else 0.0
            outcome = previous_outcome(choice[None], torch.tensor([float(len(found))]), torch.tensor([mean]))
            self.model.router.previous = outcome.to(self.device)

    def _record(
        self, keyframe: Keyframe, choice: Int64[Tensor, "u"], ms: dict[str, float], gflops: float, boxes: Boxes
    ) -> StreamedFrame:
        prices, settings = self.model.prices(), self.settings
        gflops += prices.always["router"] if self.route_of is None else 0.0
        runs = choice != SKIP
        wakes = self._awake is not None and bool((runs & ~self._awake).any())
        self._awake = runs
        wake_ms = settings.wake_ms if wakes else 0.0
        opened = self.senses.units_opened(keyframe)
        late = None if settings.deadline_ms is None else sum(ms.values()) + wake_ms > settings.deadline_ms
        return StreamedFrame(
            token=keyframe.frame.token,
            scene=keyframe.frame.scene,
            route=choice,
            ms=ms,
            wake_ms=wake_ms,
            missed=late,
            gflops=gflops,
            share=gflops / prices.full_gflops,
            opened=tuple(sorted(keyframe.opened)),
            joules=settings.energy.sample_j(gflops, opened),
            boxes=boxes,
        )


def _glance(
    keyframe: Keyframe,
    health: Float32[np.ndarray, "12 k"],
    thumbnails: Float32[np.ndarray, "6 3 h w"],
    available: Bool[Tensor, "u"],
) -> Glance:
    return Glance(
        health=torch.from_numpy(health)[None],
        thumbnails=torch.from_numpy(thumbnails)[None],
        ego_speed_mps=torch.tensor([keyframe.frame.ego_speed_mps], dtype=torch.float32),
        channel_present=torch.from_numpy(keyframe.present)[None],
        available=available[None],
    )


class _Watch:
    """Wall milliseconds between laps, after the device is done."""

    def __init__(self, device: torch.device):
        self.device = device
        self._last = self._now()

    def lap(self) -> float:
        now = self._now()
        passed, self._last = now - self._last, now
        return 1e3 * passed

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class StreamSummary:
    """Of all frames but the first, which warms up (of that one, where there is no other).

    Attributes:
        num_frames: all of them.
        mean_ms, p95_ms: by part, and ``total``.
        num_missed: of all frames; None without a deadline.
        share, joules: means.
        ran_share: share of frames in which each unit ran.
        num_switches: frames whose route differs from the one before in the scene.
    """

    num_frames: int
    mean_ms: dict[str, float]
    p95_ms: dict[str, float]
    num_missed: int | None
    share: float
    joules: float
    ran_share: dict[str, float]
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
        num_switches=sum(a.scene == b.scene and not torch.equal(a.route, b.route) for a, b in pairs),
    )
