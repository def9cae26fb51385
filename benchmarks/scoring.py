"""The detection metric against the devkit: ``python benchmarks/scoring.py [samples=150] [full=true] [out=FILE]``.

Made-up boxes in the numbers of nuScenes' val split: 6,019 samples, 180,000 labels, 1,200,000 detections. The devkit is
timed on the first ``samples`` samples (its time grows with their number), with ``full=true`` on all of them as well,
which takes it a quarter of an hour. Ours is timed on the same samples in the same process, and on all of them. Peer is
nuscenes-devkit's ``DetectionEval`` with its own filters. Both sides run in one thread; times are its CPU seconds, which
other work on the machine disturbs least.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from machine import write_results  # noqa: E402

from fusion.scoring.scorer import Scored, score_table  # noqa: E402
from fusion.scoring.settings import CLASS_RANGE_M  # noqa: E402
from fusion.scoring.submission import SubmissionMeta, read_table, table_of_split, write_submission  # noqa: E402
from fusion.scoring.table import BoxTable, SplitLabels  # noqa: E402
from sensors.boxes import Boxes  # noqa: E402

SEED, NUM_SAMPLES, NUM_SCENES, NUM_LABELS, NUM_DETECTIONS = 0, 6019, 150, 180_000, 1_200_000
MINI_SAMPLES = 81
CLASS_SHARES = np.array([0.42, 0.075, 0.014, 0.021, 0.013, 0.19, 0.011, 0.01, 0.096, 0.15])


def made_up() -> tuple[BoxTable, SplitLabels]:
    """Detections and labels: a third of the detections near a label of their class, the others anywhere."""
    from tests.fusion.devkit_oracle import no_boxes, split_of

    rng = np.random.default_rng(SEED)
    ego_xy_m = rng.uniform(0, 2500, (NUM_SAMPLES, 2))
    sample = np.sort(rng.integers(0, NUM_SAMPLES, NUM_LABELS))
    label = rng.choice(10, NUM_LABELS, p=CLASS_SHARES / CLASS_SHARES.sum())
    labels = BoxTable(boxes(rng, ego_xy_m[sample] + around(rng, label), label), sample)
    labels = replace(labels, boxes=replace(labels.boxes, num_points=rng.integers(0, 20, NUM_LABELS)))
    near = np.repeat(np.arange(NUM_LABELS), rng.poisson(2.2, NUM_LABELS))
    num_far = NUM_DETECTIONS - len(near)
    far_sample = rng.integers(0, NUM_SAMPLES, num_far)
    far_label = rng.choice(10, num_far, p=CLASS_SHARES / CLASS_SHARES.sum())
    place = np.concatenate(
        [
            labels.boxes.center_m[near, :2] + rng.normal(0, 1, (len(near), 2)),
            ego_xy_m[far_sample] + around(rng, far_label),
        ]
    )
    found = boxes(rng, place, np.concatenate([label[near], far_label]))
    score = rng.beta(np.repeat([2.0, 1.0], [len(near), num_far]), np.repeat([2.0, 6.0], [len(near), num_far]))
    order = np.argsort(np.concatenate([sample[near], far_sample]), kind="stable")
    detections = BoxTable(replace(found, score=score), np.concatenate([sample[near], far_sample])).select(order)
    split = split_of(labels, ego_xy_m, no_boxes())
    scene = np.arange(NUM_SAMPLES) * NUM_SCENES // NUM_SAMPLES
    names = tuple(f"scene{row}" for row in range(NUM_SCENES))
    return detections, replace(split, scene=scene, scene_names=names, conditions=(frozenset({"day"}),) * NUM_SCENES)


def around(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """Places about the vehicle, up to a tenth beyond the class's range, dense near it as on roads."""
    distance_m, angle = CLASS_RANGE_M[label] * 1.1 * rng.random(len(label)), rng.uniform(-np.pi, np.pi, len(label))
    return np.stack([distance_m * np.cos(angle), distance_m * np.sin(angle)], axis=1)


def boxes(rng: np.random.Generator, place_m: np.ndarray, label: np.ndarray) -> Boxes:
    num = len(label)
    return Boxes(
        center_m=np.concatenate([place_m, rng.normal(1, 0.5, (num, 1))], axis=1),
        size_lwh_m=rng.uniform(0.5, 5, (num, 3)),
        yaw_rad=rng.uniform(-np.pi, np.pi, num),
        velocity_mps=rng.normal(0, 2, (num, 2)),
        label=label.astype(np.int64),
        score=np.ones(num),
        attribute=rng.integers(-1, 8, num),
        num_points=np.full(num, -1),
    )


def first_samples(detections: BoxTable, split: SplitLabels, num: int) -> tuple[BoxTable, SplitLabels]:
    """The same data as if there were only so many samples."""
    rows = split.table.sample < num
    part = replace(split, tokens=split.tokens[:num], ego_xy_m=split.ego_xy_m[:num], table=split.table.select(rows))
    part = replace(part, visibility=split.visibility[rows], scene=split.scene[:num])
    return detections.select(detections.sample < num), part


def ours_from_arrays(detections: BoxTable, split: SplitLabels) -> Scored:
    scored = score_table(detections, split)
    assert scored.metrics.mean_ap > 0
    return scored


def devkit_from_arrays(detections: BoxTable, split: SplitLabels):
    from tests.fusion.devkit_oracle import no_boxes, official

    return official(detections, split, no_boxes())


def ours_from_file(path: Path, split: SplitLabels) -> Scored:
    return score_table(table_of_split(read_table(path), split.tokens, "made-up", path), split)


def devkit_from_file(path: Path, split: SplitLabels):
    """As ``DetectionEval`` does, with labels from arrays on this side too."""
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    from tests.fusion.devkit_oracle import judged, no_boxes

    found, _ = load_prediction(str(path), 500, DetectionBox)
    return judged(found, split, no_boxes())


def seconds(function, *arguments, repeats: int = 1) -> tuple[float, object]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = function(*arguments)
        times.append(time.process_time() - start)
    return statistics.median(times), result


def write_file(path: Path, detections: BoxTable, split: SplitLabels) -> None:
    ends = np.searchsorted(detections.sample, np.arange(len(split.tokens) + 1))
    by_token = {
        token: detections.boxes.select(np.arange(ends[row], ends[row + 1])) for row, token in enumerate(split.tokens)
    }
    write_submission(path, by_token, split.tokens, SubmissionMeta())


def row(name: str, ours: float, peer: float | None, bar: float, unit: str = "s") -> dict:
    """Against a peer the bar is a ratio, without one a greatest value."""
    ratio = None if peer is None else round(peer / ours, 1)
    holds = ours <= bar if ratio is None else ratio >= bar
    return {
        "name": name,
        "unit": unit,
        "ours": round(ours, 3),
        "peer": None if peer is None else round(peer, 2),
        "ratio": ratio,
        "bar": bar,
        "holds": bool(holds),
    }


def against_devkit(detections: BoxTable, split: SplitLabels, folder: Path) -> list[dict]:
    """Both ways at one size, each result compared before its time is believed."""
    num = len(split.tokens)
    repeats = 3 if num < NUM_SAMPLES else 1
    size = f"{num:,} samples, {len(split.table):,} labels, {len(detections):,} detections"
    ours_s, ours = seconds(ours_from_arrays, detections, split, repeats=repeats)
    peer_s, (official, _, _) = seconds(devkit_from_arrays, detections, split)
    assert abs(ours.metrics.nds - official.nd_score) < 1e-9
    rows = [row(f"boxes, filters and metric from arrays: {size}", ours_s, peer_s, 40)]
    path = folder / f"{num}.json"
    write_file(path, detections, split)
    ours_s, ours = seconds(ours_from_file, path, split, repeats=repeats)
    peer_s, (official, _, _) = seconds(devkit_from_file, path, split)
    assert abs(ours.metrics.nds - official.nd_score) < 1e-9
    size_mb = path.stat().st_size / 1e6
    return [*rows, row(f"from a submission file of {size_mb:.0f} MB: {num:,} samples", ours_s, peer_s, 10)]


def ours_alone(detections: BoxTable, split: SplitLabels, folder: Path) -> list[dict]:
    """All samples, mini_val's number of samples, and the memory of the whole path in a process of its own."""
    array_s, _ = seconds(ours_from_arrays, detections, split, repeats=3)
    path = folder / "all.json"
    write_file(path, detections, split)
    command = [sys.executable, __file__, f"measure={path}"]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    few_detections, few = first_samples(detections, split, MINI_SAMPLES)
    few_path = folder / "few.json"
    write_file(few_path, few_detections, few)
    few_s, _ = seconds(ours_from_file, few_path, few, repeats=5)
    size = f"{NUM_SAMPLES:,} samples, {NUM_DETECTIONS:,} detections"
    return [
        row(f"from arrays: {size}", array_s, None, 7.5),
        row(f"from a submission file of {path.stat().st_size / 1e6:.0f} MB: {size}", measured["s"], None, 30.0),
        row("peak memory of that process, the labels included", measured["peak_gb"], None, 4.0, "GB"),
        row(f"from a submission file: {MINI_SAMPLES} samples, as mini_val", few_s, None, 1.0),
    ]


def measure(path: Path) -> None:
    """Read and score a file of all samples; time and peak memory as JSON on standard output."""
    _, split = made_up()
    elapsed_s, _ = seconds(ours_from_file, path, split)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"s": elapsed_s, "peak_gb": peak_gb}))


def main(arguments: list[str]) -> None:
    options = dict(argument.split("=", 1) for argument in arguments)
    if "measure" in options:
        measure(Path(options["measure"]))
        return
    detections, split = made_up()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = against_devkit(*first_samples(detections, split, int(options.get("samples", 150))), folder)
        rows += ours_alone(detections, split, folder)
        if options.get("full") == "true":
            rows += against_devkit(detections, split, folder)
    out = Path(options.get("out", ROOT / "benchmarks" / "results" / "scoring.json"))
    versions = {name: version(name) for name in ("nuscenes-devkit", "numpy")}
    write_results(out, {"cores": os.cpu_count()}, versions, seed=SEED, rows=rows)
    print(f"{'row':84} {'ours':>9} {'devkit':>9} {'ratio':>7} {'bar':>5}")
    for entry in rows:
        peer, ratio = ("" if entry[name] is None else f"{entry[name]:,}" for name in ("peer", "ratio"))
        mark = "" if entry["holds"] else "  FALLS SHORT"
        print(f"{entry['name']:84} {entry['ours']:7.3f} {entry['unit']:2}{peer:>9} {ratio:>7} {entry['bar']:>5}{mark}")


if __name__ == "__main__":
    main(sys.argv[1:])
