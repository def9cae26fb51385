"""dynfusion view root=FOLDER: a sample as a picture, a scene as a film, or a scene's map."""

from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import parse_options

_TEXTS = ("root", "version", "split", "sample", "scene", "out")


@dataclass
class Options:
    root: str = ""
    version: str = ""
    split: str = ""
    sample: str = ""
    index: int = 0
    scene: str = ""
    map: bool = False
    out: str = ""
    fps: float = 2.0
    missing: str = "error"


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.commands.corrupt import only_version
    from fusion.view.picture_files import kind_of, write_png
    from fusion.view.sample import find_sample
    from fusion.view.scene import write_film

    options = parse_options([_as_text(argument) for argument in arguments], Options)
    if not options.root:
        raise ValueError("expected root=FOLDER of a data set, got none; see dynfusion view --help")
    out = Path(options.out or ("map.png" if options.map else "view.png"))
    kind = kind_of(out)
    if options.map and kind != ".png":
        raise ValueError(f"expected out=FILE.png for a map, got {out}")
    if options.sample and (options.scene or options.index):
        raise ValueError("expected either sample=TOKEN or scene and index, got both")
    frames = _frames(options, options.version or only_version(Path(options.root)), blind=options.map)
    place = find_sample(frames, options.sample, options.scene, options.index)
    console = Console()
    if options.map:
        from fusion.view.map import map_picture

        write_png(out, map_picture(frames, place))
    elif kind == ".png":
        from fusion.view.sample import sample_picture

        write_png(out, sample_picture(frames[place]))
    else:
        with console.status("drawing") as status:
            write_film(
                out, frames, place, options.fps, lambda done, total: status.update(f"drawing frame {done} of {total}")
            )
    console.print(f"written: {out}", soft_wrap=True)
    return 0


def _frames(options: Options, version: str, blind: bool):
    """The frames of a split, or of all scenes; for a map no sensor's file is needed."""
    from datamodules.nuscenes import NuScenesFrames

    sweeps = 0 if blind else 1
    return NuScenesFrames(
        options.root, version, options.split or None, sweeps, sweeps, cameras=not blind, missing=options.missing
    )


def _as_text(argument: str) -> str:
    """A token of digits alone, or such as 12e34, is a text and no number."""
    key, equals, value = argument.partition("=")
    return f"{key}='{value}'" if equals and key in _TEXTS and value and "'" not in value else argument
