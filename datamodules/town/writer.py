"""Writes a town to disk: in parallel, resumable, every file whole or not there at all.

Beside nuScenes' own layout a town keeps ``.town/``: its configuration, and one record per finished scene and sample.
A sample counts as finished when its record exists and every file that it names has the recorded size.
"""

import errno
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from datamodules.town.claim import claimed
from datamodules.town.presets import TownConfig
from datamodules.town.sampling import SceneSampler, all_samples
from datamodules.town.tables import build_tables, logfile_of, map_filename, splits_of
from datamodules.town.world import SceneKey, scene_keys
from sensors.rig import CAMERAS, CHANNELS, RADARS

VERSION = "v1.0-town"
WORLD_VERSION = 3
"""Raised when the same configuration gives other bytes than before, so that no town is finished by another world."""
_LONGEST_CHUNK = 20
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}

Progress = Callable[[int, int], None]


def write_town(root: Path, config: TownConfig, num_workers: int = 1, progress: Progress | None = None) -> None:
    """Write a town, or finish one that was interrupted. Equal configurations give equal bytes.

    Args:
        root: a new or empty folder, or one that holds the same town in part.
        num_workers: processes; 1 works in this one.
        progress: called with the numbers of finished and of all samples, also once at the start.

    Raises:
        ValueError: root is a file, or holds something else.
    """
    if num_workers < 1:
        raise ValueError(f"expected num_workers >= 1, got {num_workers}")
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise ValueError(f"expected root to be a folder, got the file {root}; choose another root")
    if not (_notes(root) / "config.json").exists() and _holds_other_files(root):
        raise ValueError(f"expected {root} to be empty or an unfinished town, got other files; choose another root")
    with claimed(_notes(root)):
        try:
            _write(root, config, num_workers, progress)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise ValueError(
                f"expected room for the town in {root}, got a full disk; free some and run the same command again: "
                "what is finished stays"
            ) from None
        except BrokenProcessPool:
            raise ValueError(
                f"expected {num_workers} workers to live to the end, got one that was killed (out of memory?); run the "
                "same command again, perhaps with fewer: what is finished stays"
            ) from None


def _holds_other_files(root: Path) -> bool:
    return root.exists() and any(entry.name != ".town" for entry in root.iterdir())


def _write(root: Path, config: TownConfig, num_workers: int, progress: Progress | None) -> None:
    _claim(root, config)
    total = config.num_samples
    missing = [job for job in all_samples(config) if not _finished(root, config, *job)]
    done = total - len(missing)
    if progress:
        progress(done, total)
    for _ in _run(root, config, missing, num_workers):
        done += 1
        if progress:
            progress(done, total)
    _write_tables(root, config)
    shutil.rmtree(_notes(root) / "tmp", ignore_errors=True)


def _notes(root: Path) -> Path:
    return root / ".town"


def _claim(root: Path, config: TownConfig) -> None:
    """Make sure that the folder holds no other town, and prepare it."""
    stamp = _notes(root) / "config.json"
    wanted = json.dumps({"world": WORLD_VERSION, **asdict(config)}, indent=1, sort_keys=True)
    if stamp.exists() and stamp.read_text() != wanted:
        raise ValueError(
            f"expected {root} to hold the same town, got one of another configuration; choose another root"
        )
    shutil.rmtree(_notes(root) / "tmp", ignore_errors=True)
    for folder in ("tmp", "scenes", "samples"):
        (_notes(root) / folder).mkdir(parents=True, exist_ok=True)
    if not stamp.exists():
        _put(root, ".town/config.json", wanted.encode())
    folders = ["maps", VERSION, *(f"samples/{channel}" for channel in CHANNELS)]
    folders += ["sweeps/LIDAR_TOP"] if config.lidar_sweeps else []
    folders += [f"sweeps/{channel}" for channel in RADARS] if config.radar_sweeps else []
    folders += [f"sweeps/{channel}" for channel in CAMERAS] if config.camera_sweeps else []
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)


def _put(root: Path, filename: str, content: bytes) -> None:
    """Write under another name first: a reader never sees half a file."""
    temporary = _notes(root) / "tmp" / f"{os.getpid()}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, root / filename)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _record_name(key: SceneKey, index: int) -> str:
    return f".town/samples/{key.name}-{index:04d}.json"


def _scene_name(key: SceneKey) -> str:
    return f".town/scenes/{key.name}.json"


def _finished(root: Path, config: TownConfig, key: SceneKey, index: int) -> bool:
    record = root / _record_name(key, index)
    if not record.exists() or not (root / _scene_name(key)).exists() or not (root / map_filename(config, key)).exists():
        return False
    rows = json.loads(record.read_text())["data"]
    return all(_size(root / row["filename"]) == row["num_bytes"] for row in rows)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _run(root: Path, config: TownConfig, jobs: list[tuple[SceneKey, int]], num_workers: int):
    """Yield once per finished sample."""
    longest = min(_LONGEST_CHUNK, max(1, math.ceil(len(jobs) / (3 * num_workers))))
    chunks = _chunks(jobs, longest)
    if num_workers == 1 or not chunks:
        for chunk in chunks:
            yield from _make(root, config, *chunk)
        return
    context = multiprocessing.get_context("spawn")
    finished = context.Queue()
    with (
        _single_threaded_children(),
        ProcessPoolExecutor(min(num_workers, len(chunks)), context, _start_worker, (finished,)) as pool,
    ):
        waiting = {pool.submit(_work, root, config, *chunk) for chunk in chunks}
        told = 0
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.3, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                while not finished.empty():
                    told += finished.get()
                    yield
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for _ in range(len(jobs) - told):
            yield


def _chunks(jobs: list[tuple[SceneKey, int]], longest: int) -> list[tuple[SceneKey, list[int]]]:
    """Samples of one scene stay together, since building a world takes longer than one sample."""
    chunks: list[tuple[SceneKey, list[int]]] = []
    for key, index in jobs:
        if chunks and chunks[-1][0] == key and len(chunks[-1][1]) < longest:
            chunks[-1][1].append(index)
        else:
            chunks.append((key, [index]))
    return chunks


@contextmanager
def _single_threaded_children():
    """Processes are the parallelism here; numeric libraries read these variables when they are loaded."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


_finished_queue = None


def _start_worker(finished) -> None:
    global _finished_queue
    _finished_queue = finished


def _work(root: Path, config: TownConfig, key: SceneKey, indices: list[int]) -> None:
    for _ in _make(root, config, key, indices):
        _finished_queue.put(1)


def _make(root: Path, config: TownConfig, key: SceneKey, indices: list[int]):
    """Write the files of some keyframes of one scene; the record last, since it says that all is there."""
    import cv2

    cv2.setNumThreads(1)
    sampler = SceneSampler(config, key)
    if not (root / _scene_name(key)).exists() or not (root / map_filename(config, key)).exists():
        _put(root, map_filename(config, key), sampler.world.ground.mask_png())
        _put(root, _scene_name(key), _json(sampler.scene_record()))
    for index in indices:
        files, record = sampler.sample(index, logfile_of(config, key))
        for file in files:
            _put(root, file.filename, file.content)
        _put(root, _record_name(key, index), _json(record))
        yield index


def _write_tables(root: Path, config: TownConfig) -> None:
    keys = scene_keys(config)
    scenes = []
    for key in keys:
        records = [root / _record_name(key, index) for index in range(config.samples_per_scene)]
        scene = json.loads((root / _scene_name(key)).read_text())
        scenes.append((key, scene, [json.loads(record.read_text()) for record in records]))
    for name, rows in build_tables(config, scenes).items():
        _put(root, f"{VERSION}/{name}.json", _json(rows))
    _put(root, f"{VERSION}/splits.json", _json(splits_of(keys)))


def _json(content) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
