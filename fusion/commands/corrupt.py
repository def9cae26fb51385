"""dynfusion corrupt root=FOLDER out=FOLDER scenario=SUITE/NAME [key=value ...]
dynfusion corrupt root=FOLDER out=FOLDER fault=NAME level=X [channels=[CHANNEL,...]] [key=value ...]

Writes a corrupted copy of a data set in nuScenes' format, for other code bases: keyframes and the sweeps that lead to
them. An interrupted copy goes on with the same command; a complete one is left as it is. Settings: version (needed
where root holds several), split (all scenes if none), seed=0, workers (all cores), jpeg_quality=95, lost=missing or
empty (what a lost sensor leaves), camera_sweeps=remove or keep, close_m=1.0. docs/corrupt.md tells more.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options


@dataclass
class Options:
    root: str = ""
    out: str = ""
    version: str = ""
    split: str = ""
    scenario: str = ""
    fault: str = ""
    level: float | None = None
    channels: list[str] = field(default_factory=list)
    seed: int = 0
    workers: int = 0
    jpeg_quality: int = 95
    lost: str = "missing"
    camera_sweeps: str = "remove"
    close_m: float = 1.0


def run(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from datamodules.corrupt.writer import write_copy

    options = parse_options(arguments, Options)
    request = request_of(options)
    if options.workers < 0:
        raise ValueError(f"expected workers of at least 1 (or 0 for one per core), got {options.workers}")
    console = Console()
    columns = (TextColumn("copying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("samples", total=None)
        manifest = write_copy(
            request,
            Path(options.out),
            options.workers or os.cpu_count() or 1,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    files = manifest["files"]
    console.print(
        f"{manifest['samples']} samples in {options.out}: {files['written']} files written "
        f"({files['written_bytes'] / 1e6:.1f} MB), {files['unchanged']} unchanged, {files['without_file']} of lost "
        "sensors without a file",
        soft_wrap=True,
    )
    if lacking := files["sweeps_that_the_source_lacks"]:
        console.print(f"Keyframes alone: the source lacks {lacking} sweeps that its tables name.", soft_wrap=True)
    if files["without_file"]:
        console.print("Our readers take missing=absent for them; lost=empty writes empty files instead.")
    return 0


def request_of(options: Options):
    """What the settings ask for.

    Raises:
        FileNotFoundError, ValueError: a setting that is missing or cannot be.
    """
    from datamodules.corrupt.request import CopyRequest

    if not options.root or not options.out:
        raise ValueError("expected root=FOLDER out=FOLDER, got no such setting; see dynfusion corrupt --help")
    root = Path(options.root)
    return CopyRequest(
        root=root,
        version=options.version or only_version(root),
        split=options.split or None,
        scenario=options.scenario,
        fault=options.fault,
        level=options.level,
        channels=tuple(options.channels),
        seed=options.seed,
        jpeg_quality=options.jpeg_quality,
        lost=options.lost,
        camera_sweeps=options.camera_sweeps,
        close_m=options.close_m,
    )


def only_version(root: Path) -> str:
    """The version that a data set holds. Raises where it holds none or several."""
    found = sorted(path.parent.name for path in root.glob("*/sample.json"))
    if not root.is_dir() or not found:
        raise FileNotFoundError(f"expected a data set in nuScenes' format in {root}, found none; set root=")
    if len(found) > 1:
        raise ValueError(f"expected version=VERSION, since {root} holds {', '.join(found)}; name one of them")
    return found[0]
