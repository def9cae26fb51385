"""How hard a town is, beside real nuScenes: boxes per frame, classes, points per box, ranges, visibility.

The real figures were computed with ``figures_of`` from nuScenes' tables: the whole official split mini_val (scene-0103
and scene-0916, 81 keyframes, 4,441 boxes of the ten classes), which has no annotated visibility.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sensors.boxes import DETECTION_FROM_CATEGORY, DETECTION_NAMES
from sensors.rig import LIDAR

NEAR_M = 50.0
RANGE_EDGES_M = (0, 10, 20, 30, 40, 50, 60, 1000)
POINT_EDGES = (0, 1, 5, 20, 100, 500, 10**9)


@dataclass(frozen=True)
class Figures:
    """Statistics of one dataset's labels.

    Attributes:
        boxes_per_frame: mean, 5th, 50th and 95th percentile.
        range_shares, point_shares: of the boxes, between RANGE_EDGES_M and POINT_EDGES (LiDAR points).
        classes: per class with any box: share, and of those within NEAR_M mean LiDAR points, mean radar points and the
            share with at least one radar point.
        sizes_lwh_m: per class, mean over the instances.
        visibility: shares of the levels 1 to 4; empty where none is annotated.
    """

    boxes_per_frame: tuple[float, float, float, float]
    range_shares: tuple[float, ...]
    point_shares: tuple[float, ...]
    classes: dict[str, tuple[float, float, float, float]]
    sizes_lwh_m: dict[str, tuple[float, ...]] = field(default_factory=dict)
    visibility: tuple[float, ...] = ()


REAL = Figures(
    boxes_per_frame=(54.8, 38.0, 56.0, 72.0),
    range_shares=(0.079, 0.258, 0.278, 0.169, 0.102, 0.061, 0.053),
    point_shares=(0.163, 0.298, 0.277, 0.176, 0.065, 0.021),
    classes={
        "car": (0.578, 64.8, 1.01, 0.42),
        "truck": (0.028, 238.0, 3.64, 0.62),
        "bus": (0.009, 272.7, 12.91, 0.64),
        "pedestrian": (0.306, 11.4, 0.22, 0.17),
        "motorcycle": (0.058, 15.5, 0.20, 0.16),
        "bicycle": (0.012, 13.4, 0.46, 0.37),
        "traffic_cone": (0.009, 5.3, 0.05, 0.05),
    },
    sizes_lwh_m={
        "car": (4.52, 1.83, 1.70),
        "truck": (5.81, 2.23, 2.52),
        "bus": (12.09, 2.88, 3.42),
        "pedestrian": (0.66, 0.63, 1.74),
        "motorcycle": (2.06, 0.61, 1.33),
        "bicycle": (1.71, 0.54, 1.25),
        "traffic_cone": (0.38, 0.34, 1.03),
    },
)


def figures_of(root: Path, version: str) -> Figures:
    """Statistics of the ten detection classes from the tables alone.

    Raises:
        FileNotFoundError: there are no such tables.
        ValueError: there is not one box.
    """
    tables = Path(root) / version
    if not (tables / "sample_annotation.json").is_file():
        raise FileNotFoundError(f"expected the tables of a dataset in {tables}, got none; write the town first")
    read = {name: json.loads((tables / f"{name}.json").read_text()) for name in _TABLES}
    category = {row["token"]: row["name"] for row in read["category"]}
    label = {row["token"]: DETECTION_FROM_CATEGORY.get(category[row["category_token"]]) for row in read["instance"]}
    ego = _ego_of_samples(read)
    boxes = [(label[row["instance_token"]], row) for row in read["sample_annotation"] if label[row["instance_token"]]]
    if not boxes:
        raise ValueError(f"expected boxes of the ten classes in {tables}, got none")
    per_frame = dict.fromkeys(ego, 0)
    columns, sizes, levels = defaultdict(list), defaultdict(dict), []
    for name, row in boxes:
        per_frame[row["sample_token"]] += 1
        away = float(np.hypot(*(np.array(row["translation"][:2]) - ego[row["sample_token"]])))
        columns[name].append((away, row["num_lidar_pts"], row["num_radar_pts"]))
        width, length, height = row["size"]
        sizes[name][row["instance_token"]] = (length, width, height)
        levels.append(int(row["visibility_token"] or 0))
    everything, counts = np.concatenate([np.array(rows) for rows in columns.values()]), list(per_frame.values())
    return Figures(
        (float(np.mean(counts)), *np.percentile(counts, (5, 50, 95)).tolist()),
        _shares(everything[:, 0], RANGE_EDGES_M),
        _shares(everything[:, 1], POINT_EDGES),
        {name: _class_row(np.array(columns[name]), len(boxes)) for name in DETECTION_NAMES if name in columns},
        {name: tuple(np.mean(list(sizes[name].values()), axis=0).tolist()) for name in sizes},
        _shares(np.array(levels), (1, 2, 3, 4, 5)) if any(levels) else (),
    )


_TABLES = ("category", "sensor", "calibrated_sensor", "sample_data", "ego_pose", "instance", "sample_annotation")


def _ego_of_samples(read: dict[str, list]) -> dict[str, np.ndarray]:
    """Where the vehicle is at each keyframe, by its LiDAR's pose."""
    lidar = {row["token"] for row in read["sensor"] if row["channel"] == LIDAR}
    mounted = {row["token"] for row in read["calibrated_sensor"] if row["sensor_token"] in lidar}
    poses = {row["token"]: row["translation"][:2] for row in read["ego_pose"]}
    keyframes = (r for r in read["sample_data"] if r["is_key_frame"] and r["calibrated_sensor_token"] in mounted)
    return {row["sample_token"]: np.array(poses[row["ego_pose_token"]]) for row in keyframes}


def _shares(values: np.ndarray, edges: tuple[int, ...]) -> tuple[float, ...]:
    return tuple((np.histogram(values, edges)[0] / max(len(values), 1)).tolist())


def _class_row(rows: np.ndarray, total: int) -> tuple[float, float, float, float]:
    near = rows[rows[:, 0] < NEAR_M]
    means = near[:, 1:].mean(axis=0) if len(near) else np.zeros(2)
    return len(rows) / total, float(means[0]), float(means[1]), float((near[:, 2] > 0).mean()) if len(near) else 0.0


def sheet(ours: Figures, real: Figures = REAL) -> str:
    """Both side by side, as Markdown."""
    lines = ["| | town | real mini_val |", "|---|---|---|"]
    for name, k in (("mean", 0), ("5th percentile", 1), ("median", 2), ("95th percentile", 3)):
        lines.append(f"| boxes per frame, {name} | {ours.boxes_per_frame[k]:.1f} | {real.boxes_per_frame[k]:.1f} |")
    lines += _histogram("range, m", RANGE_EDGES_M, ours.range_shares, real.range_shares)
    lines += _histogram("LiDAR points per box", POINT_EDGES, ours.point_shares, real.point_shares)
    for level, share in zip(("0-40", "40-60", "60-80", "80-100"), ours.visibility, strict=False):
        lines.append(f"| visible {level} % | {share:.1%} | - |")
    lines += ["", "| class | share | | LiDAR points < 50 m | | radar points < 50 m | | with radar < 50 m | |"]
    lines += ["|---|---|---|---|---|---|---|---|---|", "| | town | real | town | real | town | real | town | real |"]
    for name in DETECTION_NAMES:
        mine, theirs = ours.classes.get(name), real.classes.get(name)
        cells = [f"| {name} "]
        for k, form in enumerate(("{:.1%}", "{:.1f}", "{:.2f}", "{:.0%}")):
            cells += [f"| {form.format(row[k]) if row else '-'} " for row in (mine, theirs)]
        lines.append("".join(cells) + "|")
    lines += ["", "| class | mean size l w h, m: town | real |", "|---|---|---|"]
    for name in DETECTION_NAMES:
        pair = [figures.sizes_lwh_m.get(name) for figures in (ours, real)]
        lines.append(f"| {name} | " + " | ".join(" ".join(f"{s:.2f}" for s in p) if p else "-" for p in pair) + " |")
    return "\n".join(lines)


def _histogram(what: str, edges, ours, real) -> list[str]:
    ends = [f"{a} to {b - 1}" if b < edges[-1] else f"{a} or more" for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [f"| {what}, {end} | {a:.1%} | {b:.1%} |" for end, a, b in zip(ends, ours, real, strict=True)]
