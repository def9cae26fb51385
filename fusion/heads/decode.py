"""Maps to boxes: peaks of the heatmap, their regressions, circle NMS, and the way home to the global frame."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fusion.heads.center import NUM_CLASSES, HeadOutput
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES, NO_ATTRIBUTE, Boxes, attributes_of_class
from sensors.grid import BevGrid
from sensors.transforms import RigidTransform

MAX_BOXES = 500
"""nuScenes allows no more in a sample."""

_NMS_RADIUS_M = {
    "car": 2.0,
    "truck": 3.0,
    "bus": 3.2,
    "trailer": 3.2,
    "construction_vehicle": 3.0,
    "pedestrian": 0.4,
    "motorcycle": 0.9,
    "bicycle": 0.9,
    "traffic_cone": 0.4,
    "barrier": 1.0,
}
"""CenterPoint's values for nuScenes, rounded; its configuration holds their squares."""

_OWN_ATTRIBUTES = np.array([[i in attributes_of_class(name) for i in range(8)] for name in DETECTION_NAMES])
_LOG_SIZE_LIMIT = 5.0
"""exp(5) = 148 m: an untrained head must not put out infinite boxes."""


@dataclass(frozen=True)
class DecodeOptions:
    """How maps become boxes.

    Attributes:
        min_score: boxes below are dropped. Low by default: the metric ranks by score and loses nothing by weak ones.
        num_candidates: peaks of a sample, over all classes, that enter NMS.
        max_boxes: of a sample, at most 500.
        nms_radius_m: per class in the order of DETECTION_NAMES; of two centres of a class this close or closer, the one
            with the higher score stays.
    """

    min_score: float = 0.02
    num_candidates: int = 500
    max_boxes: int = 300
    nms_radius_m: Sequence[float] = tuple(_NMS_RADIUS_M[name] for name in DETECTION_NAMES)

    def __post_init__(self):
        if not 0 < self.max_boxes <= MAX_BOXES:
            raise ValueError(f"expected max_boxes between 1 and nuScenes' limit {MAX_BOXES}, got {self.max_boxes}")
        if len(self.nms_radius_m) != NUM_CLASSES:
            raise ValueError(f"expected {NUM_CLASSES} values in nms_radius_m, one per class, got {self.nms_radius_m}")


@torch.no_grad()
def decode(output: HeadOutput, grid: BevGrid, options: DecodeOptions | None = None) -> list[Boxes]:
    """Boxes of each sample in the frame of the grid (the augmented ego frame, if augmented), best first.

    Possibly none. One copy from the device, then numpy.

    Raises:
        ValueError: the maps hold NaN or infinity: the model has diverged.
    """
    options = options or DecodeOptions()
    packed = _candidates(output, options.num_candidates).cpu().numpy()
    if not np.isfinite(packed).all():
        raise ValueError(
            "expected finite maps from the head, got NaN or infinity: the model has diverged; lower the learning rate "
            "or train in float32"
        )
    return [_boxes_of(rows, grid, options) for rows in packed]


def _candidates(output: HeadOutput, num_candidates: int) -> Float[Tensor, "b k 21"]:
    """The highest local maxima (3x3) of each sample: logit, label, cell, then the 18 regressions; in float32.

    Where maxima are fewer, other cells fill up the end with the logit of a score of 0. NaN counts as a maximum, so that
    it is found out.
    """
    logits = output.heatmap.float()
    num_samples, num_cells = len(logits), logits.shape[2] * logits.shape[3]
    beaten = _highest_around(logits) > logits
    peaks = logits.masked_fill(beaten, -1e4).flatten(1)
    logit, index = peaks.topk(min(num_candidates, peaks.shape[1]), dim=1)
    label, cell = index // num_cells, index % num_cells
    sample = torch.arange(num_samples, device=index.device)[:, None].expand_as(index)
    values = output.at(sample.flatten(), label.flatten(), cell.flatten())
    columns = [values.height, values.offset, values.log_size, values.heading, values.velocity, values.attribute]
    regressed = torch.cat(columns, dim=1).float().unflatten(0, index.shape)
    return torch.cat([torch.stack([logit, label.float(), cell.float()], dim=2), regressed], dim=2)


def _highest_around(maps: Float[Tensor, "b c ny nx"]) -> Float[Tensor, "b c ny nx"]:
    """The maximum over 3x3 cells, rows then columns: ten times as fast as ``max_pool2d`` on a CPU. NaN spreads."""
    over_y = maps.clone()
    over_y[:, :, 1:] = torch.maximum(over_y[:, :, 1:], maps[:, :, :-1])
    over_y[:, :, :-1] = torch.maximum(over_y[:, :, :-1], maps[:, :, 1:])
    over_yx = over_y.clone()
    over_yx[..., 1:] = torch.maximum(over_yx[..., 1:], over_y[..., :-1])
    over_yx[..., :-1] = torch.maximum(over_yx[..., :-1], over_y[..., 1:])
    return over_yx


def _boxes_of(rows: Float[np.ndarray, "k 21"], grid: BevGrid, options: DecodeOptions) -> Boxes:
    """Boxes of one sample from its candidates, which come in falling order of score."""
    rows = rows.astype(np.float64)
    score = 1 / (1 + np.exp(-np.clip(rows[:, 0], -700, 700)))
    rows, score = rows[score >= options.min_score], score[score >= options.min_score]
    label, cell = rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64)
    height, offset, log_size, heading, velocity, attribute = np.split(rows[:, 3:], [1, 3, 6, 8, 10], axis=1)
    iy, ix = np.divmod(cell, grid.shape[1])
    center_xy_m = grid.center_of(iy, ix) + (offset - 0.5) * grid.cell_m
    boxes = Boxes(
        center_m=np.concatenate([center_xy_m, height], axis=1).astype(np.float32),
        size_lwh_m=np.exp(np.clip(log_size, -_LOG_SIZE_LIMIT, _LOG_SIZE_LIMIT)).astype(np.float32),
        yaw_rad=np.arctan2(heading[:, 0], heading[:, 1]).astype(np.float32),
        velocity_mps=velocity.astype(np.float32),
        label=label,
        score=score.astype(np.float32),
        attribute=_attribute_of(attribute, label),
        num_points=np.full(len(label), -1, np.int64),
    )
    kept = circle_nms(boxes.center_m[:, :2], label, np.array(options.nms_radius_m))
    return boxes.select(np.flatnonzero(kept)[: options.max_boxes])


def _attribute_of(logits: Float[np.ndarray, "k 8"], label: Int[np.ndarray, "k"]) -> Int[np.ndarray, "k"]:
    """The likeliest of the class's own attributes; NO_ATTRIBUTE for cones and barriers."""
    assert logits.shape[1] == len(ATTRIBUTE_NAMES)
    own = _OWN_ATTRIBUTES[label]
    return np.where(own.any(axis=1), np.where(own, logits, -np.inf).argmax(axis=1), NO_ATTRIBUTE)


def circle_nms(
    xy_m: Float[np.ndarray, "k 2"], label: Int[np.ndarray, "k"], radius_m: Float[np.ndarray, "c"]
) -> Bool[np.ndarray, "k"]:
    """Mask of the boxes that stay; boxes come in falling order of score.

    A box goes if a kept box of its class before it is no farther than the class's radius.
    """
    kept = np.ones(len(label), bool)
    for one_class in np.unique(label):
        rows = np.flatnonzero(label == one_class)
        kept[rows] = _greedy(xy_m[rows].astype(np.float64), radius_m[one_class])
    return kept


def _greedy(xy_m: Float[np.ndarray, "k 2"], radius_m: float) -> Bool[np.ndarray, "k"]:
    """Circle NMS of one class.

    The rule is applied to all boxes at once until nothing changes. After round n the first n boxes of every chain of
    close boxes are settled for good, so the result is that of the loop from the best box to the worst.
    """
    distance = np.hypot(xy_m[:, None, 0] - xy_m[None, :, 0], xy_m[:, None, 1] - xy_m[None, :, 1])
    later, earlier = np.nonzero(np.tril(distance <= radius_m, k=-1))
    kept = np.ones(len(xy_m), bool)
    while True:
        settled = np.ones(len(xy_m), bool)
        settled[later[kept[earlier]]] = False
        if (settled == kept).all():
            return kept
        kept = settled


def to_global(
    boxes: Boxes,
    ego_from_ego_aug: Float[Tensor, "4 4"] | Float[np.ndarray, "4 4"],
    global_from_ego: Float[Tensor, "4 4"] | Float[np.ndarray, "4 4"],
) -> Boxes:
    """Detections carried from the augmented ego frame to the global frame, in float64.

    ``ego_from_ego_aug`` may turn, shift, mirror and scale; sizes and velocities scale along.
    """
    home = np.asarray(torch.as_tensor(ego_from_ego_aug).cpu(), np.float64)
    linear, scale = home[:3, :3], abs(np.linalg.det(home[:3, :3])) ** (1 / 3)
    yaw_rad = boxes.yaw_rad.astype(np.float64)
    heading = np.stack([np.cos(yaw_rad), np.sin(yaw_rad)], axis=1) @ linear[:2, :2].T
    in_ego = replace(
        boxes,
        center_m=boxes.center_m.astype(np.float64) @ linear.T + home[:3, 3],
        size_lwh_m=boxes.size_lwh_m.astype(np.float64) * scale,
        yaw_rad=np.arctan2(heading[:, 1], heading[:, 0]),
        velocity_mps=boxes.velocity_mps.astype(np.float64) @ linear[:2, :2].T,
    )
    pose = np.asarray(torch.as_tensor(global_from_ego).cpu(), np.float64)
    return in_ego.moved(RigidTransform(pose[:3, :3], pose[:3, 3]))
