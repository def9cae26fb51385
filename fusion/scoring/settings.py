"""Settings of the official nuScenes detection metric (the devkit's ``detection_cvpr_2019``)."""

import numpy as np

from sensors.boxes import DETECTION_NAMES

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
"""Centre distances below which a detection can match a label; the average precision is the mean over them."""
TP_DISTANCE_M = 2.0
"""The one at which the true-positive errors are taken."""
MIN_RECALL, MIN_PRECISION = 0.1, 0.1
MEAN_AP_WEIGHT = 5
NUM_RECALLS = 101
MAX_BOXES_PER_SAMPLE = 500
"""More than this per sample and the devkit refuses the whole submission."""

CLASS_RANGE_M = np.array([50.0, 50.0, 50.0, 50.0, 50.0, 40.0, 40.0, 40.0, 30.0, 30.0])
"""Of each of DETECTION_NAMES: boxes at or beyond this distance from the ego vehicle do not count."""
TP_ERRORS = ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err")
"""The five true-positive errors in the devkit's order and spelling (metres, 1 - IoU, radians, m/s, 1 - accuracy)."""
MISSING_ERRORS = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}
"""Errors that a class does not have (``DetectionEval.evaluate``)."""

NUM_CLASSES = len(DETECTION_NAMES)
BARRIER = DETECTION_NAMES.index("barrier")
RACK_CLASSES = tuple(DETECTION_NAMES.index(name) for name in ("bicycle", "motorcycle"))
"""Boxes of these classes do not count where their centre lies in a bicycle rack."""
