"""A tiny hand-made data set in nuScenes' format: fixed landmarks in the world, seen by every sensor while driving.

Whatever a sensor measures of a landmark must land on the same point of the ego frame, whichever sensor, sweep and time:
that is the oracle of every chain of transforms.
"""

import json
from pathlib import Path

import numpy as np

from sensors.camera import encode_jpeg
from sensors.lidar import LidarSweep, encode_lidar
from sensors.radar import RadarSweep, encode_radar
from sensors.rig import CAMERAS, CHANNELS, LIDAR, NUSCENES_RIG, modality_of
from sensors.transforms import RigidTransform

IMAGE_PX = (36, 64)
STEP_US, SWEEP_US, START_US = 500_000, 50_000, 1_500_000_000_000_000
SPEED_MPS = 4.0
LANDMARKS_M = np.random.default_rng(5).uniform([-30, -30, 0], [60, 30, 4], (40, 3))
SCENES = (("scene-a", "Night, after rain, parked train", 4), ("scene-b", "Sunny street", 3))
PEDESTRIAN_MPS = np.array([1.0, -0.5, 0.0])


def global_from_ego(timestamp_us: int) -> RigidTransform:
    """A curve with a little pitch and roll."""
    t = (timestamp_us - START_US) * 1e-6
    yaw, pitch, roll = 0.2 * t, 0.02, -0.01
    q = np.array([np.cos(yaw / 2), roll / 2, pitch / 2, np.sin(yaw / 2)])
    return RigidTransform.from_quaternion(q, [SPEED_MPS * t, 0.0, 0.1 * t])


def write_small_set(root: Path, version: str = "v1.0-small") -> Path:
    """Write tables, files and splits (``small_train``: both scenes, ``small_val``: the second)."""
    tables = {name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation", "scene", "log", "map")}
    tables["visibility"] = [{"token": "1", "level": "v0-40", "description": ""}]
    tables["category"] = [_named("vehicle.car"), _named("human.pedestrian.adult"), _named("animal")]
    tables["attribute"] = [_named("vehicle.parked"), _named("pedestrian.moving")]
    tables["sensor"] = [{"token": f"sensor-{c}", "channel": c, "modality": modality_of(c)} for c in CHANNELS]
    tables["calibrated_sensor"] = [_calibration(channel) for channel in CHANNELS]
    tables["instance"] = []
    for number, (name, description, num_samples) in enumerate(SCENES):
        _write_scene(root, tables, (number, name, description, num_samples))
    folder = root / version
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    splits = {"small_train": [name for name, _, _ in SCENES], "small_val": [SCENES[1][0]], "elsewhere": ["scene-z"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return root


def _named(name: str) -> dict:
    return {"token": f"token-{name}", "name": name, "description": ""}


def intrinsics() -> np.ndarray:
    return np.array([[50.0, 0.0, 31.5], [0.0, 50.0, 17.5], [0.0, 0.0, 1.0]])


def _calibration(channel: str) -> dict:
    spec = NUSCENES_RIG[channel]
    return {
        "token": f"calibration-{channel}",
        "sensor_token": f"sensor-{channel}",
        "translation": list(spec.position_m),
        "rotation": list(spec.quaternion_wxyz),
        "camera_intrinsic": intrinsics().tolist() if channel in CAMERAS else [],
    }


def _write_scene(root: Path, tables: dict, scene: tuple[int, str, str, int]) -> None:
    number, name, description, num_samples = scene
    start_us = START_US + number * 60_000_000
    tokens = [f"{name}-sample-{i}" for i in range(num_samples)]
    tables["log"].append({"token": f"log-{name}", "location": "nowhere"})
    tables["scene"].append(
        {"token": name + "-token", "name": name, "description": description, "log_token": f"log-{name}"}
        | {"nbr_samples": num_samples, "first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
    )
    for i, token in enumerate(tokens):
        tables["sample"].append(
            {"token": token, "timestamp": start_us + i * STEP_US, "scene_token": name + "-token"}
            | {"prev": tokens[i - 1] if i else "", "next": tokens[i + 1] if i + 1 < num_samples else ""}
        )
    for channel in CHANNELS:
        _write_channel(root, tables, (name, channel, start_us, tokens))
    _annotate(tables, name, start_us, tokens)


def _write_channel(root: Path, tables: dict, what: tuple[str, str, int, list[str]]) -> None:
    """Keyframes for cameras; for the others also two sweeps between keyframes (none before the scene's first)."""
    name, channel, start_us, tokens = what
    offset_us = 0 if channel == LIDAR else -1000 * (3 + 2 * CHANNELS.index(channel))
    before = ""
    for i, token in enumerate(tokens):
        num_extra = 0 if channel in CAMERAS or i == 0 else 2
        for back in range(num_extra, -1, -1):
            timestamp_us = start_us + i * STEP_US + offset_us - back * SWEEP_US
            key = f"{name}-{channel}-{i}-{back}"
            folder = "sweeps" if back else "samples"
            suffix = "jpg" if channel in CAMERAS else "pcd.bin" if channel == LIDAR else "pcd"
            filename = f"{folder}/{channel}/{key}.{suffix}"
            (root / folder / channel).mkdir(parents=True, exist_ok=True)
            (root / filename).write_bytes(_measure(channel, timestamp_us))
            pose = global_from_ego(timestamp_us)
            tables["ego_pose"].append(
                {"token": f"pose-{key}", "timestamp": timestamp_us, "rotation": pose.quaternion_wxyz.tolist()}
                | {"translation": pose.translation_m.tolist()}
            )
            height, width = IMAGE_PX if channel in CAMERAS else (0, 0)
            tables["sample_data"].append(
                {"token": key, "sample_token": token, "ego_pose_token": f"pose-{key}", "timestamp": timestamp_us}
                | {"calibrated_sensor_token": f"calibration-{channel}", "fileformat": suffix, "filename": filename}
                | {"is_key_frame": back == 0, "height": height, "width": width, "prev": before, "next": ""}
            )
            if before:
                tables["sample_data"][-2]["next"] = key
            before = key


def _measure(channel: str, timestamp_us: int) -> bytes:
    sensor_from_ego = NUSCENES_RIG[channel].ego_from_sensor.inverse()
    xyz_m = (sensor_from_ego @ global_from_ego(timestamp_us).inverse()).points(LANDMARKS_M).astype(np.float32)
    num = len(xyz_m)
    if channel in CAMERAS:
        pixels = np.zeros((*IMAGE_PX, 3), np.uint8)
        pixels[:, :, 0] = np.linspace(0, 255, IMAGE_PX[1])
        return encode_jpeg(pixels)
    if channel == LIDAR:
        near = np.array([[0.2, 0.3, 0.0]], np.float32)
        rings = np.arange(num + 1, dtype=np.uint8) % 32
        intensity = np.full(num + 1, 51, np.float32)
        return encode_lidar(LidarSweep(np.concatenate([xyz_m, near]), intensity, rings, 0.0, RigidTransform.identity()))
    codes = {name: np.zeros(num, np.int8) for name in RADAR_CODES} | {"ambig_state": np.full(num, 3, np.int8)}
    codes["dyn_prop"] = (np.arange(num) % 8).astype(np.int8)
    codes["invalid_state"][1::2] = 4
    velocity = np.tile(np.array([[3.0, 1.0]], np.float32), (num, 1))
    return encode_radar(
        RadarSweep(
            xyz_m=xyz_m,
            velocity_raw_mps=velocity - 1,
            velocity_mps=velocity,
            rcs_dbsm=np.linspace(-5, 20, num).astype(np.float32),
            track_id=np.arange(num, dtype=np.int16),
            lag_s=0.0,
            ego_from_radar=RigidTransform.identity(),
            **codes,
        )
    )


RADAR_CODES = (
    "dyn_prop",
    "is_quality_valid",
    "ambig_state",
    "invalid_state",
    "pdh0",
    "x_rms",
    "y_rms",
    "vx_rms",
    "vy_rms",
)


def _annotate(tables: dict, name: str, start_us: int, tokens: list[str]) -> None:
    """A parked car, a walking pedestrian, and an animal, which the detection task ignores."""
    things = (
        ("vehicle.car", [1.9, 4.5, 1.6], 0.3),
        ("human.pedestrian.adult", [0.6, 0.7, 1.8], -2.0),
        ("animal", [1] * 3, 0),
    )
    for category, size, yaw in things:
        instance = f"{name}-{category}"
        tables["instance"].append({"token": instance, "category_token": f"token-{category}"})
        walks = category.startswith("human")
        keys = [f"{instance}-{i}" for i in range(len(tokens))]
        for i, token in enumerate(tokens):
            position = np.array([10.0, 5.0, 1.0]) + (PEDESTRIAN_MPS * i * STEP_US * 1e-6 if walks else 0)
            attribute = {"vehicle.car": "vehicle.parked", "human.pedestrian.adult": "pedestrian.moving"}.get(category)
            tables["sample_annotation"].append(
                {"token": keys[i], "sample_token": token, "instance_token": instance, "visibility_token": "1"}
                | {"attribute_tokens": [f"token-{attribute}"] if attribute else [], "translation": position.tolist()}
                | {"size": size, "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]}
                | {"prev": keys[i - 1] if i else "", "next": keys[i + 1] if i + 1 < len(keys) else ""}
                | {"num_lidar_pts": 3, "num_radar_pts": 1 if walks else 0}
            )
