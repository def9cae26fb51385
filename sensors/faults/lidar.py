"""All LiDAR faults on raw sweeps: metres, rings, intensities of 0 to 255. Weather is in ``weather``."""

from sensors.faults.lidar_loss import LOSS_FAULTS
from sensors.faults.lidar_noise import NOISE_FAULTS
from sensors.faults.lidar_objects import OBJECT_FAULTS
from sensors.faults.lidar_view import VIEW_FAULTS

LIDAR_FAULTS = (*LOSS_FAULTS, *VIEW_FAULTS, *NOISE_FAULTS, *OBJECT_FAULTS)
