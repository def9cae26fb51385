"""Sizes of all files of a version, recorded while they are known to be whole.

A point cloud that was cut off between two points is a shorter, valid cloud: no reader can tell. Whoever has just
unpacked or checked a data set may record the sizes (``dynfusion index ... sizes=true``); from then on a file of another
size is an error. They are kept in the index's folder and go with it when the tables change.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from datamodules.columns import NuScenesIndex

_NAME = "recorded.num_bytes.npy"
_TOLD_EVERY = 10_000


def record_sizes(
    index: NuScenesIndex, root: Path, progress: Callable[[int, int], None] | None = None
) -> Int64[np.ndarray, "m"]:
    """Look at every file that the tables name and keep its size; -1 for a file that is not there.

    Args:
        progress: told numbers of files looked at and of all, now and then.
    """
    names = index.measurements.filename.tolist()
    sizes = np.full(len(names), -1, np.int64)
    for row, name in enumerate(names):
        with contextlib.suppress(FileNotFoundError):
            sizes[row] = os.stat(root / name.decode()).st_size
        if progress and row % _TOLD_EVERY == 0:
            progress(row, len(names))
    descriptor, aside = tempfile.mkstemp(prefix="writing-", suffix=".npy", dir=index.folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, sizes, allow_pickle=False)
        os.replace(aside, index.folder / _NAME)
    except BaseException:
        os.unlink(aside)
        raise
    return sizes


def recorded_sizes(index: NuScenesIndex) -> Int64[np.ndarray, "m"] | None:
    """Bytes of the file of every measurement as recorded, -1 where there was none; None where nothing was recorded."""
    path = index.folder / _NAME
    return np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None


def check_size(path: Path, recorded: int) -> None:
    """Raises ValueError where a file has another size than was recorded, FileNotFoundError where there is none."""
    num_bytes = os.stat(path).st_size
    if recorded >= 0 and num_bytes != recorded:
        raise ValueError(
            f"expected {recorded} bytes in {path} as recorded, got {num_bytes}; copy the file again, or record the "
            "sizes anew with dynfusion index ... sizes=true"
        )
