"""LiDAR points that are missing on objects: dark paint and glass, or whole objects unseen. They need the labels."""

import numpy as np
from jaxtyping import Bool

from sensors.boxes import DETECTION_NAMES
from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

_DARK_CLASSES = tuple(
    DETECTION_NAMES.index(name)
    for name in ("bicycle", "bus", "car", "construction_vehicle", "motorcycle", "trailer", "truck")
)


def _incomplete_echo(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Vehicles and cycles send back fewer points."""
    inside = _inside_boxes(sweep, frame, "lidar_incomplete_echo")
    dark = inside[np.isin(frame.boxes.label, _DARK_CLASSES)].any(axis=0)
    return sweep.select(~(dark & (rng.random(len(sweep)) < level)))


def _object_failure(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Whole objects send back nothing, the same ones in all sweeps."""
    inside = _inside_boxes(sweep, frame, "lidar_object_failure")
    unseen = rng.random(len(frame.boxes)) < level
    return sweep.select(~inside[unseen].any(axis=0))


def _inside_boxes(sweep: LidarSweep, frame: Frame, fault: str) -> Bool[np.ndarray, "b p"]:
    """Which points lie in which box, where the box was when the sweep was measured."""
    if frame.boxes is None:
        raise ValueError(
            f"expected labels in sample {frame.token} for {fault}, got none (a test split); leave the fault out"
        )
    boxes, xyz_m = frame.boxes, sweep.to_ego()
    center_m = boxes.center_m.astype(np.float64)
    center_m[:, :2] -= np.nan_to_num(boxes.velocity_mps) * sweep.lag_s
    reach_m = np.linalg.norm(boxes.size_lwh_m, axis=1) / 2
    # In the order of x, what may lie in a box is a run.
    order = np.argsort(xyz_m[:, 0])
    ordered = xyz_m[order]
    first = np.searchsorted(ordered[:, 0], center_m[:, 0] - reach_m)
    end = np.searchsorted(ordered[:, 0], center_m[:, 0] + reach_m, side="right")
    inside = np.zeros((len(boxes), len(sweep)), bool)
    cosine, sine, half_m = np.cos(boxes.yaw_rad), np.sin(boxes.yaw_rad), boxes.size_lwh_m / 2
    for i in range(len(boxes)):
        run = ordered[first[i] : end[i]]
        near = np.flatnonzero(np.abs(run[:, 1] - center_m[i, 1]) <= reach_m[i])
        x, y, z = (run[near] - center_m[i]).T
        ahead, beside = x * cosine[i] + y * sine[i], y * cosine[i] - x * sine[i]
        hit = (np.abs(ahead) <= half_m[i, 0]) & (np.abs(beside) <= half_m[i, 1]) & (np.abs(z) <= half_m[i, 2])
        inside[i, order[first[i] + near[hit]]] = True
    return inside


LIDAR_INCOMPLETE_ECHO = SensorFault(
    "lidar_incomplete_echo",
    "objects",
    "lidar",
    "share of vehicles' points",
    (0.25, 0.5, 0.75, 0.85, 0.95),
    effect=_incomplete_echo,
    worst=1.0,
)
LIDAR_OBJECT_FAILURE = SensorFault(
    "lidar_object_failure",
    "objects",
    "lidar",
    "share of objects",
    (0.1, 0.25, 0.5, 0.75, 1.0),
    effect=_object_failure,
    per_sweep=False,
)

OBJECT_FAULTS = (LIDAR_INCOMPLETE_ECHO, LIDAR_OBJECT_FAILURE)
