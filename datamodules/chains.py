"""Where and when everything was measured: from any sensor at its own time to the keyframe's ego frame.

Every measurement is chained through its *own* ego pose, by way of the global frame, into the ego frame at the
keyframe's reference time. That frame is the LIDAR_TOP keyframe's ego pose (of the sensor nearest in time where the
tables have no LiDAR): metadata, known even when the LiDAR's file is lost.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datamodules.columns import NuScenesIndex
from sensors.rig import CHANNELS, LIDAR
from sensors.transforms import RigidTransform

CHANNEL_ROW = {channel: i for i, channel in enumerate(CHANNELS)}


@dataclass(frozen=True)
class Reference:
    """Pose and time that everything of one keyframe refers to."""

    timestamp_us: int
    global_from_ego: RigidTransform

    @cached_property
    def ego_from_global(self) -> RigidTransform:
        return self.global_from_ego.inverse()


class MeasurementChains:
    """Transforms and times of the rows of an index.

    Args:
        index: rows of its ``measurements`` and ``samples`` are what the methods take.
    """

    def __init__(self, index: NuScenesIndex):
        self.index = index
        self._ego_from_sensor: dict[int, RigidTransform] = {}

    def keyframe(self, sample: int, channel: str) -> int:
        """The measurement of a channel at a sample; -1 where the tables have none."""
        return int(self.index.samples.keyframes[sample, CHANNEL_ROW[channel]])

    def reference(self, sample: int) -> Reference:
        """Of a sample.

        Raises:
            ValueError: the sample has no keyframe of any sensor.
        """
        samples = self.index.samples
        timestamp_us, chosen = int(samples.timestamp_us[sample]), self.keyframe(sample, LIDAR)
        if chosen < 0:
            there = samples.keyframes[sample][samples.keyframes[sample] >= 0]
            if not len(there):
                raise ValueError(
                    f"expected a keyframe of some sensor for the sample '{samples.token[sample].decode()}', found "
                    "none; copy sample_data.json again"
                )
            chosen = int(there[np.argmin(np.abs(self.index.measurements.timestamp_us[there] - timestamp_us))])
        return Reference(timestamp_us, self.pose(chosen))

    def pose(self, measurement: int) -> RigidTransform:
        """Global from ego at the measurement's own time."""
        columns = self.index.measurements
        return RigidTransform.from_quaternion(columns.pose_wxyz[measurement], columns.pose_m[measurement])

    def speed_mps(self, sample: int) -> float:
        """From the keyframe before (after, at a scene's start); 0 for a scene of one keyframe."""
        samples = self.index.samples
        for other in (sample - 1, sample + 1):
            if 0 <= other < len(samples.scene) and samples.scene[other] == samples.scene[sample]:
                here, there = self.reference(sample), self.reference(other)
                moved_m = here.global_from_ego.translation_m - there.global_from_ego.translation_m
                seconds = abs(here.timestamp_us - there.timestamp_us) * 1e-6
                return float(np.hypot(moved_m[0], moved_m[1]) / seconds) if seconds > 0 else 0.0
        return 0.0

    def yaw_rate_radps(self, sample: int) -> float:
        """From the same two keyframes as the speed; counter-clockwise."""
        samples = self.index.samples
        for other in (sample - 1, sample + 1):
            if 0 <= other < len(samples.scene) and samples.scene[other] == samples.scene[sample]:
                here, there = self.reference(sample), self.reference(other)
                turned_rad = (there.ego_from_global @ here.global_from_ego).yaw_rad
                seconds = (here.timestamp_us - there.timestamp_us) * 1e-6
                return turned_rad / seconds if seconds else 0.0
        return 0.0

    def sweeps(self, newest: int, num_sweeps: int) -> list[int]:
        """The measurement and those before it in its scene, newest first."""
        chain = [newest]
        while len(chain) < num_sweeps and (before := int(self.index.measurements.previous[chain[-1]])) >= 0:
            chain.append(before)
        return chain

    def ego_from_sensor(self, measurement: int, reference: Reference) -> RigidTransform:
        """The keyframe's ego frame from the sensor at its own time."""
        return reference.ego_from_global @ self.pose(measurement) @ self._calibration(measurement)

    def lag_s(self, measurement: int, reference: Reference) -> float:
        """Reference time minus the measurement's own: positive for an older one."""
        return (reference.timestamp_us - int(self.index.measurements.timestamp_us[measurement])) * 1e-6

    def _calibration(self, measurement: int) -> RigidTransform:
        """Ego from sensor at one time; kept, since few calibrations serve many measurements."""
        row = int(self.index.measurements.calibration[measurement])
        if row not in self._ego_from_sensor:
            columns = self.index.calibrations
            self._ego_from_sensor[row] = RigidTransform.from_quaternion(
                columns.rotation_wxyz[row], columns.translation_m[row]
            )
        return self._ego_from_sensor[row]

    def __reduce__(self):
        return MeasurementChains, (self.index,)
