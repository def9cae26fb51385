"""Sensors that fail as a whole: known to be lost, silently worthless, or stuck.

``drop`` is known: the channel is absent. ``blackout`` and ``freeze`` are silent: the channel is present, with today's
calibration and time stamp, and nothing but its data tells that it failed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from sensors.camera import CameraImage
from sensors.faults.protocol import Draws, Ladder, Number, measurement_of, scope_of, with_measurements
from sensors.frame import Frame, History, Measurement


@dataclass(frozen=True)
class SensorLoss(Ladder):
    """Some sensors of a modality fail; the level is how many.

    A random order of the channels (the same at every level) says who fails first. A level between two whole numbers
    loses the next sensor with the remaining probability, so 0.4 LiDARs are lost in 40 % of the samples.

    Attributes:
        remains: what is left of a measurement; None takes the channel away. To drop a channel that is absent already is
            no error: the frame is as asked.
    """

    remains: Callable[[Measurement], Measurement | None] = field(kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "worst", float(len(scope_of(self))))

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        generator = draws.generator("order")
        order, offset = generator.permutation(len(scope_of(self))), generator.random()
        lost = {channel for channel, rank in zip(scope_of(self), order, strict=True) if rank + offset < level}
        if self.remains is not _absent:
            self.targets(frame)
        if not lost:  # by the chance of a fractional level: nothing to report
            return frame
        return with_measurements(
            frame,
            {channel: self.remains(measurement_of(frame, channel)) for channel in lost if frame.present(channel)},
        )


@dataclass(frozen=True)
class Freeze(Ladder):
    """Stuck: the pixels or points of k keyframes ago under today's calibration and lag; the level is k.

    Every sweep holds the newest one of then, as a device that sends the same turn again and again. Where the scene is
    younger than k keyframes the sensor is stuck at the scene's first measurement; in the first keyframe itself there is
    nothing older, and the frame stays as it is by design. A fraction of k is the probability of one keyframe more.
    """

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        stuck = {}
        for channel in self.targets(frame):
            num_keyframes = int(level + draws.generator(channel).random())
            before = oldest(history, channel, num_keyframes)
            if before is not None:
                stuck[channel] = dated_today(before, measurement_of(frame, channel))
        return with_measurements(frame, stuck)


def oldest(history: History, channel: str, num_keyframes: int) -> Measurement | None:
    """The measurement of at most that many keyframes ago, the oldest one; None at the scene's start."""
    for k in range(num_keyframes, 0, -1):
        before = history.past(channel, k)
        if before:
            return before
    return None


def dated_today(before: Measurement, today: Measurement) -> Measurement:
    """Old data under today's calibration and lag."""
    if isinstance(before, CameraImage):
        return replace(today, pixels=before.pixels)
    pose = "ego_from_lidar" if hasattr(today[0], "ego_from_lidar") else "ego_from_radar"
    return tuple(replace(before[0], lag_s=sweep.lag_s, **{pose: getattr(sweep, pose)}) for sweep in today)


def _absent(measurement: Measurement) -> None:
    return None


def worthless(measurement: Measurement) -> Measurement:
    """A black picture; sweeps without points."""
    if isinstance(measurement, CameraImage):
        return replace(measurement, pixels=np.zeros_like(measurement.pixels))
    return tuple(sweep.select(np.zeros(len(sweep), bool)) for sweep in measurement)


CAMERA_DROP = SensorLoss("camera_drop", "lost", "camera", "cameras", (1.0, 2.0, 3.0, 4.0, 6.0), remains=_absent)
LIDAR_DROP = SensorLoss("lidar_drop", "lost", "lidar", "LiDARs (mean)", (0.2, 0.4, 0.6, 0.8, 1.0), remains=_absent)
RADAR_DROP = SensorLoss("radar_drop", "lost", "radar", "radars", (1.0, 2.0, 3.0, 4.0, 5.0), remains=_absent)
CAMERA_BLACKOUT = SensorLoss(
    "camera_blackout", "blackout", "camera", "cameras", (1.0, 2.0, 3.0, 4.0, 6.0), remains=worthless
)
LIDAR_BLACKOUT = SensorLoss(
    "lidar_blackout", "blackout", "lidar", "LiDARs (mean)", (0.2, 0.4, 0.6, 0.8, 1.0), remains=worthless
)
RADAR_BLACKOUT = SensorLoss(
    "radar_blackout", "blackout", "radar", "radars", (1.0, 2.0, 3.0, 4.0, 5.0), remains=worthless
)
CAMERA_FREEZE = Freeze("camera_freeze", "stuck", "camera", "keyframes", (1.0, 2.0, 3.0, 4.0, 6.0))
LIDAR_FREEZE = Freeze("lidar_freeze", "stuck", "lidar", "keyframes", (1.0, 2.0, 3.0, 4.0, 6.0))
RADAR_FREEZE = Freeze("radar_freeze", "stuck", "radar", "keyframes", (1.0, 2.0, 3.0, 4.0, 6.0))

FAILURES = (
    *(CAMERA_DROP, LIDAR_DROP, RADAR_DROP),
    *(CAMERA_BLACKOUT, LIDAR_BLACKOUT, RADAR_BLACKOUT),
    *(CAMERA_FREEZE, LIDAR_FREEZE, RADAR_FREEZE),
)
