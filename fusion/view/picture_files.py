"""Pictures and films as files: whole or not at all. GIF by Pillow, MP4 (MPEG-4 part 2) by OpenCV."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

KINDS = (".png", ".gif", ".mp4")
MAX_FPS = 50.0

Picture = UInt8[np.ndarray, "h w 3"]


def kind_of(path: Path) -> str:
    """The file's ending, in lower case.

    Raises:
        ValueError: it is none of KINDS.
    """
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"expected out=FILE with the ending {', '.join(KINDS)}, got '{path}'")
    return kind


def check_fps(fps: float) -> None:
    """Raises ValueError for frames per second that a film cannot have (a GIF counts in hundredths of a second)."""
    if not 0.05 <= fps <= MAX_FPS:
        raise ValueError(f"expected fps from 0.05 to {MAX_FPS:g}, got {fps}")


def write_png(path: Path, pixels: Picture) -> None:
    """One RGB picture."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV could not encode a PNG from uint8 RGB"
    with _aside(path) as aside:
        aside.write_bytes(encoded.tobytes())


def write_gif(path: Path, pictures: Iterator[Picture], fps: float, kept: Sequence[str] = ()) -> None:
    """Pictures of one size, shown again and again; each has a palette of its own.

    Args:
        kept: colours such as ``#ff8800`` that every palette has, so that they still mean what a key says.
    """
    check_fps(fps)
    images = (_reduced(picture, kept) for picture in pictures)
    with _aside(path) as aside:
        first = next(images)
        first.save(aside, "GIF", save_all=True, append_images=images, duration=round(1000 / fps), loop=0)


def _reduced(picture: Picture, kept: Sequence[str]):
    """A Pillow image of 256 colours: the kept ones and those that suit the picture."""
    from PIL import Image

    full = Image.fromarray(picture)
    suited = full.quantize(256 - len(kept), Image.Quantize.MEDIANCUT).getpalette()[: 3 * (256 - len(kept))]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*suited, *b"".join(bytes.fromhex(colour.removeprefix("#")) for colour in kept)])
    return full.quantize(palette=palette, dither=Image.Dither.NONE)


def write_mp4(path: Path, pictures: Iterator[Picture], fps: float) -> None:
    """Pictures of one size with even sides.

    Raises:
        ValueError: this OpenCV cannot write MP4.
    """
    check_fps(fps)
    with _aside(path) as aside:
        first = next(pictures)
        height, width = first.shape[:2]
        film = cv2.VideoWriter(str(aside), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
        if not film.isOpened():
            raise ValueError(f"expected an OpenCV that writes MP4, this one cannot write {path}; use out=FILE.gif")
        try:
            film.write(cv2.cvtColor(first, cv2.COLOR_RGB2BGR))
            for picture in pictures:
                film.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        finally:
            film.release()


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A file of the same ending in the same folder, which takes the name once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
