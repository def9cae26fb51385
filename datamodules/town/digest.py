"""Digests of a whole town, and the committed ones of the presets: two people who name ``bench`` mean the same bytes."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from datamodules.town.presets import PRESETS, TownConfig
from datamodules.town.writer import VERSION, WORLD_VERSION
from sensors.rig import CAMERAS, CHANNELS, RADARS

PARTS = ("tables", "maps", "cameras", "lidar", "radars")
REFERENCES = Path(__file__).with_name("digests.json")
"""Digests by preset, of one version of the world."""


def digest_of(root: Path) -> dict[str, str]:
    """SHA-256 of each of PARTS of a written town: names and contents of all its files, in the order of the names.

    Raises:
        FileNotFoundError: the town is not finished, or lacks a file that its tables name.
    """
    tables = root / VERSION
    if not (tables / "splits.json").is_file():
        raise FileNotFoundError(f"expected a finished town in {root}, got none; write it first")
    files = {"tables": sorted(tables.glob("*.json")), "maps": sorted((root / "maps").iterdir())}
    for row in sorted(json.loads((tables / "sample_data.json").read_text()), key=lambda row: row["filename"]):
        files.setdefault(_part_of(row["filename"]), []).append(root / row["filename"])
    return {part: _digest(root, files.get(part, [])) for part in PARTS}


def _part_of(filename: str) -> str:
    channel = filename.split("/")[1]
    assert channel in CHANNELS, filename
    return "cameras" if channel in CAMERAS else "radars" if channel in RADARS else "lidar"


def _digest(root: Path, files: list[Path]) -> str:
    whole = hashlib.sha256()
    for file in files:
        try:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
        except FileNotFoundError:
            raise FileNotFoundError(f"expected {file}, which the tables name, got none; write the town again") from None
        whole.update(f"{content}  {file.relative_to(root).as_posix()}\n".encode())
    return whole.hexdigest()


def preset_of(root: Path) -> str | None:
    """The preset whose configuration and world version a town has; None for any other."""
    stamp = root / ".town" / "config.json"
    if not stamp.is_file():
        raise FileNotFoundError(f"expected a town in {root}, got no {stamp}; write it first")
    told = json.loads(stamp.read_text())
    return next((name for name in PRESETS if told == stamp_of(PRESETS[name])), None)


def stamp_of(config: TownConfig) -> dict:
    """What a town notes about itself."""
    return {"world": WORLD_VERSION, **asdict(config)}


def reference_of(preset: str | None) -> dict[str, str] | None:
    """The committed digests of a preset of the present world; None where there are none."""
    told = json.loads(REFERENCES.read_text())
    return told["presets"].get(preset) if told["world"] == WORLD_VERSION else None


def verdict(root: Path) -> tuple[bool | None, str]:
    """Whether a town equals the committed reference of its preset (None: there is none), and that in words."""
    preset, found = preset_of(root), digest_of(root)
    reference = reference_of(preset)
    if reference is None:
        which = (
            f"preset {preset}" if preset else "no preset: a configuration of its own, or another version of the world"
        )
        return None, f"{_listed(found)}\nno committed digest to compare with ({which})"
    differing = [part for part in PARTS if found[part] != reference[part]]
    if differing:
        told = f"differs from the committed reference of preset {preset}, world version {WORLD_VERSION}, in:"
        return False, f"{_listed(found)}\n{told} {', '.join(differing)}"
    return True, f"{_listed(found)}\nequals the committed reference of preset {preset}, world version {WORLD_VERSION}"


def _listed(found: dict[str, str]) -> str:
    return "\n".join(f"{part:8} {found[part]}" for part in PARTS)


def commit_reference(root: Path) -> None:
    """Note a town's digests as its preset's (for a new version of the world)."""
    told = json.loads(REFERENCES.read_text()) if REFERENCES.is_file() else {}
    presets = told.get("presets", {}) if told.get("world") == WORLD_VERSION else {}
    preset = preset_of(Path(root))
    if preset is None:
        raise ValueError(f"expected a town of a preset in {root}, got another configuration; write preset=bench")
    content = {"world": WORLD_VERSION, "presets": {**presets, preset: digest_of(Path(root))}}
    REFERENCES.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
