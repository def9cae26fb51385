"""Robo3D's nuScenes-C (Kong et al., ICCV 2023): eight LiDAR types, light, moderate and heavy as severities 1 to 3.

Not in its repository for nuScenes, and so chosen here: moderate and heavy motion blur (.25 and .3 m, as it has them
for SemanticKITTI, whose light value is nuScenes' too) and moderate and heavy crosstalk (4 and 5 %: its light 3 % raised
in the steps of its KITTI values .6, .8 and 1 %).
"""

from sensors.faults import published_lidar as points
from sensors.faults import published_objects as objects
from sensors.faults import published_weather as weather
from sensors.faults.protocol import Draws, with_measurements
from sensors.faults.published_ground import on_ground
from sensors.faults.published_lidar import rows_of, sweep_of
from sensors.faults.suites.published import FramePart, LidarPart, Published, ladder
from sensors.frame import Frame, History
from sensors.rig import LIDAR


def wet_ground(frame: Frame, history: History, draws: Draws, water_height_mm: float, noise_floor: float) -> Frame:
    """Water on the ground: published on point labels, here on points within half a metre of a fitted plane."""
    sweeps = []
    for sweep in frame.lidar:
        rows = rows_of(sweep)
        ground, _ = on_ground(rows)
        sweeps.append(sweep_of(weather.robo3d_wet_ground(rows, ground, water_height_mm, noise_floor), sweep))
    return with_measurements(frame, {LIDAR: tuple(sweeps)})


_WET = tuple((FramePart("lidar", wet_ground, row),) for row in ((0.2, 0.2), (1.0, 0.3), (1.2, 0.7)))
_ECHO = ladder(LidarPart, objects.robo3d_incomplete_echo, (0.75,), (0.85,), (0.95,), objects=True)
# The same rings in all sweeps: they are of the device.
_BEAMS = ladder(LidarPart, points.robo3d_beam_missing, (8,), (16,), (24,), per_sweep=False)
_CROSS_SENSOR = ladder(LidarPart, points.robo3d_cross_sensor, (8,), (16,), (24,), random=False)

ROBO3D = (
    Published("robo3d_fog", "weather", ladder(LidarPart, weather.robo3d_fog, (0.008,), (0.05,), (0.2,))),
    Published("robo3d_wet_ground", "weather", _WET),
    Published("robo3d_snow", "weather", ladder(LidarPart, weather.robo3d_snow, (0.5, 2.0), (1.0, 1.6), (2.5, 1.6))),
    Published("robo3d_motion_blur", "blur", ladder(LidarPart, points.robo3d_motion_blur, (0.2,), (0.25,), (0.3,))),
    Published("robo3d_beam_missing", "points", _BEAMS),
    Published("robo3d_crosstalk", "noise", ladder(LidarPart, points.robo3d_crosstalk, (0.03,), (0.04,), (0.05,))),
    Published("robo3d_incomplete_echo", "objects", _ECHO),
    Published("robo3d_cross_sensor", "points", _CROSS_SENSOR),
)
