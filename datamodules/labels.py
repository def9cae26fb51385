"""The labels of a keyframe in its ego frame."""

import numpy as np
from jaxtyping import Int64

from datamodules.columns import NuScenesIndex
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.transforms import RigidTransform


def boxes_of(index: NuScenesIndex, sample: int, ego_from_global: RigidTransform) -> Boxes | None:
    """Boxes of the detection classes in the ego frame; None where the version has no annotations at all."""
    columns = index.annotations
    if not len(columns.label):
        return None
    bounds = index.samples.first_annotation
    rows = np.arange(bounds[sample], bounds[sample + 1])
    rows = rows[columns.label[rows] >= 0]
    heading = ego_from_global.vectors(columns.heading[rows])
    flat_velocity = columns.velocity_mps[rows] * [1.0, 1.0, 0.0]
    return Boxes(
        center_m=ego_from_global.points(columns.center_m[rows]).astype(np.float32),
        size_lwh_m=columns.size_lwh_m[rows].astype(np.float32),
        yaw_rad=np.arctan2(heading[:, 1], heading[:, 0]).astype(np.float32),
        velocity_mps=ego_from_global.vectors(flat_velocity)[:, :2].astype(np.float32),
        label=columns.label[rows].astype(np.int64),
        score=np.ones(len(rows), np.float32),
        attribute=columns.attribute[rows].astype(np.int64),
        num_points=(columns.num_lidar[rows] + columns.num_radar[rows]).astype(np.int64),
    )


def class_counts(index: NuScenesIndex, samples: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n 10"]:
    """How many boxes of each detection class every sample has."""
    bounds, labels = index.samples.first_annotation, index.annotations.label
    counts = [
        np.bincount(labels[bounds[row] : bounds[row + 1]] + 1, minlength=len(DETECTION_NAMES) + 1)[1:]
        for row in samples
    ]
    return np.array(counts, np.int64).reshape(-1, len(DETECTION_NAMES))
