"""LiDAR and radar sweeps of a frame as rows in the (augmented) ego frame."""

import numpy as np
from jaxtyping import Float, Float32, Float64

from datamodules.batch import RADAR_FIELDS
from sensors.frame import Frame
from sensors.lidar import gathered_points, within
from sensors.rig import RADARS


def lidar_points(
    frame: Frame, aug_from_ego: Float64[np.ndarray, "4 4"], range_m: tuple[float, ...] | None = None
) -> Float32[np.ndarray, "p 5"]:
    """All sweeps as rows of LIDAR_FIELDS in the augmented ego frame, within ``range_m`` where that is given."""
    points = gathered_points(frame.lidar, aug_from_ego, range_m)
    points[:, 3] *= np.float32(1 / 255)
    return points


def radar_points(
    frame: Frame, aug_from_ego: Float64[np.ndarray, "4 4"], range_m: tuple[float, ...] | None = None
) -> Float32[np.ndarray, "q 10"]:
    """All sweeps of all radars as rows of RADAR_FIELDS in the augmented ego frame, within ``range_m``.

    No point is filtered by its state: the states are columns.
    """
    parts = [np.empty((0, len(RADAR_FIELDS)), np.float32)]
    for sweep in (sweep for channel in RADARS for sweep in frame.radars.get(channel, ())):
        aug_from_radar = aug_from_ego @ sweep.ego_from_radar.matrix
        rows = np.empty((len(sweep), len(RADAR_FIELDS)), np.float32)
        rows[:, :3] = _moved(sweep.xyz_m, aug_from_radar).T
        # Velocities turn, are mirrored and scaled like everything else, and do not shift.
        rows[:, 3:5] = sweep.velocity_mps @ aug_from_radar[:2, :2].T
        rows[:, 5], rows[:, 6] = sweep.rcs_dbsm, sweep.lag_s
        rows[:, 7] = (sweep.dyn_prop == 0) | (sweep.dyn_prop == 2) | (sweep.dyn_prop == 6)
        rows[:, 8] = sweep.invalid_state == 0
        rows[:, 9] = sweep.ambig_state == 3
        parts.append(rows)
    points = np.concatenate(parts)
    return points if range_m is None else points[within(points, range_m)]


def _moved(xyz_m: Float[np.ndarray, "n 3"], dst_from_src: Float64[np.ndarray, "4 4"]) -> Float32[np.ndarray, "3 n"]:
    """Points through a 4x4, as columns, in float32: between two frames of the vehicle coordinates stay small."""
    linear, shift_m = dst_from_src[:3, :3].astype(np.float32), dst_from_src[:3, 3:].astype(np.float32)
    return linear @ np.ascontiguousarray(xyz_m.T, np.float32) + shift_m
