"""The quick validation figure against the devkit's own matching and average precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusion.validation import QuickPrecision
from sensors.boxes import DETECTION_NAMES, Boxes
from tests.fusion.random_batch import random_batch


def scene(seed: int):
    """Labels of three samples, and detections: some near labels, some anywhere."""
    labels = replace(random_batch(3, seed, image_size_px=(16, 32)).boxes)
    labels = replace(labels, label=labels.label % 3, num_points=torch.arange(12) % 5)
    rng = np.random.default_rng(seed)
    detections = []
    for row in range(3):
        own = (labels.sample == row).numpy()
        center = np.repeat(labels.center_m.numpy()[own], 3, axis=0) + rng.normal(0, 1.2, (12, 3)).astype(np.float32)
        boxes = replace(
            Boxes.empty(),
            center_m=center,
            size_lwh_m=np.ones((12, 3), np.float32),
            yaw_rad=np.zeros(12, np.float32),
            velocity_mps=np.zeros((12, 2), np.float32),
            label=np.where(rng.random(12) < 0.8, np.repeat(labels.label.numpy()[own], 3), 1),
            score=rng.random(12).astype(np.float32),
            attribute=np.full(12, -1),
            num_points=np.full(12, -1),
        )
        detections.append(boxes)
    return labels, detections


def devkit_precision(labels, detections) -> float:
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate, calc_ap
    from nuscenes.eval.detection.data_classes import DetectionBox

    def box(row, center, label, score):
        return DetectionBox(
            sample_token=str(row),
            translation=tuple(map(float, center)),
            size=(1.0, 1.0, 1.0),
            rotation=(1.0, 0.0, 0.0, 0.0),
            velocity=(0.0, 0.0),
            detection_name=DETECTION_NAMES[label],
            detection_score=float(score),
        )

    truth, found = EvalBoxes(), EvalBoxes()
    seen = labels.num_points > 0
    for row, boxes in enumerate(detections):
        chosen = torch.nonzero((labels.sample == row) & seen)[:, 0].tolist()
        truth.add_boxes(str(row), [box(row, labels.center_m[i], labels.label[i], -1.0) for i in chosen])
        found.add_boxes(
            str(row), [box(row, boxes.center_m[i], boxes.label[i], boxes.score[i]) for i in range(len(boxes))]
        )
    names = {DETECTION_NAMES[label] for label in labels.label[seen].tolist()}
    data = [accumulate(truth, found, name, center_distance, 2.0) for name in names]
    return float(np.mean([calc_ap(part, 0.1, 0.1) for part in data]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_the_devkit_at_two_metres(seed):
    labels, detections = scene(seed)
    metric = QuickPrecision()
    metric.update(detections, labels)
    expected = devkit_precision(labels, detections)
    assert expected > 0.02
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_batches_add_up():
    labels, detections = scene(4)
    whole, parts = QuickPrecision(), QuickPrecision()
    whole.update(detections, labels)
    for row in range(3):
        own = labels.sample == row
        fields = {name: getattr(labels, name)[own] for name in labels.__dataclass_fields__}
        parts.update([detections[row]], replace(labels, **{**fields, "sample": torch.zeros(int(own.sum()), dtype=int)}))
    assert parts.compute() == whole.compute()


def test_nothing_found_or_nothing_there_is_zero():
    labels, _ = scene(0)
    metric = QuickPrecision()
    assert metric.compute() == 0
    metric.update([Boxes.empty()] * 3, labels)
    assert metric.compute() == 0
