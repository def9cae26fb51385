"""One writer per folder: a lock that the system lets go of when its process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(notes: Path) -> Iterator[None]:
    """Hold the folder's lock file for the duration.

    Raises:
        ValueError: another process is writing there.
    """
    notes.mkdir(parents=True, exist_ok=True)
    lock = os.open(notes / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"expected {notes.parent} for this process alone, got another one writing there; "
                "wait for it or choose another root"
            ) from None
        yield
    finally:
        os.close(lock)
