"""Run a model over a split as it would be deployed (sparse), and keep what it found and what it cost."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from datamodules.batch import Batch
from fusion.heads.decode import DecodeOptions, decode, to_global
from fusion.routing.plan import BRANCHES, SKIP, ExecutionTrace, RoutingPlan
from fusion.scoring.input_digest import InputDigest
from sensors.boxes import Boxes
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS

__all__ = ["EvaluationResult", "InputDigest", "PlanSource", "Reuse", "evaluate_model", "executed_branches"]

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
        scenes: name of each sample's scene.
        severity: how strongly each channel was harmed, in the order of CHANNELS: 0 untouched, 1 the fifth level or
            lost; None where nobody said.
        gate: the router's weight of each unit, the chance that it runs; NaN where the unit is absent.
        ego_yaw_rad: heading of the vehicle in the global frame, counter-clockwise.
        points_left_out: by unit, how many points of each sample were left out so that its budget held
            (``ExecutionTrace.left_out``); units of which none was are no key.
        unguided: samples whose cameras ran without the learned guide of their patches; None without such a guide.
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
    scenes: tuple[str, ...] = ()
    severity: Float[np.ndarray, "n 12"] | None = None
    gate: Float[np.ndarray, "n u"] | None = None
    ego_yaw_rad: Float[np.ndarray, "n"] | None = None
    points_left_out: dict[str, Int[np.ndarray, "n"]] = field(default_factory=dict)
    unguided: Bool[np.ndarray, "n"] | None = None

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

    def went_without(self) -> dict:
        """What samples had to do without, for ``metrics.json``: mean points left out by unit, and the share of samples
        that were not guided. Neither is there where it would be zero."""
        found = {}
        if self.points_left_out:
            found["points_left_out"] = {unit: float(counts.mean()) for unit, counts in self.points_left_out.items()}
        if self.unguided is not None and self.unguided.any():
            found["unguided"] = float(self.unguided.mean())
        return found

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


@runtime_checkable
class Reuse(Protocol):
    """Takes parts of the forward pass from earlier passes over the same inputs (``fusion.robustness.reuse``)."""

    def applied(self, model: nn.Module) -> AbstractContextManager:
        """While it is open, the model's parts are taken from memory where they can be."""

    def saved_ms(self) -> float:
        """Milliseconds that the model would have taken longer since the last call."""


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    loader: Iterable[Batch],
    budget: float = 1.0,
    device: torch.device | str = "cpu",
    plan_source: PlanSource | None = None,
    decode_options: DecodeOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    reuse: Reuse | None = None,
) -> EvaluationResult:
    """Evaluate a FusionModel with sparse execution: what the route leaves out is not computed.

    Args:
        model: in any mode; left in evaluation mode.
        loader: each sample of the split once, without augmentation.
        budget: share of the full cost that the router may spend.
        plan_source: None for the model's own router.
        progress: called with (batches done, batches in all).
        reuse: shares what was computed with other evaluations; costs are those of the model without it.

    Raises:
        ValueError: the loader is empty, or the model's maps are not finite.
    """
    device = torch.device(device)
    model = model.to(device).eval()
    parts = _Parts()
    waited_from = time.perf_counter()
    with nullcontext() if reuse is None else reuse.applied(model):
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
            elapsed_ms = (waited_from - started) * 1e3 + (0.0 if reuse is None else reuse.saved_ms())
            parts.add(batch, boxes, output, elapsed_ms / len(batch))
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
    scenes: list[str] = field(default_factory=list)
    severity: list[np.ndarray | None] = field(default_factory=list)
    gate: list[np.ndarray] = field(default_factory=list)
    ego_yaw_rad: list[np.ndarray] = field(default_factory=list)
    left_out: list[tuple[str, int, int]] = field(default_factory=list)
    unguided: list[np.ndarray | None] = field(default_factory=list)
    loading_s: float = 0.0
    digest: InputDigest = field(default_factory=InputDigest)

    def add(self, batch: Batch, boxes: list[Boxes], output, ms_per_sample: float) -> None:
        """Samples of one batch and the model's output for them."""
        trace: ExecutionTrace = output.trace
        poses = zip(batch.ego_from_ego_aug.cpu(), batch.global_from_ego.cpu(), strict=True)
        for token, found, (ego_from_ego_aug, global_from_ego) in zip(batch.tokens, boxes, poses, strict=True):
            self.detections[token] = to_global(found, ego_from_ego_aug, global_from_ego)
        self.left_out += [(unit, len(self.gflops) + row, count) for unit, row, count in trace.left_out]
        self.gflops += trace.gflops()
        self.unguided.append(None if output.unguided is None else output.unguided.cpu().numpy())
        self.branch.append(executed_branches(trace))
        self.present.append(batch.unit_present.cpu().numpy())
        self.batch_ms.append(ms_per_sample)
        self.faults += batch.faults
        self.conditions += batch.conditions
        self.scenes += batch.scenes
        self.severity.append(None if batch.fault_severity is None else batch.fault_severity.cpu().numpy())
        runs = 1 - output.plan.probs[..., SKIP].detach().float().cpu().numpy()
        self.ego_yaw_rad.append(
            torch.atan2(batch.global_from_ego[:, 1, 0], batch.global_from_ego[:, 0, 0]).cpu().numpy()
        )
        self.gate.append(np.where(self.present[-1], runs, np.nan))

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
            scenes=tuple(self.scenes),
            severity=None if any(part is None for part in self.severity) else np.concatenate(self.severity),
            gate=np.concatenate(self.gate),
            ego_yaw_rad=np.concatenate(self.ego_yaw_rad),
            points_left_out=self._points_left_out(),
            unguided=None if any(part is None for part in self.unguided) else np.concatenate(self.unguided),
        )

    def _points_left_out(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for unit, row, count in self.left_out:
            found.setdefault(unit, np.zeros(len(self.gflops), np.int64))[row] += count
        return found
