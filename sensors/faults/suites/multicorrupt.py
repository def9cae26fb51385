"""MultiCorrupt (Beemelmanns et al., IV 2024): ten types at three severities; types act on cameras, LiDAR or both."""

from dataclasses import replace

from sensors.faults import published_camera as camera
from sensors.faults import published_lidar as points
from sensors.faults import published_weather as weather
from sensors.faults.protocol import Draws, measurement_of, with_measurements
from sensors.faults.suites.published import CameraPart, FaultPart, FramePart, LidarPart, Published, ladder, together
from sensors.faults.time_stuck import CAMERA_FLICKER
from sensors.frame import Frame, History, Measurement
from sensors.lidar import LidarSweep
from sensors.rig import CAMERAS, LIDAR

_SEVERITIES = ((1,), (2,), (3,))


def previous_keyframe(frame: Frame, history: History, draws: Draws, probability: float, modality: str) -> Frame:
    """Each camera by itself, or the LiDAR with all its sweeps, shows the keyframe before, dated today.

    Older sweeps are changed only where both keyframes have equally many. Published by the list of files, which crosses
    scene borders; here a scene's first keyframe stays as it is.
    """
    changed = {}
    for channel in CAMERAS if modality == "camera" else (LIDAR,):
        if frame.present(channel) and draws.generator(channel).random() < probability:
            before = history.past(channel, 1)
            if before:
                changed[channel] = _dated(before, measurement_of(frame, channel))
    return with_measurements(frame, changed)


def _dated(before: Measurement, today: Measurement) -> Measurement:
    if not isinstance(today, tuple):
        return replace(today, pixels=before.pixels)
    num_changed = len(today) if len(before) == len(today) else 1
    return tuple(_under(before[k], sweep) if k < num_changed else sweep for k, sweep in enumerate(today))


def _under(old: LidarSweep, slot: LidarSweep) -> LidarSweep:
    return replace(old, lag_s=slot.lag_s, ego_from_lidar=slot.ego_from_lidar)


_MISSING_CAMERA = tuple((FaultPart(CAMERA_FLICKER, share),) for share in (0.2, 0.4, 0.6))
_TEMPORAL = tuple(
    tuple(FramePart(modality, previous_keyframe, (probability, modality)) for modality in ("camera", "lidar"))
    for probability in (0.2, 0.4, 0.6)
)
_SPATIAL = ladder(LidarPart, points.multicorrupt_spatial_misalignment, (0.2, 1.0), (0.4, 2.0), (0.6, 3.0))
_BEAMS = ladder(LidarPart, points.multicorrupt_beams_reducing, (16,), (8,), (4,), random=False)
_POINTS = ladder(LidarPart, points.multicorrupt_points_reducing, (70.0,), (80.0,), (90.0,))
_MOTION_BLUR = together(
    ladder(CameraPart, camera.multicorrupt_motion_blur, *_SEVERITIES),
    ladder(LidarPart, points.multicorrupt_motion_blur, (0.06,), (0.10,), (0.13,)),
)
_FOG = together(
    ladder(CameraPart, camera.multicorrupt_fog, *_SEVERITIES),
    ladder(LidarPart, weather.multicorrupt_fog, (0.02, 0.008), (0.03, 0.008), (0.06, 0.05)),
)
_SNOW = together(
    ladder(CameraPart, camera.multicorrupt_snow, *_SEVERITIES),
    ladder(LidarPart, weather.multicorrupt_snow, (0.5, 1.2), (2.5, 1.6), (1.5, 0.4)),
)

MULTICORRUPT = (
    Published("multicorrupt_missing_camera", "blackout", _MISSING_CAMERA),
    Published("multicorrupt_temporal_misalignment", "stuck", _TEMPORAL),
    Published("multicorrupt_spatial_misalignment", "alignment", _SPATIAL),
    Published("multicorrupt_beams_reducing", "points", _BEAMS),
    Published("multicorrupt_points_reducing", "points", _POINTS),
    Published("multicorrupt_motion_blur", "blur", _MOTION_BLUR),
    Published("multicorrupt_brightness", "light", ladder(CameraPart, camera.multicorrupt_brightness, *_SEVERITIES)),
    Published("multicorrupt_dark", "light", ladder(CameraPart, camera.multicorrupt_dark, *_SEVERITIES)),
    Published("multicorrupt_fog", "weather", _FOG),
    Published("multicorrupt_snow", "weather", _SNOW),
)
