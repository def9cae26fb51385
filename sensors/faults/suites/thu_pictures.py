"""What the object types of thu-ml's nuScenes-C do to pictures, around the labels' boxes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sensors.boxes import Boxes
from sensors.camera import project
from sensors.faults import published_camera as camera
from sensors.faults.protocol import Draws, with_measurements
from sensors.faults.published_warp import bent
from sensors.frame import Frame, History
from sensors.rig import CAMERAS, LIDAR, NUSCENES_RIG

ALONG = ("CAM_FRONT", "CAM_BACK")
SIDEWAYS = tuple(channel for channel in CAMERAS if channel not in ALONG)


def moving_objects(frame: Frame, history: History, draws: Draws, severity: int) -> Frame:
    """Pictures are blurred inside the outlines of the boxes."""
    boxes, changed = _labels(frame, draws), {}
    for channel, image in frame.cameras.items():
        corners_m = image.ego_from_camera.inverse().points(boxes.corners())
        corners_px = []
        for box in corners_m:
            pixel, depth_m = project(box, image.image_from_camera)
            corners_px.append(pixel[depth_m > 1e-6])
        pixels = camera.thu_moving_object(
            image.pixels,
            severity,
            draws.generator(channel),
            corners_px=corners_px,
            sideways=channel in SIDEWAYS,
        )
        changed[channel] = replace(image, pixels=pixels)
    return with_measurements(frame, changed)


def bent_objects(frame: Frame, history: History, draws: Draws, matrix_of: Callable, value: float) -> Frame:
    """Boxes are bent by one matrix in all pictures; which faces are seen is judged from the LiDAR, there or not."""
    nominal = NUSCENES_RIG[LIDAR].ego_from_sensor
    ego_from_lidar = frame.lidar[0].ego_from_lidar if frame.lidar else nominal
    corners_m = _labels(frame, draws).corners().astype(np.float64)
    corners_m = ego_from_lidar.inverse().points(corners_m.reshape(-1, 3)).reshape(-1, 8, 3)
    matrix = matrix_of(value, draws.generator("pictures"))
    changed = {}
    for channel, image in frame.cameras.items():
        camera_from_lidar = image.ego_from_camera.inverse() @ ego_from_lidar
        pixels = bent(image.pixels, corners_m, matrix, camera_from_lidar, image.image_from_camera)
        changed[channel] = replace(image, pixels=pixels)
    return with_measurements(frame, changed)


def _labels(frame: Frame, draws: Draws) -> Boxes:
    if frame.boxes is None:
        raise ValueError(
            f"expected labels in sample {frame.token} for {draws.fault}, got none; corruptions of objects need a split "
            "with annotations"
        )
    return frame.boxes
