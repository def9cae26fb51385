"""Speed of LiDAR weather against the same formulas in a plain Python loop: ``python benchmarks/faults_lidar.py``.

Milliseconds of processor time of one core (so that a busy machine does not count), both sides in turns in one process
on one cloud of 34,688 points: as many as a nuScenes sweep has, on a flat ground with walls.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from lidar_loops import fog_loop, rain_loop, snow_loop  # noqa: E402
from machine import write_results  # noqa: E402

from sensors.faults import lidar_fog as fog  # noqa: E402
from sensors.faults import lidar_rain as rain  # noqa: E402
from sensors.faults import lidar_snow as snow  # noqa: E402
from sensors.lidar import LidarSweep  # noqa: E402
from sensors.rig import LIDAR, NUSCENES_RIG  # noqa: E402

NUM_POINTS, SEED = 34_688, 0
TIMES_FASTER = 50
_BUDGET_MS = {"fog": 60, "rain": 60, "snow": 300}
_LOOPS = {"fog": fog_loop, "rain": rain_loop, "snow": snow_loop}
_LEVEL = {"fog": 0.03, "rain": 25.0, "snow": 2.0}


def town_sweep(seed: int = SEED) -> LidarSweep:
    """A turn of 32 beams: the ground out to where walls begin, at 4 to 70 m from the sensor."""
    rng = np.random.default_rng(seed)
    ring = np.arange(NUM_POINTS) % 32
    azimuth = (np.arange(NUM_POINTS) // 32) * (2 * np.pi / 1084)
    elevation = np.deg2rad(-30.67 + 1.333 * ring)
    walls_m = np.exp(np.interp(azimuth, np.linspace(0, 2 * np.pi, 60), rng.uniform(np.log(4), np.log(70), 60)))
    ground_m = np.where(elevation < -0.01, 1.84 / np.maximum(np.sin(-elevation), 1e-6), np.inf)
    range_m = np.minimum(walls_m / np.cos(elevation), ground_m)
    direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    xyz_m = (range_m * direction).T.astype(np.float32)
    intensity = np.rint(rng.gamma(1.2, 16, NUM_POINTS).clip(0, 255)).astype(np.float32)
    return LidarSweep(xyz_m, intensity, ring.astype(np.uint8), 0.0, NUSCENES_RIG[LIDAR].ego_from_sensor)


def cpu_ms(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def lidar_rows(repeats: int = 3) -> list[dict]:
    """Rows {name, ours, peer, ratio, bar, holds} in milliseconds of processor time; ratio is peer over ours."""
    sweep = town_sweep()
    faults = {"fog": fog.LIDAR_FOG, "rain": rain.LIDAR_RAIN, "snow": snow.LIDAR_SNOW}
    rows = []
    for kind, fault in faults.items():
        level = _LEVEL[kind]
        ours, peer = [], []
        fault.effect(sweep, level, np.random.default_rng(SEED), None)
        for repeat in range(repeats):
            for k in range(3):
                ours.append(cpu_ms(lambda k=k: fault.effect(sweep, level, np.random.default_rng(k), None)))  # noqa: B023
            peer.append(cpu_ms(lambda r=repeat: _LOOPS[kind](sweep, level, np.random.default_rng(r))))  # noqa: B023
        mine, theirs = statistics.median(ours), statistics.median(peer)
        budget, faster = _BUDGET_MS[kind], theirs / mine
        shared = {"ours": round(mine, 2), "peer": round(theirs, 1), "ratio": round(faster, 1)}
        name = f"LiDAR {kind}, {NUM_POINTS} points, ms of one core"
        rows.append({"name": name, **shared, "bar": f"under {budget} ms", "holds": mine < budget})
        name = f"LiDAR {kind} against a plain loop per point"
        rows.append({"name": name, **shared, "bar": f"{TIMES_FASTER} times faster", "holds": faster >= TIMES_FASTER})
    return rows


def main(out: Path) -> None:
    rows = lidar_rows()
    write_results(out, {"threads": 1}, {"numpy": np.__version__}, seed=SEED, rows=rows)
    for row in rows:
        print(f"{row['name']:52}", "  ".join(f"{key} {row[key]}" for key in ("ours", "peer", "ratio", "bar", "holds")))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/faults_lidar.json"))
