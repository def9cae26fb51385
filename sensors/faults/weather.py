"""Weather on all sensors together, from one parameter.

Fog is stated by its extinction coefficient alpha in 1/m. The meteorological visibility, at which 5 % of the contrast
is left, is ln(20) / alpha: the five levels are 600, 300, 150, 100 and 50 m. Rain and snow are stated in mm/h of
water. Radar at 77 GHz barely notices: on the way to a target at 100 m and back it loses 0.01 to 0.3 dB in fog, up to
3.4 dB in a cloudburst.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from sensors.camera import CameraImage
from sensors.faults.camera_sky import camera_rain, camera_snow
from sensors.faults.lidar_fog import FOG_LEVELS, FOG_UNIT, LIDAR_FOG
from sensors.faults.lidar_rain import LIDAR_RAIN, RAIN_LEVELS, lidar_rain
from sensors.faults.lidar_snow import LIDAR_SNOW, SNOW_LEVELS
from sensors.faults.protocol import Draws, Ladder, Number, SensorFault, measurement_of, scope_of, with_measurements
from sensors.faults.radar import WEAKEST_DBSM, range_of
from sensors.faults.weather_depth import camera_fog, coarse_depth_m
from sensors.faults.wet_ground import PAVEMENT_DEPTH_MM, WET_GROUND, wet_ground
from sensors.frame import Frame, History
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep

FILM_RATE_MMPH = 10.0


def _camera_rain(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    return replace(image, pixels=camera_rain(image.pixels, level, rng, coarse_depth_m(image, frame.lidar)))


def _camera_snow(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    return replace(image, pixels=camera_snow(image.pixels, level, rng, coarse_depth_m(image, frame.lidar)))


def _rain_on_lidar(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Drops in the air, and a film of water on the ground."""
    wet = wet_ground(sweep, PAVEMENT_DEPTH_MM * (1 - np.exp(-level / FILM_RATE_MMPH)), rng, frame)
    return lidar_rain(wet, level, rng, frame)


def _radar_fog(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Liquid water of (0.024 / visibility in km)^1.54 g/m3, which takes 4.3 dB/km per g/m3 (ITU-R P.840)."""
    per_visible_km = 1000 * level / np.log(20)
    return attenuated(sweep, 4.3 * (0.024 * per_visible_km) ** 1.54)


def _radar_rain(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """1.1 R^0.7 dB/km (ITU-R P.838 at 77 GHz)."""
    return attenuated(sweep, 1.1 * level**0.7)


def _radar_snow(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Dry snow takes about a fifth of what rain of the same rate does."""
    return attenuated(sweep, 0.2 * 1.1 * level**0.7)


def attenuated(sweep: RadarSweep, db_per_km: Number) -> RadarSweep:
    """Echoes weaker by the loss on the way there and back; what falls under the receiver's limit by it vanishes."""
    weaker = sweep.rcs_dbsm - (2 * db_per_km * range_of(sweep) / 1000).astype(sweep.rcs_dbsm.dtype)
    seen = (weaker >= WEAKEST_DBSM) | (sweep.rcs_dbsm < WEAKEST_DBSM)
    return replace(sweep, rcs_dbsm=weaker).select(seen)


@dataclass(frozen=True)
class Weather(Ladder):
    """One parameter, all sensors.

    Every part sees the clear frame: the cameras take their depth from the LiDAR without weather.

    Attributes:
        parts: what the weather does to the sensors of one modality each.
    """

    parts: tuple[SensorFault, ...] = field(kw_only=True)

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        present, harmed_frame = self.targets(frame), frame
        for part in self.parts:
            channels = tuple(channel for channel in scope_of(part) if channel in present)
            if channels:
                harmed = replace(part, channels=channels)(frame, history, level, draws)
                changed = {channel: measurement_of(harmed, channel) for channel in channels}
                harmed_frame = with_measurements(harmed_frame, changed)
        return harmed_frame


CAMERA_FOG = SensorFault("camera_fog", "weather", "camera", FOG_UNIT, FOG_LEVELS, effect=camera_fog, worst=1.0)
_RADAR_FOG = SensorFault("radar_fog", "weather", "radar", FOG_UNIT, FOG_LEVELS, effect=_radar_fog, worst=1.0)
FOG = Weather("fog", "weather", "all", FOG_UNIT, FOG_LEVELS, worst=1.0, parts=(CAMERA_FOG, LIDAR_FOG, _RADAR_FOG))

CAMERA_RAIN = SensorFault("camera_rain", "weather", "camera", "mm/h", RAIN_LEVELS, effect=_camera_rain, worst=150.0)
_LIDAR_RAIN = replace(LIDAR_RAIN, effect=_rain_on_lidar)
_RADAR_RAIN = SensorFault("radar_rain", "weather", "radar", "mm/h", RAIN_LEVELS, effect=_radar_rain, worst=150.0)
RAIN = Weather(
    "rain", "weather", "all", "mm/h", RAIN_LEVELS, worst=150.0, parts=(CAMERA_RAIN, _LIDAR_RAIN, _RADAR_RAIN)
)

CAMERA_SNOW = SensorFault("camera_snow", "weather", "camera", "mm/h", SNOW_LEVELS, effect=_camera_snow, worst=10.0)
_RADAR_SNOW = SensorFault("radar_snow", "weather", "radar", "mm/h", SNOW_LEVELS, effect=_radar_snow, worst=10.0)
SNOW = Weather("snow", "weather", "all", "mm/h", SNOW_LEVELS, worst=10.0, parts=(CAMERA_SNOW, LIDAR_SNOW, _RADAR_SNOW))

WEATHER_FAULTS = (
    *(CAMERA_FOG, LIDAR_FOG, FOG, CAMERA_RAIN, LIDAR_RAIN, RAIN),
    *(CAMERA_SNOW, LIDAR_SNOW, SNOW, WET_GROUND),
)
