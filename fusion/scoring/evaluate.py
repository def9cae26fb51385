"""Run a model over a split as it would be deployed (sparse), and keep what it found and what it cost."""

import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from datamodules.batch import Batch, PointBatch
from fusion.heads.decode import DecodeOptions, decode, to_global
from fusion.routing.plan import BRANCHES, SKIP, ExecutionTrace, RoutingPlan
from sensors.boxes import Boxes
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS

SENSOR_UNITS = {"camera": range(NUM_CAMERAS), "lidar": (LIDAR_UNIT,), "radar": (RADAR_UNIT,)}
"""Rows of UNITS that belong to each sensor."""


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What one pass over N samples found and cost.

    Attributes:
        detections: by token, in the global frame.
        tokens: in the order of evaluation.
        gflops: executed, by the trace: what ran, not what was planned.
        branch: of each unit, what ran (SKIP, LITE or FULL; the greater if both did).
        unit_present: whether the unit delivered anything.
        batch_ms: milliseconds per sample of each batch: model forward and decoding, on data that lie on the device.
        loading_s: time spent waiting for the loader (faults included) and copying to the device.
        faults: names of the faults applied to each sample.
        conditions: words about each sample's scene.
        inputs: digest of all that the model was given; equal digests, equal inputs.
    """

    detections: dict[str, Boxes]
    tokens: tuple[str, ...]
    gflops: Float[np.ndarray, "n"]
    branch: Int[np.ndarray, "n u"]
    unit_present: Bool[np.ndarray, "n u"]
    batch_ms: Float[np.ndarray, "k"]
    loading_s: float
    faults: tuple[tuple[str, ...], ...]
    conditions: tuple[frozenset[str], ...]
    inputs: str

    @property
    def mean_gflops(self) -> float:
        """Executed per sample."""
        return float(self.gflops.mean())

    @property
    def median_ms(self) -> float:
        """Per sample. The first batch warms up and does not count, unless it is the only one."""
        return float(np.median(self.batch_ms[1:] if len(self.batch_ms) > 1 else self.batch_ms))

    @property
    def mean_views(self) -> float:
        """Camera views run per sample, of six."""
        return float((self.branch[:, :NUM_CAMERAS] != SKIP).sum(axis=1).mean())

    def sensor_shares(self) -> dict[str, float]:
        """Share of samples that ran anything of each sensor; ``camera`` means at least one view."""
        ran = self.branch != SKIP
        return {name: float(ran[:, list(units)].any(axis=1).mean()) for name, units in SENSOR_UNITS.items()}

    def branch_shares(self) -> dict[str, dict[str, float]]:
        """By unit, the share of samples that ran each of its branches; the rest skipped it."""
        return {
            unit: {
                name: float((self.branch[:, row] == branch).mean())
                for branch, name in enumerate(BRANCHES)
                if branch != SKIP
            }
            for row, unit in enumerate(UNITS)
        }

    def summary(self) -> dict:
        """What it cost, as plain values for ``metrics.json``."""
        return {
            "num_samples": len(self.tokens),
            "gflops": self.mean_gflops,
            "ms": self.median_ms,
            "views": self.mean_views,
            "sensor_shares": self.sensor_shares(),
            "branch_shares": self.branch_shares(),
            "faulty": sum(bool(names) for names in self.faults) / len(self.faults),
            "inputs": self.inputs,
        }


PlanSource = Callable[[Batch], RoutingPlan]
"""Routes that the router did not choose: fixed, random, static."""


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    loader: Iterable[Batch],
    budget: float = 1.0,
    device: torch.device | str = "cpu",
    plan_source: PlanSource | None = None,
    decode_options: DecodeOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Evaluate a FusionModel with sparse execution: what the route leaves out is not computed.

    Args:
        model: in any mode; left in evaluation mode.
        loader: each sample of the split once, without augmentation.
        budget: share of the full cost that the router may spend.
        plan_source: None for the model's own router.
        progress: called with (batches done, batches in all).

    Raises:
        ValueError: the loader is empty, or the model's maps are not finite.
    """
    device = torch.device(device)
    model = model.to(device).eval()
    parts = _Parts()
    waited_from = time.perf_counter()
    for batch in loader:
        parts.digest.update(batch)
        batch = batch.to(device)
        _synchronize(device)
        started = time.perf_counter()
        parts.loading_s += started - waited_from
        plan = None if plan_source is None else plan_source(batch)
        output = model(batch, budget=budget, plan=plan, execution="sparse")
        boxes = decode(output.head, model.head.grid, decode_options)
        _synchronize(device)
        waited_from = time.perf_counter()
        parts.add(batch, boxes, output.trace, (waited_from - started) * 1e3 / len(batch))
        if progress is not None:
            progress(len(parts.batch_ms), len(loader))
    return parts.result()


def _synchronize(device: torch.device) -> None:
    """Wait for the accelerator, so that the clock sees its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def executed_branches(trace: ExecutionTrace) -> Int[np.ndarray, "b u"]:
    """The greatest branch of each unit that really ran, by sample."""
    branch = np.full((trace.num_samples, len(UNITS)), SKIP)
    for execution in trace.executions:
        if execution.unit in UNITS and execution.branch in BRANCHES:
            rows, unit = list(execution.rows), UNITS.index(execution.unit)
            branch[rows, unit] = np.maximum(branch[rows, unit], BRANCHES.index(execution.branch))
    return branch


class InputDigest:
    """One short word for everything that a model was given, whatever the batch size.

    Two evaluations with equal words had equal inputs: how a fault that changes nothing is found out.
    """

    def __init__(self):
        self._checksums: dict[str, int] = {}

    def update(self, batch: Batch) -> None:
        """Go on with the samples of a batch (on the host)."""
        self._add("health", batch.health)
        self._add("thumbnails", batch.thumbnails)
        self._add("channel_present", batch.channel_present)
        if batch.camera is not None:
            for name in ("images", "image_from_camera", "ego_from_camera"):
                self._add(name, getattr(batch.camera, name))
        for name, points in (("lidar", batch.lidar), ("radar", batch.radar)):
            if points is not None:
                self._add_points(name, points)

    def _add_points(self, name: str, points: PointBatch) -> None:
        self._add(name, points.points)
        self._add(f"{name}_counts", torch.bincount(points.sample, minlength=len(points.present)))

    def _add(self, name: str, values: Tensor) -> None:
        encoded = values.contiguous().numpy().reshape(-1).view(np.uint8)
        self._checksums[name] = zlib.crc32(encoded, self._checksums.get(name, 0))

    @property
    def word(self) -> str:
        """Eight hexadecimal digits for each kind of input, in a fixed order."""
        return "".join(f"{self._checksums[name]:08x}" for name in sorted(self._checksums))


@dataclass
class _Parts:
    """An EvaluationResult while it grows."""

    detections: dict[str, Boxes] = field(default_factory=dict)
    gflops: list[float] = field(default_factory=list)
    branch: list[np.ndarray] = field(default_factory=list)
    present: list[np.ndarray] = field(default_factory=list)
    batch_ms: list[float] = field(default_factory=list)
    faults: list[tuple[str, ...]] = field(default_factory=list)
    conditions: list[frozenset[str]] = field(default_factory=list)
    loading_s: float = 0.0
    digest: InputDigest = field(default_factory=InputDigest)

    def add(self, batch: Batch, boxes: list[Boxes], trace: ExecutionTrace, ms_per_sample: float) -> None:
        poses = zip(batch.ego_from_ego_aug.cpu(), batch.global_from_ego.cpu(), strict=True)
        for token, found, (ego_from_ego_aug, global_from_ego) in zip(batch.tokens, boxes, poses, strict=True):
            self.detections[token] = to_global(found, ego_from_ego_aug, global_from_ego)
        self.gflops += trace.gflops()
        self.branch.append(executed_branches(trace))
        self.present.append(batch.unit_present.cpu().numpy())
        self.batch_ms.append(ms_per_sample)
        self.faults += batch.faults
        self.conditions += batch.conditions

    def result(self) -> EvaluationResult:
        if not self.detections:
            raise ValueError("expected samples to evaluate, got an empty loader; choose a split that has samples")
        return EvaluationResult(
            detections=self.detections,
            tokens=tuple(self.detections),
            gflops=np.array(self.gflops),
            branch=np.concatenate(self.branch),
            unit_present=np.concatenate(self.present),
            batch_ms=np.array(self.batch_ms),
            loading_s=self.loading_s,
            faults=tuple(self.faults),
            conditions=tuple(self.conditions),
            inputs=self.digest.word,
        )
