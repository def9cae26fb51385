"""Points by their age."""

import torch

from datamodules.batch import LIDAR_FIELDS, RADAR_FIELDS, PointBatch

LAG_COLUMN = {len(LIDAR_FIELDS): LIDAR_FIELDS.index("lag_s"), len(RADAR_FIELDS): RADAR_FIELDS.index("lag_s")}
"""Where a point's age stands, by number of columns."""


def newest(points: PointBatch, window_s: float) -> PointBatch:
    """Each sample's points that are at most ``window_s`` older than its newest one."""
    lag_s = points.points[:, LAG_COLUMN[points.points.shape[1]]]
    newest_lag_s = torch.full((len(points.present),), torch.inf, device=lag_s.device)
    newest_lag_s = newest_lag_s.scatter_reduce(0, points.sample, lag_s, "amin")
    return points.where(lag_s <= newest_lag_s[points.sample] + window_s)
