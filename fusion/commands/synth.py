"""dynfusion synth root=FOLDER [preset=tiny|demo|bench|large] [workers=N] [FIELD=VALUE ...]
dynfusion synth root=FOLDER [preset=...] verify=true
dynfusion synth root=FOLDER sheet=true

Writes a synthetic town in nuScenes' on-disk format, or goes on with one that was interrupted. A FIELD is one of
TownConfig's: num_train_scenes, num_val_scenes, samples_per_scene, image_scale, lidar_sweeps, radar_sweeps,
camera_sweeps, num_actors, seed, day_weight, night_weight, fog_weight, rain_weight, dark_share (of the fog and rain
scenes), shuffle_materials=true (the same town in liveries of other classes). verify=true compares a written town with
the committed digests of its preset (tiny and bench have some) and names the parts that differ; sheet=true prints its
statistics beside those of real nuScenes. Both write nothing. More: docs/town.md.
"""

import os
from pathlib import Path

from datamodules.town.digest import preset_of, reference_of, verdict
from datamodules.town.presets import TownConfig, town_config
from datamodules.town.sheet import figures_of, sheet
from datamodules.town.writer import VERSION, write_town

_OWN_KEYS = ("root", "preset", "workers", "sheet", "verify")


def run(arguments: list[str]) -> int:
    """Write the town that ``key=value`` arguments describe, showing the time left.

    Keys: ``root`` (needed), ``preset``, ``workers``, and every field of TownConfig. ``sheet=true`` writes nothing: it
    prints what the town in ``root`` holds beside real nuScenes. ``verify=true`` compares the digests of what is there
    with the committed ones of its preset; it too writes nothing, and the status is 1 where they differ.

    Raises:
        ValueError: an argument that is no ``key=value``, an unknown key, or a value out of range.
    """
    root, workers, config = parse(arguments)
    if "sheet=true" in arguments:
        print(sheet(figures_of(root, VERSION)))
        return 0
    if "verify=true" in arguments:
        same, text = verdict(root)
        print(text)
        return int(same is False)
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("writing the town"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bars:
        task = bars.add_task("samples", total=config.num_samples)
        write_town(root, config, workers, lambda done, total: bars.update(task, completed=done, total=total))
    print(f"{config.num_samples} samples in {root} (version {VERSION}, splits town_train and town_val)")
    if reference_of(preset_of(root)):
        print(verdict(root)[1].splitlines()[-1])
    return 0


def parse(arguments: list[str]) -> tuple[Path, int, TownConfig]:
    """Root, number of processes and configuration."""
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not value:
            raise ValueError(f"expected key=value, got '{argument}'; for example root=towns/demo preset=demo")
        given[name] = value
    if "root" not in given:
        raise ValueError("expected root=FOLDER, got none; say where to write the town, e.g. root=towns/demo")
    own = {name: given.pop(name) for name in _OWN_KEYS if name in given}
    unknown = [name for name in given if name not in TownConfig.__dataclass_fields__]
    if unknown:
        valid = ", ".join((*_OWN_KEYS, *TownConfig.__dataclass_fields__))
        raise ValueError(f"expected keys among {valid}; got '{unknown[0]}'")
    for name in ("sheet", "verify"):
        if own.get(name, "false") not in ("true", "false"):
            raise ValueError(f"expected {name}=true or {name}=false, got {name}={own[name]}")
    workers = own.get("workers", str(os.cpu_count() or 1))
    if not workers.isdigit() or int(workers) < 1:
        raise ValueError(f"expected workers to be a whole number >= 1, got '{workers}'")
    return Path(own["root"]), int(workers), town_config(own.get("preset", "demo"), given)
