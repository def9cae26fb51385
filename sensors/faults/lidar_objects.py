"""LiDAR points that are missing on objects: dark paint and glass, or whole objects unseen. They need the labels."""

import numpy as np
from jaxtyping import Bool

from sensors.boxes import DETECTION_NAMES
from sensors.faults.protocol import SensorFault
from sensors.faults.published_objects import inside_of
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
    velocity = np.nan_to_num(frame.boxes.velocity_mps)
    xyz_m = sweep.to_ego()
    inside = np.zeros((len(frame.boxes), len(sweep)), bool)
    for i in range(len(frame.boxes)):
        box = frame.boxes.select(np.array([i]))
        center = box.center_m[0].astype(np.float64).copy()
        center[:2] -= velocity[i] * sweep.lag_s
        near = np.flatnonzero(np.abs(xyz_m - center).max(axis=1) <= np.linalg.norm(box.size_lwh_m) / 2)
        inside[i, near] = inside_of(xyz_m[near] - (center - box.center_m[0]).astype(xyz_m.dtype), box)[0]
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
