"""The nuScenes detection submission: boxes in the global frame to JSON and back.

Format: https://www.nuscenes.org/object-detection (``meta`` and ``results``, one list of boxes per sample token).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fusion.run_directory import write_text
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES, NO_ATTRIBUTE, Boxes
from sensors.frame import Frame

MAX_BOXES_PER_SAMPLE = 500
"""More than this per sample and the devkit refuses the whole submission."""

Detections = Mapping[str, Boxes]
"""Boxes in the *global* frame by sample token."""


@dataclass(frozen=True)
class SubmissionMeta:
    """What a submission was made from, as nuScenes asks."""

    use_camera: bool = True
    use_lidar: bool = True
    use_radar: bool = True
    use_map: bool = False
    use_external: bool = False


def in_global_frame(boxes: Boxes, frame: Frame) -> Boxes:
    """Boxes of the frame's ego frame in the global frame, in float64: float32 is worth 0.1 mm at 2 km."""
    wide = replace(boxes, center_m=boxes.center_m.astype(np.float64), yaw_rad=boxes.yaw_rad.astype(np.float64))
    return wide.moved(frame.global_from_ego)


def labels_as_detections(frames: Iterable[Frame]) -> dict[str, Boxes]:
    """The labels of some frames as a perfect submission: score 1.

    Boxes without a LiDAR or radar point are left out, because the metric drops them from the ground truth and would
    count them here as false.

    Raises:
        ValueError: a frame has no labels (test split).
    """
    detections = {}
    for frame in frames:
        if frame.boxes is None:
            raise ValueError(f"expected labels in sample {frame.token}, got none; use a split with annotations")
        detections[frame.token] = in_global_frame(frame.boxes.select(frame.boxes.num_points != 0), frame)
    return detections


def submission_results(detections: Detections, tokens: Sequence[str]) -> dict[str, list[dict]]:
    """The ``results`` block: an entry for every token of the split, also an empty one, strongest 500 boxes each.

    Raises:
        ValueError: a token is missing or foreign, or a box holds something that is no finite number.
    """
    missing = [token for token in tokens if token not in detections]
    foreign = set(detections) - set(tokens)
    if missing or foreign:
        example = missing[0] if missing else sorted(foreign)[0]
        raise ValueError(
            f"expected detections for exactly the {len(tokens)} samples of the split, got {len(missing)} missing and "
            f"{len(foreign)} foreign ones, such as '{example}'; evaluate the split that is scored"
        )
    return {token: _entries(token, detections[token]) for token in tokens}


def _entries(token: str, boxes: Boxes) -> list[dict]:
    """One sample's list: w l h, quaternion w x y z, plain Python floats. An unknown velocity is written as 0."""
    boxes = boxes.select(strongest(boxes.score, MAX_BOXES_PER_SAMPLE))
    _check(token, boxes)
    half = boxes.yaw_rad.astype(np.float64) / 2
    zero = np.zeros_like(half)
    columns = zip(
        boxes.center_m.tolist(),
        boxes.size_lwh_m[:, [1, 0, 2]].tolist(),
        np.stack([np.cos(half), zero, zero, np.sin(half)], axis=1).tolist(),
        np.nan_to_num(boxes.velocity_mps).tolist(),
        boxes.label.tolist(),
        boxes.score.tolist(),
        boxes.attribute.tolist(),
        strict=True,
    )
    return [
        {
            "sample_token": token,
            "translation": center,
            "size": size_wlh,
            "rotation": quaternion_wxyz,
            "velocity": velocity,
            "detection_name": DETECTION_NAMES[label],
            "detection_score": score,
            "attribute_name": "" if attribute == NO_ATTRIBUTE else ATTRIBUTE_NAMES[attribute],
        }
        for center, size_wlh, quaternion_wxyz, velocity, label, score, attribute in columns
    ]


def strongest(score: np.ndarray, most: int) -> np.ndarray:
    """Indices of the ``most`` highest scores (the first of equals), in their original order."""
    return np.sort(np.argsort(-score, kind="stable")[:most])


def _check(token: str, boxes: Boxes) -> None:
    for name in ("center_m", "size_lwh_m", "yaw_rad", "score"):
        if not np.isfinite(getattr(boxes, name)).all():
            raise ValueError(f"expected finite numbers in {name} of sample {token}, got NaN or infinity")
    if np.isinf(boxes.velocity_mps).any():
        raise ValueError(f"expected finite velocities in sample {token}, got infinity")
    if len(boxes) and boxes.size_lwh_m.min() <= 0:
        raise ValueError(f"expected box sizes above 0 m in sample {token}, got {boxes.size_lwh_m.min()}")


def write_submission(path: Path, detections: Detections, tokens: Sequence[str], meta: SubmissionMeta) -> None:
    """Write the JSON file, whole or not at all.

    Args:
        detections: by sample token, global frame.
        tokens: every sample of the split.

    Raises:
        ValueError: as ``submission_results``.
    """
    content = {"meta": dict(vars(meta)), "results": submission_results(detections, tokens)}
    write_text(path, json.dumps(content, allow_nan=False))


def read_submission(path: Path) -> tuple[dict[str, Boxes], dict]:
    """Detections by token (global frame) and the meta block of anybody's submission file.

    The heading is that of the turned x axis projected on the ground; roll and pitch are not kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no submission: cut off, without ``results``, or with a box that lacks or distorts a field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a submission file, got no file at {path}; check the path")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got a file that ends or breaks at: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise ValueError(
            f"expected the blocks 'meta' and 'results' in {path}, got none; see nuscenes.org for the format"
        )
    detections = {}
    for token, entries in content["results"].items():
        try:
            detections[token] = _boxes(entries)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected boxes in nuScenes' submission format for sample {token} of {path}, got a bad field: {error}"
            ) from None
        _check(token, detections[token])
    return detections, content.get("meta", {})


def _boxes(entries: list[dict]) -> Boxes:
    if not entries:
        return Boxes.empty()

    def column(name: str, width: int) -> np.ndarray:
        return np.array([entry[name] for entry in entries], np.float64).reshape(len(entries), width)

    w, x, y, z = column("rotation", 4).T
    return Boxes(
        center_m=column("translation", 3),
        size_lwh_m=column("size", 3)[:, [1, 0, 2]],
        yaw_rad=np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z),
        velocity_mps=column("velocity", 2),
        label=np.array([DETECTION_NAMES.index(entry["detection_name"]) for entry in entries], np.int64),
        score=column("detection_score", 1)[:, 0],
        attribute=np.array([_attribute(entry.get("attribute_name", "")) for entry in entries], np.int64),
        num_points=np.full(len(entries), -1, np.int64),
    )


def _attribute(name: str) -> int:
    return NO_ATTRIBUTE if name == "" else ATTRIBUTE_NAMES.index(name)
