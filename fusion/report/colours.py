"""Colours of pictures and pages, and which detections are drawn: detections in their class's colour, labels white."""

import numpy as np
from matplotlib.colors import to_rgba

from sensors.boxes import DETECTION_NAMES, Boxes

CLASS_COLOURS = {
    "car": "#4cc3ff",
    "truck": "#7d9bff",
    "bus": "#b58cff",
    "trailer": "#d58cff",
    "construction_vehicle": "#ffb454",
    "pedestrian": "#ff6b8b",
    "motorcycle": "#ffd84d",
    "bicycle": "#a8e05f",
    "traffic_cone": "#ff8a5c",
    "barrier": "#5fe0c5",
}
LABEL_COLOUR = "#ffffff"
BACKGROUND, FAINT, PALE = "#10151c", "#2a3440", "#8b98a8"
RADAR_COLOUR = "#ffb020"
SHOWN_SCORE = 0.25
"""Detections below are not drawn."""
VIEW_ORDER = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")


def shown(detections: Boxes) -> Boxes:
    """Those with a score that is drawn."""
    return detections.select(detections.score >= SHOWN_SCORE)


def class_colours(boxes: Boxes) -> list[tuple[float, float, float, float]]:
    """The class's colour, fainter for a low score."""
    opacity = np.clip(0.45 + 0.55 * (boxes.score - SHOWN_SCORE) / 0.5, 0.45, 1)
    names = [DETECTION_NAMES[label] for label in boxes.label]
    return [to_rgba(CLASS_COLOURS[name], float(alpha)) for name, alpha in zip(names, opacity, strict=True)]
