"""Sensors that hang: frames that are lost now and then, and sensors that repeat their last one for a while.

Whether a sensor hangs at a keyframe is a function of (seed, scene, channel, fault[, epoch]) and of the keyframe's place
in its scene, so that it does not matter in which order, or by whom, the scene's samples are visited.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from sensors.camera import CameraImage
from sensors.faults.failures import dated_today, oldest, worthless
from sensors.faults.protocol import Draws, Ladder, Number, SensorFault, measurement_of, with_measurements
from sensors.frame import Frame, History


def scene_draws(draws: Draws, frame: Frame, purpose: str) -> Draws:
    """Draws that all samples of a scene have in common."""
    return replace(draws, token=f"scene {frame.scene}", fault=f"{draws.fault}/{purpose}")


@dataclass(frozen=True)
class Stuck(Ladder):
    """Stuck for some keyframes: the data of the last one that was not, under today's calibration and lag.

    The level is the share of keyframes in which a sensor is stuck, each sensor for itself: one begins to be stuck with
    probability 1 - (1 - level)^(1 / run) per keyframe and stays so for ``run`` keyframes; spells that overlap are one
    (the protocol of Yu et al., Benchmarking the Robustness of LiDAR-Camera Fusion, CVPRW 2023: 1 is its discrete case,
    4 its consecutive one). A scene's first keyframe is never stuck: there is nothing older to show.

    Attributes:
        run: keyframes of a spell.
        begin, end: shares of the scene between which a sensor hangs once and without a break; the level is then the
            probability that it does. None for spells at random.
    """

    run: int = field(default=1, kw_only=True)
    begin: Number | None = field(default=None, kw_only=True)
    end: Number = field(default=1.0, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.run < 1:
            raise ValueError(f"expected a run of at least 1 keyframe in {self.name}, got {self.run}")
        if self.begin is not None:
            check_span(self.name, self.begin, self.end)

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        stuck = {}
        for channel in self.targets(frame):
            age = self.age(frame, level, scene_draws(draws, frame, "stuck").generator(channel))
            before = oldest(history, channel, age)
            if before is not None:
                stuck[channel] = dated_today(before, measurement_of(frame, channel))
        return with_measurements(frame, stuck) if stuck else frame

    def age(self, frame: Frame, level: Number, generator: np.random.Generator) -> int:
        """How many keyframes ago the sensor last delivered; 0 where it delivers now."""
        if self.begin is not None:
            hit = generator.random() < level
            stuck = [hit and within(k, frame.num_keyframes, self.begin, self.end) for k in range(frame.keyframe + 1)]
        else:
            begins = generator.random(frame.keyframe + self.run) < 1 - (1 - level) ** (1 / self.run)
            stuck = np.convolve(begins, np.ones(self.run), mode="valid") > 0
        delivered = [k for k in range(frame.keyframe + 1) if k == 0 or not stuck[k]]
        return frame.keyframe - delivered[-1]


def within(keyframe: int, num_keyframes: int, begin: Number, end: Number) -> bool:
    """Whether the middle of a keyframe lies in a span, in shares of its scene."""
    return begin <= (keyframe + 0.5) / max(num_keyframes, keyframe + 1) < end


def check_span(name: str, begin: Number, end: Number) -> None:
    """Raises ValueError unless ``begin`` to ``end`` is a span of a scene."""
    if not 0 <= begin < end <= 1:
        raise ValueError(
            f"expected 0 <= begin < end <= 1 (shares of the scene) in {name}, got begin {begin} and end {end}"
        )


def _flicker(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    return worthless(image) if rng.random() < level else image


_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)

CAMERA_FLICKER = SensorFault(
    "camera_flicker", "blackout", "camera", "share of frames", _SHARES, effect=_flicker, worst=1.0
)
CAMERA_STUCK = Stuck("camera_stuck", "stuck", "camera", "share of keyframes, 4 at a time", _SHARES, worst=1.0, run=4)
LIDAR_STUCK = Stuck("lidar_stuck", "stuck", "lidar", "share of keyframes, 4 at a time", _SHARES, worst=1.0, run=4)
RADAR_STUCK = Stuck("radar_stuck", "stuck", "radar", "share of keyframes, 4 at a time", _SHARES, worst=1.0, run=4)
CAMERA_STUTTER = Stuck("camera_stutter", "stuck", "camera", "share of keyframes", _SHARES, worst=1.0)
LIDAR_STUTTER = Stuck("lidar_stutter", "stuck", "lidar", "share of keyframes", _SHARES, worst=1.0)
RADAR_STUTTER = Stuck("radar_stutter", "stuck", "radar", "share of keyframes", (0.2, 0.4, 0.6, 0.8, 1.0))

STUCK_FAULTS = (
    *(CAMERA_FLICKER, CAMERA_STUCK, LIDAR_STUCK, RADAR_STUCK),
    *(CAMERA_STUTTER, LIDAR_STUTTER, RADAR_STUTTER),
)
