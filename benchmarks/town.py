"""How fast towns are written, how large they are, and what memory it takes: ``python benchmarks/town.py [OUT.json]``.

The same 40 samples (8 scenes of 5, pictures of 400x225, all 12 channels, one LiDAR sweep) are written by one worker, by
two, and by one again, each in a fresh process, into temporary folders; the rate of one worker is the mean before and
after. Two processes that only count say what the machine itself gives to two at once: less than 2 where cores are
shared with others. A rate counts the samples after the first one and the time from then on, since starting Python and
loading Open3D happens once per run, not once per sample. Takes about a minute on two cores of its own; what else runs
there shows.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from machine import write_results

from datamodules.town.presets import TownConfig
from datamodules.town.writer import WORLD_VERSION, write_town
from sensors.rig import CAMERAS, LIDAR

CONFIG = TownConfig(num_train_scenes=6, num_val_scenes=2, samples_per_scene=5, image_scale=0.25)
_EARLY = 10


def timed_writing(root: str, num_workers: int, answers) -> None:
    """Write the town; answer with the time of each finished sample and the memory after some of them, in MiB."""
    finished_s, memory = [], {}

    def progress(done: int, total: int) -> None:
        finished_s.append(time.monotonic())
        memory[done] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    write_town(Path(root), CONFIG, num_workers, progress)
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    answers.put((finished_s, memory, children, sum(resource.getrusage(resource.RUSAGE_SELF)[:2])))


def run_apart(root: Path, num_workers: int):
    """In a process of its own, so that the peaks of memory are this run's."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=timed_writing, args=(str(root), num_workers, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def counting(answers) -> None:
    """Pure arithmetic: how many rounds of it fit into a second and a half."""
    rounds, end = 0, time.monotonic() + 1.5
    while time.monotonic() < end:
        sum(range(20_000))
        rounds += 1
    answers.put(rounds)


def machines_own_scaling() -> float:
    """Rounds of two processes that count at once, per round of one alone; the median of three."""
    context, ratios = multiprocessing.get_context("spawn"), []
    for _ in range(3):
        done = []
        for num in (1, 2):
            answers = context.Queue()
            processes = [context.Process(target=counting, args=(answers,)) for _ in range(num)]
            for process in processes:
                process.start()
            done.append(sum(answers.get() for _ in processes))
            for process in processes:
                process.join()
        ratios.append(done[1] / done[0])
    return sorted(ratios)[1]


def rate(finished_s: list[float]) -> float:
    """Samples a second after the first; ``finished_s[0]`` is the start."""
    return (len(finished_s) - 2) / (finished_s[-1] - finished_s[1])


def bytes_per_sample(root: Path) -> dict[str, int]:
    """By kind of sensor, tables and all."""
    sizes = {"cameras": 0, "LiDAR": 0, "radars": 0, "tables and notes": 0}
    for path in (path for path in root.rglob("*") if path.is_file()):
        channel = path.parent.name
        kind = "cameras" if channel in CAMERAS else "LiDAR" if channel == LIDAR else "tables and notes"
        sizes["radars" if channel.startswith("RADAR") else kind] += path.stat().st_size
    return {name: round(size / CONFIG.num_samples) for name, size in sizes.items()}


def row(name: str, ours: float, peer: float | None, ratio: float | None, bar: float | None, at_most=False) -> dict:
    """One line; the bar holds ``ratio`` where there is one, else ``ours``."""
    value = ours if ratio is None else ratio
    holds = None if bar is None else bool(value <= bar if at_most else value >= bar)
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "bar": bar, "holds": holds}


def rows_of(folder: Path) -> list[dict]:
    one_s, memory, _, cpu_s = run_apart(folder / "one", 1)
    two_s, _, worker_mib, _ = run_apart(folder / "two", 2)
    again_s = run_apart(folder / "again", 1)[0]
    one, two = round((rate(one_s) + rate(again_s)) / 2, 2), round(rate(two_s), 2)
    early, late = round(memory[_EARLY]), round(memory[CONFIG.num_samples])
    sizes, own = bytes_per_sample(folder / "one"), round(machines_own_scaling(), 2)
    return [
        row("samples a second, 2 workers", two, None, None, 1.5),
        row("samples a second, 2 workers | 1 worker", two, one, round(two / one, 2), 1.8),
        row("two counting processes | one, on this machine", own, None, None, None),
        row("CPU seconds per sample, building scenes included", round(cpu_s / CONFIG.num_samples, 2), None, None, None),
        row(f"peak MiB of a worker after 40 samples | after {_EARLY}", late, early, round(late / early, 3), 1.1, True),
        row("peak MiB of the largest of 2 workers", round(worker_mib), None, None, None),
        row("bytes per sample", sum(sizes.values()), None, None, None),
        *(row(f"bytes per sample: {name}", size, None, None, None) for name, size in sizes.items()),
    ]


def main(out: Path) -> None:
    from importlib.metadata import version

    load = round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder))
    versions = {name: version(name) for name in ("numpy", "open3d", "opencv-python-headless")} | {
        "world": WORLD_VERSION
    }
    write_results(out, {"cores": os.cpu_count(), "load": load}, versions, seed=CONFIG.seed, rows=rows)
    for one in rows:
        print(
            f"{one['name']:60} {one['ours']:>12,.10g} {one['peer']!s:>8} x{one['ratio']!s:>6} "
            f"bar {one['bar']!s:>5} {one['holds']}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/town.json"))
