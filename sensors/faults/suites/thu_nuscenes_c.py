"""thu-ml's nuScenes-C (Dong et al., CVPR 2023): 27 types at five severities. Three suites share the name nuScenes-C.

Where a type exists for cameras and LiDAR, both are corrupted.
"""

from dataclasses import replace

import numpy as np

from sensors.camera import project
from sensors.faults import published_camera as camera
from sensors.faults import published_lidar as points
from sensors.faults import published_objects as objects
from sensors.faults import published_weather as weather
from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws, with_measurements
from sensors.faults.published_lidar import rows_of, sweep_of
from sensors.faults.suites.published import (
    CameraPart,
    FaultPart,
    FramePart,
    LidarPart,
    Part,
    Published,
    ladder,
    together,
)
from sensors.faults.suites.thu_pictures import ALONG, SIDEWAYS, bent_objects, moving_objects
from sensors.frame import Frame, History
from sensors.lidar import LidarSweep
from sensors.rig import CAMERAS, LIDAR
from sensors.transforms import RigidTransform

FRONT = "CAM_FRONT"
_SEVERITIES = tuple((k,) for k in range(1, 6))
_RAIN_MMPH = (0.20, 0.73, 1.5625, 3.125, 7.29)
_SNOW = ((2.62, 7.7e-7), (42.7, 5.0e-6), (200.0, 1.4e-5), (368.0, 2.1e-5), (791.0, 3.5e-5))


def _steps(first: float) -> tuple[tuple[float], ...]:
    """One to five times a value, each a row of arguments."""
    return tuple((round(first * k, 9),) for k in range(1, 6))


def sunlight(frame: Frame, history: History, draws: Draws, severity: int) -> Frame:
    """A sun before the front camera; the LiDAR loses the points behind its glow and .4 % per severity are noisy.

    Without that camera only the LiDAR's scene glare is left, noise on 1 % per severity.
    """
    changed, sun_px = {}, None
    image = frame.cameras.get(FRONT)
    if image is not None:
        sun_px = camera.thu_sun_px(image.pixels.shape[:2], draws.generator("sun"))
        glowing = camera.thu_sun(image.pixels, severity, draws.generator(FRONT), sun_px=sun_px)
        changed[FRONT] = replace(image, pixels=glowing)
    if frame.lidar:
        share = (0.004 if image is not None else 0.01) * severity
        sweeps = []
        for k, sweep in enumerate(frame.lidar):
            if image is not None:
                radius_px = camera.thu_sun_radius_px(image.pixels.shape[:2], severity)
                seen = image.ego_from_camera.inverse().points(sweep.to_ego())
                pixel, _ = project(seen, image.image_from_camera)
                # NaN, a point behind the camera, is not below anything.
                sweep = sweep.select(~(np.linalg.norm(pixel - sun_px, axis=1) < radius_px))
            sweeps.append(_with_rows(sweep, points.thu_noise_on_points, share, 2.0, draws.generator(LIDAR, k)))
        changed[LIDAR] = tuple(sweeps)
    return with_measurements(frame, changed)


def _with_rows(sweep: LidarSweep, function, *arguments) -> LidarSweep:
    return sweep_of(function(rows_of(sweep), *arguments), sweep)


def spatial_misalignment(frame: Frame, history: History, draws: Draws, sigma_m: float, sigma_entry: float) -> Frame:
    """Noise on the entries of camera_from_ego, which is no rotation any more: labels and LiDAR stay where they are."""
    changed = {}
    for channel, image in frame.cameras.items():
        camera_from_ego = image.ego_from_camera.inverse().matrix
        noisy = points.thu_spatial_misalignment(camera_from_ego, sigma_m, sigma_entry, draws.generator(channel))
        ego_from_camera = np.linalg.inv(noisy)
        changed[channel] = replace(
            image, ego_from_camera=RigidTransform(ego_from_camera[:3, :3], ego_from_camera[:3, 3])
        )
    return with_measurements(frame, changed)


def _camera(function, channels: tuple[str, ...] = CAMERAS) -> tuple[tuple[Part, ...], ...]:
    return ladder(CameraPart, function, *_SEVERITIES, channels=channels)


def _frame(modality: str, function, *rows: tuple) -> tuple[tuple[Part, ...], ...]:
    return tuple((FramePart(modality, function, row),) for row in rows)


def _objects(function, *rows: tuple, random: bool = True) -> tuple[tuple[Part, ...], ...]:
    return ladder(LidarPart, function, *rows, objects=True, random=random)


def _bent(matrix, function, *rows: tuple) -> tuple[tuple[Part, ...], ...]:
    """An object's outline in the pictures by one matrix for the sample, its points by one for each box."""
    return together(_frame("camera", bent_objects, *((matrix, *row) for row in rows)), _objects(function, *rows))


_DIVISORS = ((30,), (25,), (20,), (15,), (10,))
_WEATHER = {
    "snow": together(_camera(camera.thu_snow), ladder(LidarPart, weather.thu_snow, *_SNOW)),
    "rain": together(_camera(camera.thu_rain), ladder(LidarPart, weather.thu_rain, *((r,) for r in _RAIN_MMPH))),
    "fog": together(
        _camera(camera.thu_fog), ladder(LidarPart, weather.thu_fog, (0.005,), (0.01,), (0.02,), (0.03,), (0.06,))
    ),
    "sunlight": _frame("camera+lidar", sunlight, *_SEVERITIES),
}
_SENSOR_POINTS = {
    "density_decrease": ladder(LidarPart, points.thu_density_decrease, *_SEVERITIES),
    "cutout": ladder(LidarPart, points.thu_cutout, (2,), (3,), (5,), (7,), (10,)),
}
_SENSOR_VIEW = {
    "fov_lost": ladder(LidarPart, points.thu_fov_lost, (105.0,), (90.0,), (75.0,), (60.0,), (45.0,), random=False)
}
_SENSOR_NOISE = {
    "crosstalk": ladder(LidarPart, points.thu_noise_on_points, *((s, 3.0) for (s,) in _steps(0.004))),
    "gaussian_lidar": ladder(LidarPart, points.thu_gaussian_noise, *_steps(0.02)),
    "uniform_lidar": ladder(LidarPart, points.thu_uniform_noise, *_steps(0.02)),
    "impulse_lidar": ladder(LidarPart, points.thu_impulse_noise, *_DIVISORS),
    "gaussian_camera": _camera(camera.thu_gaussian_noise),
    "uniform_camera": _camera(camera.thu_uniform_noise),
    "impulse_camera": _camera(camera.thu_impulse_noise),
}
_MOTION = {
    "moving_object": together(
        _frame("camera", moving_objects, *_SEVERITIES),
        _objects(objects.thu_moving_object, *_steps(0.2), random=False),
    ),
    "motion_blur": together(
        _camera(camera.thu_motion_blur_front_back, ALONG), _camera(camera.thu_motion_blur_sideways, SIDEWAYS)
    ),
    "motion_compensation": ladder(
        LidarPart, points.thu_motion_compensation, *((round(0.02 * k, 9), round(0.002 * k, 9)) for k in range(1, 6))
    ),
}
_OBJECTS = {
    "local_density": _objects(objects.thu_local_density, *_steps(0.1)),
    "local_cutout": _objects(objects.thu_local_cutout, (0.3,), (0.4,), (0.5,), (0.6,), (0.7,)),
    "local_gaussian": _objects(objects.thu_local_gaussian, *_steps(0.02)),
    "local_uniform": _objects(objects.thu_local_uniform, *_steps(0.02)),
    "local_impulse": _objects(objects.thu_local_impulse, *_DIVISORS),
    "shear": _bent(objects.shear_matrix, objects.thu_shear, *_steps(0.05)),
    "scale": _bent(objects.scale_matrix, objects.thu_scale, *_steps(0.04)),
    "rotation": _bent(objects.rotation_matrix, objects.thu_rotation, (1.0,), (3.0,), (5.0,), (7.0,), (9.0,)),
}
_ALIGNMENT = {
    # The published code doubles the listed .02 to .10 m and .002 to .010.
    "spatial_misalignment": _frame(
        "camera", spatial_misalignment, *((round(0.04 * k, 9), round(0.004 * k, 9)) for k in range(1, 6))
    ),
}
_STALE = {
    # Of 20 Hz: ten frames are one keyframe.
    "temporal_misalignment": tuple((FaultPart(fault_named("lidar_late"), float(k)),) for k in (2, 4, 6, 8, 10)),
}

THU_NUSCENES_C = tuple(
    Published(f"thu_{name}", family, cells)
    for family, types in (
        ("weather", _WEATHER),
        ("points", _SENSOR_POINTS),
        ("view", _SENSOR_VIEW),
        ("noise", _SENSOR_NOISE),
        ("blur", _MOTION),
        ("objects", _OBJECTS),
        ("alignment", _ALIGNMENT),
        ("late", _STALE),
    )
    for name, cells in types.items()
)
