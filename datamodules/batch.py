"""What the network sees: a batch of samples in torch, everything in the ego frame at the reference time."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

LIDAR_FIELDS = ("x_m", "y_m", "z_m", "intensity", "lag_s")
"""Columns of LiDAR points: ego frame, intensity in [0, 1], age of the sweep."""

RADAR_FIELDS = ("x_m", "y_m", "z_m", "vx_mps", "vy_mps", "rcs_dbsm", "lag_s", "moving", "valid", "unambiguous")
"""Columns of radar points: ego frame, compensated velocity turned into the ego frame, then three 0/1 flags."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CameraBatch:
    """Views of B samples, N = 6 cameras in the order of CAMERAS. Absent views hold zeros and are never to be read.

    Attributes:
        images: RGB in [0, 1], after augmentation.
        image_from_camera: of these pixels, augmentation folded in.
        ego_from_camera: rigid (and scaled, under BEV scale augmentation).
        present: whether the camera delivered a picture.
        depth_m: target for depth supervision from the *clean* LiDAR, nearest point per cell of ``depth_stride``
            pixels; 0 where there is none. None outside training.
        center_maps: target for perspective supervision, where the *clean* labels' centres are, by class; on the cells
            of ``depth_m``. None outside training and where it was not asked for.
    """

    images: Float32[Tensor, "b n 3 h w"]
    image_from_camera: Float32[Tensor, "b n 3 3"]
    ego_from_camera: Float32[Tensor, "b n 4 4"]
    present: Bool[Tensor, "b n"]
    depth_m: Float32[Tensor, "b n dh dw"] | None = None
    center_maps: Float32[Tensor, "b n 10 dh dw"] | None = None


@dataclass(frozen=True, eq=False)
class PointBatch:
    """Points of B samples, one after the other. The batch size lives in ``present``, never in ``sample``.

    Attributes:
        points: columns LIDAR_FIELDS or RADAR_FIELDS.
        sample: row of each point's sample, ascending.
        present: whether the sensor delivered anything (present and empty is possible).
    """

    points: Float32[Tensor, "p f"]
    sample: Int64[Tensor, "p"]
    present: Bool[Tensor, "b"]

    def rows(self, rows: Int64[Tensor, "r"]) -> "PointBatch":
        """The chosen samples (each at most once), renumbered 0..R-1 in the order of ``rows``."""
        new_row = torch.full((len(self.present),), -1, dtype=torch.int64, device=self.sample.device)
        new_row[rows] = torch.arange(len(rows), device=self.sample.device)
        moved = new_row[self.sample]
        kept = torch.nonzero(moved >= 0)[:, 0]
        sample = moved[kept]
        order = torch.argsort(sample, stable=True)
        return PointBatch(self.points[kept][order], sample[order], self.present[rows])

    def where(self, kept: Bool[Tensor, "p"]) -> "PointBatch":
        """The same samples with some of their points."""
        return replace(self, points=self.points[kept], sample=self.sample[kept])


@dataclass(frozen=True, eq=False)
class BoxBatch:
    """Labels of B samples in the ego frame; the fields are those of ``sensors.boxes.Boxes`` plus the sample's row."""

    center_m: Float32[Tensor, "m 3"]
    size_lwh_m: Float32[Tensor, "m 3"]
    yaw_rad: Float32[Tensor, "m"]
    velocity_mps: Float32[Tensor, "m 2"]
    label: Int64[Tensor, "m"]
    attribute: Int64[Tensor, "m"]
    num_points: Int64[Tensor, "m"]
    sample: Int64[Tensor, "m"]


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples.

    A part is None only where the run has no such sensor at all; a lost sensor is a False in its ``present``.

    Attributes:
        boxes: None on a test split.
        tokens, scenes: of each sample.
        timestamp_us: reference times.
        global_from_ego: *before* BEV augmentation, to carry detections home.
        ego_from_ego_aug: undoes BEV augmentation: true ego from augmented ego. Identity outside training.
        health: per channel HEALTH_FIELDS of ``sensors.health``, after the faults; zeros where absent.
        thumbnails: of each view, RGB in [0, 1]; zeros where absent.
        ego_speed_mps: speed at the reference time.
        channel_present: in the order of CHANNELS.
        unit_present: in the order of UNITS; the radar set is present when one radar is.
        faults: names of the faults applied to each sample, e.g. ``lidar_beam_drop@0.40``.
        conditions: words that describe each sample's scene.
        progress: training progress in [0, 1] at which each sample was drawn; NaN outside training.
        state_reset: whether nothing may be carried over from the same row of the batch before; all True where batches
            do not follow scenes (``datamodules.lanes``). None where nobody said.
        fault_severity: how strongly each channel was harmed, in the order of CHANNELS: 0 untouched, 1 the fifth level
            of a fault or a lost sensor (``sensors.faults.severity``). None where nobody said.
    """

    camera: CameraBatch | None
    lidar: PointBatch | None
    radar: PointBatch | None
    boxes: BoxBatch | None
    tokens: tuple[str, ...]
    scenes: tuple[str, ...]
    timestamp_us: Int64[Tensor, "b"]
    global_from_ego: Float64[Tensor, "b 4 4"]
    ego_from_ego_aug: Float64[Tensor, "b 4 4"]
    health: Float32[Tensor, "b 12 k"]
    thumbnails: Float32[Tensor, "b 6 3 th tw"]
    ego_speed_mps: Float32[Tensor, "b"]
    channel_present: Bool[Tensor, "b 12"]
    unit_present: Bool[Tensor, "b 8"]
    faults: tuple[tuple[str, ...], ...]
    conditions: tuple[frozenset[str], ...]
    progress: Float[Tensor, "b"]
    state_reset: Bool[Tensor, "b"] | None = None
    fault_severity: Float32[Tensor, "b 12"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return _moved(self, device, non_blocking)

    def pin_memory(self) -> "Batch":
        """Pinned host memory, so that copies to the device may overlap (called by the DataLoader)."""
        return _mapped(self, Tensor.pin_memory)


def _mapped(value: T, function) -> T:
    """A dataclass with ``function`` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value):
        return replace(value, **{f.name: _mapped(getattr(value, f.name), function) for f in fields(value)})
    return value


def _moved(value: T, device, non_blocking: bool) -> T:
    return _mapped(value, lambda tensor: tensor.to(device, non_blocking=non_blocking))
