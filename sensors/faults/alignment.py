"""Calibration that lies: the measurement stays, the pose that the vehicle believes in is off the true one.

The error is fixed to the device, so it is the same for all sweeps and is expressed in the sensor's frame:
``ego_from_sensor @ error``.
"""

from dataclasses import replace

import cv2
import numpy as np

from sensors.camera import CameraImage
from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep
from sensors.transforms import RigidTransform

SHIFT_M_PER_DEG = 0.1


def _direction(rng: np.random.Generator) -> np.ndarray:
    """A unit vector, all directions alike."""
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _rotation(axis: np.ndarray, angle_deg: float) -> np.ndarray:
    return cv2.Rodrigues(axis * np.deg2rad(angle_deg))[0]


def _lidar_misalignment(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """A knock against the mount: turned about a random axis and shifted along another."""
    error = RigidTransform(_rotation(_direction(rng), level), _direction(rng) * SHIFT_M_PER_DEG * level)
    return replace(sweep, ego_from_lidar=sweep.ego_from_lidar @ error)


def _lidar_rotation(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    error = RigidTransform(_rotation(_direction(rng), level), np.zeros(3))
    return replace(sweep, ego_from_lidar=sweep.ego_from_lidar @ error)


def _lidar_shift(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    error = RigidTransform(np.eye(3), _direction(rng) * level)
    return replace(sweep, ego_from_lidar=sweep.ego_from_lidar @ error)


def _camera_misalignment(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    error = RigidTransform(_rotation(_direction(rng), level), np.zeros(3))
    return replace(image, ego_from_camera=image.ego_from_camera @ error)


def _radar_misalignment(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Yaw only: a radar that sees no height has no other angle that matters."""
    sign = 1.0 if rng.random() < 0.5 else -1.0
    error = RigidTransform.from_yaw(float(np.deg2rad(sign * level)))
    return replace(sweep, ego_from_radar=sweep.ego_from_radar @ error)


LIDAR_MISALIGNMENT = SensorFault(
    "lidar_misalignment",
    "alignment",
    "lidar",
    "deg (and 0.1 m per deg)",
    (0.5, 1.0, 2.0, 3.0, 5.0),
    effect=_lidar_misalignment,
    per_sweep=False,
)
LIDAR_ROTATION = SensorFault(
    "lidar_rotation", "alignment", "lidar", "deg", (0.5, 1.0, 2.0, 3.0, 5.0), effect=_lidar_rotation, per_sweep=False
)
LIDAR_SHIFT = SensorFault(
    "lidar_shift", "alignment", "lidar", "m", (0.05, 0.1, 0.2, 0.3, 0.5), effect=_lidar_shift, per_sweep=False
)
CAMERA_MISALIGNMENT = SensorFault(
    "camera_misalignment", "alignment", "camera", "deg", (0.5, 1.0, 2.0, 3.0, 5.0), effect=_camera_misalignment
)
RADAR_MISALIGNMENT = SensorFault(
    "radar_misalignment",
    "alignment",
    "radar",
    "deg",
    (0.5, 1.0, 2.0, 3.0, 5.0),
    effect=_radar_misalignment,
    per_sweep=False,
)

ALIGNMENT_FAULTS = (LIDAR_MISALIGNMENT, LIDAR_ROTATION, LIDAR_SHIFT, CAMERA_MISALIGNMENT, RADAR_MISALIGNMENT)
