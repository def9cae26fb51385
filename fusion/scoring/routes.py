"""What a run's routes did to its scores: recall of what each camera looks at, and routes by condition of the scene."""

import numpy as np
from jaxtyping import Int64

from fusion.routing.plan import SKIP
from fusion.scoring.breakdown import recall_by
from fusion.scoring.evaluate import SENSOR_UNITS, EvaluationResult
from fusion.scoring.scorer import Scored
from sensors.rig import CAMERAS, NUSCENES_RIG


def by_view(scored: Scored, result: EvaluationResult) -> dict[str, dict[str, float | int]]:
    """Number and recall of the labels that each camera looks at, apart for samples that ran it and that skipped it.

    Keys are such as ``front left, skipped``; a lost camera counts as skipped. A label belongs to the camera whose
    optical axis points nearest to it.
    """
    row_of = {token: row for row, token in enumerate(result.tokens)}
    row = np.array([row_of[token] for token in scored.split.tokens], np.int64)[scored.labels.sample]
    view = nearest_view(scored, result, row)
    ran = result.branch[row, view] != SKIP
    names = [channel.removeprefix("CAM_").replace("_", " ").lower() for channel in CAMERAS]
    return {
        f"{names[key // 2]}, {'run' if key % 2 else 'skipped'}": value
        for key, value in recall_by(scored, 2 * view + ran).items()
    }


def nearest_view(scored: Scored, result: EvaluationResult, row: Int64[np.ndarray, "k"]) -> Int64[np.ndarray, "k"]:
    """The camera, in the order of CAMERAS, that looks nearest to the direction of each counted label.

    Args:
        row: of each label's sample in the result.
    """
    away_m = scored.labels.boxes.center_m[:, :2] - scored.split.ego_xy_m[scored.labels.sample]
    azimuth = np.arctan2(away_m[:, 1], away_m[:, 0]) - result.ego_yaw_rad[row]
    axes = np.stack([NUSCENES_RIG[name].ego_from_sensor.vectors(np.array([[0.0, 0.0, 1.0]]))[0] for name in CAMERAS])
    looks = np.arctan2(axes[:, 1], axes[:, 0])
    return np.cos(azimuth[:, None] - looks).argmax(axis=1).astype(np.int64)


def routes_by_condition(result: EvaluationResult) -> dict[str, dict]:
    """By word about the scene, such as night or rain: samples, executed GFLOPs, and which share ran each sensor."""
    found = {}
    ran = result.branch != SKIP
    for word in sorted({word for words in result.conditions for word in words}):
        rows = np.array([word in words for words in result.conditions])
        shares = {name: float(ran[rows][:, list(units)].any(axis=1).mean()) for name, units in SENSOR_UNITS.items()}
        found[word] = {
            "num_samples": int(rows.sum()),
            "gflops": float(result.gflops[rows].mean()),
            "sensor_shares": shares,
        }
    return found
