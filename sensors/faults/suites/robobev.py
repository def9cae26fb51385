"""RoboBEV's nuScenes-C (Xie et al., 2023; TPAMI 2025): eight camera types; easy, mid and hard are severities 1 to 3."""

import numpy as np

from sensors.faults import published_camera as camera
from sensors.faults.failures import worthless
from sensors.faults.protocol import Draws, with_measurements
from sensors.faults.suites.published import CameraPart, FaultPart, FramePart, Published, ladder
from sensors.faults.time_stuck import CAMERA_FLICKER
from sensors.frame import Frame, History
from sensors.rig import CAMERAS

_OF_FIVE = ((2,), (4,), (5,))


def camera_crash(frame: Frame, history: History, draws: Draws, num_draws: int) -> Frame:
    """Some cameras are black in every sample of the run: drawn once, with replacement, so often fewer than drawn."""
    dead = dead_cameras(draws.seed, num_draws)
    return with_measurements(
        frame, {channel: worthless(image) for channel, image in frame.cameras.items() if channel in dead}
    )


def dead_cameras(seed: int, num_draws: int) -> frozenset[str]:
    """The cameras that a run's seed lets crash."""
    drawn = Draws(seed, "run", "robobev_camera_crash").generator("cameras").integers(len(CAMERAS), size=5)
    return frozenset(np.array(CAMERAS)[drawn[:num_draws]].tolist())


_CRASH = tuple((FramePart("camera", camera_crash, (num,)),) for num in (2, 4, 5))
_FRAME_LOST = tuple((FaultPart(CAMERA_FLICKER, num / 6),) for num in (2, 4, 5))

ROBOBEV = (
    Published("robobev_camera_crash", "blackout", _CRASH),
    Published("robobev_frame_lost", "blackout", _FRAME_LOST),
    Published("robobev_motion_blur", "blur", ladder(CameraPart, camera.robobev_motion_blur, *_OF_FIVE)),
    Published("robobev_color_quant", "coding", ladder(CameraPart, camera.robobev_color_quant, (1,), (2,), (3,))),
    Published("robobev_brightness", "light", ladder(CameraPart, camera.robobev_brightness, *_OF_FIVE)),
    Published("robobev_low_light", "light", ladder(CameraPart, camera.robobev_low_light, (2,), (3,), (4,))),
    Published("robobev_fog", "weather", ladder(CameraPart, camera.robobev_fog, *_OF_FIVE)),
    Published("robobev_snow", "weather", ladder(CameraPart, camera.robobev_snow, (1,), (2,), (3,))),
)
