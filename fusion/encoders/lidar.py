"""The LiDAR encoder: pillars over LIDAR_FIELDS."""

from datamodules.batch import LIDAR_FIELDS
from fusion.encoders.pillars import PillarEncoder
from sensors.grid import BevGrid

LIDAR_SCALE = {"x_m": 0.02, "y_m": 0.02, "z_m": 0.3, "intensity": 1.0, "lag_s": 3.0}
"""Brings metres, intensity in [0, 1] and the age of a sweep (up to about 0.5 s) to order one."""


class LidarEncoder(PillarEncoder):
    """PillarEncoder of LiDAR points. The lite branch is the same class with fewer channels or a coarser grid."""

    def __init__(self, grid: BevGrid, channels: int, **options):
        super().__init__(len(LIDAR_FIELDS), grid, channels, [LIDAR_SCALE[name] for name in LIDAR_FIELDS], **options)
