"""One memory-mapped columnar index of a nuScenes version: built once from the JSON tables, opened in milliseconds.

Every column is one ``.npy`` file; tokens have become row numbers, the chain of measurements and the velocity of every
box are resolved. The folder's name is a hash of the tables' sizes and times, so a stale index is never opened.
"""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int8, Int32, Int64

from datamodules.columns import (
    AnnotationColumns,
    CalibrationColumns,
    MeasurementColumns,
    NuScenesIndex,
    SampleColumns,
    SceneColumns,
    load_index,
)
from datamodules.tables import TABLES, TokenRows, read_columns
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_FROM_CATEGORY, DETECTION_NAMES, NO_ATTRIBUTE
from sensors.rig import CHANNELS

_FORMAT = 2
_MAX_TIME_DIFF_S = 1.5
_BICYCLE_RACK = b"static_object.bicycle_rack"
_LOG = logging.getLogger(__name__)


def open_index(root: Path, version: str, progress: Callable[[str], None] | None = None) -> NuScenesIndex:
    """The index of a version, built first where there is none for the tables as they are now.

    It lies in ``<root>/<version>/.dynfusion-index``, or in the user's cache folder where that cannot be written.

    Args:
        progress: told what is being read, while building.

    Raises:
        FileNotFoundError: no such root, version or table.
        ValueError: a table is broken or misses a token.
    """
    tables = tables_folder(Path(root), version)
    signature = _signature(tables)
    places = (tables / ".dynfusion-index", _cache_folder(tables))
    for place in places:
        if (place / signature).is_dir():
            return load_index(place / signature)
    index_groups = build_index(tables, progress or _LOG.info)
    for place in places:
        try:
            _save(index_groups, place, signature)
        except OSError as error:
            _LOG.info("cannot keep the index in %s: %s", place, error)
            continue
        return load_index(place / signature)
    raise ValueError(f"expected {places[0]} or {places[1]} to be writable for the index, neither is; free one of them")


def tables_folder(root: Path, version: str) -> Path:
    """The folder of a version's tables, checked to be there with all thirteen."""
    if not root.is_dir():
        raise FileNotFoundError(f"expected the data set's folder at {root}, found none; set root=")
    tables = root / version
    if not tables.is_dir():
        found = sorted(folder.parent.name for folder in root.glob("*/sample.json"))
        raise FileNotFoundError(
            f"expected the version '{version}' in {root}, found {', '.join(found) or 'no version'}; "
            f"set version={found[0] if found else ''} or another root"
        )
    missing = [name for name in TABLES if not (tables / f"{name}.json").is_file()]
    if missing:
        raise FileNotFoundError(
            f"expected the thirteen tables of nuScenes in {tables}, found no {', '.join(missing)}; copy them again"
        )
    return tables


def build_index(tables: Path, progress: Callable[[str], None]) -> dict[str, object]:
    """Read the tables and resolve their tokens; the values are the column groups of NuScenesIndex."""

    def read(table: str) -> dict[str, np.ndarray]:
        progress(f"reading {table}.json")
        return read_columns(tables, table)

    scenes, scene_rows = _scenes(read("scene"), read("log"))
    samples, sample_rows = _samples(read("sample"), scene_rows)
    calibration_table = read("calibrated_sensor")
    calibrations, channel = _calibrations(calibration_table, read("sensor"))
    calibration_rows = TokenRows("calibrated_sensor", calibration_table["token"])
    measurements, keyframes = _measurements(
        read("sample_data"), read("ego_pose"), samples, sample_rows, (calibration_rows, channel)
    )
    categories = {name: read(name) for name in ("instance", "category", "attribute")}
    annotations, owners = _annotations(read("sample_annotation"), categories, samples, sample_rows)
    num_samples = len(samples["token"])
    counts = np.bincount(owners, minlength=num_samples)
    samples = SampleColumns(
        **samples, keyframes=keyframes, first_annotation=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    )
    return {
        "scenes": scenes,
        "samples": samples,
        "measurements": measurements,
        "calibrations": calibrations,
        "annotations": annotations,
    }


def _scenes(table: dict, logs: dict) -> tuple[SceneColumns, TokenRows]:
    log = TokenRows("log", logs["token"]).rows(table["log_token"], "scene.log_token")
    location = logs["location"][log] if len(log) else logs["location"][:0]
    columns = SceneColumns(table["token"], table["name"], table["description"], location)
    return columns, TokenRows("scene", table["token"])


def _samples(table: dict, scene_rows: TokenRows) -> tuple[dict[str, np.ndarray], TokenRows]:
    scene = scene_rows.rows(table["scene_token"], "sample.scene_token")
    order = np.lexsort([table["timestamp"], scene])
    token = table["token"][order]
    columns = {"token": token, "scene": scene[order].astype(np.int32), "timestamp_us": table["timestamp"][order]}
    return columns, TokenRows("sample", token)


def _calibrations(table: dict, sensors: dict) -> tuple[CalibrationColumns, Int8[np.ndarray, "c"]]:
    """Calibrations, and the channel of each."""
    sensor = TokenRows("sensor", sensors["token"]).rows(table["sensor_token"], "calibrated_sensor.sensor_token")
    known = {name.encode(): i for i, name in enumerate(CHANNELS)}
    channel_of_sensor = np.array([known.get(bytes(name), -1) for name in sensors["channel"]], np.int8)
    columns = CalibrationColumns(table["rotation"], table["translation"], table["camera_intrinsic"])
    return columns, channel_of_sensor[sensor]


def _measurements(
    table: dict, poses: dict, samples: dict, sample_rows: TokenRows, calibrated: tuple[TokenRows, np.ndarray]
) -> tuple[MeasurementColumns, Int32[np.ndarray, "s 12"]]:
    calibration_rows, channel_of_calibration = calibrated
    calibration = calibration_rows.rows(table["calibrated_sensor_token"], "sample_data.calibrated_sensor_token")
    sample = sample_rows.rows(table["sample_token"], "sample_data.sample_token")
    pose = TokenRows("ego_pose", poses["token"]).rows(table["ego_pose_token"], "sample_data.ego_pose_token")
    before = TokenRows("sample_data", table["token"]).rows(table["prev"], "sample_data.prev", optional=True)
    channel, scene = channel_of_calibration[calibration], samples["scene"][sample]
    order = np.lexsort([table["timestamp"], channel, scene])
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    # A chain that leaves its scene or channel would mix ego frames without a common origin or sensor.
    own = (before >= 0) & (scene[before] == scene) & (channel[before] == channel) if len(before) else before >= 0
    previous = np.where(own, place[before], -1) if len(before) else before
    columns = MeasurementColumns(
        filename=table["filename"][order],
        channel=channel[order],
        timestamp_us=table["timestamp"][order],
        calibration=calibration[order].astype(np.int32),
        pose_wxyz=poses["rotation"][pose[order]],
        pose_m=poses["translation"][pose[order]],
        previous=previous[order].astype(np.int32),
        size_px=np.stack([table["width"], table["height"]], axis=1)[order].astype(np.int32),
    )
    keyframes = np.full((len(samples["token"]), len(CHANNELS)), -1, np.int32)
    rows = np.flatnonzero((table["is_key_frame"][order] != 0) & (columns.channel >= 0))
    keyframes[sample[order][rows], columns.channel[rows]] = rows
    return columns, keyframes


def _annotations(
    table: dict, others: dict[str, dict], samples: dict, sample_rows: TokenRows
) -> tuple[AnnotationColumns, Int64[np.ndarray, "a"]]:
    """Annotations by sample, and the sample of each."""
    instances, categories, attributes = others["instance"], others["category"], others["attribute"]
    sample = sample_rows.rows(table["sample_token"], "sample_annotation.sample_token")
    instance = TokenRows("instance", instances["token"]).rows(
        table["instance_token"], "sample_annotation.instance_token"
    )
    category = TokenRows("category", categories["token"]).rows(instances["category_token"], "instance.category_token")
    attribute = TokenRows("attribute", attributes["token"]).rows(
        table["attribute_tokens"], "sample_annotation.attribute_tokens", optional=True
    )
    label_of_category = np.array([_label_of(bytes(name).decode()) for name in categories["name"]] + [-1], np.int8)
    racks = np.array([bytes(name) == _BICYCLE_RACK for name in categories["name"]] + [False], bool)
    attribute_of_row = [_attribute_of(bytes(name).decode()) for name in attributes["name"]]
    visibility = np.array([int(level) if level.isdigit() else 0 for level in table["visibility_token"]], np.int8)
    order = np.argsort(sample, kind="stable")
    columns = AnnotationColumns(
        token=table["token"][order],
        instance=instance[order].astype(np.int32),
        label=label_of_category[category[instance[order]] if len(instance) else instance],
        center_m=table["translation"][order],
        size_lwh_m=table["size"][order][:, [1, 0, 2]],
        heading=_headings(table["rotation"])[order],
        velocity_mps=_velocities(table, samples["timestamp_us"][sample])[order],
        attribute=np.array([*attribute_of_row, NO_ATTRIBUTE], np.int8)[attribute[order]],
        num_lidar=table["num_lidar_pts"][order].astype(np.int32),
        num_radar=table["num_radar_pts"][order].astype(np.int32),
        visibility=visibility[order],
        is_bicycle_rack=racks[category[instance[order]] if len(instance) else instance],
    )
    return columns, sample[order]


def _headings(wxyz: Float64[np.ndarray, "a 4"]) -> Float64[np.ndarray, "a 3"]:
    """The x axis turned by each quaternion: the first column of its rotation matrix."""
    length = np.linalg.norm(wxyz, axis=1)
    if (length < 1e-9).any():
        raise ValueError(
            f"expected a rotation of non-zero length in sample_annotation.json, record {np.argmin(length)} has zeros"
        )
    w, x, y, z = (wxyz / length[:, None]).T
    return np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=1)


def _label_of(category: str) -> int:
    name = DETECTION_FROM_CATEGORY.get(category)
    return -1 if name is None else DETECTION_NAMES.index(name)


def _attribute_of(name: str) -> int:
    return ATTRIBUTE_NAMES.index(name) if name in ATTRIBUTE_NAMES else NO_ATTRIBUTE


def _velocities(table: dict, timestamp_us: Int64[np.ndarray, "a"]) -> Float64[np.ndarray, "a 3"]:
    """The devkit's ``box_velocity``: difference over the neighbours in time, at most 1.5 s per side, else NaN."""
    rows = TokenRows("sample_annotation", table["token"])
    here = np.arange(len(timestamp_us))
    before = rows.rows(table["prev"], "sample_annotation.prev", optional=True)
    after = rows.rows(table["next"], "sample_annotation.next", optional=True)
    first, last = np.where(before >= 0, before, here), np.where(after >= 0, after, here)
    seconds = 1e-6 * timestamp_us[last] - 1e-6 * timestamp_us[first]
    allowed_s = np.where((before >= 0) & (after >= 0), 2 * _MAX_TIME_DIFF_S, _MAX_TIME_DIFF_S)
    known = (first != last) & (seconds <= allowed_s) & (seconds > 0)
    moved_m = table["translation"][last] - table["translation"][first]
    return np.where(known[:, None], moved_m / np.where(known, seconds, 1.0)[:, None], np.nan)


def _signature(tables: Path) -> str:
    """Changes whenever a table or the format of the index does."""
    parts = [f"format {_FORMAT}"]
    for name in TABLES:
        stat = (tables / f"{name}.json").stat()
        parts.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _cache_folder(tables: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "dynfusion" / "index" / hashlib.sha256(str(tables.resolve()).encode()).hexdigest()[:16]


def _save(groups: dict[str, object], place: Path, signature: str) -> None:
    """Write all columns aside, then rename: a reader sees a whole index or none. Stale ones are removed."""
    place.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="writing-", dir=place))
    try:
        for group, columns in groups.items():
            for field in fields(columns):
                np.save(aside / f"{group}.{field.name}.npy", getattr(columns, field.name), allow_pickle=False)
        aside.chmod(0o755)
        try:
            aside.rename(place / signature)
        except OSError:
            if not (place / signature).is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for other in place.iterdir():
        if other.name != signature and not other.name.startswith("writing-"):
            shutil.rmtree(other, ignore_errors=True)
