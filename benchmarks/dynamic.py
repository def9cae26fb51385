"""What routing really saves: ``python benchmarks/dynamic.py [OUT.json] [PART ...]``.

Processor time of one thread (a busy machine does not count), medians, both sides in turns in one process. Random
pictures and points: an encoder's time does not depend on what they show. ``tiny`` at batch 1, 4 and 16; ``base`` too,
in a part for each batch size and row since a full sample takes seconds, without a sweep over the views. Rows of parts
that do not run stay in the file. Nothing is extrapolated; every row carries its device and date.

- *skipped cameras*: a model with cameras, none chosen, beside the same model built without any; at most 1.10.
- *rows*: milliseconds over the number of camera rows; furthest point from the straight line between none and all, as a
  share of that line; at most 0.15. One branch at a time, rows spread over the samples.
- *overhead*: health and thumbnails of 1600x900 frames, router and dispatch beside the full route; at most 0.05 for
  ``tiny`` at batch 16 (smaller batches are shown without a bar), and 0.03 for ``base``, at each batch size.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from machine import cpu_name, write_results  # noqa: E402

from fusion.commands.compose import compose, instantiate  # noqa: E402
from fusion.model import FusionModel  # noqa: E402
from fusion.routing.dispatch import Dispatch  # noqa: E402
from fusion.routing.plan import FULL, LITE, SKIP  # noqa: E402
from fusion.routing.router import glance_of  # noqa: E402
from sensors.frame import Frame  # noqa: E402
from sensors.health import health_of, thumbnails_of  # noqa: E402
from sensors.rig import NUM_CAMERAS  # noqa: E402
from tests.fusion.random_batch import random_batch  # noqa: E402
from tests.sensors.toy_frames import toy_frame  # noqa: E402

SEED = 0
NUM_POINTS = {"tiny": 30_000, "base": 100_000}
STRIDE = {"tiny": 8, "base": 16}
OVERHEAD_BAR = {"tiny": 0.05, "base": 0.03}


def built(name: str, cameras: bool = True) -> FusionModel:
    """A model of a configuration with random weights, with or without its cameras."""
    config = compose([f"model={name}"]).model
    if not cameras:
        config.cameras = None
        config.merge.in_channels = {key: value for key, value in config.merge.in_channels.items() if key != "camera"}
        if "zero_init" in config.merge:
            config.merge.zero_init = []
    torch.manual_seed(SEED)
    return instantiate(config).eval()


def cpu_ms(function: Callable[[], object]) -> float:
    started = time.process_time()
    function()
    return 1e3 * (time.process_time() - started)


def in_turns(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median milliseconds of each, one after the other ``repeats`` times after a round that warms up."""
    rounds = [[cpu_ms(function) for function in functions] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def row(name: str, ours: float, peer: float, bar: float | None, ratio: float | None = None) -> dict:
    ratio = ours / peer if ratio is None else ratio
    holds = None if bar is None else ratio <= bar
    return {
        "name": name,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(ratio, 4),
        "bar": bar,
        "holds": holds,
        "device": cpu_name(),
        "date": date.today().isoformat(),
    }


def batch_of(model: FusionModel, name: str, size: int):
    return random_batch(size, SEED, model.cameras.sizes_px[FULL], STRIDE[name], NUM_POINTS[name])


def skipped_cameras(name: str, model: FusionModel, sizes: tuple[int, ...], repeats: int) -> list[dict]:
    blind = built(name, cameras=False)
    rows = []
    for size in sizes:
        batch = batch_of(model, name, size)
        choice = torch.full((size, 8), FULL)
        choice[:, :NUM_CAMERAS] = SKIP
        ours = model.plan_of(choice, model.available(batch))
        peers = blind.full_plan(batch)
        pair = [lambda b=batch, p=ours: model(b, plan=p), lambda b=batch, p=peers: blind(b, plan=p)]
        rows.append(row(f"{name} batch {size}: cameras skipped / never built, ms", *in_turns(pair, repeats), 1.10))
    return rows


def linear_in_rows(name: str, model: FusionModel, size: int, repeats: int) -> list[dict]:
    rows = []
    batch = batch_of(model, name, size)
    total = size * NUM_CAMERAS
    for branch, word in ((FULL, "full"), (LITE, "lite")):
        counts = [0, *(total * quarter // 4 for quarter in range(1, 5))]
        runs = []
        for count in counts:
            # Spread over the samples, as a router would.
            order = torch.arange(total).view(NUM_CAMERAS, size).T
            choice = torch.full((size, 8), FULL)
            choice[:, :NUM_CAMERAS] = torch.where(order < count, branch, SKIP)
            plan = model.plan_of(choice, model.available(batch))
            runs.append(lambda p=plan: model(batch, plan=p))
        ms = in_turns(runs, repeats)
        line = [ms[0] + (ms[-1] - ms[0]) * count / total for count in counts]
        away = [abs(found / wanted - 1) for found, wanted in zip(ms, line, strict=True)]
        worst = max(range(len(away)), key=away.__getitem__)
        label = (
            f"{name} batch {size}: {word} views {counts}, ms {[round(value, 1) for value in ms]}, furthest from line"
        )
        rows.append(row(label, ms[worst], line[worst], 0.15, away[worst]))
    return rows


def overhead(name: str, model: FusionModel, sizes: tuple[int, ...], repeats: int) -> list[dict]:
    rows, frame = [], big_frame()
    for size in sizes:
        batch = batch_of(model, name, size)
        available, exists = model.available(batch), model.prices().exists()
        full = model.full_plan(batch)

        def decide(batch=batch, available=available, exists=exists, size=size) -> None:
            for _ in range(size):
                health_of(frame), thumbnails_of(frame)
            plan = model.router(glance_of(batch, available), model.routes)
            Dispatch.of(plan, available, exists, "sparse")

        pair = [decide, lambda b=batch, p=full: model(b, plan=p)]
        bar = OVERHEAD_BAR[name] if size == max(sizes) or name == "base" else None
        label = f"{name} batch {size}: glance + router + dispatch / full route, ms"
        rows.append(row(label, *in_turns(pair, repeats), bar))
    return rows


def big_frame() -> Frame:
    """Six pictures of 1600x900 and some 30 000 points, as nuScenes delivers them."""
    return toy_frame(num_points=30_000, height=900, width=1600)


def tiny_rows() -> list[dict]:
    tiny = built("tiny")
    rows = skipped_cameras("tiny", tiny, (1, 4, 16), 5)
    rows += linear_in_rows("tiny", tiny, 4, 3)
    return rows + overhead("tiny", tiny, (1, 4, 16), 3)


def base_skipped(size: int) -> list[dict]:
    return skipped_cameras("base", built("base"), (size,), 5 if size < 16 else 3)


def base_overhead(size: int) -> list[dict]:
    return overhead("base", built("base"), (size,), 1)


PARTS = {"tiny": tiny_rows}
for _size in (1, 4, 16):
    PARTS[f"base-{_size}-skipped"] = partial(base_skipped, _size)
    PARTS[f"base-{_size}-overhead"] = partial(base_overhead, _size)
"""``base`` at batch 4 and 16 takes minutes each; what has no row yet is listed in the file as ``not_run``."""


def not_run(rows: list[dict]) -> list[str]:
    """Rows of ``base`` that nobody has measured yet."""
    kinds = ("cameras skipped / never built, ms", "glance + router + dispatch / full route, ms")
    wanted = [f"base batch {size}: {kind}" for size in (1, 4, 16) for kind in kinds]
    return [name for name in wanted if name not in {one["name"] for one in rows}]


def main(out: Path, parts: list[str]) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    kept = json.loads(out.read_text())["rows"] if out.is_file() else []
    with torch.inference_mode():
        rows = [one for part in parts for one in PARTS[part]()]
    # A sweep's label holds its milliseconds: rows are the same up to those.
    new = {one["name"].partition(", ms")[0] for one in rows}
    rows += [one for one in kept if one["name"].partition(", ms")[0] not in new]
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    machine = {"threads": 1, "clock": "processor time"}
    write_results(out, machine, versions, seed=SEED, not_run=not_run(rows), rows=rows)
    for one in rows:
        print(f"{one['name']}: {one['ours']} / {one['peer']} = {one['ratio']}  bar {one['bar']}  holds {one['holds']}")


if __name__ == "__main__":
    words = sys.argv[1:]
    named = [word for word in words if word in PARTS]
    files = [word for word in words if word not in PARTS]
    main(Path(files[0] if files else "benchmarks/results/dynamic.json"), named or list(PARTS))
