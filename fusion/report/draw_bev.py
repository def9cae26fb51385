"""The bird's-eye view of a frame: LiDAR by height, radar with its velocities, labels and detections."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.patches import Circle, Polygon

from fusion.report.colours import (
    BACKGROUND,
    CLASS_COLOURS,
    FAINT,
    LABEL_COLOUR,
    PALE,
    RADAR_COLOUR,
    class_colours,
    shown,
)
from sensors.boxes import Boxes
from sensors.frame import Frame
from sensors.rig import LIDAR


def draw_bev(
    axes: Axes, frame: Frame, detections: Boxes | None, half_m: float, aspect: float = 1.0, with_key: bool = True
) -> None:
    """LiDAR by height, radar with its velocities, labels and detections; x (forward) up, y (left) to the left."""
    axes.set_facecolor(BACKGROUND)
    axes.set_xlim(-half_m * aspect, half_m * aspect)
    axes.set_ylim(-half_m, half_m)
    axes.set_aspect("equal")
    axes.axis("off")
    for radius_m in range(10, int(half_m * 1.5), 10):
        axes.add_patch(Circle((0, 0), radius_m, fill=False, edgecolor=FAINT, linewidth=0.8, zorder=1))
        if radius_m % 20 == 0 and radius_m < half_m:
            axes.text(0.6, -radius_m + 0.8, f"{radius_m} m", color=PALE, fontsize=8, ha="left", zorder=1)
    _draw_lidar(axes, frame)
    _draw_radar(axes, frame)
    axes.add_patch(Polygon([(-0.95, -1.0), (0.95, -1.0), (0.95, 2.6), (0, 3.8), (-0.95, 2.6)], color="white", zorder=6))
    if frame.boxes is not None:
        _draw_footprints(axes, frame.boxes.select(frame.boxes.num_points != 0), is_label=True)
    if detections is not None:
        _draw_footprints(axes, shown(detections), is_label=False)
    if with_key:
        _draw_key(axes, frame)


def _draw_lidar(axes: Axes, frame: Frame) -> None:
    if not frame.lidar:
        return
    points = frame.lidar[0].to_ego()
    height = np.clip((points[:, 2] + 1) / 5, 0, 1)
    height = height[:, None]
    colours = np.clip((1 - height) * to_rgb("#3d5a80") + height * to_rgb("#c9e4ff"), 0, 1)
    axes.scatter(-points[:, 1], points[:, 0], s=1.8 * axes.bbox.height / 900, c=colours, linewidths=0, zorder=2)


def _draw_radar(axes: Axes, frame: Frame) -> None:
    for sweeps in frame.radars.values():
        if not sweeps or not len(sweeps[0]):
            continue
        xyz_m, velocity = sweeps[0].to_ego()
        x, y = -xyz_m[:, 1], xyz_m[:, 0]
        axes.scatter(x, y, s=8, marker="D", c=RADAR_COLOUR, linewidths=0, alpha=0.8, zorder=3)
        # Half a second of motion: nuScenes' step between keyframes.
        moving = np.linalg.norm(velocity, axis=1) > 0.5
        tips = np.stack([x - 0.5 * velocity[:, 1], y + 0.5 * velocity[:, 0]], axis=1)
        lines = np.stack([np.stack([x, y], axis=1), tips], axis=1)[moving]
        axes.add_collection(LineCollection(lines, colors=RADAR_COLOUR, linewidths=0.9, alpha=0.8, zorder=3))


def _draw_footprints(axes: Axes, boxes: Boxes, is_label: bool) -> None:
    """Outlines on the ground with a stroke to where the box heads."""
    if not len(boxes):
        return
    corners = boxes.corners()
    ground = np.stack([-corners[..., 1], corners[..., 0]], axis=-1)[:, [2, 3, 7, 6]]  # lower face, in order
    front = ground[:, :2].mean(axis=1)
    centre = np.stack([-boxes.center_m[:, 1], boxes.center_m[:, 0]], axis=-1)
    strokes = np.stack([centre, front], axis=1)
    if is_label:
        edges, faces, width, order = [to_rgba(LABEL_COLOUR, 0.75)], [to_rgba(LABEL_COLOUR, 0.10)], 0.9, 4
    else:
        edges, faces, width, order = class_colours(boxes), ["none"], 1.7, 5
    axes.add_collection(PolyCollection(ground, edgecolors=edges, facecolors=faces, linewidths=width, zorder=order))
    axes.add_collection(LineCollection(strokes, colors=edges, linewidths=width, zorder=order))


def _draw_key(axes: Axes, frame: Frame) -> None:
    """What is what, in the lower corner, and what is missing, in the upper one."""
    entries = [
        ("label", LABEL_COLOUR),
        ("detection, in its class's colour", CLASS_COLOURS["car"]),
        ("radar, 0.5 s of motion", RADAR_COLOUR),
    ]
    corner = Polygon([(0, 0), (0.4, 0), (0.4, 0.125), (0, 0.125)], transform=axes.transAxes, zorder=6.5)
    corner.set(facecolor=BACKGROUND, alpha=0.8, edgecolor="none")
    axes.add_patch(corner)
    for row, (text, colour) in enumerate(reversed(entries)):
        height = 0.03 + 0.033 * row
        axes.text(0.022, height, "■", transform=axes.transAxes, color=colour, fontsize=10, va="center", zorder=7)
        axes.text(0.05, height, text, transform=axes.transAxes, color="#c8d1dc", fontsize=10, va="center", zorder=7)
    lost = [] if frame.present(LIDAR) else ["no LiDAR"]
    lost += [] if frame.radars else ["no radar"]
    if lost:
        place = {"transform": axes.transAxes, "ha": "right", "va": "top", "zorder": 7}
        axes.text(0.975, 0.97, ", ".join(lost), color=RADAR_COLOUR, fontsize=10, weight="bold", **place)
