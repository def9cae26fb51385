"""dynfusion view gallery: every fault of the catalogue (or of a suite) as pictures and one page."""

from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options

TOWN_NOTICE = "A synthetic town, not nuScenes."
NUSCENES_NOTICE = (
    "Pictures of a data set of yours. If it is nuScenes, its terms of use hold for them: non-commercial use, and not "
    "ours to publish."
)


@dataclass
class Options:
    out: str = "gallery"
    root: str = ""
    version: str = ""
    split: str = ""
    sample: int = -1
    faults: list[str] = field(default_factory=list)
    suite: str = ""


def run(arguments: list[str]) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from fusion.view.gallery import Shown, write_gallery

    options = parse_options(arguments, Options)
    faults = chosen_faults(options.faults, options.suite)
    console = Console()
    out = Path(options.out)
    frames = frames_of(options, out, console)
    shown = Shown.of(frames, options.sample)
    is_town = frames.version == "v1.0-town"
    with Progress(TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("faults", total=len(faults))
        entries = write_gallery(
            shown,
            faults,
            out,
            [TOWN_NOTICE if is_town else NUSCENES_NOTICE],
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    problems = [entry for entry in entries if entry.problem]
    for entry in problems:
        console.print(f"{entry.name}: {entry.problem}", soft_wrap=True)
    console.print(f"gallery of {len(entries) - len(problems)} faults: {out / 'index.html'}", soft_wrap=True)
    return 1 if problems else 0


def chosen_faults(names: list[str], suite: str):
    """The named faults, those of a published suite, or the whole catalogue.

    Raises:
        ValueError: an unknown fault or suite.
    """
    from sensors.faults.catalogue import CATALOGUE, fault_named
    from sensors.faults.suites import suite_named

    if names and suite:
        raise ValueError("expected either faults or suite, got both")
    if suite:
        steps = [fault for scenario in suite_named(suite) for fault, _ in scenario.steps]
        return list({(fault.name, fault.channels): fault for fault in steps}.values())
    return [fault_named(name) for name in names] if names else list(CATALOGUE)


def frames_of(options: Options, out: Path, console):
    """Frames of the data set that is asked for, or of a small town beside the pictures, written on first use."""
    from datamodules.nuscenes import NuScenesFrames
    from fusion.commands.corrupt import only_version

    if options.root:
        root = Path(options.root)
        version, split = options.version or only_version(root), options.split or None
        return NuScenesFrames(root, version, split, lidar_sweeps=3, radar_sweeps=3)
    from datamodules.town.presets import TownConfig
    from datamodules.town.writer import VERSION, write_town

    config = TownConfig(
        num_train_scenes=1,
        num_val_scenes=1,
        samples_per_scene=8,
        image_scale=0.4,
        lidar_sweeps=9,
        radar_sweeps=5,
        day_weight=1.0,
        night_weight=0.0,
        fog_weight=0.0,
    )
    with console.status("writing a small town"):
        write_town(out / "town", config)
    return NuScenesFrames(out / "town", VERSION, "town_train", lidar_sweeps=3, radar_sweeps=3)
