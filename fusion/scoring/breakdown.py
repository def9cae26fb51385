"""The scores of parts: by distance, by condition of the scene, by visibility, by kind of road user."""

import math

import numpy as np
from jaxtyping import Bool, Int, Int64

from fusion.scoring.calibration import Calibration, calibration_of
from fusion.scoring.curves import metrics_of
from fusion.scoring.filters import ego_distance_m
from fusion.scoring.matching import MatchTable, match
from fusion.scoring.metrics import Metrics
from fusion.scoring.scorer import Scored
from fusion.scoring.settings import DISTANCES_M, NUM_CLASSES, TP_DISTANCE_M, TP_ERRORS
from sensors.boxes import DETECTION_NAMES

RINGS_M = ((0.0, 10.0), (10.0, 20.0), (20.0, 30.0), (30.0, 40.0), (40.0, 50.0))
ROAD_USERS = {
    "pedestrians": ("pedestrian",),
    "cyclists": ("bicycle", "motorcycle"),
    "vehicles": ("car", "truck", "bus", "trailer", "construction_vehicle"),
    "obstacles": ("traffic_cone", "barrier"),
}
VISIBILITIES = {0: "unknown", 1: "0-40 %", 2: "40-60 %", 3: "60-80 %", 4: "80-100 %"}
"""nuScenes' levels: which share of an object the six cameras see together."""
_AT_TP = DISTANCES_M.index(TP_DISTANCE_M)


def by_distance(scored: Scored, rings_m: tuple[tuple[float, float], ...] = RINGS_M) -> dict[str, Metrics]:
    """The metric of the boxes in rings about the vehicle: both detections and labels from ``near`` to below ``far``."""
    label_m = ego_distance_m(scored.labels, scored.split)
    detection_m = ego_distance_m(scored.detections, scored.split)
    counted = np.sort(scored.matches.row)
    found = {}
    for near, far in rings_m:
        rows = counted[(detection_m[counted] >= near) & (detection_m[counted] < far)]
        labels = scored.labels.select((label_m >= near) & (label_m < far))
        found[f"{near:g}-{far:g} m"] = metrics_of(match(scored.detections, rows, labels))
    return found


def by_condition(scored: Scored) -> dict[str, Metrics]:
    """The metric of the scenes of each condition, such as night or rain; a scene may have several."""
    conditions = scored.split.conditions
    words = sorted({word for scene in conditions for word in scene})
    chosen = {word: np.array([word in scene for scene in conditions])[scored.split.scene] for word in words}
    return {word: metrics_of(matches_of_samples(scored, samples)) for word, samples in chosen.items()}


def matches_of_samples(scored: Scored, samples: Bool[np.ndarray, "s"]) -> MatchTable:
    """The matches of some samples alone."""
    labels = scored.labels.boxes.label[samples[scored.labels.sample]]
    num_labels = np.bincount(labels, minlength=NUM_CLASSES).astype(np.int64)
    return scored.matches.select(samples[scored.matches.sample], num_labels)


def by_visibility(scored: Scored) -> dict[str, dict[str, float | int]]:
    """Recall of the labels of each visibility; a detection has none, so that there is no precision."""
    level = scored.split.visibility[scored.label_row]
    return {VISIBILITIES[key]: value for key, value in recall_by(scored, level).items()}


def recall_by(scored: Scored, group: Int[np.ndarray, "k"]) -> dict[int, dict[str, float | int]]:
    """Number and recall of the counted labels of each group, at each matching distance, over all scores.

    Args:
        group: of each of ``scored.labels``: a visibility, a camera view that was skipped or run, ...
    """
    found = np.zeros((len(DISTANCES_M), len(group)), bool)
    for row, pair in enumerate(scored.matches.pair):
        found[row, scored.matches.truth[pair[pair >= 0]]] = True
    recalls = {}
    for key in np.unique(group).tolist():
        own = found[:, group == key]
        rates = {f"recall_{limit:g}m": float(rate) for limit, rate in zip(DISTANCES_M, own.mean(axis=1), strict=True)}
        recalls[int(key)] = {"num_labels": own.shape[1], **rates}
    return recalls


def by_road_user(scored: Scored) -> dict[str, dict[str, float | int]]:
    """Mean AP and errors over the classes of each kind that have labels, and their recall at 2 m."""
    metrics, kinds = scored.metrics, np.zeros(NUM_CLASSES, np.int64)
    for row, names in enumerate(ROAD_USERS.values()):
        kinds[[DETECTION_NAMES.index(name) for name in names]] = row
    recalls = recall_by(scored, kinds[scored.labels.boxes.label])
    parts = {}
    for row, (kind, names) in enumerate(ROAD_USERS.items()):
        labelled = [name for name in names if metrics.num_labels[name]]
        errors = {error: [metrics.class_tp_errors[name][error] for name in labelled] for error in TP_ERRORS}
        parts[kind] = {
            "num_labels": sum(metrics.num_labels[name] for name in names),
            "num_detections": sum(metrics.num_detections[name] for name in names),
            "mean_ap": _mean([metrics.class_ap[name] for name in labelled]),
            "recall_2m": recalls.get(row, {}).get("recall_2m", math.nan),
            **{error: _mean([value for value in values if value is not None]) for error, values in errors.items()},
        }
    return parts


def confidence_calibration(scored: Scored) -> dict[str, Calibration]:
    """Scores against matches at 2 m, of all counted detections (``all``) and of each class that has some."""
    matches = scored.matches
    hit = matches.pair[_AT_TP] >= 0
    parts = {"all": calibration_of(matches.score, hit)}
    for label, name in enumerate(DETECTION_NAMES):
        rows = matches.of_class(label)
        if rows.stop > rows.start:
            parts[name] = calibration_of(matches.score[rows], hit[rows])
    return parts


def breakdown(scored: Scored) -> dict:
    """All of it as plain JSON values, for ``metrics.json``."""
    return {
        "by_distance": {name: _headline(metrics) for name, metrics in by_distance(scored).items()},
        "by_condition": {name: _headline(metrics) for name, metrics in by_condition(scored).items()},
        "by_visibility": by_visibility(scored),
        "by_road_user": by_road_user(scored),
        "calibration": {name: part.to_json() for name, part in confidence_calibration(scored).items()},
        "precision_recall": {
            name: {f"{limit:g}": scored.curves[name, limit].precision.tolist() for limit in DISTANCES_M}
            for name in DETECTION_NAMES
            if scored.metrics.num_labels[name]
        },
    }


def _headline(metrics: Metrics) -> dict:
    """What a reader compares between parts; classes without a label in a part are left out of ``class_ap``."""
    return {
        "mean_ap": metrics.mean_ap,
        "mean_ap_of_labelled": metrics.mean_ap_of_labelled,
        "nds": metrics.nds,
        "tp_errors": metrics.tp_errors,
        "class_ap": {name: ap for name, ap in metrics.class_ap.items() if metrics.num_labels[name]},
        "num_labels": sum(metrics.num_labels.values()),
        "num_detections": sum(metrics.num_detections.values()),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def label_counts(scored: Scored) -> Int64[np.ndarray, "c 10"]:
    """Counted labels of each class by scene."""
    num_scenes = len(scored.split.scene_names)
    key = scored.split.scene[scored.labels.sample] * NUM_CLASSES + scored.labels.boxes.label
    return np.bincount(key, minlength=num_scenes * NUM_CLASSES).reshape(num_scenes, NUM_CLASSES).astype(np.int64)
