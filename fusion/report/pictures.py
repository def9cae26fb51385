"""Pictures of a frame: the bird's-eye view and the six views, with labels and detections. matplotlib without a display.

Detections have the colour of their class, labels are white. Detections are given in the ego frame; ``in_ego_frame``
brings global ones there.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon

from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import CameraImage
from sensors.frame import Frame
from sensors.rig import CAMERAS, LIDAR

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
_NEAR_M = 0.2
_EDGES = (
    [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
)


def in_ego_frame(boxes: Boxes, frame: Frame) -> Boxes:
    """Global boxes seen from the frame's vehicle."""
    return boxes.moved(frame.global_from_ego.inverse())


def bev_picture(
    frame: Frame, detections: Boxes | None, size_px: int = 640, half_m: float = 52.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Bird's-eye view, forward up."""
    figure = _figure(size_px, size_px)
    draw_bev(figure.add_axes((0, 0, 1, 1)), frame, detections, half_m)
    return _pixels(figure)


def views_picture(
    frame: Frame, detections: Boxes | None, branches: Mapping[str, str] | None = None, width_px: int = 960
) -> UInt8[np.ndarray, "h w 3"]:
    """The six views: those ahead in the left column, those back in the right one.

    Args:
        branches: what the model computed of each view (``skip``, ``lite``, ``full``), by unit.
    """
    figure = _figure(width_px, round(width_px / 2 * _aspect(frame)) * 3)
    _draw_views(figure, frame, detections, branches, share=1.0)
    return _pixels(figure)


def overview_picture(
    frame: Frame, detections: Boxes | None, branches: Mapping[str, str] | None = None, title: str = ""
) -> UInt8[np.ndarray, "900 1600 3"]:
    """The picture of the README: six views in two columns beside the bird's-eye view, 1600 x 900."""
    figure = _figure(1600, 900)
    _draw_views(figure, frame, detections, branches, share=0.5)
    axes = figure.add_axes((0.5, 0, 0.5, 1))
    draw_bev(axes, frame, detections, 52.0, aspect=800 / 900)
    if title:
        axes.text(0.03, 0.965, title, transform=axes.transAxes, color="white", fontsize=15, weight="bold", va="center")
    return _pixels(figure)


def _draw_views(
    figure: Figure, frame: Frame, detections: Boxes | None, branches: Mapping[str, str] | None, share: float
) -> None:
    """Six tiles, two columns of three, on the left ``share`` of the figure."""
    for place, channel in enumerate(VIEW_ORDER):
        column, row = divmod(place, 3)
        axes = _tile(figure, column * share / 2, 1 - (row + 1) / 3, share / 2, 1 / 3)
        draw_view(axes, frame, channel, detections, None if branches is None else branches.get(channel))


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
        _draw_footprints(axes, _shown(detections), is_label=False)
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
        edges, faces, width, order = _class_colours(boxes), ["none"], 1.7, 5
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


def draw_view(axes: Axes, frame: Frame, channel: str, detections: Boxes | None, branch: str | None = None) -> None:
    """One camera with projected boxes; a lost camera is an empty tile, a view that was not computed is dimmed."""
    axes.set_facecolor(BACKGROUND)
    axes.axis("off")
    name = channel.removeprefix("CAM_").replace("_", " ").lower()
    image = frame.cameras.get(channel)
    if image is None:
        axes.add_patch(Polygon([(0, 0), (1, 0), (1, 1), (0, 1)], color=BACKGROUND, transform=axes.transAxes))
        axes.text(0.5, 0.5, "camera lost", transform=axes.transAxes, color=PALE, ha="center", va="center", fontsize=11)
    else:
        _draw_image(axes, frame, image, detections, is_dimmed=branch == "skip")
    text = name if branch is None or image is None else f"{name} · {'not computed' if branch == 'skip' else branch}"
    box = {"facecolor": BACKGROUND, "alpha": 0.72, "edgecolor": "none", "boxstyle": "round,pad=0.35"}
    axes.text(0.025, 0.95, text, transform=axes.transAxes, color="white", fontsize=11, va="top", bbox=box, zorder=9)


def _draw_image(axes: Axes, frame: Frame, image: CameraImage, detections: Boxes | None, is_dimmed: bool) -> None:
    height, width = image.pixels.shape[:2]
    pixels = (image.pixels * 0.35).astype(np.uint8) if is_dimmed else image.pixels
    axes.imshow(pixels, interpolation="bicubic", aspect="auto", zorder=0)
    _cover(axes, width, height)
    if frame.boxes is not None:
        labels = frame.boxes.select(frame.boxes.num_points != 0)
        _draw_wireframes(axes, labels, image, [to_rgba(LABEL_COLOUR, 0.6)] * len(labels), 0.7)
    if detections is not None:
        shown = _shown(detections)
        _draw_wireframes(axes, shown, image, _class_colours(shown), 1.3)


def _draw_wireframes(axes: Axes, boxes: Boxes, image: CameraImage, colours: list, width: float) -> None:
    """All boxes as one collection: matplotlib is slow in the number of collections."""
    wireframes = _wireframes(boxes, image)
    if not wireframes:
        return
    repeated = [colour for lines, colour in zip(wireframes, colours, strict=True) for _ in lines]
    axes.add_collection(LineCollection(np.concatenate(wireframes), colors=repeated, linewidths=width), autolim=False)


def _cover(axes: Axes, width: int, height: int) -> None:
    """Limits that fill the tile with the middle of the picture and keep its pixels square."""
    bounds = axes.get_position()
    figure_width, figure_height = axes.figure.get_size_inches()
    tile = bounds.width * figure_width / (bounds.height * figure_height)
    if tile < width / height:
        half = height * tile / 2
        axes.set_xlim(width / 2 - half, width / 2 + half)
        axes.set_ylim(height - 0.5, -0.5)
    else:
        half = width / tile / 2
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height / 2 + half, height / 2 - half)


def _wireframes(boxes: Boxes, image: CameraImage) -> list[Float[np.ndarray, "k 2 2"]]:
    """Edges of each box in pixels, cut at the near plane; empty for boxes behind the camera."""
    camera_from_ego = image.ego_from_camera.inverse()
    wireframes = []
    for corners in boxes.corners().astype(np.float64):
        inside = camera_from_ego.points(corners)
        middle = inside[:4].mean(axis=0)
        bottom = inside[2:4].mean(axis=0)
        segments = np.array([[inside[a], inside[b]] for a, b in _EDGES] + [[middle, bottom]])
        segments = _clipped(segments)
        pixels = segments @ image.image_from_camera.T
        wireframes.append(pixels[..., :2] / pixels[..., 2:])
    return wireframes


def _clipped(segments: Float[np.ndarray, "k 2 3"]) -> Float[np.ndarray, "m 2 3"]:
    """The parts of the segments in front of the near plane."""
    depth = segments[..., 2]
    segments = segments[(depth > _NEAR_M).any(axis=1)].copy()
    for end in (0, 1):
        hidden = segments[:, end, 2] < _NEAR_M
        a, b = segments[hidden, end], segments[hidden, 1 - end]
        share = (_NEAR_M - a[:, 2]) / (b[:, 2] - a[:, 2])
        segments[hidden, end] = a + share[:, None] * (b - a)
    return segments


def _shown(detections: Boxes) -> Boxes:
    return detections.select(detections.score >= SHOWN_SCORE)


def _class_colours(boxes: Boxes) -> list[tuple[float, float, float, float]]:
    """The class's colour, fainter for a low score."""
    opacity = np.clip(0.45 + 0.55 * (boxes.score - SHOWN_SCORE) / 0.5, 0.45, 1)
    names = [DETECTION_NAMES[label] for label in boxes.label]
    return [to_rgba(CLASS_COLOURS[name], float(alpha)) for name, alpha in zip(names, opacity, strict=True)]


def _aspect(frame: Frame) -> float:
    """Height over width of the first picture; nuScenes' where there is none."""
    for channel in CAMERAS:
        if channel in frame.cameras:
            height, width = frame.cameras[channel].pixels.shape[:2]
            return height / width
    return 9 / 16


def _tile(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes on a part of the figure, with a gap of four pixels to the next."""
    gap_x, gap_y = 2 / figure.bbox.width, 2 / figure.bbox.height
    return figure.add_axes((left + gap_x, bottom + gap_y, width - 2 * gap_x, height - 2 * gap_y))


def _figure(width_px: int, height_px: int) -> Figure:
    figure = Figure(figsize=(width_px / 100, height_px / 100), dpi=100, facecolor=BACKGROUND)
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
