"""The view from above: LiDAR, boxes in their class's colour, radar points with velocity arrows, and a key."""

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Polygon

from fusion.report.colours import BACKGROUND, CLASS_COLOURS, RADAR_COLOUR
from fusion.report.draw_bev import draw_bev
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.frame import Frame
from sensors.rig import LIDAR

ARROW_S = 0.5
"""Arrows show half a second of motion: nuScenes' step between keyframes."""
MOVING_MPS = 0.5
"""Slower radar points have no arrow."""


def draw_ground(axes: Axes, frame: Frame, labels: Boxes, half_m: float, scale: float = 1.0) -> None:
    """Forward up, left to the left; ``half_m`` to every side of the ego. The scale is that of arrows and words."""
    blind = replace(frame, boxes=None, radars={})
    draw_bev(axes, blind, labels, half_m, aspect=axes.bbox.width / axes.bbox.height, with_key=False)
    draw_radar(axes, frame, scale)
    _draw_key(axes, frame, labels, scale)


def draw_radar(axes: Axes, frame: Frame, scale: float = 1.0) -> None:
    """Every point; those that the devkit's default filter drops are faint and have no arrow.

    Velocities are ego-compensated, hence radial: an arrow shows how fast a thing nears or leaves the sensor.
    """
    for sweeps in frame.radars.values():
        xyz_m, velocity_mps = sweeps[0].to_ego()
        place = np.stack([-xyz_m[:, 1], xyz_m[:, 0]])
        step_m = ARROW_S * np.stack([-velocity_mps[:, 1], velocity_mps[:, 0]])
        sure = sweeps[0].passes_default_filter()
        moving = sure & (np.linalg.norm(velocity_mps, axis=1) > MOVING_MPS)
        for chosen, opacity in ((~sure, 0.3), (sure, 0.9)):
            style = {"marker": "D", "linewidths": 0, "alpha": opacity, "zorder": 3}
            axes.scatter(*place[:, chosen], s=14 * scale, c=RADAR_COLOUR, **style)
        arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "dots", "width": 1.8 * scale, "zorder": 5.5}
        axes.quiver(*place[:, moving], *step_m[:, moving], color=RADAR_COLOUR, headwidth=4, headlength=4, **arrow)


def _draw_key(axes: Axes, frame: Frame, labels: Boxes, scale: float) -> None:
    """Colours of the classes that are there, and what is missing."""
    there = [name for label, name in enumerate(DETECTION_NAMES) if (labels.label == label).any()]
    entries = [(name.replace("_", " "), CLASS_COLOURS[name]) for name in there]
    entries.append((f"radar, {ARROW_S:g} s of motion", RADAR_COLOUR) if frame.radars else ("no radar", RADAR_COLOUR))
    if not frame.present(LIDAR):
        entries.append(("no LiDAR", RADAR_COLOUR))
    size_pt = max(10 * scale, 7)
    row_px, width_px = 1.75 * size_pt, 17.5 * size_pt
    width, step = width_px / axes.bbox.width, row_px / axes.bbox.height
    top = step * (len(entries) + 0.5)
    corner = Polygon([(0, 0), (width, 0), (width, top), (0, top)], transform=axes.transAxes, zorder=6.5)
    corner.set(facecolor=BACKGROUND, alpha=0.8, edgecolor="none")
    axes.add_patch(corner)
    for row, (text, colour) in enumerate(reversed(entries)):
        place = {"transform": axes.transAxes, "fontsize": size_pt, "va": "center", "zorder": 7}
        axes.text(0.05 * width, (row + 0.75) * step, "■", color=colour, **place)
        axes.text(0.15 * width, (row + 0.75) * step, text, color="#c8d1dc", **place)
