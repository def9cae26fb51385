"""The radar encoder: pillars over RADAR_FIELDS."""

from datamodules.batch import RADAR_FIELDS
from fusion.encoders.pillars import PillarEncoder
from sensors.grid import BevGrid

RADAR_SCALE = {
    "x_m": 0.02,
    "y_m": 0.02,
    "z_m": 0.3,
    "vx_mps": 0.1,
    "vy_mps": 0.1,
    "rcs_dbsm": 0.05,
    "lag_s": 3.0,
    "moving": 1.0,
    "valid": 1.0,
    "unambiguous": 1.0,
}
"""Brings metres, metres per second, dBsm (-5 .. 40) and the age of a sweep to order one."""


class RadarEncoder(PillarEncoder):
    """PillarEncoder of radar points, which are few: a coarse grid and few channels do."""

    def __init__(self, grid: BevGrid, channels: int, **options):
        super().__init__(len(RADAR_FIELDS), grid, channels, [RADAR_SCALE[name] for name in RADAR_FIELDS], **options)
