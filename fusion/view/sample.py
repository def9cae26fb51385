"""A sample of a data set as one picture.

Left, the six views as nuScenes arranges them, with the labelled boxes; below them the same views in grey with LiDAR and
radar points coloured by depth; right, the view from above. Boxes without any LiDAR or radar point are not drawn: the
detection metrics leave them out.
"""

from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from datamodules.nuscenes import NuScenesFrames
from fusion.report.colours import BACKGROUND, VIEW_ORDER
from fusion.report.draw_views import draw_view
from fusion.view.sample_bev import draw_ground
from fusion.view.sample_projection import COLOUR_MAP, FAR_M, NEAR_M, draw_points, pale_image
from sensors.boxes import Boxes
from sensors.frame import Frame

HALF_M = 52.0
_DPI = 100
_GAP_PX = 2


@dataclass(frozen=True)
class Layout:
    """Where everything stands, in pixels from the upper left.

    Attributes:
        tile_px: width and height of a view.
        columns: of the six views: 3, or 2 without points.
        bev_px: width of the view from above, which is as high as the views together.
        title_px: height of the line on top.
        with_points: the six views again, with points.
    """

    tile_px: tuple[int, int] = (480, 270)
    columns: int = 3
    bev_px: int = 840
    title_px: int = 40
    with_points: bool = True

    @property
    def rows(self) -> int:
        return len(VIEW_ORDER) // self.columns * (2 if self.with_points else 1)

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return self.columns * self.tile_px[0] + self.bev_px, self.title_px + self.rows * self.tile_px[1]

    @property
    def scale(self) -> float:
        """Of dots and words against the large picture."""
        return self.rows * self.tile_px[1] / 1080

    def tile(self, place: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of a view; the views with points come after the six with boxes.

        Three columns: those ahead over those back. Two columns: those ahead left, those back right.
        """
        row, column = divmod(place, 3) if self.columns == 3 else divmod(place, 3)[::-1]
        width, height = self.tile_px
        return column * width + _GAP_PX, self.title_px + row * height + _GAP_PX, width - 4, height - 4

    @property
    def bev(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the view from above."""
        left, top = self.columns * self.tile_px[0], self.title_px
        return left + _GAP_PX, top + _GAP_PX, self.bev_px - 4, self.size_px[1] - top - 4


LARGE = Layout()


def sample_picture(frame: Frame, layout: Layout = LARGE) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a frame with its labels, of the layout's size."""
    width, height = layout.size_px
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    labels = Boxes.empty() if frame.boxes is None else frame.boxes.select(frame.boxes.num_points != 0)
    unlabelled = replace(frame, boxes=None)
    for place, channel in enumerate(VIEW_ORDER):
        draw_view(_axes(figure, layout.tile(place)), unlabelled, channel, labels)
    if layout.with_points:
        pale = replace(unlabelled, cameras={name: pale_image(image) for name, image in frame.cameras.items()})
        for place, channel in enumerate(VIEW_ORDER):
            axes = _axes(figure, layout.tile(len(VIEW_ORDER) + place))
            draw_view(axes, pale, channel, None)
            if channel in frame.cameras:
                draw_points(axes, frame, frame.cameras[channel], layout.tile_px[0] / 480)
        _draw_depth_key(figure, layout)
    draw_ground(_axes(figure, layout.bev), frame, labels, HALF_M, max(layout.scale, 0.5))
    _draw_title(figure, layout, title_of(frame))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def title_of(frame: Frame) -> str:
    """Scene, place in it, light and weather, speed and sample token, in one line."""
    words = [
        frame.scene,
        f"keyframe {frame.keyframe + 1} of {frame.num_keyframes}",
        ", ".join(sorted(frame.conditions)),
        *([f"{3.6 * frame.ego_speed_mps:.0f} km/h"] if frame.num_keyframes > 1 else []),
        frame.token,
    ]
    return "  ·  ".join(words)


def find_sample(frames: NuScenesFrames, token: str, scene: str, index: int) -> int:
    """The place of a sample among the frames.

    Args:
        token: of the sample; empty to go by scene and index.
        scene: name of a scene, or its number among those of the frames; empty for all.
        index: of the sample within the scene, or within all frames.

    Raises:
        ValueError: there is no such sample or scene.
    """
    if token:
        if token not in frames.tokens:
            where = f"the split '{frames.split}'" if frames.split else frames.version
            raise ValueError(f"expected a sample token of {where}, got '{token}'; index=0 takes the first sample")
        return frames.tokens.index(token)
    places = scene_places(frames, scene) if scene else np.arange(len(frames))
    if not 0 <= index < len(places):
        raise ValueError(f"expected index from 0 to {len(places) - 1}, got {index}")
    return int(places[index])


def scene_places(frames: NuScenesFrames, scene: str) -> np.ndarray:
    """Places of a scene's samples among the frames, in time; the scene by name or number."""
    rows = list(dict.fromkeys(frames.scene_rows.tolist()))
    names = [frames.index.scenes.name[row].decode() for row in rows]
    if scene in names:
        number = names.index(scene)
    elif scene.isdecimal() and int(scene) < len(names):
        number = int(scene)
    else:
        raise ValueError(
            f"expected the name of a scene such as '{names[0]}', or a number from 0 to {len(names) - 1}, got '{scene}'"
        )
    return np.flatnonzero(frames.scene_rows == rows[number])


def _axes(figure: Figure, rectangle_px: tuple[int, int, int, int]) -> Axes:
    """Axes on a part of the figure, given as left, top, width and height in pixels."""
    left, top, width, height = rectangle_px
    all_width, all_height = figure.get_size_inches() * _DPI
    return figure.add_axes((left / all_width, 1 - (top + height) / all_height, width / all_width, height / all_height))


def _draw_title(figure: Figure, layout: Layout, text: str) -> None:
    height = figure.get_size_inches()[1] * _DPI
    size_pt = max(13 * layout.title_px / 40, 8)
    figure.text(0.006, 1 - layout.title_px / 2 / height, text, color="white", fontsize=size_pt, va="center")


def _draw_depth_key(figure: Figure, layout: Layout) -> None:
    """The colours of depth, at the right end of the title."""
    width = layout.size_px[0]
    axes = _axes(figure, (width - 420, 12, 300, layout.title_px - 24))
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=matplotlib.colormaps[COLOUR_MAP], aspect="auto")
    axes.axis("off")
    place = {"transform": axes.transAxes, "color": "#c8d1dc", "fontsize": 10, "va": "center"}
    axes.text(-0.02, 0.5, f"depth of points {NEAR_M:g} m", ha="right", **place)
    axes.text(1.02, 0.5, f"{FAR_M:g} m", **place)
