"""The nuScenes detection submission: boxes in the global frame to JSON and back.

Format: https://www.nuscenes.org/object-detection (``meta`` and ``results``, one list of boxes per sample token).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from datamodules.splits import PREDEFINED_SPLITS
from fusion.run_directory import write_text
from fusion.scoring.read import SubmissionTable, read_table
from fusion.scoring.settings import MAX_BOXES_PER_SAMPLE
from fusion.scoring.table import BoxTable, joined
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES, NO_ATTRIBUTE, Boxes
from sensors.frame import Frame

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
    _check_tokens(detections, tokens)
    return {token: _entries(token, detections[token]) for token in tokens}


def checked_table(detections: Detections, tokens: Sequence[str]) -> BoxTable:
    """The same boxes as columns, as they would be read from the file: an unknown velocity is 0.

    Raises:
        ValueError: as ``submission_results``.
    """
    _check_tokens(detections, tokens)
    parts = [_at_most(detections[token]) for token in tokens]
    table = joined(parts, range(len(tokens)))
    try:
        _check("the submission", table.boxes)
    except ValueError:
        for token, part in zip(tokens, parts, strict=True):
            _check(f"sample {token}", part)
        raise
    known = replace(table.boxes, velocity_mps=np.nan_to_num(table.boxes.velocity_mps))
    return replace(table, boxes=known)


def _check_tokens(detections: Mapping[str, object], tokens: Sequence[str]) -> None:
    missing = [token for token in tokens if token not in detections]
    foreign = set(detections) - set(tokens)
    if missing or foreign:
        example = missing[0] if missing else sorted(foreign)[0]
        raise ValueError(
            f"expected detections for exactly the {len(tokens)} samples of the split, got {len(missing)} missing and "
            f"{len(foreign)} foreign ones, such as '{example}'; evaluate the split that is scored"
        )


def _at_most(boxes: Boxes) -> Boxes:
    if len(boxes) <= MAX_BOXES_PER_SAMPLE:
        return boxes
    return boxes.select(strongest(boxes.score, MAX_BOXES_PER_SAMPLE))


def _entries(token: str, boxes: Boxes) -> list[dict]:
    """One sample's list: w l h, quaternion w x y z, plain Python floats. An unknown velocity is written as 0."""
    boxes = _at_most(boxes)
    _check(f"sample {token}", boxes)
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


def _check(where: str, boxes: Boxes) -> None:
    for name in ("center_m", "size_lwh_m", "yaw_rad", "score"):
        if not np.isfinite(getattr(boxes, name)).all():
            raise ValueError(f"expected finite numbers in {name} of {where}, got NaN or infinity")
    if np.isinf(boxes.velocity_mps).any():
        raise ValueError(f"expected finite velocities in {where}, got infinity")
    if len(boxes) and boxes.size_lwh_m.min() <= 0:
        raise ValueError(f"expected box sizes above 0 m in {where}, got {boxes.size_lwh_m.min()}")
    if len(boxes) and boxes.score.min() < 0:
        raise ValueError(f"expected scores of at least 0 in {where}, got {boxes.score.min()}")


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

    Raises:
        FileNotFoundError, ValueError: as ``read_table``.
    """
    submission = read_table(path)
    ends = np.searchsorted(submission.table.sample, np.arange(len(submission.tokens) + 1))
    boxes = submission.table.boxes
    detections = {
        token: boxes.select(np.arange(ends[row], ends[row + 1])) for row, token in enumerate(submission.tokens)
    }
    return detections, submission.meta


def table_of_split(submission: SubmissionTable, tokens: Sequence[str], split: str, path: Path) -> BoxTable:
    """The boxes of a submission with rows of ``tokens`` as samples.

    Of a split of the user's own, other samples in the file are left out and the split's order counts; a submission for
    one of nuScenes' splits holds exactly its samples, in any order. So does the devkit.

    Raises:
        ValueError: a sample of the split is missing, or one is foreign to a split of nuScenes.
    """
    row_of = {token: row for row, token in enumerate(tokens)}
    rows = np.array([row_of.get(token, -1) for token in submission.tokens], np.int64)
    listed = set(submission.tokens)
    missing = [token for token in tokens if token not in listed]
    foreign = [token for token in submission.tokens if token not in row_of] if split in PREDEFINED_SPLITS else []
    if missing or foreign:
        raise ValueError(
            f"expected the {len(tokens)} samples of split '{split}' in {path}, got {len(missing)} missing and "
            f"{len(foreign)} foreign ones, such as '{(missing or foreign)[0]}'; choose the split it was made for"
        )
    table = replace(submission.table, sample=rows[submission.table.sample])
    table = table.select(table.sample >= 0)
    return table if split in PREDEFINED_SPLITS else table.select(np.argsort(table.sample, kind="stable"))
