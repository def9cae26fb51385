"""Writes a corrupted copy of a data set: in parallel, resumable, the same bytes whatever the number of processes.

Until the copy is complete it keeps ``.corrupt/``: what was asked for, and one record per finished sample. The manifest
is written last, so a folder that has one is complete.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datamodules.corrupt.files import NOTES, link, put, room_on_disk, temporary_folder
from datamodules.corrupt.manifest import FAULTS, MANIFEST, encoded, faults_of, manifest_of
from datamodules.corrupt.request import CopyRequest
from datamodules.corrupt.sample import SampleCopier
from datamodules.corrupt.tables import TableChanges
from sensors.rig import CAMERAS

_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
_CHUNK = 4

Progress = Callable[[int, int], None]


def write_copy(request: CopyRequest, out: Path, num_workers: int = 1, progress: Progress | None = None) -> dict:
    """Write the copy, or finish one that was interrupted; a complete one is left as it is. Returns the manifest.

    Args:
        out: a new or empty folder, or one that holds the same copy in part.
        num_workers: processes; 1 works in this one.
        progress: called with the numbers of finished and of all samples, also once at the start.

    Raises:
        FileNotFoundError: the source or one of its files is not there.
        ValueError: out is the source or holds something else, the disk is full, or a fault cannot be applied.
    """
    if num_workers < 1:
        raise ValueError(f"expected workers of at least 1, got {num_workers}")
    out = Path(out)
    if complete := _complete(request, out):
        shutil.rmtree(out / NOTES, ignore_errors=True)
        return complete
    copier = SampleCopier(request, out)
    missing = [i for i, token in enumerate(copier.frames.tokens) if not _finished(out, token)]
    if missing:
        # A fault that cannot be applied is found out before anything is written.
        copier.harmed(missing[0])
    with room_on_disk(out):
        _claim(request, out)
    total = len(copier.frames)
    if progress:
        progress(total - len(missing), total)
    for number, _ in enumerate(_run(copier, missing, num_workers), start=total - len(missing) + 1):
        if progress:
            progress(number, total)
    return _finish(copier)


def check_places(root: Path, out: Path) -> None:
    """Raises ValueError where source and copy would share a folder."""
    source, target = root.resolve(), out.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ValueError(
            f"expected out to be a folder apart from the source {root}, got {out}; a copy never touches its source"
        )
    if out.exists() and not out.is_dir():
        raise ValueError(f"expected out to be a folder, got the file {out}; choose another")


def _complete(request: CopyRequest, out: Path) -> dict | None:
    """The manifest of a copy that is there already. Raises ValueError where the folder holds something else."""
    check_places(request.root, out)
    stamp, manifest = out / NOTES / "request.json", out / MANIFEST
    if not out.exists() or not any(entry.name != NOTES or stamp.exists() for entry in out.iterdir()):
        return None
    try:
        content = json.loads(manifest.read_text()) if manifest.is_file() else None
        held = content["request"] if content else json.loads(stamp.read_text()) if stamp.is_file() else None
    except (ValueError, TypeError, KeyError):
        held = None
    wanted = json.loads(json.dumps(request.to_json()))
    if held is None:
        raise ValueError(f"expected {out} to be empty or an unfinished copy, got other files; choose another out")
    different = [key for key in wanted if held.get(key) != wanted[key]]
    if different:
        raise ValueError(
            f"expected {out} to hold the same copy, got one with another {', '.join(different)}; choose another out"
        )
    return content


def _claim(request: CopyRequest, out: Path) -> None:
    shutil.rmtree(temporary_folder(out), ignore_errors=True)
    (out / NOTES / "samples").mkdir(parents=True, exist_ok=True)
    put(out, f"{NOTES}/request.json", encoded(request.to_json()))


def _record_name(token: str) -> str:
    return f"{NOTES}/samples/{token}.json"


def _finished(out: Path, token: str) -> bool:
    """Its record is there, which is written last, and the files that it names have their sizes."""
    record = out / _record_name(token)
    if not record.is_file():
        return False
    written = json.loads(record.read_text())["written"]
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in written.items())


def _make(copier: SampleCopier, i: int) -> None:
    record = copier.write(i)
    put(copier.out, _record_name(record["token"]), encoded(record))


def _run(copier: SampleCopier, missing: list[int], num_workers: int) -> Iterator[None]:
    """Yields once per finished sample."""
    if num_workers == 1 or len(missing) < 2:
        for i in missing:
            yield _make(copier, i)
        return
    chunks = [missing[first : first + _CHUNK] for first in range(0, len(missing), _CHUNK)]
    context = multiprocessing.get_context("spawn")
    arguments = (copier.request, copier.out)
    with (
        _single_threaded_children(),
        ProcessPoolExecutor(min(num_workers, len(chunks)), context, _start_worker, arguments) as pool,
    ):
        try:
            for future in as_completed([pool.submit(_work, chunk) for chunk in chunks]):
                yield from future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_copier_of_worker: SampleCopier | None = None


def _start_worker(request: CopyRequest, out: Path) -> None:
    import cv2

    global _copier_of_worker
    cv2.setNumThreads(1)
    _copier_of_worker = SampleCopier(request, out)


def _work(chunk: list[int]) -> list[None]:
    return [_make(_copier_of_worker, i) for i in chunk]


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes are the parallelism here; numeric libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _finish(copier: SampleCopier) -> dict:
    """Tables, maps and notes, then the manifest."""
    request, out, frames = copier.request, copier.out, copier.frames
    records = [json.loads((out / _record_name(token)).read_text()) for token in frames.tokens]
    changes = _table_changes(copier, records)
    tables = request.root / request.version
    # What the source lacks of these (a download of keyframes alone), the copy lacks too.
    others = [name for name in changes.others(tables) if (request.root / name).is_file()]
    for name in others:
        link(out, name, request.root / name)
    changes.write(tables, out)
    for path in sorted([*(request.root / "maps").rglob("*"), *request.root.glob("LICENSE*")]):
        if path.is_file():
            link(out, path.relative_to(request.root).as_posix(), path)
    put(out, FAULTS, encoded(faults_of(records)))
    content = manifest_of(request, records, len(others), changes.num_removed, copier.num_lacking)
    manifest = json.loads(json.dumps(content))
    put(out, MANIFEST, encoded(manifest))
    shutil.rmtree(out / NOTES, ignore_errors=True)
    return manifest


def _table_changes(copier: SampleCopier, records: list[dict]) -> TableChanges:
    index, request = copier.frames.index, copier.request
    harmed = {name for name in request.touched() if name not in CAMERAS or request.camera_sweeps == "remove"}
    given = {
        index.measurements.filename[row].decode()
        for i in range(len(copier.frames))
        for chain in copier.chains(i).values()
        for row in chain
    }
    tokens = set(copier.frames.tokens)
    rows = np.flatnonzero(np.isin(index.samples.token, [token.encode() for token in tokens]))
    scenes = {index.scenes.token[scene].decode() for scene in np.unique(index.samples.scene[rows]).tolist()}
    everything = len(rows) == len(index.samples.token)
    changed = {name: change for record in records for name, change in record["changed"].items()}
    return TableChanges(None if everything else scenes, None if everything else tokens, harmed, given, changed)
