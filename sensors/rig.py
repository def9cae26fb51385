"""The vehicle: nuScenes' twelve channels, their nominal mounting, and the eight units a router may leave out.

Mounting: the calibration published with nuScenes scene-0061 (cameras, LiDAR) and scene-0103 (radars), rounded. Rates:
Caesar et al., nuScenes, CVPR 2020. Powers are nominal, rounded from the makers' data sheets of the devices that
nuScenes used (Basler acA1600-60gc, Velodyne HDL-32E, Continental ARS 408-21).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sensors.transforms import RigidTransform

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
LIDAR = "LIDAR_TOP"
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
CHANNELS = (*CAMERAS, LIDAR, *RADARS)

UNITS = (*CAMERAS, "LIDAR", "RADAR")
"""What a vehicle could really leave out: six views, the LiDAR, the radar set."""
NUM_CAMERAS = len(CAMERAS)
LIDAR_UNIT = UNITS.index("LIDAR")
RADAR_UNIT = UNITS.index("RADAR")

LIDAR_BEAMS = 32
IMAGE_WIDTH_PX, IMAGE_HEIGHT_PX = 1600, 900


@dataclass(frozen=True)
class SensorSpec:
    """Nominal mounting of one channel.

    Attributes:
        modality: ``camera``, ``lidar`` or ``radar``.
        position_m: in the ego frame (rear axle centre on the ground, x forward, y left, z up).
        quaternion_wxyz: ego_from_sensor. Cameras look along +z with x right and y down.
        focal_px: of a 1600x900 camera, 0 for others.
        rate_hz: measurements per second.
        power_w: electrical power while running.
    """

    channel: str
    modality: str
    position_m: tuple[float, float, float]
    quaternion_wxyz: tuple[float, float, float, float]
    rate_hz: float
    power_w: float
    focal_px: float = 0.0

    @property
    def ego_from_sensor(self) -> RigidTransform:
        return RigidTransform.from_quaternion(self.quaternion_wxyz, self.position_m)

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """image_from_camera of the full 1600x900 picture; the principal point is the image centre."""
        if self.modality != "camera":
            raise ValueError(f"expected a camera channel, got {self.channel}; only cameras have intrinsics")
        return np.array(
            [[self.focal_px, 0.0, IMAGE_WIDTH_PX / 2], [0.0, self.focal_px, IMAGE_HEIGHT_PX / 2], [0.0, 0.0, 1.0]]
        )


def modality_of(channel: str) -> str:
    """``camera``, ``lidar`` or ``radar``, from nuScenes' channel names."""
    return {"CAM": "camera", "LID": "lidar", "RAD": "radar"}[channel[:3]]


def _camera(channel, position_m, quaternion_wxyz, focal_px=1266.0):
    return SensorSpec(channel, "camera", position_m, quaternion_wxyz, rate_hz=12.0, power_w=3.0, focal_px=focal_px)


def _radar(channel, position_m, quaternion_wxyz):
    return SensorSpec(channel, "radar", position_m, quaternion_wxyz, rate_hz=13.0, power_w=6.6)


NUSCENES_RIG: dict[str, SensorSpec] = {
    spec.channel: spec
    for spec in (
        _camera("CAM_FRONT", (1.701, 0.016, 1.511), (0.4998, -0.5030, 0.4998, -0.4974)),
        _camera("CAM_FRONT_RIGHT", (1.551, -0.493, 1.496), (0.2060, -0.2027, 0.6825, -0.6714)),
        _camera("CAM_BACK_RIGHT", (1.015, -0.481, 1.562), (0.1228, -0.1324, -0.7004, 0.6905)),
        _camera("CAM_BACK", (0.028, 0.003, 1.579), (0.5038, -0.4974, -0.4942, 0.5045), focal_px=809.0),
        _camera("CAM_BACK_LEFT", (1.036, 0.485, 1.591), (0.6924, -0.7032, -0.1165, 0.1120)),
        _camera("CAM_FRONT_LEFT", (1.524, 0.495, 1.509), (0.6757, -0.6736, 0.2121, -0.2112)),
        SensorSpec(LIDAR, "lidar", (0.944, 0.0, 1.840), (0.7078, -0.0065, 0.0106, -0.7063), 20.0, 12.0),
        _radar("RADAR_FRONT", (3.412, 0.0, 0.5), (1.0, 0.0, 0.0, 0.0017)),
        _radar("RADAR_FRONT_LEFT", (2.422, 0.8, 0.78), (0.7172, 0.0, 0.0, 0.6969)),
        _radar("RADAR_FRONT_RIGHT", (2.422, -0.8, 0.77), (0.7010, 0.0, 0.0, -0.7131)),
        _radar("RADAR_BACK_LEFT", (-0.562, 0.628, 0.53), (0.0488, 0.0, 0.0, 0.9988)),
        _radar("RADAR_BACK_RIGHT", (-0.562, -0.618, 0.53), (0.0339, 0.0, 0.0, -0.9994)),
    )
}
