"""What both adapters share: rows of points to sweeps and back, pictures, and the refusal of what a dict cannot hold."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from sensors.faults.protocol import scope_of
from sensors.faults.suites import Scenario, suite_named
from sensors.frame import Frame, Measurement, Single
from sensors.lidar import LidarSweep
from sensors.rig import CAMERAS, LIDAR, RADARS
from sensors.transforms import RigidTransform

CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""In which order the nuScenes infos of mmdetection3d and of OpenPCDet list the views."""
COLUMNS = ("x", "y", "z", "intensity", "ring", "time")
HDL_32E = (-30.67, 10.67, 32)
"""Elevations of the lowest and the highest beam in degrees, and the number of beams."""
_TIMED_FAMILIES = ("stuck", "late")
_TIMED_TYPES = ("Burst", "Onset", "ClockOffset")


class NoPast:
    """The history of a dict: asking for it is an error, since a frozen sensor without a past would score as clean."""

    def past(self, channel: str, num_keyframes: int) -> Measurement | None:
        raise ValueError(
            f"expected a fault that needs nothing but this sample, got one that asks for {channel} {num_keyframes} "
            "keyframes ago; write a copy with dynfusion corrupt instead"
        )

    def lags_s(self, channel: str, within_s: float) -> tuple[float, ...]:
        raise ValueError(
            f"expected a fault that needs nothing but this sample, got one that asks for earlier data of {channel}; "
            "write a copy with dynfusion corrupt instead"
        )

    def measured(self, channel: str, step: int) -> Single | None:
        return self.past(channel, 0)


def scenario_for_dicts(scenario: str, steps: Sequence[Sequence], seed: int) -> Scenario:
    """A scenario of a suite (``SUITE/NAME``), or one of (fault, level) steps, that a sample dict can hold.

    Raises:
        ValueError: it is unknown, or concerns radar alone, the past, a part of a scene or the vehicle's motion.
    """
    if bool(scenario) == bool(steps):
        raise ValueError("expected either scenario='SUITE/NAME' or steps=[(fault, level), ...], got both or neither")
    if steps:
        chosen = Scenario("steps", tuple(tuple(step) for step in steps), seed)
    else:
        suite, _, name = scenario.partition("/")
        known = {each.name: each for each in suite_named(suite)}
        if name not in known:
            raise ValueError(f"expected a scenario of the suite {suite} among {', '.join(known)}; got '{name}'")
        chosen = replace(known[name], seed=seed)
    for fault, _ in chosen.steps:
        timed = fault.family in _TIMED_FAMILIES or type(fault).__name__ in _TIMED_TYPES
        if timed or set(scope_of(fault)) <= set(RADARS):
            why = "the scene and its past" if timed else "radar"
            raise ValueError(
                f"expected faults of pictures and points of one sample, got {fault.name}, which needs {why}; "
                "write a copy with dynfusion corrupt instead"
            )
    return chosen


@dataclass(frozen=True)
class PointRows:
    """How the columns of a point array are to be read.

    Attributes:
        columns: names out of COLUMNS; x, y, z and intensity are needed. With ``time`` (seconds before the keyframe) the
            points of every time are a sweep of their own.
        full_intensity: the value of the strongest echo: 255 as in nuScenes' files, 1 where it was scaled.
        beams: lowest and highest elevation in degrees and number of beams, to number the beams where there is no
            ``ring`` column.
    """

    columns: tuple[str, ...]
    full_intensity: float = 255.0
    beams: tuple[float, float, int] = HDL_32E

    def __post_init__(self):
        unknown = [name for name in self.columns if name not in COLUMNS]
        if unknown or len(set(self.columns)) < len(self.columns) or not set(COLUMNS[:4]) <= set(self.columns):
            raise ValueError(
                f"expected columns x, y, z, intensity and optionally ring and time, got {list(self.columns)}; other "
                "columns cannot follow a point that a fault moves or adds"
            )
        if not self.full_intensity > 0:
            raise ValueError(f"expected a positive full_intensity, got {self.full_intensity}")

    def sweeps(self, rows: Shaped[np.ndarray, "n c"], ego_from_lidar: RigidTransform) -> tuple[LidarSweep, ...]:
        """The sweeps in the array, newest first; all are given in the keyframe's LiDAR frame."""
        if rows.shape[1] != len(self.columns):
            raise ValueError(
                f"expected points with the columns {', '.join(self.columns)}, got {rows.shape[1]} columns; set columns"
            )
        rows = np.asarray(rows, np.float32)
        if "time" not in self.columns:
            return (self._sweep(rows, 0.0, ego_from_lidar),)
        time = rows[:, self.columns.index("time")]
        lags = np.unique(time).tolist() or [0.0]
        return tuple(self._sweep(rows[time == np.float32(lag)], lag, ego_from_lidar) for lag in lags)

    def _sweep(self, rows: Float32[np.ndarray, "n c"], lag_s: float, ego_from_lidar: RigidTransform) -> LidarSweep:
        xyz_m = np.stack([rows[:, self.columns.index(name)] for name in "xyz"], axis=1)
        intensity = rows[:, self.columns.index("intensity")] * np.float32(255 / self.full_intensity)
        if "ring" in self.columns:
            ring = rows[:, self.columns.index("ring")]
        else:
            low, high, num = self.beams
            elevation = np.rad2deg(np.arctan2(xyz_m[:, 2], np.hypot(xyz_m[:, 0], xyz_m[:, 1])))
            ring = np.clip(np.rint((elevation - low) / (high - low) * (num - 1)), 0, num - 1)
        return LidarSweep(xyz_m, intensity, ring.astype(np.uint8), float(lag_s), ego_from_lidar)

    def rows(
        self, sweeps: tuple[LidarSweep, ...], clean: tuple[LidarSweep, ...], ego_from_lidar: RigidTransform
    ) -> Float32[np.ndarray, "n c"]:
        """The array again. A sweep whose pose a fault changed has its points moved: labels and cameras stay."""
        parts = [np.empty((0, len(self.columns)), np.float32)]
        for place, sweep in enumerate(sweeps):
            xyz_m = sweep.xyz_m
            if not np.array_equal(sweep.ego_from_lidar.matrix, clean[place].ego_from_lidar.matrix):
                xyz_m = (ego_from_lidar.inverse() @ sweep.ego_from_lidar).points(xyz_m)
            values = {"x": xyz_m[:, 0], "y": xyz_m[:, 1], "z": xyz_m[:, 2], "ring": sweep.ring, "time": sweep.lag_s}
            values["intensity"] = sweep.intensity * np.float32(self.full_intensity / 255)
            part = np.empty((len(sweep), len(self.columns)), np.float32)
            for column, name in enumerate(self.columns):
                part[:, column] = values[name]
            parts.append(part)
        return np.concatenate(parts)


def rgb_pixels(image: Shaped[np.ndarray, "h w c"], is_bgr: bool) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a picture as a loader gives it.

    Raises:
        ValueError: it is no picture with values 0 to 255: it was normalised already, for one.
    """
    pixels = image
    if image.dtype != np.uint8:
        pixels = np.clip(np.nan_to_num(image), 0, 255).astype(np.uint8)
        if not np.array_equal(pixels, image):
            raise ValueError(
                "expected pictures with whole values from 0 to 255, got others; faults come before normalisation, "
                "resizing and augmentation"
            )
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"expected pictures of height x width x 3, got the shape {image.shape}")
    return np.ascontiguousarray(pixels[..., ::-1] if is_bgr else pixels)


def pixels_like(
    pixels: UInt8[np.ndarray, "h w 3"], original: Shaped[np.ndarray, "h w 3"], is_bgr: bool
) -> Shaped[np.ndarray, "h w 3"]:
    """RGB pixels in the order and type of the picture that they replace."""
    return np.ascontiguousarray(pixels[..., ::-1] if is_bgr else pixels).astype(original.dtype)


def rigid(matrix) -> RigidTransform:
    """From a 3x4 or 4x4 matrix in any container."""
    matrix = np.asarray(matrix, np.float64)
    return RigidTransform(matrix[:3, :3], matrix[:3, 3])


def with_matrix(container, i: int, matrix: Float[np.ndarray, "a b"]):
    """A list or array of matrices with one replaced, in its own type; the smaller shape of the two counts."""
    old = np.asarray(container[i])
    new = old.astype(np.result_type(old.dtype, np.float32), copy=True)
    rows, columns = min(old.shape[0], matrix.shape[0]), min(old.shape[1], matrix.shape[1])
    new[:rows, :columns] = matrix[:rows, :columns]
    changed = container.copy() if isinstance(container, np.ndarray) else list(container)
    changed[i] = new.tolist() if isinstance(container[i], list) else new
    return changed


def lost_channels(clean: Frame, harmed: Frame) -> tuple[str, ...]:
    """Channels that the faults took away. A dict holds a black picture, or no points, in their place."""
    return tuple(channel for channel in (*CAMERAS, LIDAR) if clean.present(channel) and not harmed.present(channel))
