"""What a stream really saves by not opening sensors: ``python benchmarks/stream.py [OUT.json [TOWN]]``.

Batch 1, scene order, 1600x900 JPEGs and full LiDAR sweeps of a synthetic town. It is written first, into the folder
TOWN to be used again, or into a temporary one (most of a minute). Routes are fixed and taken in turns, frame by frame,
in one process and one thread; wall milliseconds, medians over the frames, the first round left out. ``tiny`` with
random weights: time does not depend on what is seen. *Ours* is the route that leaves something out, *peer* the full
route; files are in the page cache on both sides.

- *read*: opening and decoding; *prepare*: cropping, gathering points; *encode*: voxelising and encoders.
- Skipped views have the bar (share of views that run) + 0.15; without the LiDAR, reading to encoding may take half; so
  may that of a frame that leaves ``tiny_adaptive`` at the exit over LiDAR and radar, before its cameras are read. An
  exit that nobody leaves at may cost a whole frame 15 %.
"""

import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from dynamic import built, row  # noqa: E402
from machine import write_results  # noqa: E402

from datamodules.nuscenes import NuScenesFrames  # noqa: E402
from datamodules.prepare import Preparation  # noqa: E402
from datamodules.town.presets import TownConfig  # noqa: E402
from datamodules.town.writer import write_town  # noqa: E402
from fusion.adaptive.allocation import Allocation, SharedBudget  # noqa: E402
from fusion.routing.plan import FULL, LITE, SKIP  # noqa: E402
from fusion.stream.record import StreamedFrame  # noqa: E402
from fusion.stream.runner import Stream, StreamSettings  # noqa: E402
from fusion.stream.senses import GLANCES, SceneSenses  # noqa: E402
from sensors.rig import NUM_CAMERAS  # noqa: E402

SEED = 0
ROUNDS = 3
TOWN = TownConfig(num_train_scenes=1, num_val_scenes=1, samples_per_scene=3, image_scale=1.0, lidar_sweeps=2)
RANGE_M = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
ROUTES = {
    "all": [FULL] * 8,
    "one view": [FULL] + [SKIP] * 5 + [FULL, FULL],
    "three views": [FULL] * 3 + [SKIP] * 3 + [FULL, FULL],
    "no view": [SKIP] * NUM_CAMERAS + [FULL, FULL],
    "LiDAR alone": [SKIP] * NUM_CAMERAS + [FULL, SKIP],
    "LiDAR lite alone": [SKIP] * NUM_CAMERAS + [LITE, SKIP],
    "radar alone": [SKIP] * (NUM_CAMERAS + 1) + [FULL],
}


EXITS = {"off": (math.inf, math.inf), "left": (-math.inf, math.inf), "stayed": (sys.float_info.max, math.inf)}
"""Thresholds: no exit; everybody leaves at the first; the first is asked, and nobody leaves."""


def with_exits(root: Path) -> dict[str, list[StreamedFrame]]:
    """Frames by EXITS, all sensors wanted."""
    frames = NuScenesFrames(root, "v1.0-town", "town_val", lidar_sweeps=3, radar_sweeps=1)
    streams = {}
    for name, thresholds in EXITS.items():
        model = built("tiny_adaptive")
        model.shared_budget = SharedBudget([Allocation(1.0, None, thresholds)], (1.0, 1.0), "")
        preparation = Preparation(model.cameras.sizes_px[FULL], point_range_m=RANGE_M)
        streams[name] = Stream(model, SceneSenses(frames, preparation), StreamSettings())
    found = {name: [] for name in streams}
    for turn in range(ROUNDS + 1):
        for name, stream in streams.items():
            found[name] += list(stream.run(range(len(frames)))) if turn else []
    assert {frame.exit for frame in found["left"]} == {0}
    return found


def streamed(root: Path, kinds: Sequence[str]) -> tuple[dict[str, list[StreamedFrame]], dict[str, list[StreamedFrame]]]:
    """Frames by route, and by kind of glance under the router (at budget 0.5)."""
    frames = NuScenesFrames(root, "v1.0-town", "town_val", lidar_sweeps=3, radar_sweeps=1)
    model = built("tiny")
    preparation = Preparation(model.cameras.sizes_px[FULL], point_range_m=RANGE_M)
    inputs = model.router.inputs
    by_route = {
        name: Stream(model, SceneSenses(frames, preparation), StreamSettings(), lambda _, r=route: torch.tensor(r))
        for name, route in ROUTES.items()
    }
    by_kind = {
        kind: Stream(model, SceneSenses(frames, preparation, kind, inputs), StreamSettings(0.5)) for kind in kinds
    }
    found = {name: [] for name in (*by_route, *by_kind)}
    for turn in range(ROUNDS + 1):
        for name, stream in {**by_route, **by_kind}.items():
            done = list(stream.run(range(len(frames))))
            # The first frame of a scene looks at everything, whatever the glance.
            found[name] += (done[1:] if name in by_kind else done) if turn else []
    return {name: found[name] for name in by_route}, {name: found[name] for name in by_kind}


def median_ms(frames: Sequence[StreamedFrame], *parts: str) -> float:
    """Of the sum of some parts."""
    return statistics.median(sum(frame.ms[part] for part in parts) for frame in frames)


def exit_rows(found: dict[str, list[StreamedFrame]]) -> list[dict]:
    parts = ("read", "prepare", "encode")
    left, stayed, whole = (found[name] for name in ("left", "stayed", "off"))
    total = [statistics.median(frame.total_ms for frame in frames) for frames in (left, stayed, whole)]
    name = "left before the cameras / no exits"
    return [
        row(f"{name}: read, prepare, encode, ms", median_ms(left, *parts), median_ms(whole, *parts), 0.5),
        row(f"whole frame, {name}, ms", total[0], total[2], 1.0),
        row("whole frame, an exit that nobody leaves at / no exits, ms", total[1], total[2], 1.15),
    ]


def rows_of(by_route: dict[str, list[StreamedFrame]], by_kind: dict[str, list[StreamedFrame]]) -> list[dict]:
    full, rows = by_route["all"], []
    views = {name: median_ms(by_route[name], "read") for name in ("no view", "one view", "three views", "all")}
    floor = views["no view"]
    for name, share in (("one view", 1 / 6), ("three views", 1 / 2)):
        ours, peer = views[name] - floor, views["all"] - floor
        rows.append(row(f"read and decode {name} / six, ms", ours, peer, round(share + 0.15, 3)))
    parts = ("read", "prepare", "encode")
    lite, lidar, radar = (
        median_ms(by_route[name], *parts) for name in ("LiDAR lite alone", "LiDAR alone", "radar alone")
    )
    rows.append(row("LiDAR lite / full: read, gather, voxelise, encode, ms", lite, lidar, 1.0))
    # What is left without it is the radar's.
    both = median_ms(by_route["no view"], *parts)
    rows.append(row("LiDAR skipped / run beside the radar: read, gather, voxelise, encode, ms", radar, both, 0.5))
    for name in ("one view", "three views", "no view", "LiDAR alone", "radar alone"):
        given = by_route[name]
        label = f"whole frame, {name} / all, ms"
        rows.append(row(label, *(statistics.median(f.total_ms for f in one) for one in (given, full)), 1.0))
    for kind, frames in by_kind.items():
        peer = median_ms(by_kind["full"], "glance")
        rows.append(row(f"glance {kind} / full, ms", median_ms(frames, "glance"), peer, None))
    return rows


def main(out: Path, town: Path | None = None) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        town = Path(folder) / "town" if town is None else town
        if not town.is_dir():
            write_town(town, TOWN)
        by_route, by_kind = streamed(town, GLANCES)
        by_exit = with_exits(town)
    rows = rows_of(by_route, by_kind) + exit_rows(by_exit)
    parts = {
        name: {part: round(median_ms(frames, part), 2) for part in frames[0].ms}
        for name, frames in {
            **by_route,
            **{f"glance {k}": v for k, v in by_kind.items()},
            **{f"exits {k}": v for k, v in by_exit.items()},
        }.items()
    }
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    write_results(out, {"threads": 1, "clock": "wall time"}, versions, seed=SEED, parts_ms=parts, rows=rows)
    for one in rows:
        print(f"{one['name']}: {one['ours']} / {one['peer']} = {one['ratio']}  bar {one['bar']}  holds {one['holds']}")
    for name, values in parts.items():
        print(name, values)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/stream.json"), *map(Path, sys.argv[2:3]))
