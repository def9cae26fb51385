"""Which scenes a split consists of: nuScenes' predefined splits, and custom ones in ``<version>/splits.json``."""

import json
from pathlib import Path

PREDEFINED_SPLITS = ("train", "val", "test", "mini_train", "mini_val", "train_detect", "train_track")
"""Names that the devkit reserves: a custom split of such a name would never be read by it."""


def custom_splits(root: Path, version: str) -> dict[str, list[str]]:
    """Scene names by split from ``splits.json``; empty where there is no such file.

    Raises:
        ValueError: the file is no JSON object of lists of scene names.
    """
    path = root / version / "splits.json"
    if not path.is_file():
        return {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got a text that is none ({error}); mend or remove it") from error
    whole = isinstance(splits, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    )
    if not whole:
        raise ValueError(f"expected lists of scene names by split in {path}, got something else; mend or remove it")
    return splits


def scenes_of_split(root: Path, version: str, split: str) -> tuple[str, ...]:
    """Names of the scenes of a split, as the devkit resolves them.

    Raises:
        ValueError: no split of this name, or a predefined one while the devkit cannot be imported.
    """
    if split in PREDEFINED_SPLITS:
        return tuple(_predefined()[split])
    own = custom_splits(root, version)
    if split not in own:
        raise ValueError(
            f"expected one of the splits {', '.join((*own, *PREDEFINED_SPLITS))} of {root / version}, got '{split}'; "
            f"name one of them or add it to {root / version / 'splits.json'}"
        )
    return tuple(own[split])


def _predefined() -> dict[str, list[str]]:
    try:
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError as error:
        raise ValueError(
            f"expected nuscenes-devkit to be importable for nuScenes' predefined splits, got '{error}'; "
            "install nuscenes-devkit or use a custom split"
        ) from error
    return create_splits_scenes()
