"""Measurements that come too late, and clocks that disagree."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sensors.camera import CameraImage
from sensors.faults.protocol import Draws, Ladder, Number, measurement_of, with_measurements
from sensors.faults.time_stuck import scene_draws
from sensors.frame import Frame, History, Measurement, Single
from sensors.lidar import LidarSweep
from sensors.transforms import RigidTransform


@dataclass(frozen=True)
class Late(Ladder):
    """Stale measurements that pass for new ones: every slot holds what was measured some time before it.

    Calibration, time stamp and ego pose are those of the slot, so nothing but the data tells. Between two measurements
    the older one is drawn in proportion to the time, so that the mean delay is the level also where pictures exist at
    keyframes only. Where the scene is younger than the delay its oldest measurement stands in; in its first keyframe
    there is nothing older, and the frame stays as it is.

    Attributes:
        period_s: what a level of 1 means.
    """

    period_s: float = field(kw_only=True)

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        delay_s = level * self.period_s
        return with_measurements(
            frame,
            {
                channel: _delayed(frame, history, channel, (delay_s, draws.generator(channel).random()))
                for channel in self.targets(frame)
            },
        )


def _delayed(frame: Frame, history: History, channel: str, delay: tuple[float, float]) -> Measurement:
    """A channel's measurement under a delay in seconds and a draw of U(0, 1) for the place between two of them."""
    today = measurement_of(frame, channel)
    slots = today if isinstance(today, tuple) else (today,)
    delay_s, draw = delay
    lags_s = history.lags_s(channel, slots[-1].lag_s + delay_s)
    if len(lags_s) < len(slots):
        lags_s = tuple(slot.lag_s for slot in slots)
    stale = []
    for slot in slots:
        step = stale_step(lags_s, slot.lag_s + delay_s, draw)
        # What is in the frame may carry other faults already; what is older comes as it was read.
        source = slots[step] if step < len(slots) else history.measured(channel, step)
        stale.append(slot if source is None else _in_slot(source, slot))
    return tuple(stale) if isinstance(today, tuple) else stale[0]


def stale_step(lags_s: Sequence[float], wanted_s: float, draw: float) -> int:
    """Which of the measurements (rising lags) stands for one of the wanted lag; never a younger one for a larger draw
    or lag."""
    older = bisect_right(lags_s, wanted_s)
    if older == 0:
        return 0
    if older == len(lags_s):
        return older - 1
    share = (wanted_s - lags_s[older - 1]) / (lags_s[older] - lags_s[older - 1])
    return older if draw < share else older - 1


def _in_slot(source: Single, slot: Single) -> Single:
    if isinstance(source, CameraImage):
        return replace(slot, pixels=source.pixels)
    pose = "ego_from_lidar" if isinstance(source, LidarSweep) else "ego_from_radar"
    return replace(source, lag_s=slot.lag_s, **{pose: getattr(slot, pose)})


@dataclass(frozen=True)
class ClockOffset(Ladder):
    """A clock that is ahead or behind: time stamps are off by the level, to the same side during a whole scene.

    The vehicle believes that the sensor measured then, and so from where it stood then: the pose moves along with the
    speed and the turn rate of the frame, and the lag changes. Data stay as they are.
    """

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        shifted = {}
        for channel in self.targets(frame):
            ahead = scene_draws(draws, frame, "clock").generator(channel).random() < 0.5
            shifted[channel] = _stamped(frame, measurement_of(frame, channel), (1e-3 if ahead else -1e-3) * level)
        return with_measurements(frame, shifted)


def _stamped(frame: Frame, measurement: Measurement, offset_s: float) -> Measurement:
    """With stamps that are later by ``offset_s``."""
    then_from_now = planar_motion(frame.ego_speed_mps, frame.ego_yaw_rate_radps, offset_s)

    def stamped(single: Single) -> Single:
        pose = next(name for name in ("ego_from_camera", "ego_from_lidar", "ego_from_radar") if hasattr(single, name))
        return replace(single, lag_s=single.lag_s - offset_s, **{pose: then_from_now @ getattr(single, pose)})

    return tuple(stamped(sweep) for sweep in measurement) if isinstance(measurement, tuple) else stamped(measurement)


def planar_motion(speed_mps: Number, yaw_rate_radps: Number, seconds: Number) -> RigidTransform:
    """Pose of a vehicle after a while, seen from where it was: an arc of constant speed and turn rate."""
    yaw_rad = float(yaw_rate_radps * seconds)
    length_m = float(speed_mps * seconds)
    # sinc: an arc of no turn is a straight line.
    forward_m = length_m * np.sinc(yaw_rad / np.pi)
    left_m = length_m * np.sin(yaw_rad / 2) * np.sinc(yaw_rad / (2 * np.pi))
    return RigidTransform.from_yaw(yaw_rad, (forward_m, left_m, 0.0))


CAMERA_LATE = Late("camera_late", "late", "camera", "frames of 83 ms", (1.0, 2.0, 3.0, 4.0, 6.0), period_s=1 / 12)
LIDAR_LATE = Late("lidar_late", "late", "lidar", "sweeps of 50 ms", (1.0, 2.0, 4.0, 6.0, 10.0), period_s=0.05)
RADAR_LATE = Late("radar_late", "late", "radar", "sweeps of 75 ms", (1.0, 2.0, 4.0, 6.0, 8.0), period_s=0.075)

_CLOCK_MS = (10.0, 25.0, 50.0, 100.0, 200.0)
CAMERA_CLOCK_OFFSET = ClockOffset("camera_clock_offset", "alignment", "camera", "ms", _CLOCK_MS, worst=500.0)
LIDAR_CLOCK_OFFSET = ClockOffset("lidar_clock_offset", "alignment", "lidar", "ms", _CLOCK_MS, worst=500.0)
RADAR_CLOCK_OFFSET = ClockOffset("radar_clock_offset", "alignment", "radar", "ms", _CLOCK_MS, worst=500.0)

STAMP_FAULTS = (
    *(CAMERA_LATE, LIDAR_LATE, RADAR_LATE),
    *(CAMERA_CLOCK_OFFSET, LIDAR_CLOCK_OFFSET, RADAR_CLOCK_OFFSET),
)
