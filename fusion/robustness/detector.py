"""Anybody's detector under the same suites: harmed frames in, detections out.

A detector is any object with ``detect(frames) -> detections``. It gets the frames as they were read and then harmed:
raw pictures, every sweep in its own sensor's frame, all poses. What it returns is scored like everything else. It may
state ``gflops_per_sample``; it has no routes and no budget.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool
from torch import nn

from fusion.routing.plan import FULL, SKIP
from fusion.scoring.evaluate import EvaluationResult
from fusion.scoring.input_digest import FrameDigest
from sensors.boxes import Boxes
from sensors.faults.suites import Scenario
from sensors.frame import Frame
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS


@runtime_checkable
class Detector(Protocol):
    """A foreign model."""

    def detect(self, frames: Sequence[Frame]) -> Sequence[Boxes]:
        """Detections of each frame, in the same order, in its ego frame: metres, m/s, score in [0, 1].

        ``frame.boxes`` holds no labels. A sensor may be missing: the detector has to cope, or to raise; a cell in which
        it raises is recorded as one that could not run.
        """


class ForeignModel(nn.Module):
    """What the suite needs of a model, around a detector.

    Args:
        detector: a ``Detector``; where it is a module its weights count for the fingerprint, else its class's name and
            its attribute ``version``.
        batch_size: frames per call.

    Raises:
        ValueError: it has no method ``detect``.
    """

    min_budget = 1.0

    def __init__(self, detector: object, batch_size: int = 4):
        super().__init__()
        if not isinstance(detector, Detector):
            raise ValueError(
                f"expected a detector with a method detect(frames), got {type(detector).__name__}; "
                "see docs/robustness.md"
            )
        self.detector, self.batch_size = detector, batch_size
        self.gflops_per_sample = float(getattr(detector, "gflops_per_sample", 0.0))

    def word(self) -> str:
        """Tells two detectors apart that are no modules."""
        kind = type(self.detector)
        return f"{kind.__module__}.{kind.__qualname__} {getattr(self.detector, 'version', '')}"


@torch.inference_mode()
def evaluate_detector(
    model: ForeignModel,
    frames,
    corruptor: Scenario | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """One pass over a split.

    Args:
        frames: ``NuScenesFrames``, or anything with tokens, frames by number and their history.

    Raises:
        ValueError: not one answer per frame.
    """
    num, size = len(frames.tokens), model.batch_size
    detections, about, batch_ms, loading_s = {}, [], [], 0.0
    digest = FrameDigest()
    for first in range(0, num, size):
        started = time.perf_counter()
        batch = [_harmed(frames, place, corruptor) for place in range(first, min(first + size, num))]
        for frame, names, severity in batch:
            digest.update(frame)
            about.append((frame.scene, frame.conditions, names, severity, _present(frame)))
        ready = time.perf_counter()
        answers = model.detector.detect([frame for frame, _, _ in batch])
        batch_ms.append((time.perf_counter() - ready) * 1e3 / len(batch))
        loading_s += ready - started
        if len(answers) != len(batch):
            raise ValueError(f"expected {len(batch)} answers of the detector, one for each frame, got {len(answers)}")
        for (frame, _, _), boxes in zip(batch, answers, strict=True):
            detections[frame.token] = boxes.moved(frame.global_from_ego)
        if progress is not None:
            progress(len(batch_ms), -(-num // size))
    scenes, conditions, faults, severity, present = zip(*about, strict=True)
    present = np.stack(present)
    return EvaluationResult(
        detections=detections,
        tokens=tuple(detections),
        gflops=np.full(num, model.gflops_per_sample),
        branch=np.where(present, FULL, SKIP),
        unit_present=present,
        batch_ms=np.array(batch_ms),
        loading_s=loading_s,
        faults=faults,
        conditions=conditions,
        inputs=digest.word,
        scenes=scenes,
        severity=np.stack(severity),
    )


def _harmed(frames, place: int, corruptor: Scenario | None) -> tuple[Frame, tuple[str, ...], np.ndarray]:
    """A frame without labels, after the faults."""
    frame, names, severity = frames[place], (), np.zeros(len(CHANNELS), np.float32)
    if corruptor is not None:
        frame, names, severity = corruptor.labelled(frame, frames.history(place))
    return replace(frame, boxes=None), tuple(names), severity


def _present(frame: Frame) -> Bool[np.ndarray, "8"]:
    """Of the units."""
    radar = any(frame.present(name) for name in RADARS)
    return np.array([*(frame.present(name) for name in (*CAMERAS, LIDAR)), radar], bool)
