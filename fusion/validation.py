"""A quick figure for validation while training: average precision at 2 m, without the devkit."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torchmetrics import Metric

from datamodules.batch import BoxBatch
from sensors.boxes import DETECTION_NAMES, Boxes

_MIN_RECALL, _MIN_PRECISION = 0.1, 0.1
_NUM_CLASSES = len(DETECTION_NAMES)


class QuickPrecision(Metric):
    """nuScenes' average precision at one centre distance, mean over the classes that have labels.

    Labels without points are left out, as in the official metric; its range limits per class, its bike-rack filter and
    its other three distances are not applied, so this is a trend, not a score. Works across ranks.
    """

    full_state_update = False

    def __init__(self, distance_m: float = 2.0):
        super().__init__()
        self.distance_m = distance_m
        self.add_state("score", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")
        self.add_state("hit", [], dist_reduce_fx="cat")
        self.add_state("num_labels", torch.zeros(_NUM_CLASSES, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, detections: Sequence[Boxes], labels: BoxBatch) -> None:
        """Add samples; both in the same frame."""
        sample, seen = labels.sample.cpu().numpy(), labels.num_points.cpu().numpy() > 0
        center_m, label = labels.center_m.cpu().numpy(), labels.label.cpu().numpy()
        self.num_labels += torch.bincount(torch.from_numpy(label[seen]), minlength=_NUM_CLASSES).to(self.device)
        for row, boxes in enumerate(detections):
            chosen = (sample == row) & seen
            hit = hits(boxes, center_m[chosen, :2], label[chosen], self.distance_m)
            self.score.append(torch.from_numpy(boxes.score).float().to(self.device))
            self.label.append(torch.from_numpy(boxes.label).long().to(self.device))
            self.hit.append(torch.from_numpy(hit).to(self.device))

    def compute(self) -> torch.Tensor:
        """Mean average precision in [0, 1]; 0 without labels."""
        score, label, hit = (self._joined(name) for name in ("score", "label", "hit"))
        num_labels = self.num_labels.cpu().numpy()
        precisions = [
            average_precision(score[label == index], hit[label == index].astype(bool), int(num_labels[index]))
            for index in range(_NUM_CLASSES)
            if num_labels[index]
        ]
        return torch.tensor(float(np.mean(precisions)) if precisions else 0.0)

    def _joined(self, name: str) -> np.ndarray:
        parts = getattr(self, name)
        if isinstance(parts, torch.Tensor):
            return parts.cpu().numpy()
        return torch.cat(parts).cpu().numpy() if parts else np.zeros(0)


def hits(
    boxes: Boxes, center_xy_m: Float[np.ndarray, "m 2"], label: Int[np.ndarray, "m"], distance_m: float
) -> Bool[np.ndarray, "n"]:
    """Whether each detection, best score first, finds its nearest label of its class that no better one took."""
    hit = np.zeros(len(boxes), bool)
    free = np.ones(len(label), bool)
    for index in np.argsort(-boxes.score, kind="stable"):
        candidates = np.flatnonzero(free & (label == boxes.label[index]))
        if len(candidates) == 0:
            continue
        distances = np.linalg.norm(center_xy_m[candidates] - boxes.center_m[index, :2], axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] < distance_m:
            hit[index] = True
            free[candidates[nearest]] = False
    return hit


def average_precision(score: Float[np.ndarray, "n"], hit: Bool[np.ndarray, "n"], num_labels: int) -> float:
    """Area under precision over recall as in nuScenes (Caesar et al., CVPR 2020): the parts below 10 % are cut off."""
    if not hit.any():
        return 0.0
    hit = hit[np.argsort(-score, kind="stable")]
    true = np.cumsum(hit).astype(float)
    recall, precision = true / num_labels, true / np.arange(1, len(hit) + 1)
    levels = np.linspace(0, 1, 101)
    curve = np.interp(levels, recall, precision, right=0)
    beyond = curve[round(100 * _MIN_RECALL) + 1 :] - _MIN_PRECISION
    return float(np.mean(beyond.clip(min=0)) / (1 - _MIN_PRECISION))
