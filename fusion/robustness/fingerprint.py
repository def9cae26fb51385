"""Words that tell whether two results come from the same checkpoint, data and code."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

_PACKAGES = ("sensors", "datamodules", "fusion")
_WITHOUT_INFLUENCE = ("fusion/report", "fusion/view", "fusion/commands", "fusion/cli.py", "fusion/robustness/table.py")
"""Code that shows results and makes none."""


def model_word(model: nn.Module) -> str:
    """Of all weights and buffers."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def dataset_word(root: Path, version: str) -> str:
    """Of the tables of a version, ``splits.json`` included; sensor files are not read."""
    return _files_word(sorted((root / version).glob("*.json")), root)


@functools.cache
def code_word() -> str:
    """Of the sources that have an influence on scores, read once: edits after the start do not run in this process."""
    base = Path(__file__).parents[2]
    sources = [path for package in _PACKAGES for path in sorted((base / package).rglob("*.py"))]
    kept = [path for path in sources if not path.relative_to(base).as_posix().startswith(_WITHOUT_INFLUENCE)]
    return _files_word(kept, base)


def joined_word(*parts: str) -> str:
    """One word for several."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _files_word(paths: Iterable[Path], base: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        digest.update(path.relative_to(base).as_posix().encode() + b"\0")
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
