"""The map of a scene with the ego's path: nuScenes' mask of where one may drive or walk, 0.1 m a pixel."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from datamodules.index import tables_folder
from datamodules.nuscenes import NuScenesFrames
from datamodules.tables import read_records
from fusion.report.colours import BACKGROUND, PALE

PIXEL_M = 0.1
SIZE_PX = 1000
_MARGIN_M, _MIN_SIDE_M = 40.0, 160.0
_OVERVIEW_PX = 280
_GROUND = ListedColormap([BACKGROUND, "#46566b"])
_START, _END = "#5fe0c5", "#ff6b8b"


@dataclass(frozen=True)
class MapMask:
    """A part of a map's mask, and the whole one made small.

    Attributes:
        pixels: 0 where one may neither drive nor walk.
        extent_m: x from, x to, y from, y to of the part, in the map's (global) frame.
        overview: the whole mask, each pixel the mean of many.
        whole_m: width and height of the whole map.
    """

    pixels: UInt8[np.ndarray, "h w"]
    extent_m: tuple[float, float, float, float]
    overview: UInt8[np.ndarray, "k l"]
    whole_m: tuple[float, float]


def map_picture(frames: NuScenesFrames, place: int) -> UInt8[np.ndarray, "1000 1000 3"]:
    """North up (y), east to the right (x): the map around the path of the scene that the frame belongs to.

    Raises:
        FileNotFoundError: the map's file is not there.
        ValueError: the tables name no map for the scene, or its file is no mask.
    """
    places = np.flatnonzero(frames.scene_rows == frames.scene_rows[place])
    path_m = ego_path(frames, places)
    mask = read_mask(map_file(frames, place), path_m)
    figure = Figure(figsize=(SIZE_PX / 100, SIZE_PX / 100), dpi=100, facecolor=BACKGROUND)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.imshow(mask.pixels > 0, cmap=_GROUND, vmin=0, vmax=1, extent=mask.extent_m, interpolation="antialiased")
    axes.set(xlim=mask.extent_m[:2], ylim=mask.extent_m[2:])
    _draw_path(axes, path_m)
    _draw_scale(axes, mask.extent_m)
    _draw_overview(figure, mask)
    scenes, row = frames.index.scenes, int(frames.scene_rows[place])
    names = dict.fromkeys([scenes.name[row].decode(), scenes.location[row].decode()])
    words = "  ·  ".join([*names, f"{len(path_m)} keyframe{'s' if len(path_m) > 1 else ''}"])
    box = {"facecolor": BACKGROUND, "alpha": 0.8, "edgecolor": "none", "boxstyle": "round,pad=0.4"}
    axes.text(0.02, 0.975, words, transform=axes.transAxes, color="white", fontsize=12, va="top", bbox=box, zorder=6)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def ego_path(frames: NuScenesFrames, places: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Global x and y of the ego at these frames."""
    poses = [frames.chains.reference(int(frames.rows[place])).global_from_ego for place in places]
    return np.stack([pose.translation_m[:2] for pose in poses])


def map_file(frames: NuScenesFrames, place: int) -> Path:
    """The mask of the map that the frame's scene was driven on."""
    tables = tables_folder(frames.root, frames.version)
    token = frames.index.scenes.token[int(frames.scene_rows[place])].decode()
    log = next(record["log_token"] for record in read_records(tables / "scene.json") if record["token"] == token)
    files = [record["filename"] for record in read_records(tables / "map.json") if log in record["log_tokens"]]
    if not files:
        raise ValueError(
            f"expected a map of the log '{log}' in {tables / 'map.json'}, found none; copy the table again"
        )
    if not (frames.root / files[0]).is_file():
        raise FileNotFoundError(f"expected the map's file {frames.root / files[0]}, found none; copy it from the maps")
    return frames.root / files[0]


def read_mask(path: Path, path_m: Float[np.ndarray, "n 2"]) -> MapMask:
    """The square around the path, wholly inside the map where that is large enough.

    Pillow, since a map of nuScenes (1.2 billion pixels) is more than OpenCV reads.
    """
    from PIL.PngImagePlugin import PngImageFile

    try:
        image = PngImageFile(path)  # Image.open refuses pictures as large as nuScenes' maps
        image.load()
    except (SyntaxError, OSError) as error:
        raise ValueError(f"expected a whole PNG in {path}, got none ({error}); copy the map again") from error
    grey = image if image.mode in ("L", "1") else image.convert("L")
    width, height = grey.size
    side_m = max(_MIN_SIDE_M, float(np.ptp(path_m, axis=0).max()) + 2 * _MARGIN_M)
    middle_m = (path_m.min(axis=0) + path_m.max(axis=0)) / 2
    corner = mask_pixels(middle_m[None] + [[-side_m / 2, side_m / 2]], height)[0]
    left, top = np.rint(corner).astype(int).tolist()
    side = round(side_m / PIXEL_M)
    part = grey.crop((left, top, left + side, top + side)).convert("L")  # nothing lies beyond the map
    extent_m = (left * PIXEL_M, (left + side) * PIXEL_M, (height - top - side) * PIXEL_M, (height - top) * PIXEL_M)
    overview = grey.convert("L").reduce(max(1, max(grey.size) // _OVERVIEW_PX))
    return MapMask(np.asarray(part), extent_m, np.asarray(overview), (width * PIXEL_M, height * PIXEL_M))


def mask_pixels(xy_m: Float[np.ndarray, "n 2"], height_px: int) -> Float[np.ndarray, "n 2"]:
    """Column and row of places on the map; the lowest row is at y = 0."""
    return np.stack([xy_m[:, 0] / PIXEL_M, height_px - xy_m[:, 1] / PIXEL_M], axis=1)


def _draw_path(axes: Axes, path_m: Float[np.ndarray, "n 2"]) -> None:
    """From green to red, a dot for every keyframe."""
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("path", [_START, "#ffd84d", _END])(np.linspace(0, 1, len(path_m)))
    lines = np.stack([path_m[:-1], path_m[1:]], axis=1)
    axes.add_collection(LineCollection(lines, colors=colours[1:], linewidths=2.5, zorder=3), autolim=False)
    axes.scatter(*path_m.T, s=16, c=colours, linewidths=0, zorder=4)
    for number, word, beside in ((0, "start", (9, 3)), (len(path_m) - 1, "end", (9, -12))):
        if number or word == "start":
            style = {"xytext": beside, "textcoords": "offset points", "fontsize": 11, "weight": "bold", "zorder": 5}
            axes.annotate(word, tuple(path_m[number]), color=colours[number], **style)


def _draw_scale(axes: Axes, extent_m: tuple[float, float, float, float]) -> None:
    length_m = 50.0 if extent_m[1] - extent_m[0] < 600 else 200.0
    x, y = (extent_m[0] + 0.03 * (extent_m[1] - extent_m[0]), extent_m[2] + 0.03 * (extent_m[3] - extent_m[2]))
    axes.plot([x, x + length_m], [y, y], color="white", linewidth=3, solid_capstyle="butt", zorder=5)
    axes.annotate(f"{length_m:g} m, north up", (x, y), (0, 6), textcoords="offset points", color="white", fontsize=11)


def _draw_overview(figure: Figure, mask: MapMask) -> None:
    """The whole map in the lower right corner, with the part that is shown."""
    height, width = mask.overview.shape
    scale = _OVERVIEW_PX / max(height, width) / SIZE_PX
    axes = figure.add_axes((1 - width * scale - 0.01, 0.01, width * scale, height * scale))
    axes.imshow(mask.overview, cmap="gray", extent=(0, mask.whole_m[0], 0, mask.whole_m[1]), aspect="auto")
    axes.set(xticks=[], yticks=[], xlim=(0, mask.whole_m[0]), ylim=(0, mask.whole_m[1]))
    for spine in axes.spines.values():
        spine.set_edgecolor(PALE)
    x_from, x_to, y_from, y_to = mask.extent_m
    axes.add_patch(Rectangle((x_from, y_from), x_to - x_from, y_to - y_from, fill=False, edgecolor=_END, linewidth=1.8))
