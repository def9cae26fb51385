"""Pictures of a frame: the bird's-eye view and the six views, with labels and detections. matplotlib without a display.

Detections are given in the ego frame; ``in_ego_frame`` brings global ones there.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fusion.report.colours import BACKGROUND, VIEW_ORDER
from fusion.report.draw_bev import draw_bev
from fusion.report.draw_views import draw_view
from sensors.boxes import Boxes
from sensors.frame import Frame
from sensors.rig import CAMERAS


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
