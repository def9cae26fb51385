"""What benchmarks share: the clock, and results files that say where they come from and get onto the disk whole."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path


def cpu_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def times_in_turn(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Milliseconds of processor time of each function's runs; they take turns, after one round to warm up."""
    times = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if turn:
                own.append(1e3 * (time.process_time() - start))
    return times


def write_results(out: Path, machine: Mapping, versions: Mapping[str, object], **content) -> None:
    """Write a results file, whole or not at all.

    Args:
        machine: what the figures depend on beside the processor and its load now: threads or cores, the clock.
        versions: of the libraries that were measured; Python's is added.
        content: ``seed``, ``rows`` and whatever else the benchmark has to say.
    """
    origin = {
        "machine": {"cpu": cpu_name(), "load": round(os.getloadavg()[0], 2), **machine},
        "versions": {"python": platform.python_version(), **versions},
        "date": date.today().isoformat(),
    }
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps({**origin, **content}, indent=2) + "\n")
    partial.replace(out)
