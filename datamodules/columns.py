"""The columns of a nuScenes version, resolved to row numbers and mapped from ``.npy`` files."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64

_IN_MEMORY_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class SceneColumns:
    """One row per scene, in the table's order. Texts are UTF-8 bytes."""

    token: np.ndarray
    name: np.ndarray
    description: np.ndarray
    location: np.ndarray


@dataclass(frozen=True, eq=False)
class SampleColumns:
    """One row per keyframe, by scene, then by time.

    Attributes:
        keyframes: row in MeasurementColumns of each of CHANNELS; -1 where the table has none.
        first_annotation: annotations of row i are rows ``first_annotation[i]`` to ``first_annotation[i + 1]``.
    """

    token: np.ndarray
    scene: Int32[np.ndarray, "s"]
    timestamp_us: Int64[np.ndarray, "s"]
    keyframes: Int32[np.ndarray, "s 12"]
    first_annotation: Int64[np.ndarray, "s+1"]


@dataclass(frozen=True, eq=False)
class MeasurementColumns:
    """One row per ``sample_data``, by scene, channel and time.

    Attributes:
        filename: relative to the root.
        channel: index into CHANNELS; -1 for a channel that is not nuScenes'.
        calibration: row in CalibrationColumns.
        pose_wxyz, pose_m: global_from_ego at the measurement's own time.
        previous: row of the same channel's measurement before; -1 at the scene's start.
        size_px: width and height of a picture; 0 for others.
    """

    filename: np.ndarray
    channel: Int8[np.ndarray, "m"]
    timestamp_us: Int64[np.ndarray, "m"]
    calibration: Int32[np.ndarray, "m"]
    pose_wxyz: Float64[np.ndarray, "m 4"]
    pose_m: Float64[np.ndarray, "m 3"]
    previous: Int32[np.ndarray, "m"]
    size_px: Int32[np.ndarray, "m 2"]


@dataclass(frozen=True, eq=False)
class CalibrationColumns:
    """One row per ``calibrated_sensor``: ego_from_sensor, and image_from_camera (zeros for other sensors)."""

    rotation_wxyz: Float64[np.ndarray, "c 4"]
    translation_m: Float64[np.ndarray, "c 3"]
    intrinsics: Float64[np.ndarray, "c 3 3"]


@dataclass(frozen=True, eq=False)
class AnnotationColumns:
    """One row per ``sample_annotation``, by sample, then in the table's order; global frame.

    Attributes:
        instance: row of the instance table.
        label: index into DETECTION_NAMES; -1 for categories outside the detection task.
        heading: the box's x axis.
        velocity_mps: as the devkit's ``box_velocity``; NaN where unknown.
        attribute: index into ATTRIBUTE_NAMES, or NO_ATTRIBUTE.
        visibility: nuScenes' level 1 to 4; 0 where unknown.
        is_bicycle_rack: of the category whose contents the detection metric leaves out.
    """

    token: np.ndarray
    instance: Int32[np.ndarray, "a"]
    label: Int8[np.ndarray, "a"]
    center_m: Float64[np.ndarray, "a 3"]
    size_lwh_m: Float64[np.ndarray, "a 3"]
    heading: Float64[np.ndarray, "a 3"]
    velocity_mps: Float64[np.ndarray, "a 3"]
    attribute: Int8[np.ndarray, "a"]
    num_lidar: Int32[np.ndarray, "a"]
    num_radar: Int32[np.ndarray, "a"]
    visibility: Int8[np.ndarray, "a"]
    is_bicycle_rack: Bool[np.ndarray, "a"]


@dataclass(frozen=True, eq=False)
class NuScenesIndex:
    """All columns of one version. Pickles as its folder, so that workers map the same pages."""

    folder: Path
    scenes: SceneColumns
    samples: SampleColumns
    measurements: MeasurementColumns
    calibrations: CalibrationColumns
    annotations: AnnotationColumns

    def __reduce__(self):
        return load_index, (self.folder,)


_GROUPS = {
    "scenes": SceneColumns,
    "samples": SampleColumns,
    "measurements": MeasurementColumns,
    "calibrations": CalibrationColumns,
    "annotations": AnnotationColumns,
}


def load_index(folder: Path) -> NuScenesIndex:
    """Open an index that was built; long columns are mapped, short ones read."""

    def column(group: str, name: str) -> np.ndarray:
        path = folder / f"{group}.{name}.npy"
        mapped = "r" if path.stat().st_size > _IN_MEMORY_BYTES else None
        return np.load(path, mmap_mode=mapped, allow_pickle=False)

    groups = {
        group: kind(**{field.name: column(group, field.name) for field in fields(kind)})
        for group, kind in _GROUPS.items()
    }
    return NuScenesIndex(folder, **groups)
