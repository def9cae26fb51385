"""Files of a copy: each whole or not there at all, unchanged ones sharing their blocks with the source."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NOTES = ".corrupt"
"""What a copy keeps of its progress until it is complete."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def put(out: Path, name: str, content: bytes) -> None:
    """Write ``out/name`` under another name first: a reader never sees half a file.

    Raises:
        ValueError: the disk is full; nothing of the file is left.
    """
    _placed(out, name, lambda temporary: temporary.write_bytes(content))


def link(out: Path, name: str, source: Path) -> None:
    """Hard-link ``out/name`` to the source, or copy it where the file system has no such links.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the disk is full.
    """
    target = out / name
    if target.exists() and target.samefile(source):
        return
    if not source.is_file():
        raise FileNotFoundError(f"expected the file {source} that the tables name, found none; copy it first")
    _placed(out, name, lambda temporary: _linked_or_copied(source, temporary))


def write_lines(out: Path, name: str, lines: Iterator[str]) -> None:
    """Write a text line by line, as ``put`` does."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    _placed(out, name, write)


def temporary_folder(out: Path) -> Path:
    """Where unfinished files lie: on the same file system, so that a rename moves them."""
    return out / NOTES / "tmp"


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Turns the error of a full disk into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ValueError(
            f"expected room for {path}, got '{os.strerror(error.errno)}'; free some and give the same command again: "
            "it goes on where it stopped"
        ) from error


def _placed(out: Path, name: str, make: Callable[[Path], object]) -> None:
    target, temporary = out / name, temporary_folder(out) / f"{os.getpid()}"
    with room_on_disk(target):
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            make(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _linked_or_copied(source: Path, temporary: Path) -> None:
    try:
        os.link(source.resolve(), temporary)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        # Another file system, or one without hard links: the bytes are what counts.
        shutil.copyfile(source, temporary)
