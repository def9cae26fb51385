"""Which sensor matters when: mAP by condition of models with one sensor, with all, and with one taken away.

python benchmarks/difficulty.py [root=towns/bench] [shuffled=towns/bench-shuffled] [runs=runs] [seeds=0,1,2] [out=FILE]

Needs, for each seed S, the runs ``bench-lidar-S``, ``bench-camera-S``, ``bench-radar-S`` and ``bench-S`` below
``runs`` (docs/town-difficulty.md has the commands), and the same town with materials shuffled between classes.
Scores every model on the validation split and writes benchmarks/results/difficulty.json and docs/town-difficulty.md.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from machine import write_results

from fusion.commands.runs import open_run
from fusion.routing.plan import FULL, SKIP
from fusion.run_directory import write_text
from fusion.scoring.breakdown import by_condition, by_distance, by_road_user, matches_of_samples
from fusion.scoring.evaluate import SENSOR_UNITS, evaluate_model
from fusion.scoring.scorer import Scored, Scorer

ALONE = {"LiDAR alone": "bench-lidar", "cameras alone": "bench-camera", "radar alone": "bench-radar"}
WITHOUT = {
    "all sensors": (),
    "no LiDAR": ("lidar",),
    "no cameras": ("camera",),
    "no radar": ("radar",),
    "only LiDAR": ("camera", "radar"),
    "only cameras": ("lidar", "radar"),
    "only radar": ("lidar", "camera"),
}
"""Routes of the whole model, by the sensors that it has to do without."""
SENSORS = ("lidar", "camera", "radar")
MAX_SHUFFLED_LOSS = 1 / 3
LEAST_SCORE = 0.03
"""Where a model finds next to nothing, nothing can be taken from it: such conditions do not count."""


def route_without(model, sensors: tuple[str, ...]):
    """Everything that is there at its full branch, but for some sensors."""
    units = [unit for sensor in sensors for unit in SENSOR_UNITS[sensor]]

    def plan(batch):
        available = model.available(batch)
        choice = torch.full(available.shape, FULL, dtype=torch.int64)
        choice[:, units] = SKIP
        return model.plan_of(choice, available)

    return plan


def scores(opened, scorer: Scorer, plan) -> dict[str, float]:
    """mAP over the classes that a condition has labels of, by condition."""
    result = evaluate_model(opened.model, opened.data.evaluation_loader(scorer.split), plan_source=plan)
    scored = scorer.evaluate(result.detections)
    parts = {"everything": scored.metrics.mean_ap_of_labelled}
    parts |= {word: metrics.mean_ap_of_labelled for word, metrics in by_condition(scored).items()}
    parts |= {ring: metrics.mean_ap_of_labelled for ring, metrics in by_distance(scored).items()}
    parts |= {kind: part["mean_ap"] for kind, part in by_road_user(scored).items()}
    return parts | far_and_near_in_fog(scored)


def far_and_near_in_fog(scored: Scored) -> dict[str, float]:
    """mAP by distance of the scenes in fog, which takes more from the LiDAR the farther it looks."""
    foggy = np.array(["fog" in scene for scene in scored.split.conditions])[scored.split.scene]
    labels = scored.labels.select(foggy[scored.labels.sample])
    in_fog = replace(scored, labels=labels, matches=matches_of_samples(scored, foggy))
    return {f"fog, {ring}": metrics.mean_ap_of_labelled for ring, metrics in by_distance(in_fog).items()}


def of_seed(root: Path, runs: Path, seed: int, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Scores by model and condition of one seed's runs on one town."""
    scorer = Scorer(root, "v1.0-town", "town_val")
    table = {}
    for name, run in {**ALONE, **dict.fromkeys(WITHOUT, "bench")}.items():
        if name not in names:
            continue
        opened = open_run(runs / f"{run}-{seed}", [f"data.root={root}", "data.eval_batch_size=4"], [])
        plan = route_without(opened.model, WITHOUT[name]) if name in WITHOUT else opened.plan_source
        table[name] = scores(opened, scorer, plan)
        print(f"seed {seed}  {root.name}  {name:16s} mAP {table[name]['everything']:.3f}", flush=True)
    return table


def cells(tables: list[dict], name: str, condition: str) -> tuple[float, float]:
    """Mean over the seeds, and half their range."""
    values = [table[name][condition] for table in tables]
    return float(np.mean(values)), float(np.ptp(values) / 2)


def taken_away(sensor: str) -> list[tuple[str, str, str]]:
    """Pairs of routes that differ by one sensor: what was lost before, the route with the sensor, the one without."""
    by_sensors = {sensors: name for name, sensors in WITHOUT.items()}
    pairs = []
    for sensors, name in by_sensors.items():
        after = tuple(other for other in SENSORS if other in sensors or other == sensor)
        if sensor not in sensors and after in by_sensors:
            pairs.append((name if sensors else "", name, by_sensors[after]))
    return pairs


def losses(tables: list[dict], sensor: str) -> dict[str, tuple[float, float]]:
    """What taking a sensor away costs in each condition: mean over the seeds, and the spread to beat.

    A condition is one of the scene, alone or while another sensor is lost. The spread is the range over the seeds of
    what the model scores there before the sensor is taken away: what another seed would change.
    """
    costs = {}
    for lost, before, after in taken_away(sensor):
        for condition in tables[0][before]:
            had = [table[before][condition] for table in tables]
            if np.mean(had) < LEAST_SCORE:
                continue
            cost = [table[before][condition] - table[after][condition] for table in tables]
            costs[f"{condition}, {lost}" if lost else condition] = (float(np.mean(cost)), float(np.ptp(had)))
    return costs


def verdicts(tables: list[dict], shuffled: list[dict]) -> list[dict]:
    """Rows for the results file: each sensor matters somewhere and is spared somewhere; nobody reads liveries."""
    rows = []
    for sensor in SENSORS:
        costs = losses(tables, sensor)
        matters = max(costs, key=lambda condition: costs[condition][0] - costs[condition][1])
        spared = min(costs, key=lambda condition: costs[condition][0])
        for kind, where, holds in (
            ("costs most, beyond the spread", matters, costs[matters][0] > costs[matters][1]),
            ("costs least", spared, costs[spared][0] <= costs[spared][1]),
        ):
            loss, spread = costs[where]
            rows.append(row(f"taking {sensor} away {kind}: {where}", loss, spread, "loss against seed spread", holds))
    for name in shuffled[0]:
        before, after = cells(tables, name, "everything")[0], cells(shuffled, name, "everything")[0]
        share = (before - after) / before if before > 0 else math.nan
        rows.append(
            row(f"shuffled materials: {name}", after, before, "lost share < 1/3", share < MAX_SHUFFLED_LOSS, share)
        )
    return rows


def row(name: str, ours: float, peer: float, bar: str, holds: bool, ratio: float | None = None) -> dict:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "bar": bar, "holds": bool(holds)}


def markdown(tables: list[dict], rows: list[dict], command: str, seeds: list[int]) -> str:
    names = list(tables[0])
    lines = [f"| condition | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for condition in tables[0]["all sensors"]:
        values = [cells(tables, name, condition) for name in names]
        lines.append(f"| {condition} | " + " | ".join(f"{mean:.3f} ±{half:.3f}" for mean, half in values) + " |")
    checks = ["| check | value | against | holds |", "|---|---:|---:|---|"]
    checks += [
        f"| {r['name']} | {r['ours']:.3f} | {r['peer']:.3f} | {'yes' if r['holds'] else '**no**'} |" for r in rows
    ]
    return TEMPLATE.format(
        table="\n".join(lines),
        checks="\n".join(checks),
        command=command,
        seeds=", ".join(map(str, seeds)),
        n=len(seeds),
    )


TEMPLATE = """# How hard the bench town is, and for whom

mAP on the validation split of `bench` (200 samples) of `tiny` models, over the classes that have labels in a condition:
mean over {n} seeds ({seeds}) and half their range. Written by

```
{command}
```

{table}

*Alone*: models that were trained with one sensor. The others are routes of one model with all of them, which leave out
what the column says. Taking a sensor away costs the difference between two such routes, in a condition of the scene,
with the others there or with one of them lost. It counts where it is larger than the range over the seeds of what the
model scored there before; conditions in which that was less than 0.03 are left out.

{checks}

*Shuffled materials* is the same town with the colours and reflectivities of everything exchanged between classes
(`dynfusion synth preset=bench num_train_scenes=1 shuffle_materials=true`): what a model loses on it, it had read from
liveries instead of shapes.

## The models

The towns, and the camera encoder's pretraining in its own pictures, which all seeds share:

```
dynfusion synth preset=bench root=towns/bench
dynfusion synth preset=bench num_train_scenes=1 shuffle_materials=true root=towns/bench-shuffled
dynfusion train experiment=bench-views seed=0 run_dir=runs/bench-views-0
```

Then for each seed `S` (one process of one core each; sizes and steps are in `configs/experiment`):

```
dynfusion train experiment=bench-camera seed=S run_dir=runs/bench-camera-S "start_from={{camera: runs/bench-views-0}}"
dynfusion train experiment=bench-lidar seed=S run_dir=runs/bench-lidar-S
dynfusion train experiment=bench-radar seed=S run_dir=runs/bench-radar-S
dynfusion train experiment=bench seed=S run_dir=runs/bench-S \\
  "start_from={{all: runs/bench-lidar-S, camera: runs/bench-views-0, radar: runs/bench-radar-S}}"
```
"""


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    root, runs = Path(given.get("root", "towns/bench")), Path(given.get("runs", "runs"))
    seeds = [int(seed) for seed in given.get("seeds", "0,1,2").split(",")]
    torch.manual_seed(0)
    names = (*ALONE, *WITHOUT)
    tables = [of_seed(root, runs, seed, names) for seed in seeds]
    shuffled_names = ("LiDAR alone", "cameras alone", "all sensors")
    shuffled_root = Path(given.get("shuffled", "towns/bench-shuffled"))
    shuffled = [of_seed(shuffled_root, runs, seed, shuffled_names) for seed in seeds]
    rows = verdicts(tables, shuffled)
    command = "python benchmarks/difficulty.py seeds=" + ",".join(map(str, seeds))
    page = markdown(tables, rows, command, seeds)
    print(page)
    out = Path(given.get("out", "benchmarks/results/difficulty.json"))
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    by_seed = {"by_seed": tables, "shuffled_by_seed": shuffled}
    write_results(out, {"threads": torch.get_num_threads()}, versions, seed=seeds, rows=rows, **by_seed)
    write_text(Path(given.get("page", "docs/town-difficulty.md")), page)


if __name__ == "__main__":
    main()
