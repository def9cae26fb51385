"""Boxes and submissions made up for tests: no result of anything."""

import numpy as np

from sensors.boxes import DETECTION_NAMES, NO_ATTRIBUTE, Boxes, attributes_of_class


def boxes_at(center_m, label=0, **columns) -> Boxes:
    """Boxes of one size at given places; any column may be given."""
    center_m = np.asarray(center_m, np.float64).reshape(-1, 3)
    num = len(center_m)
    defaults = {
        "size_lwh_m": np.tile([4.0, 2.0, 1.5], (num, 1)),
        "yaw_rad": np.zeros(num),
        "velocity_mps": np.zeros((num, 2)),
        "label": np.full(num, label),
        "score": np.ones(num),
        "attribute": np.full(num, NO_ATTRIBUTE),
        "num_points": np.full(num, -1),
    }
    return Boxes(center_m=center_m, **{**defaults, **columns})


def noisy_detections(labels: dict[str, Boxes], rng: np.random.Generator, share: float = 0.7) -> dict[str, Boxes]:
    """Labels (global frame) as a mediocre detector would see them: some missed, all disturbed, some made up."""
    return {token: _noisy(boxes, rng, share) for token, boxes in labels.items()}


def _noisy(boxes: Boxes, rng: np.random.Generator, share: float) -> Boxes:
    seen = boxes.select(rng.random(len(boxes)) < share)
    twice = boxes.select(
        np.concatenate([np.flatnonzero(rng.random(len(boxes)) < share), rng.permutation(len(boxes))[:5]])
    )
    picked = np.concatenate([seen.center_m, twice.center_m])
    num = len(picked)
    label = np.concatenate([seen.label, twice.label])
    label = np.where(rng.random(num) < 0.1, rng.integers(0, len(DETECTION_NAMES), num), label)
    attribute = np.array([rng.choice([*attributes_of_class(DETECTION_NAMES[name]), NO_ATTRIBUTE]) for name in label])
    return Boxes(
        center_m=picked + rng.normal(0, 0.8, (num, 3)),
        size_lwh_m=np.concatenate([seen.size_lwh_m, twice.size_lwh_m]) * rng.uniform(0.7, 1.4, (num, 3)),
        yaw_rad=np.concatenate([seen.yaw_rad, twice.yaw_rad]) + rng.normal(0, 0.5, num),
        velocity_mps=rng.normal(0, 2, (num, 2)),
        label=label,
        score=np.round(rng.random(num), 2),
        attribute=attribute.astype(np.int64),
        num_points=np.full(num, -1),
    )
