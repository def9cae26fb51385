"""Precision, confidence and errors over recall, and the scores made of them, as the devkit computes them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from fusion.scoring.matching import MatchTable
from fusion.scoring.metrics import Metrics
from fusion.scoring.settings import (
    DISTANCES_M,
    MEAN_AP_WEIGHT,
    MIN_PRECISION,
    MIN_RECALL,
    MISSING_ERRORS,
    NUM_RECALLS,
    TP_DISTANCE_M,
    TP_ERRORS,
)
from fusion.scoring.table import windows
from sensors.boxes import DETECTION_NAMES

_FIRST = round(100 * MIN_RECALL) + 1


@dataclass(frozen=True, eq=False)
class Curve:
    """One class at one matching distance, at recalls 0, 0.01, ..., 1 (``DetectionMetricData`` of the devkit).

    Attributes:
        precision: 0 beyond the greatest recall.
        confidence: score at which a recall is reached; 0 beyond the greatest recall.
        errors: means over all matches down to that score, in the order of TP_ERRORS; 1 where there is no match.
    """

    precision: Float64[np.ndarray, "101"]
    confidence: Float64[np.ndarray, "101"]
    errors: Float64[np.ndarray, "5 101"]

    @property
    def average_precision(self) -> float:
        """Area under the curve beyond 10 % recall and above 10 % precision, over its greatest value."""
        beyond = self.precision[_FIRST:] - MIN_PRECISION
        beyond[beyond < 0] = 0
        return float(np.mean(beyond)) / (1.0 - MIN_PRECISION)

    def mean_error(self, name: str) -> float:
        """Mean of an error from 10 % recall to the greatest; 1 where that is not reached."""
        reached = np.flatnonzero(self.confidence)
        last = reached[-1] if len(reached) else 0
        return 1.0 if last < _FIRST else float(np.mean(self.errors[TP_ERRORS.index(name), _FIRST : last + 1]))

    def to_json(self) -> dict[str, list[float]]:
        """As in the devkit's ``metrics_details.json``."""
        return {
            "recall": RECALLS.tolist(),
            "precision": self.precision.tolist(),
            "confidence": self.confidence.tolist(),
            **{name: self.errors[row].tolist() for row, name in enumerate(TP_ERRORS)},
        }


RECALLS = np.linspace(0, 1, NUM_RECALLS)
NO_MATCH = Curve(np.zeros(NUM_RECALLS), np.zeros(NUM_RECALLS), np.ones((len(TP_ERRORS), NUM_RECALLS)))
"""Of a class without a label or without a match."""

Curves = dict[tuple[str, float], Curve]
"""By class name and matching distance in metres."""


def curve_of(
    score: Float64[np.ndarray, "n"],
    pair: Int32[np.ndarray, "n"],
    errors: Float64[np.ndarray, "p 5"] | None,
    num_labels: int,
    upto: Int64[np.ndarray, "n"] | None = None,
) -> Curve:
    """The curve of one class's detections, best first.

    Args:
        pair: row of each detection's match in ``errors``; -1 for a false positive.
        errors: None where they are not wanted.
        upto: how many copies there are of all detections down to each one; None where each is there once. As if every
            detection were listed so many times in a row.
    """
    hits = np.flatnonzero(pair >= 0)
    hit_place, num = hits, len(pair)
    if upto is not None and num:
        before = upto[hits] - np.diff(upto, prepend=0)[hits]
        own, hit_place = windows(before, upto[hits] - before)
        hits, num = hits[own], int(upto[-1])
    if num_labels == 0 or not len(hits):
        return NO_MATCH
    place, true = _corners(hit_place, num)
    at_place = score[place] if upto is None else score[np.searchsorted(upto, place, side="right")]
    recall, precision = true / float(num_labels), true / (place + 1.0)
    confidence = np.interp(RECALLS, recall, at_place, right=0)
    return Curve(
        precision=np.interp(RECALLS, recall, precision, right=0),
        confidence=confidence,
        errors=NO_MATCH.errors if errors is None else _errors_at(confidence, score[hits], errors[pair[hits]]),
    )


def _errors_at(
    confidence: Float64[np.ndarray, "101"], score: Float64[np.ndarray, "m"], errors: Float64[np.ndarray, "m 5"]
) -> Float64[np.ndarray, "5 101"]:
    """Means of the errors of all matches down to each confidence; ``np.interp`` wants confidences ascending."""
    means, ascending = _running_means(errors), score[::-1]
    return np.stack([np.interp(confidence[::-1], ascending, mean[::-1])[::-1] for mean in means.T])


def _corners(hits: Int64[np.ndarray, "m"], num: int) -> tuple[Int64[np.ndarray, "c"], Float64[np.ndarray, "c"]]:
    """Where the recall changes, and the number of hits there: all that interpolation looks at.

    Between two hits the recall stands still while the precision falls; of such a run ``np.interp`` uses the first
    point, from below, and the last one, from above.
    """
    place = np.empty(2 * len(hits), np.int64)
    place[0::2], place[1::2] = hits, np.append(hits[1:], num) - 1
    true = np.repeat(np.arange(1.0, len(hits) + 1), 2)
    if hits[0] == 0:
        return place, true
    return np.insert(place, 0, hits[0] - 1), np.insert(true, 0, 0.0)


def _running_means(errors: Float64[np.ndarray, "m 5"]) -> Float64[np.ndarray, "m 5"]:
    """Mean of the known values so far (``cummean``): 0 before the first known one, 1 where none is known at all."""
    known = ~np.isnan(errors)
    count = np.cumsum(known, axis=0)
    means = np.divide(np.nancumsum(errors, axis=0), count, out=np.zeros(errors.shape), where=count != 0)
    means[:, ~known.any(axis=0)] = 1.0
    return means


def curves_of(matches: MatchTable, copies: Int64[np.ndarray, "n"] | None = None) -> Curves:
    """The curves of all classes and distances.

    Args:
        copies: how often each detection counts; with them, errors are kept at TP_DISTANCE_M only, which is all that
            the scores need.
    """
    curves = {}
    for label, name in enumerate(DETECTION_NAMES):
        rows, num_labels = matches.of_class(label), int(matches.num_labels[label])
        upto = None if copies is None else np.cumsum(copies[rows])
        for distance_m, pair in zip(DISTANCES_M, matches.pair[:, rows], strict=True):
            errors = matches.errors if copies is None or distance_m == TP_DISTANCE_M else None
            curves[name, distance_m] = curve_of(matches.score[rows], pair, errors, num_labels, upto)
    return curves


def metrics_of(matches: MatchTable, curves: Curves | None = None) -> Metrics:
    """The official scores of matched detections (``DetectionMetrics`` of the devkit)."""
    curves = curves_of(matches) if curves is None else curves
    aps = {name: {limit: curves[name, limit].average_precision for limit in DISTANCES_M} for name in DETECTION_NAMES}
    class_errors = {
        name: {
            error: None if error in MISSING_ERRORS.get(name, ()) else curves[name, TP_DISTANCE_M].mean_error(error)
            for error in TP_ERRORS
        }
        for name in DETECTION_NAMES
    }
    tp_errors = {
        error: float(np.nanmean(np.array([errors[error] for errors in class_errors.values()], float)))
        for error in TP_ERRORS
    }
    class_ap = {name: float(np.mean(list(by_distance.values()))) for name, by_distance in aps.items()}
    mean_ap = float(np.mean(list(class_ap.values())))
    found = np.bincount(matches.label, minlength=len(DETECTION_NAMES)).tolist()
    return Metrics(
        mean_ap=mean_ap,
        nds=detection_score(mean_ap, tp_errors),
        tp_errors=tp_errors,
        class_ap=class_ap,
        class_ap_by_distance_m=aps,
        class_tp_errors=class_errors,
        num_labels=dict(zip(DETECTION_NAMES, matches.num_labels.tolist(), strict=True)),
        num_detections=dict(zip(DETECTION_NAMES, found, strict=True)),
    )


def detection_score(mean_ap: float, tp_errors: dict[str, float]) -> float:
    """NDS = (5 mAP + sum of max(0, 1 - error)) / 10 (Caesar et al., CVPR 2020, equation 3)."""
    tp_scores = [max(0.0, 1.0 - error) for error in tp_errors.values()]
    return float(MEAN_AP_WEIGHT * mean_ap + np.sum(tp_scores)) / float(MEAN_AP_WEIGHT + len(tp_scores))
