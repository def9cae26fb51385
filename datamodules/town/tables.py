"""nuScenes' thirteen tables from the records of a town's scenes and samples."""

import hashlib
from datetime import datetime, timezone
from itertools import pairwise

from datamodules.town.names import ATTRIBUTES, CATEGORIES, VISIBILITIES
from datamodules.town.presets import TownConfig
from datamodules.town.world import SPLITS, SceneKey
from sensors.rig import CHANNELS, NUSCENES_RIG

Row = dict
Tables = dict[str, list[Row]]


class Tokens:
    """Tokens of one town: 32 hexadecimal digits, from seed and meaning."""

    def __init__(self, seed: int):
        self._seed = seed

    def of(self, *meaning: object) -> str:
        text = "/".join(str(part) for part in ("town", self._seed, *meaning))
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def logfile_of(config: TownConfig, key: SceneKey) -> str:
    """Name of a scene's log, the first part of its file names."""
    return f"town{config.seed}-{key.split}-{key.index:04d}"


def map_filename(config: TownConfig, key: SceneKey) -> str:
    return f"maps/{Tokens(config.seed).of('map', key.name)}.png"


def splits_of(keys: list[SceneKey]) -> dict[str, list[str]]:
    """The content of ``splits.json``, the devkit's way to name custom splits."""
    return {f"town_{split}": [key.name for key in keys if key.split == split] for split in SPLITS}


def build_tables(config: TownConfig, scenes: list[tuple[SceneKey, Row, list[Row]]]) -> Tables:
    """All tables, from each scene's key, scene record and sample records in order."""
    tokens = Tokens(config.seed)
    tables = _vocabulary(tokens)
    for name in ("log", "map", "scene", "sample", "calibrated_sensor"):
        tables[name] = []
    for name in ("ego_pose", "sample_data", "instance", "sample_annotation"):
        tables[name] = []
    for key, scene, samples in scenes:
        _add_scene(tables, tokens, config, key, scene, samples)
        _add_sample_data(tables, tokens, key, scene, samples)
        _add_annotations(tables, tokens, key, scene, samples)
    return tables


def _vocabulary(tokens: Tokens) -> Tables:
    return {
        "category": [
            {"token": tokens.of("category", name), "name": name, "description": text, "index": index}
            for index, (name, text) in enumerate(CATEGORIES.items(), start=1)
        ],
        "attribute": [
            {"token": tokens.of("attribute", name), "name": name, "description": text}
            for name, text in ATTRIBUTES.items()
        ],
        "visibility": [
            {"token": token, "level": level, "description": f"{level[1:]} % of the object can be seen"}
            for token, level in VISIBILITIES.items()
        ],
        "sensor": [
            {"token": tokens.of("sensor", channel), "channel": channel, "modality": NUSCENES_RIG[channel].modality}
            for channel in CHANNELS
        ],
    }


def _add_scene(
    tables: Tables, tokens: Tokens, config: TownConfig, key: SceneKey, scene: Row, samples: list[Row]
) -> None:
    log, name = tokens.of("log", key.name), key.name
    day = datetime.fromtimestamp(scene["start_us"] / 1e6, timezone.utc).strftime("%Y-%m-%d")
    tables["log"].append(
        {"token": log, "logfile": logfile_of(config, key), "vehicle": "town", "date_captured": day, "location": name}
    )
    filename = map_filename(config, key)
    tables["map"].append(
        {"token": tokens.of("map", name), "log_tokens": [log], "category": "semantic_prior", "filename": filename}
    )
    sample_tokens = [tokens.of("sample", name, index) for index in range(len(samples))]
    tables["scene"].append(
        {
            "token": tokens.of("scene", name),
            "log_token": log,
            "nbr_samples": len(samples),
            "first_sample_token": sample_tokens[0],
            "last_sample_token": sample_tokens[-1],
            "name": name,
            "description": scene["description"],
        }
    )
    rows = [
        {
            "token": token,
            "timestamp": sample["timestamp"],
            "prev": "",
            "next": "",
            "scene_token": tokens.of("scene", name),
        }
        for token, sample in zip(sample_tokens, samples, strict=True)
    ]
    tables["sample"] += _chained(rows)
    for channel in CHANNELS:
        tables["calibrated_sensor"].append(
            {
                "token": tokens.of("calibrated_sensor", name, channel),
                "sensor_token": tokens.of("sensor", channel),
                **scene["calibration"][channel],
            }
        )


def _add_sample_data(tables: Tables, tokens: Tokens, key: SceneKey, scene: Row, samples: list[Row]) -> None:
    """Sweeps belong to the keyframe after them; each channel is one chain in time."""
    height, width = scene["image_size_px"]
    chains: dict[str, list[Row]] = {channel: [] for channel in CHANNELS}
    for index, sample in enumerate(samples):
        for shot in sample["data"]:
            token = tokens.of("sample_data", shot["filename"])
            is_camera = NUSCENES_RIG[shot["channel"]].modality == "camera"
            pose = {"token": token, "timestamp": shot["timestamp"]}
            tables["ego_pose"].append({**pose, "rotation": shot["rotation"], "translation": shot["translation"]})
            chains[shot["channel"]].append(
                {
                    "token": token,
                    "sample_token": tokens.of("sample", key.name, index),
                    "ego_pose_token": token,
                    "calibrated_sensor_token": tokens.of("calibrated_sensor", key.name, shot["channel"]),
                    "timestamp": shot["timestamp"],
                    "fileformat": "jpg" if is_camera else "pcd",
                    "is_key_frame": shot["is_key_frame"],
                    "height": height if is_camera else 0,
                    "width": width if is_camera else 0,
                    "filename": shot["filename"],
                    "prev": "",
                    "next": "",
                }
            )
    for rows in chains.values():
        tables["sample_data"] += _chained(rows)


def _add_annotations(tables: Tables, tokens: Tokens, key: SceneKey, scene: Row, samples: list[Row]) -> None:
    """An instance is labelled from the first keyframe to the last in which a LiDAR or radar point lies in its box."""
    attributes = {row["name"]: row["token"] for row in tables["attribute"]}
    categories = {row["name"]: row["token"] for row in tables["category"]}
    seen: dict[int, list[tuple[int, Row]]] = {}
    for index, sample in enumerate(samples):
        for label in sample["labels"]:
            seen.setdefault(label["instance"], []).append((index, label))
    for number in sorted(seen):
        touched = [k for k, (_, row) in enumerate(seen[number]) if row["num_lidar_pts"] + row["num_radar_pts"] > 0]
        if not touched:
            continue
        instance, token = scene["instances"][number], tokens.of("instance", key.name, number)
        length, width, height = instance["size_lwh_m"]
        rows = [
            {
                "token": tokens.of("annotation", key.name, number, index),
                "sample_token": tokens.of("sample", key.name, index),
                "instance_token": token,
                "visibility_token": label["visibility"],
                "attribute_tokens": [attributes[label["attribute"]]] if label["attribute"] else [],
                "translation": label["translation"],
                "size": [width, length, height],
                "rotation": label["rotation"],
                "prev": "",
                "next": "",
                "num_lidar_pts": label["num_lidar_pts"],
                "num_radar_pts": label["num_radar_pts"],
            }
            for index, label in seen[number][touched[0] : touched[-1] + 1]
        ]
        tables["sample_annotation"] += _chained(rows)
        tables["instance"].append(
            {
                "token": token,
                "category_token": categories[instance["category"]],
                "nbr_annotations": len(rows),
                "first_annotation_token": rows[0]["token"],
                "last_annotation_token": rows[-1]["token"],
            }
        )


def _chained(rows: list[Row]) -> list[Row]:
    for earlier, later in pairwise(rows):
        earlier["next"], later["prev"] = later["token"], earlier["token"]
    return rows
