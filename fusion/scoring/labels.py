"""The labels of a split, from the index of the tables: no devkit, no JSON but the list of samples."""

from pathlib import Path

import numpy as np

from datamodules.columns import NuScenesIndex
from datamodules.index import open_index, tables_folder
from datamodules.nuscenes import conditions_of
from datamodules.splits import PREDEFINED_SPLITS, scenes_of_split
from datamodules.tables import TokenRows, read_columns
from fusion.scoring.table import BoxTable, RackTable, SplitLabels, windows
from sensors.boxes import Boxes
from sensors.rig import CHANNELS, LIDAR

_LIDAR_COLUMN = CHANNELS.index(LIDAR)
_VERSION_OF_SPLIT = {"test": "test", "mini_train": "mini", "mini_val": "mini"}


def load_labels(root: str | Path, version: str, split: str) -> SplitLabels:
    """What submissions of a split are scored against.

    Raises:
        FileNotFoundError: no data set at ``root``, or no such version in it.
        ValueError: no such split, one that does not fit the version, or tables that are broken.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"expected a nuScenes data set, got no folder at {root}; set data.root")
    tables = tables_folder(root, version)
    scenes = scenes_of_split(root, version, split)
    _check_version(version, split)
    index = open_index(root, version)
    rows = _sample_rows(index, tables, scenes)
    if not len(rows):
        raise ValueError(f"expected samples of split '{split}' in {version}, got none; choose another split")
    return labels_of_samples(index, rows)


def labels_of_samples(index: NuScenesIndex, rows: np.ndarray) -> SplitLabels:
    """Labels of some samples of an index, in the order of the rows."""
    first, columns = index.samples.first_annotation, index.annotations
    sample, annotation = windows(first[rows], first[rows + 1] - first[rows])
    label, rack = columns.label[annotation], columns.is_bicycle_rack[annotation]
    boxes, racks = _boxes(index, annotation[label >= 0]), _boxes(index, annotation[rack])
    keyframe = index.samples.keyframes[rows, _LIDAR_COLUMN]
    if (keyframe < 0).any():
        token = index.samples.token[rows[keyframe < 0][0]].decode()
        raise ValueError(f"expected a LiDAR keyframe in every sample, {token} has none; copy sample_data.json again")
    scenes = np.unique(index.samples.scene[rows])
    return SplitLabels(
        tokens=tuple(token.decode() for token in index.samples.token[rows]),
        ego_xy_m=np.asarray(index.measurements.pose_m[keyframe, :2]),
        table=BoxTable(boxes, sample[label >= 0]),
        visibility=columns.visibility[annotation[label >= 0]],
        racks=RackTable.of_boxes(racks, sample[rack]),
        scene=np.searchsorted(scenes, index.samples.scene[rows]),
        scene_names=tuple(index.scenes.name[row].decode() for row in scenes),
        conditions=tuple(conditions_of(index.scenes.description[row].decode()) for row in scenes),
    )


def _boxes(index: NuScenesIndex, rows: np.ndarray) -> Boxes:
    columns = index.annotations
    heading = columns.heading[rows]
    return Boxes(
        center_m=columns.center_m[rows],
        size_lwh_m=columns.size_lwh_m[rows],
        yaw_rad=np.arctan2(heading[:, 1], heading[:, 0]),
        velocity_mps=columns.velocity_mps[rows, :2],
        label=columns.label[rows].astype(np.int64),
        score=np.ones(len(rows)),
        attribute=columns.attribute[rows].astype(np.int64),
        num_points=(columns.num_lidar[rows] + columns.num_radar[rows]).astype(np.int64),
    )


def _sample_rows(index: NuScenesIndex, tables: Path, scenes: tuple[str, ...]) -> np.ndarray:
    """Rows of the split's samples, in the order of ``sample.json``: the devkit's order, which decides between ties."""
    names = np.array([name.encode() for name in scenes] or [b""])
    chosen = np.isin(index.scenes.name, names)[index.samples.scene]
    listed = TokenRows("sample", index.samples.token).rows(read_columns(tables, "sample")["token"], "sample.token")
    return listed[chosen[listed]]


def _check_version(version: str, split: str) -> None:
    """A predefined split belongs to one version; the devkit refuses it with another."""
    ending = _VERSION_OF_SPLIT.get(split, "trainval")
    if split in PREDEFINED_SPLITS and not version.endswith(ending):
        raise ValueError(f"expected a version that ends in '{ending}' for split '{split}', got '{version}'")
