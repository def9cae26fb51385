"""dynfusion index root=FOLDER version=VERSION

Reads the thirteen tables of a nuScenes version once and keeps them as a fast, memory-mapped index beside them (or in
the user's cache folder where that is read-only). Other commands do the same on first use; this one shows what was
found. Settings: root, version (v1.0-mini, v1.0-trainval, v1.0-town, ...), sizes (true records the sizes of all files
as they are now; from then on a file of another size is an error).
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.commands.compose import parse_options


@dataclass
class Options:
    root: str = ""
    version: str = ""
    sizes: bool = False


def run(arguments: list[str]) -> int:
    """Build or open the index and print what it holds."""
    from rich.console import Console

    from datamodules.index import open_index
    from datamodules.sizes import record_sizes

    options = parse_options(arguments, Options)
    if not options.root or not options.version:
        raise ValueError(f"expected root=FOLDER version=VERSION, got '{' '.join(arguments)}'")
    console = Console()
    begun = time.perf_counter()
    with console.status("opening the index") as status:
        index = open_index(Path(options.root), options.version, status.update)
        if options.sizes:
            num_bytes = record_sizes(
                index, Path(options.root), lambda done, total: status.update(f"looking at files: {done:,} of {total:,}")
            )
    seconds = time.perf_counter() - begun
    console.print(_summary(index, f"{options.version} in {options.root}"))
    console.print(_classes(index))
    if options.sizes:
        there = num_bytes[num_bytes >= 0]
        console.print(f"sizes of {len(there):,} of {len(num_bytes):,} files recorded, {there.sum() / 1e9:.1f} GB")
    console.print(f"index ready in {seconds:.1f} s: {index.folder}", soft_wrap=True)
    return 0


def _summary(index, title: str):
    from rich.table import Table

    from sensors.rig import CHANNELS

    table = Table(title=title)
    for heading in ("channel", "keyframes", "all measurements"):
        table.add_column(heading, justify="left" if heading == "channel" else "right")
    keyframes = (index.samples.keyframes >= 0).sum(axis=0)
    everything = np.bincount(index.measurements.channel.astype(int) + 1, minlength=len(CHANNELS) + 1)[1:]
    for row, channel in enumerate(CHANNELS):
        table.add_row(channel, f"{keyframes[row]:,}", f"{everything[row]:,}")
    table.caption = f"{len(index.scenes.name):,} scenes, {len(index.samples.token):,} samples"
    return table


def _classes(index):
    from rich.table import Table

    from sensors.boxes import DETECTION_NAMES

    table = Table(title="annotations")
    for heading in ("class", "boxes", "without points", "velocity unknown"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    columns = index.annotations
    without_points = (columns.num_lidar + columns.num_radar) == 0
    unknown = np.isnan(columns.velocity_mps[:, 0])
    for label, name in [*enumerate(DETECTION_NAMES), (-1, "other categories")]:
        own = columns.label == label
        table.add_row(
            name, *(f"{count:,}" for count in (own.sum(), (own & without_points).sum(), (own & unknown).sum()))
        )
    return table
