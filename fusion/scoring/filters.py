"""Which boxes count in the official metric: range, points, bicycle racks."""

import numpy as np
from jaxtyping import Bool, Float

from fusion.scoring.settings import CLASS_RANGE_M, RACK_CLASSES
from fusion.scoring.table import BoxTable, RackTable, SplitLabels, windows
from sensors.boxes import Boxes


def counted(table: BoxTable, labels: SplitLabels) -> Bool[np.ndarray, "n"]:
    """Which boxes the metric looks at (``filter_eval_boxes`` of the devkit).

    A box counts below its class's range, unless it is known to hold no LiDAR or radar point, or is a bicycle or
    motorcycle with its centre in a bicycle rack. Detections have an unknown number of points (-1).
    """
    kept = ego_distance_m(table, labels) < CLASS_RANGE_M[table.boxes.label]
    kept &= table.boxes.num_points != 0
    wheeled = np.flatnonzero(kept & np.isin(table.boxes.label, RACK_CLASSES))
    kept[wheeled[in_racks(table.select(wheeled), labels.racks)]] = False
    return kept


def in_range(boxes: Boxes) -> Bool[np.ndarray, "n"]:
    """Which boxes of an ego frame are within their class's range."""
    return np.hypot(boxes.center_m[:, 0], boxes.center_m[:, 1]) < CLASS_RANGE_M[boxes.label]


def ego_distance_m(table: BoxTable, labels: SplitLabels) -> Float[np.ndarray, "n"]:
    """From the ego vehicle to the box centre, on the ground plane."""
    away = table.boxes.center_m[:, :2] - labels.ego_xy_m[table.sample]
    return np.sqrt(away[:, 0] * away[:, 0] + away[:, 1] * away[:, 1])


def in_racks(table: BoxTable, racks: RackTable) -> Bool[np.ndarray, "n"]:
    """Whether a box's centre lies in a bicycle rack of its sample, faces included (``points_in_box`` of the devkit)."""
    first = np.searchsorted(racks.sample, table.sample, side="left")
    count = np.searchsorted(racks.sample, table.sample, side="right") - first
    box, rack = windows(first, count)
    away = table.boxes.center_m[box] - racks.corner_m[rack]
    inside = np.ones(len(box), bool)
    for edge in np.moveaxis(racks.edges_m[rack], 1, 0):
        along = (edge * away).sum(axis=1)
        inside &= (along >= 0) & (along <= (edge * edge).sum(axis=1))
    found = np.zeros(len(table), bool)
    found[box[inside]] = True
    return found
