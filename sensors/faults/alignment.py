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
PRINCIPAL_SHARE = 0.5
DEG_PER_M = 1.0


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


def _camera_shift(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    error = RigidTransform(np.eye(3), _direction(rng) * level)
    return replace(image, ego_from_camera=image.ego_from_camera @ error)


def _camera_intrinsics(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Focal length off by ``level`` percent, and the principal point by half of that, in any direction."""
    sign = 1.0 if rng.random() < 0.5 else -1.0
    angle = rng.uniform(0, 2 * np.pi)
    matrix = image.image_from_camera.copy()
    focal_px = matrix[[0, 1], [0, 1]]
    matrix[:2, 2] += PRINCIPAL_SHARE * level / 100 * focal_px * [np.cos(angle), np.sin(angle)]
    matrix[[0, 1], [0, 1]] = focal_px * (1 + sign * level / 100)
    return replace(image, image_from_camera=matrix)


def _ego_pose_noise(
    measurement: CameraImage | LidarSweep | RadarSweep, level: float, rng: np.random.Generator, frame: Frame
) -> CameraImage | LidarSweep | RadarSweep:
    """Localisation errs anew at every measurement, which then is chained through a wrong pose: shift and yaw."""
    shift, yaw = rng.standard_normal(2) * level, rng.standard_normal() * level * DEG_PER_M
    error = RigidTransform.from_yaw(float(np.deg2rad(yaw)), (*shift, 0.0))
    pose = next(name for name in ("ego_from_camera", "ego_from_lidar", "ego_from_radar") if hasattr(measurement, name))
    return replace(measurement, **{pose: error @ getattr(measurement, pose)})


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
CAMERA_SHIFT = SensorFault("camera_shift", "alignment", "camera", "m", (0.05, 0.1, 0.2, 0.3, 0.5), effect=_camera_shift)
CAMERA_INTRINSICS = SensorFault(
    "camera_intrinsics",
    "alignment",
    "camera",
    "% of the focal length",
    (0.5, 1.0, 2.0, 4.0, 8.0),
    effect=_camera_intrinsics,
)
EGO_POSE_NOISE = SensorFault(
    "ego_pose_noise",
    "alignment",
    "all",
    "m (and 1 deg per m)",
    (0.05, 0.1, 0.2, 0.4, 0.8),
    effect=_ego_pose_noise,
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

ALIGNMENT_FAULTS = (
    *(LIDAR_MISALIGNMENT, LIDAR_ROTATION, LIDAR_SHIFT),
    *(CAMERA_MISALIGNMENT, CAMERA_SHIFT, CAMERA_INTRINSICS, RADAR_MISALIGNMENT, EGO_POSE_NOISE),
)
