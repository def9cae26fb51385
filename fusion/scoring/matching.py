"""Detections to labels, as the official metric matches them, for all samples and classes at once.

The devkit goes through the detections of a class, best first; each takes the nearest label of its sample that is still
free. Within a sample and class this is the stable matching in which detections prefer near labels and all labels prefer
good scores. With one common order on the labels' side it is unique, so it can be found in rounds instead of one after
the other: every detection asks its nearest label, a label keeps the best that asked, the others go on to their next
(deferred acceptance: Gale and Shapley 1962). A few rounds over arrays do for any number of boxes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from fusion.scoring.settings import BARRIER, DISTANCES_M, NUM_CLASSES, TP_ERRORS
from fusion.scoring.table import BoxTable, windows
from sensors.boxes import NO_ATTRIBUTE, Boxes

_MARGIN_M = 1e-3
_GROUP_STEP_M = 1e4


@dataclass(frozen=True, eq=False)
class MatchTable:
    """Detections by class, best first, and what each of them found.

    Attributes:
        row: of each detection in the table that it comes from.
        label, sample, score: of each detection.
        pair: at each of DISTANCES_M, row of the detection's match among the P matches below; -1 without one.
        truth: row of each match's label in the table of labels.
        errors: of each match, in the order of TP_ERRORS; NaN where one cannot be told.
        num_labels: of each class.
    """

    row: Int64[np.ndarray, "n"]
    label: Int64[np.ndarray, "n"]
    sample: Int64[np.ndarray, "n"]
    score: Float64[np.ndarray, "n"]
    pair: Int32[np.ndarray, "4 n"]
    truth: Int64[np.ndarray, "p"]
    errors: Float64[np.ndarray, "p 5"]
    num_labels: Int64[np.ndarray, "10"]

    def of_class(self, label: int) -> slice:
        """Where the detections of a class stand."""
        first, last = np.searchsorted(self.label, [label, label + 1])
        return slice(int(first), int(last))

    def select(self, rows: np.ndarray, num_labels: Int64[np.ndarray, "10"]) -> "MatchTable":
        """Some detections with their matches; ``rows`` is a mask or ascending indices, which may repeat."""
        parts = {name: getattr(self, name)[rows] for name in ("row", "label", "sample", "score")}
        return MatchTable(**parts, pair=self.pair[:, rows], truth=self.truth, errors=self.errors, num_labels=num_labels)


def match(detections: BoxTable, rows: Int64[np.ndarray, "n"], labels: BoxTable) -> MatchTable:
    """Match some detections to filtered labels; both in the global frame, labels by sample.

    Args:
        rows: of the detections that count, ascending. Of equal scores the later is the better one, as in the devkit.
    """
    boxes = detections.boxes
    order = np.argsort(boxes.score[rows], kind="stable")[::-1]
    order = order[np.argsort(boxes.label[rows][order].astype(np.int8), kind="stable")]
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows))
    found, truth, distance_m = candidates(detections, rows, labels)
    box = rank[found]
    by_preference = np.lexsort((truth, distance_m, box))
    box, truth, distance_m = box[by_preference], truth[by_preference], distance_m[by_preference]
    matched = [np.flatnonzero(distance_m < limit) for limit in DISTANCES_M]
    matched = [near[stable_pairs(box[near], truth[near], len(labels))] for near in matched]
    kept = np.unique(np.concatenate(matched))
    pair = np.full((len(DISTANCES_M), len(rows)), -1, np.int32)
    for place, pairs in zip(pair, matched, strict=True):
        place[box[pairs]] = np.searchsorted(kept, pairs)
    row = rows[order]
    found_boxes, true_boxes = boxes.select(row[box[kept]]), labels.boxes.select(truth[kept])
    return MatchTable(
        row=row,
        label=boxes.label[row].astype(np.int64),
        sample=detections.sample[row],
        score=boxes.score[row].astype(np.float64),
        pair=pair,
        truth=truth[kept],
        errors=pair_errors(found_boxes, true_boxes, distance_m[kept]),
        num_labels=np.bincount(labels.boxes.label, minlength=NUM_CLASSES).astype(np.int64),
    )


def candidates(
    detections: BoxTable, rows: Int64[np.ndarray, "n"], labels: BoxTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a detection and a label of its sample and class below the greatest distance.

    Labels are sorted along x within each sample and class, so that a detection looks only at a window of them.

    Returns:
        Places in ``rows``, rows of labels, distances in metres.
    """
    group = labels.sample * NUM_CLASSES + labels.boxes.label
    own_group = detections.sample[rows] * NUM_CLASSES + detections.boxes.label[rows]
    xy_m, own_xy_m = labels.boxes.center_m[:, :2], detections.boxes.center_m[rows, :2]
    origin_m = xy_m[:, 0].min(initial=np.inf) if len(xy_m) else 0.0
    spread_m = xy_m[:, 0].max(initial=-np.inf) - origin_m if len(xy_m) else 0.0
    # One number per box that sorts by group and then along x; groups stand far enough apart to keep windows within.
    step_m = max(_GROUP_STEP_M, 2 * spread_m)
    order = np.lexsort((xy_m[:, 0], group))
    key = group[order] * step_m + (xy_m[order, 0] - origin_m)
    reach_m = max(DISTANCES_M) + _MARGIN_M + 4 * np.spacing(key[-1] if len(key) else 0.0)
    own_key = own_group * step_m + np.clip(own_xy_m[:, 0] - origin_m, -2 * reach_m, spread_m + 2 * reach_m)
    first = np.searchsorted(key, own_key - reach_m)
    count = np.searchsorted(key, own_key + reach_m, side="right") - first
    box, place = windows(first, count)
    truth = order[place]
    away = own_xy_m[box] - xy_m[truth]
    distance_m = np.sqrt(away[:, 0] * away[:, 0] + away[:, 1] * away[:, 1])
    near = np.flatnonzero((distance_m < max(DISTANCES_M)) & (group[truth] == own_group[box]))
    return box[near], truth[near], distance_m[near].astype(np.float64)


def stable_pairs(box: Int64[np.ndarray, "k"], truth: Int64[np.ndarray, "k"], num_labels: int) -> Int64[np.ndarray, "m"]:
    """Which of the candidate pairs match, ascending.

    Args:
        box: rank of the detection: less is better. Ascending.
        truth: row of the label; the candidates of one detection stand in the order of its preference.
        num_labels: in all.
    """
    if not len(box):
        return np.zeros(0, np.int64)
    turn = np.flatnonzero(np.concatenate([[True], box[1:] != box[:-1]]))
    last = np.append(turn[1:], len(box))
    nobody = len(turn)
    holder = np.full(num_labels, nobody)
    asking = np.arange(len(turn))
    while len(asking):
        label = truth[turn[asking]]
        before = holder[label]
        np.minimum.at(holder, label, asking)
        accepted = holder[label] == asking
        losers = np.concatenate([asking[~accepted], before[accepted & (before < nobody)]])
        turn[losers] += 1
        asking = losers[turn[losers] < last[losers]]
    return np.sort(turn[holder[holder < nobody]])


def pair_errors(found: Boxes, labels: Boxes, distance_m: Float64[np.ndarray, "p"]) -> Float64[np.ndarray, "p 5"]:
    """The five true-positive errors of matched boxes, in the order of TP_ERRORS.

    The velocity error is NaN where one of the velocities is unknown, the attribute error where the label has none.
    """
    volume = found.size_lwh_m[:, 1] * found.size_lwh_m[:, 0] * found.size_lwh_m[:, 2]
    true_volume = labels.size_lwh_m[:, 1] * labels.size_lwh_m[:, 0] * labels.size_lwh_m[:, 2]
    common = np.minimum(found.size_lwh_m, labels.size_lwh_m)
    shared = common[:, 1] * common[:, 0] * common[:, 2]
    # A barrier looks the same from both sides.
    period = np.where(labels.label == BARRIER, np.pi, 2 * np.pi)
    turned = (labels.yaw_rad - found.yaw_rad + period / 2) % period - period / 2
    drift = found.velocity_mps - labels.velocity_mps
    errors = {
        "trans_err": distance_m,
        "scale_err": 1 - shared / (true_volume + volume - shared),
        "orient_err": np.abs(turned),
        "vel_err": np.sqrt(drift[:, 0] * drift[:, 0] + drift[:, 1] * drift[:, 1]),
        "attr_err": np.where(labels.attribute == NO_ATTRIBUTE, np.nan, labels.attribute != found.attribute),
    }
    return np.stack([errors[name] for name in TP_ERRORS], axis=1).astype(np.float64)
