"""Words that tell whether two results come from the same checkpoint, data and code."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datamodules.columns import NuScenesIndex

_PACKAGES = ("sensors", "datamodules", "fusion")
_WITHOUT_INFLUENCE = ("fusion/report", "fusion/view", "fusion/commands", "fusion/cli.py", "fusion/robustness/table.py")
"""Code that shows results and makes none."""

_NUM_SAMPLED = 32
"""Samples whose files count: at nuScenes' size 50 MB, which a tenth of a second reads."""


def model_word(model: nn.Module) -> str:
    """Of all weights and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def dataset_word(root: Path, version: str) -> str:
    """Of the tables of a version, ``splits.json`` included; sensor files are ``sensor_files_word``'s."""
    return _files_word(sorted((root / version).glob("*.json")), root)


def sensor_files_word(index: NuScenesIndex, root: Path, tokens: Sequence[str]) -> str:
    """Of the keyframe files of samples spread evenly over a split: their names and all that is in them.

    A copy of the data set with other pictures or points is another one; a change in files that are not among them goes
    unseen, as do sweeps. A split of up to 32 samples has all its keyframes in the word. A file that is not there counts
    as that.

    Args:
        tokens: of the split, in its order.
    """
    row_of = {token: row for row, token in enumerate(index.samples.token.tolist())}
    places = np.unique(np.linspace(0, len(tokens) - 1, _NUM_SAMPLED).round().astype(int))
    keyframes = index.samples.keyframes[[row_of[tokens[place].encode()] for place in places]]
    names = index.measurements.filename[keyframes[keyframes >= 0]].tolist()
    return _files_word([root / name.decode() for name in names], root)


@functools.cache
def code_word() -> str:
    """Of the sources that have an influence on scores, read once: edits after the start do not run in this process."""
    return sources_word(Path(__file__).parents[2])


def sources_word(base: Path) -> str:
    """Of the sources below a folder that holds our packages."""
    sources = [path for package in _PACKAGES for path in sorted((base / package).rglob("*.py"))]
    kept = [path for path in sources if not path.relative_to(base).as_posix().startswith(_WITHOUT_INFLUENCE)]
    return _files_word(kept, base)


def joined_word(*parts: str) -> str:
    """One word for several."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _files_word(paths: Iterable[Path], base: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        # Its size, too: nothing can pass from the end of one file to the start of the next.
        size = path.stat().st_size if path.is_file() else -1
        digest.update(f"{path.relative_to(base).as_posix()}\0{size}\0".encode())
        if size < 0:
            continue
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
