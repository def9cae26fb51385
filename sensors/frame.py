"""One keyframe: everything that was measured around one moment, and a look at the past."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sensors.boxes import Boxes
from sensors.camera import CameraImage
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep
from sensors.rig import CAMERAS, LIDAR, RADARS
from sensors.transforms import RigidTransform

Measurement = CameraImage | tuple[LidarSweep, ...] | tuple[RadarSweep, ...]
"""What one channel holds in one frame."""

Single = CameraImage | LidarSweep | RadarSweep
"""One picture or one sweep."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One keyframe in numpy.

    Absent is absent: a lost camera or radar has no entry, a lost LiDAR is the empty tuple. A sensor that works and sees
    nothing is present with a sweep of no points. The frame stays usable with nothing present: reference time and pose
    are metadata and come from the tables.

    Attributes:
        token: nuScenes sample token.
        scene: nuScenes scene name.
        timestamp_us: reference time (the sample's own).
        global_from_ego: ego pose at the reference time.
        ego_speed_mps: from consecutive poses; 0 where there is only one.
        cameras: by channel, a subset of CAMERAS.
        lidar: sweeps, newest first.
        radars: by channel, a subset of RADARS; sweeps newest first.
        boxes: labels in the ego frame; None on a test split.
        conditions: words such as ``night``, ``rain``, ``fog``, read from the scene's description.
        keyframe: place in its scene, 0 the first.
        num_keyframes: of the scene.
        ego_yaw_rate_radps: counter-clockwise, from consecutive poses; 0 where there is only one.
    """

    token: str
    scene: str
    timestamp_us: int
    global_from_ego: RigidTransform
    ego_speed_mps: float
    cameras: dict[str, CameraImage]
    lidar: tuple[LidarSweep, ...]
    radars: dict[str, tuple[RadarSweep, ...]]
    boxes: Boxes | None
    conditions: frozenset[str] = field(default_factory=frozenset)
    keyframe: int = 0
    num_keyframes: int = 1
    ego_yaw_rate_radps: float = 0.0

    def present(self, channel: str) -> bool:
        """Whether the channel delivered anything (an empty sweep is something)."""
        if channel == LIDAR:
            return bool(self.lidar)
        if channel in RADARS:
            return bool(self.radars.get(channel))
        if channel in CAMERAS:
            return channel in self.cameras
        raise ValueError(f"expected one of the channels {(*CAMERAS, LIDAR, *RADARS)}, got '{channel}'")


@runtime_checkable
class History(Protocol):
    """Earlier measurements of the same scene."""

    def past(self, channel: str, num_keyframes: int) -> Measurement | None:
        """What ``channel`` held that many keyframes earlier, as read from disk; None before the scene's start.

        The calibration in the measurement is the one that held then, relative to the ego frame of then.
        """

    def lags_s(self, channel: str, within_s: float) -> tuple[float, ...]:
        """Lags behind this keyframe of the channel's measurements in this scene, newest first, sweeps included.

        They end with the first that is older than ``within_s``, or at the scene's start; no file is read.
        """

    def measured(self, channel: str, step: int) -> Single | None:
        """The measurement at that place of ``lags_s``, relative to this keyframe's ego frame; None beyond its end."""


class NoHistory:
    """The history of a frame that stands alone."""

    def past(self, channel: str, num_keyframes: int) -> Measurement | None:
        return None

    def lags_s(self, channel: str, within_s: float) -> tuple[float, ...]:
        return ()

    def measured(self, channel: str, step: int) -> Single | None:
        return None
