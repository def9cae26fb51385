"""A scene as a film: six views with boxes and the view from above, keyframe by keyframe."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from datamodules.nuscenes import NuScenesFrames
from fusion.report.colours import BACKGROUND, CLASS_COLOURS, LABEL_COLOUR, RADAR_COLOUR
from fusion.view.picture_files import check_fps, kind_of, write_gif, write_mp4
from fusion.view.sample import Layout, sample_picture

FILM = Layout(tile_px=(288, 162), columns=2, bev_px=486, title_px=28, with_points=False)


def write_film(
    path: Path, frames: NuScenesFrames, place: int, fps: float, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write the scene of the frame at ``place`` as GIF or MP4; returns the number of pictures.

    Raises:
        ValueError: another ending, or frames per second out of range.
    """
    check_fps(fps)
    kind = kind_of(path)
    places = np.flatnonzero(frames.scene_rows == frames.scene_rows[place])
    pictures = _pictures(frames, places.tolist(), progress)
    if kind == ".mp4":
        write_mp4(path, pictures, fps)
    else:
        write_gif(path, pictures, fps, (*CLASS_COLOURS.values(), RADAR_COLOUR, BACKGROUND, LABEL_COLOUR))
    return len(places)


def _pictures(
    frames: NuScenesFrames, places: list[int], progress: Callable[[int, int], None] | None
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """One after the other: a scene of large pictures does not fit into memory everywhere."""
    for number, place in enumerate(places, start=1):
        if progress:
            progress(number, len(places))
        yield sample_picture(frames[place], FILM)
