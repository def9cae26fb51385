"""A camera's picture with projected boxes."""

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.patches import Polygon

from fusion.report.colours import BACKGROUND, LABEL_COLOUR, PALE, class_colours, shown
from sensors.boxes import Boxes
from sensors.camera import CameraImage
from sensors.frame import Frame

_NEAR_M = 0.2
_EDGES = (
    [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
)


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
        drawn = shown(detections)
        _draw_wireframes(axes, drawn, image, class_colours(drawn), 1.3)


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
