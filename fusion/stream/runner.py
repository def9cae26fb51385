"""Stream: batch 1, scene order, sensors still on disk. What the route leaves out is not read, decoded or voxelised."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from datamodules.batch import Batch
from fusion.efficiency.energy import EnergyModel
from fusion.heads.decode import DecodeOptions, decode, to_global
from fusion.model import SENSORS, FusionModel, FusionOutput
from fusion.routing.dispatch import Dispatch
from fusion.routing.gate_inputs import Glance, previous_outcome
from fusion.routing.plan import FULL, SKIP
from fusion.stream.record import PARTS, StreamedFrame
from fusion.stream.senses import Keyframe, SceneSenses
from sensors.boxes import Boxes


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


RouteOf = Callable[[Keyframe], Int64[Tensor, "u"]]


class Stream:
    """Runs a model over scenes as a vehicle would.

    Args:
        model: in evaluation mode, on its device; its router's policy decides and may have a memory.
        senses: reads.
        settings: see there. A model with a ``shared_budget`` tells exits and tokens what they are told at this budget.
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
        laps = _Laps(self.device)
        choice, has_router = self._routed(keyframe, laps)
        output, batch = self._ran(keyframe, choice, has_router, laps)
        laps.end("trunk")
        found = decode(output.head, self.model.head.grid, self._options)[0]
        boxes = to_global(found, batch.ego_from_ego_aug[0].cpu(), batch.global_from_ego[0].cpu())
        laps.end("decode")
        self._remember(choice, found)
        left = None if output.exits is None else int(output.exits.exit_of[0])
        left = left if left is not None and left < len(self.model.exits.heads) else None
        return self._record(keyframe, choice, left, laps.ms, output.trace.gflops()[0], boxes)

    def _bound(self, keyframe: Keyframe) -> float | None:
        """Of the route; exits and tokens are told theirs. None: the full route."""
        shared, given = self.model.shared_budget, self.route_of is not None
        if shared is None:
            return self.settings.budget
        bound = shared.set(self.model, None if given else self.settings.budget, [keyframe.frame.token])
        return None if bound is None else float(bound)

    def _routed(self, keyframe: Keyframe, laps: "_Laps") -> tuple[Int64[Tensor, "u"], bool]:
        """The route, on the host (SKIP for what is absent), and whether the router has run."""
        available, bound = self._present(keyframe), self._bound(keyframe)
        if self.route_of is not None or bound is None:
            given = torch.tensor(FULL) if self.route_of is None else self.route_of(keyframe)
            laps.end("route")
            return torch.where(available, given, SKIP), False
        health, thumbnails = self.senses.glance(keyframe)
        laps.end("glance")
        glance = _glance(keyframe, health, thumbnails, available)
        glance = Glance(**{name: value.to(self.device) for name, value in vars(glance).items()})
        choice = self.model.router(glance, self.model.routes, bound).choice[0].cpu()
        laps.end("route")
        return choice, True

    def _ran(
        self, keyframe: Keyframe, choice: Int64[Tensor, "u"], has_router: bool, laps: "_Laps"
    ) -> tuple[FusionOutput, Batch]:
        """The model's answer and the batch.

        Where the frame may leave before all sensors have run, the others are not read before it has not left.
        """
        model, first = self.model, self._read_first()
        is_first = _units_of(first)
        batch = self._read(keyframe, torch.where(is_first, choice, SKIP), first, laps)
        available = torch.where(is_first, model.available(batch)[0].cpu(), self._present(keyframe))[None]

        def rest() -> Batch:
            laps.end("trunk")
            others = self._read(keyframe, torch.where(is_first, SKIP, choice), set(SENSORS) - first, laps)
            return replace(batch, **{name: getattr(others, name) for name in set(SENSORS) - first})

        hook = model.merge.register_forward_pre_hook(lambda *_: laps.end("encode"))
        try:
            available = available.to(self.device)
            plan = model.plan_of(choice[None].to(self.device), available)
            # As where the model routes by itself: a route given from elsewhere, or a budget of 1, asks for no bound.
            is_capped = torch.tensor([self.route_of is None and self.settings.budget < 1])
            dispatch = Dispatch.of(plan, available, model.prices().exists(), "sparse", is_capped)
            output = model.execute(batch, dispatch, has_router, rest=rest if len(first) < len(SENSORS) else None)
        finally:
            hook.remove()
        return output, batch

    def _read_first(self) -> set[str]:
        """Sensors that the first part of a pass looks at: those of the exits' first group, and what they look at."""
        model = self.model
        if model.exits is None or not model.exits.may_leave_group:
            return set(SENSORS)
        first = set(model.exits.first_group)
        if "camera" in first:
            first |= {"lidar"} if model.cameras.depth_from_lidar else set()
            first |= set() if model.camera_guide is None else {model.camera_guide}
        return first

    def _read(self, keyframe: Keyframe, choice: Int64[Tensor, "u"], sensors: Collection[str], laps: "_Laps") -> Batch:
        self.senses.read(keyframe, choice.numpy())
        laps.end("read")
        batch = self.senses.batch(keyframe, sensors).to(self.device)
        laps.end("prepare")
        return batch

    def _present(self, keyframe: Keyframe) -> Bool[Tensor, "u"]:
        """Units that are on the disk and that the model has."""
        return torch.from_numpy(keyframe.unit_present) & self.model.has_unit.cpu()

    def _remember(self, choice: Int64[Tensor, "u"], found: Boxes) -> None:
        if self.route_of is None and "previous" in self.model.router.inputs:
            mean = float(found.score.mean()) if len(found) else 0.0
            outcome = previous_outcome(choice[None], torch.tensor([float(len(found))]), torch.tensor([mean]))
            self.model.router.previous = outcome.to(self.device)

    def _record(
        self,
        keyframe: Keyframe,
        choice: Int64[Tensor, "u"],
        left: int | None,
        ms: dict[str, float],
        gflops: float,
        boxes: Boxes,
    ) -> StreamedFrame:
        prices, settings = self.model.prices(), self.settings
        exits = self.model.exits
        stopped = left == 0 and exits.first_group  # the others have not run
        executed = torch.where(_units_of(exits.first_group), choice, SKIP) if stopped else choice
        runs = executed != SKIP
        wakes = self._awake is not None and bool((runs & ~self._awake).any())
        self._awake = runs
        wake_ms = settings.wake_ms if wakes else 0.0
        opened = self.senses.units_opened(keyframe)
        late = None if settings.deadline_ms is None else sum(ms.values()) + wake_ms > settings.deadline_ms
        return StreamedFrame(
            token=keyframe.frame.token,
            scene=keyframe.frame.scene,
            chosen=choice,
            route=executed,
            exit=left,
            ms=ms,
            wake_ms=wake_ms,
            missed=late,
            gflops=gflops,
            share=gflops / prices.full_gflops,
            opened=tuple(sorted(keyframe.opened)),
            joules=settings.energy.sample_j(gflops, opened),
            boxes=boxes,
        )


def _units_of(sensors: Collection[str]) -> Bool[Tensor, "u"]:
    return torch.tensor([sensor in sensors for sensor, units in SENSORS.items() for _ in units])


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


class _Laps:
    """Wall milliseconds of PARTS, after the device is done."""

    def __init__(self, device: torch.device):
        self.device, self.ms = device, dict.fromkeys(PARTS, 0.0)
        self._last = self._now()

    def end(self, part: str) -> None:
        """What has passed since the last end was this part's."""
        now = self._now()
        self.ms[part] += 1e3 * (now - self._last)
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
