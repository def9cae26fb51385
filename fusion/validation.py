"""Scores while training: nuScenes' metric over all ranks, and a quick figure at 2 m. Without the devkit."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torchmetrics import Metric

from datamodules.batch import BoxBatch
from fusion.scoring.curves import curves_of, metrics_of
from fusion.scoring.filters import in_range
from fusion.scoring.matching import MatchTable, match, stable_pairs
from fusion.scoring.metrics import Metrics
from fusion.scoring.settings import DISTANCES_M, TP_DISTANCE_M, TP_ERRORS
from fusion.scoring.table import BoxTable, joined, wide
from sensors.boxes import DETECTION_NAMES, Boxes

_MIN_RECALL, _MIN_PRECISION = 0.1, 0.1
_NUM_CLASSES = len(DETECTION_NAMES)


_AT_TP = DISTANCES_M.index(TP_DISTANCE_M)
_NUM_DISTANCES, _NUM_ERRORS = len(DISTANCES_M), len(TP_ERRORS)


class DetectionScores(Metric):
    """nuScenes' detection metric of a validation split, over all ranks.

    Each rank matches its own samples as they come; only what became of each detection is kept and gathered. A sample
    that several ranks were given, to make their shares equal, counts once. Equal scores are put in the order of a hash
    of their samples' tokens, so that the numbers do not depend on the number of ranks or on the batch size.

    Of the official metric only the bicycle racks are missing, which batches do not hold; distances are those in the
    ego frame.
    """

    full_state_update = False

    def __init__(self):
        super().__init__()
        # One row per counted detection: class, score, hits at DISTANCES_M, errors at TP_DISTANCE_M.
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("row_sample", [], dist_reduce_fx="cat")
        # One row per sample: its key, its number of rows, its labels of each class.
        self.add_state("samples", [], dist_reduce_fx="cat")

    def update(self, detections: Sequence[Boxes], labels: BoxBatch, tokens: Sequence[str]) -> None:
        """Add samples; detections and labels in the ego frame."""
        found, truth = joined(detections, range(len(tokens))), _label_table(labels)
        truth = truth.select(in_range(truth.boxes) & (truth.boxes.num_points != 0))
        matches = match(found, np.flatnonzero(in_range(found.boxes)), truth)
        # In the order of the detections, which decides between equal scores.
        order = np.argsort(matches.row, kind="stable")
        keys = np.array([_key(token) for token in tokens], np.int64)
        counts = np.zeros((len(tokens), _NUM_CLASSES), np.int64)
        np.add.at(counts, (truth.sample, truth.boxes.label), 1)
        num_rows = np.bincount(matches.sample, minlength=len(tokens))
        self.rows.append(self._kept(_outcomes(matches)[order]))
        self.row_sample.append(self._kept(keys[matches.sample[order]]))
        self.samples.append(self._kept(np.column_stack([keys, num_rows, counts])))

    def compute(self) -> dict[str, torch.Tensor]:
        """``map`` and ``nds``."""
        metrics = self.metrics()
        return {"map": torch.tensor(metrics.mean_ap), "nds": torch.tensor(metrics.nds)}

    def metrics(self) -> Metrics:
        """All numbers, of what this rank holds or, inside ``sync_context``, all ranks."""
        rows = _numbers(self.rows, (0, 2 + _NUM_DISTANCES + _NUM_ERRORS))
        row_sample = _numbers(self.row_sample, (0,)).astype(np.int64)
        samples = _numbers(self.samples, (0, 2 + _NUM_CLASSES)).astype(np.int64)
        samples = samples[np.unique(samples[:, 0], return_index=True)[1]]
        rows = rows[_first_visits(row_sample, samples)]
        matches = _matches(rows, samples[:, 2:].sum(axis=0))
        return metrics_of(matches, curves_of(matches))

    def _kept(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)


def _label_table(labels: BoxBatch) -> BoxTable:
    columns = {name: value.cpu().numpy() for name, value in vars(labels).items()}
    sample = columns.pop("sample")
    return BoxTable(wide(Boxes(**columns, score=np.ones(len(sample)))), sample)


def _key(token: str) -> int:
    """A number that stands for a sample on every rank."""
    return int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "big", signed=True)


def _outcomes(matches: MatchTable) -> Float[np.ndarray, "n 11"]:
    """What became of each detection, in the order of the matches."""
    errors = np.full((len(matches.row), _NUM_ERRORS), np.nan)
    hit = matches.pair[_AT_TP] >= 0
    errors[hit] = matches.errors[matches.pair[_AT_TP][hit]]
    return np.column_stack([matches.label, matches.score, (matches.pair >= 0).T, errors])


def _first_visits(row_sample: Int[np.ndarray, "n"], samples: Int[np.ndarray, "s 12"]) -> Int[np.ndarray, "k"]:
    """Rows by sample, each sample's rows once even where it was seen twice.

    Args:
        row_sample: key of each row's sample; the rows of a visit stand together.
        samples: key and number of rows of each sample, by key.
    """
    order = np.argsort(row_sample, kind="stable")
    first = np.searchsorted(row_sample[order], samples[:, 0])
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    number = np.repeat(samples[:, 1], np.diff(np.append(first, len(order))))
    return order[place < number]


def _matches(rows: Float[np.ndarray, "n 11"], num_labels: Int[np.ndarray, "10"]) -> MatchTable:
    """The detections by class and best first, as the metric wants them."""
    order = np.argsort(rows[:, 1], kind="stable")[::-1]
    order = order[np.argsort(rows[order, 0], kind="stable")]
    rows, place = rows[order], np.arange(len(order))
    hit = rows[:, 2 : 2 + _NUM_DISTANCES].T > 0
    return MatchTable(
        row=place,
        label=rows[:, 0].astype(np.int64),
        sample=np.zeros(len(rows), np.int64),
        score=np.ascontiguousarray(rows[:, 1]),
        pair=np.where(hit, place, -1).astype(np.int32),
        truth=place,
        errors=rows[:, 2 + _NUM_DISTANCES :],
        num_labels=num_labels.astype(np.int64),
    )


def _numbers(parts: list[torch.Tensor] | torch.Tensor, empty: tuple[int, ...]) -> np.ndarray:
    """A state of gathered or of own parts as one array."""
    if isinstance(parts, torch.Tensor):
        return parts.cpu().numpy()
    return torch.cat(parts).cpu().numpy() if parts else np.zeros(empty)


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
        counts = torch.bincount(torch.from_numpy(label[seen]), minlength=_NUM_CLASSES).to(self.device)
        # Not in place: a validation in inference mode leaves a tensor that may not be changed.
        self.num_labels = self.num_labels + counts
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
    order = np.argsort(-boxes.score, kind="stable")
    away = boxes.center_m[order, None, :2] - center_xy_m[None]
    apart_m = np.linalg.norm(away, axis=2)
    rank, truth = np.nonzero((apart_m < distance_m) & (boxes.label[order, None] == label[None]))
    preferred = np.lexsort((truth, apart_m[rank, truth], rank))
    hit = np.zeros(len(boxes), bool)
    hit[order[rank[preferred][stable_pairs(rank[preferred], truth[preferred], len(label))]]] = True
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
