"""Reading against the devkit and against plain numpy: ``python benchmarks/reading.py [OUT.json]``.

Two scenes of a small town with nine extra LiDAR sweeps per keyframe are written to a temporary folder first. All sides
of a row take turns in one process; a number is the median of the CPU time of one call, so that other work on the
machine counts little. The numpy sides are what a careful user of the devkit would write: one read per file, one matrix
per sweep.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import write_results

from datamodules.nuscenes import NuScenesFrames
from datamodules.prepare import Preparation, PreparedSamples, lidar_points
from datamodules.town.presets import TownConfig
from datamodules.town.writer import VERSION, write_town
from sensors.radar import PCD_FIELDS, read_radar, read_radar_rows
from sensors.rig import LIDAR
from sensors.transforms import RigidTransform

NUM_SWEEPS, SPLIT = 10, "town_train"
REAL = Path(os.environ.get("DYNFUSION_NUSCENES_REAL", Path(__file__).parents[2] / "shared" / "nuscenes-real"))


def medians_ms(sides: dict, rounds: int, calls: dict[str, int]) -> dict[str, float]:
    """CPU milliseconds of one call of every side; each round goes through all sides, with some calls of each in turn.

    A loader calls the same thing over and over: one call after another side's would mostly time the allocator.
    """
    times = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            begun = time.thread_time()
            for _ in range(calls.get(name, 1)):
                function()
            times[name].append(1e3 * (time.thread_time() - begun) / calls.get(name, 1))
    return {name: statistics.median(values) for name, values in times.items()}


def numpy_radar(path: Path) -> np.ndarray:
    """The 18 columns of a radar file: header line by line, then one structured read."""
    with open(path, "rb") as file:
        num_points = 0
        for line in file:
            if line.startswith(b"POINTS"):
                num_points = int(line.split()[1])
            if line.startswith(b"DATA"):
                break
        rows = np.frombuffer(file.read(), np.dtype(list(PCD_FIELDS)), num_points)
    return np.stack([rows[name] for name, _ in PCD_FIELDS])


def numpy_multisweep(nusc, sample: dict) -> np.ndarray:
    """As ``from_file_multisweep``: one matrix per sweep, one concatenation at the end."""
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    def matrix(table, token, inverse=False):
        record = nusc.get(table, token)
        return transform_matrix(record["translation"], Quaternion(record["rotation"]), inverse)

    row = nusc.get("sample_data", sample["data"][LIDAR])
    reference_s = 1e-6 * row["timestamp"]
    ref_from_global = matrix("calibrated_sensor", row["calibrated_sensor_token"], True) @ matrix(
        "ego_pose", row["ego_pose_token"], True
    )
    parts = []
    for _ in range(NUM_SWEEPS):
        rows = np.fromfile(Path(nusc.dataroot) / row["filename"], np.float32).reshape(-1, 5)
        rows = rows[~((np.abs(rows[:, 0]) < 1.0) & (np.abs(rows[:, 1]) < 1.0))]
        ref_from_sensor = ref_from_global @ matrix("ego_pose", row["ego_pose_token"])
        ref_from_sensor = (ref_from_sensor @ matrix("calibrated_sensor", row["calibrated_sensor_token"])).astype("f4")
        rows[:, :3] = rows[:, :3] @ ref_from_sensor[:3, :3].T + ref_from_sensor[:3, 3]
        rows[:, 4] = reference_s - 1e-6 * row["timestamp"]
        parts.append(rows)
        if not row["prev"]:
            break
        row = nusc.get("sample_data", row["prev"])
    return np.concatenate(parts)


def radar_rows(path: Path, where: str) -> list[dict]:
    from nuscenes.utils.data_classes import RadarPointCloud

    RadarPointCloud.disable_filters()
    here = RigidTransform.identity()
    sides = {
        "rows": lambda: read_radar_rows(path),
        "sweep": lambda: read_radar(path, 0.0, here),
        "devkit": lambda: RadarPointCloud.from_file(str(path)),
        "numpy": lambda: numpy_radar(path),
    }
    ms = medians_ms(sides, 60, {"rows": 60, "sweep": 60, "devkit": 2, "numpy": 60})
    assert len(read_radar_rows(path)) == numpy_radar(path).shape[1]
    return [
        compared(f"radar file ({where}): all 18 fields, unfiltered", ms["rows"], "devkit from_file", ms["devkit"], 80),
        compared(f"radar file ({where}): all 18 fields, unfiltered", ms["rows"], "plain numpy", ms["numpy"], 1),
        compared(f"radar file ({where}): checked RadarSweep", ms["sweep"], "devkit from_file", ms["devkit"], 80),
        compared(f"radar file ({where}): checked RadarSweep", ms["sweep"], "plain numpy", ms["numpy"], 1),
    ]


def lidar_rows(root: Path, nusc) -> list[dict]:
    from nuscenes.utils.data_classes import LidarPointCloud

    frames = NuScenesFrames(root, VERSION, SPLIT, lidar_sweeps=NUM_SWEEPS, radar_sweeps=0, cameras=False)
    sample = nusc.get("sample", frames.tokens[2])
    assert len(frames[2].lidar) == NUM_SWEEPS

    def ours():
        return lidar_points(frames[2], np.eye(4))

    def devkit(min_distance=1.0):
        return LidarPointCloud.from_file_multisweep(nusc, sample, LIDAR, LIDAR, NUM_SWEEPS, min_distance)

    lidar_from_ego = frames[2].lidar[0].ego_from_lidar.inverse().matrix
    frames.close_m = 0.0
    error_m = float(np.abs(lidar_points(frames[2], lidar_from_ego)[:, :3] - devkit(0.0)[0].points[:3].T).max())
    frames.close_m = 1.0
    sides = {"ours": ours, "devkit": devkit, "numpy": lambda: numpy_multisweep(nusc, sample)}
    ms = medians_ms(sides, 15, dict.fromkeys(sides, 4))
    name = f"{NUM_SWEEPS} LiDAR sweeps in one frame, {len(ours()):,} points"
    return [
        compared(name, ms["ours"], "devkit from_file_multisweep", ms["devkit"], 3),
        compared(name, ms["ours"], "plain numpy", ms["numpy"], 1),
        {"name": "largest distance to the devkit's coordinates, m", "ours": error_m, "peer": 0.0, "ratio": None}
        | {"bar": 1e-4, "holds": error_m <= 1e-4},
    ]


def sample_row(root: Path) -> dict:
    """A whole training sample, for the record: no peer reads all of it."""
    frames = NuScenesFrames(root, VERSION, SPLIT, lidar_sweeps=NUM_SWEEPS, radar_sweeps=6)
    samples = PreparedSamples(frames, Preparation((128, 352), point_range_m=(-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)))
    ms = medians_ms({"ours": lambda: samples[2]}, 15, {})["ours"]
    name = f"sample: 6 small views, {NUM_SWEEPS} LiDAR and 5 x 6 radar sweeps, prepared; ms"
    return {"name": name, "ours": round(ms, 2), "peer": None, "ratio": None, "bar": None, "holds": None}


def compared(name: str, ours_ms: float, peer: str, peer_ms: float, bar: float) -> dict:
    ratio = peer_ms / ours_ms
    row = {"name": f"{name} | {peer}; ms", "ours": round(ours_ms, 4), "peer": round(peer_ms, 4)}
    return row | {"ratio": round(ratio, 1), "bar": bar, "holds": bool(ratio >= bar)}


def main(out: Path) -> None:
    from importlib.metadata import version

    from nuscenes import NuScenes

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "town"
        config = TownConfig(
            num_train_scenes=1, num_val_scenes=1, samples_per_scene=3, image_scale=0.1, lidar_sweeps=9, radar_sweeps=5
        )
        write_town(root, config)
        nusc = NuScenes(VERSION, str(root), verbose=False)
        real = sorted((REAL / "radar").glob("*.pcd"))
        rows = radar_rows(real[0], "real, 125 points") if real else []
        town_radar = sorted((root / "samples" / "RADAR_FRONT").iterdir())[0]
        rows += radar_rows(town_radar, f"town, {len(read_radar_rows(town_radar))} points")
        rows += lidar_rows(root, nusc)
        rows.append(sample_row(root))
    versions = {name: version(name) for name in ("numpy", "nuscenes-devkit")}
    write_results(out, {"threads": 1}, versions, seed=config.seed, rows=rows)
    for row in rows:
        print(
            f"{row['name']:90} {row['ours']:>10.3g} {row['peer']!s:>8} x{row['ratio']!s:>6} "
            f"bar {row['bar']!s:>6} {row['holds']}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/reading.json"))
