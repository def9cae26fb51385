"""Samples to a batch: one tensor per field, absent things marked and never to be read."""

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from datamodules.batch import Batch, BoxBatch, CameraBatch, PointBatch
from datamodules.prepare import Sample
from sensors.boxes import Boxes, concatenate_boxes
from sensors.rig import CHANNELS, LIDAR, NUM_CAMERAS

_LIDAR_COLUMN = CHANNELS.index(LIDAR)


def collate(samples: list[Sample]) -> Batch:
    """The batch of some samples of one run, in order."""
    channel_present = torch.from_numpy(np.stack([sample.channel_present for sample in samples]))
    lidar_present = channel_present[:, _LIDAR_COLUMN]
    radar_present = channel_present[:, _LIDAR_COLUMN + 1 :].any(dim=1)
    parts = [channel_present[:, :NUM_CAMERAS], lidar_present[:, None], radar_present[:, None]]
    return Batch(
        camera=_cameras(samples),
        lidar=_points([sample.lidar for sample in samples], lidar_present),
        radar=_points([sample.radar for sample in samples], radar_present),
        boxes=_boxes([sample.boxes for sample in samples]),
        tokens=tuple(sample.frame.token for sample in samples),
        scenes=tuple(sample.frame.scene for sample in samples),
        timestamp_us=torch.tensor([sample.frame.timestamp_us for sample in samples], dtype=torch.int64),
        global_from_ego=_stacked([sample.frame.global_from_ego.matrix for sample in samples]),
        ego_from_ego_aug=_stacked([sample.ego_from_ego_aug for sample in samples]),
        health=_stacked([sample.health for sample in samples]),
        thumbnails=_stacked([sample.thumbnails for sample in samples]),
        ego_speed_mps=torch.tensor([sample.frame.ego_speed_mps for sample in samples], dtype=torch.float32),
        channel_present=channel_present,
        unit_present=torch.cat(parts, dim=1),
        faults=tuple(sample.faults for sample in samples),
        conditions=tuple(sample.frame.conditions for sample in samples),
        progress=torch.tensor([sample.progress for sample in samples], dtype=torch.float32),
        state_reset=torch.tensor([sample.state_reset for sample in samples]),
        fault_severity=_stacked([sample.fault_severity for sample in samples]),
    )


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _cameras(samples: list[Sample]) -> CameraBatch | None:
    views = [sample.views for sample in samples]
    if any(view is None for view in views):
        return None
    return CameraBatch(
        images=_stacked([view.images for view in views]),
        image_from_camera=_stacked([view.image_from_camera for view in views]),
        ego_from_camera=_stacked([view.ego_from_camera for view in views]),
        present=_stacked([view.present for view in views]),
        depth_m=None if views[0].depth_m is None else _stacked([view.depth_m for view in views]),
        center_maps=None if views[0].center_maps is None else _stacked([view.center_maps for view in views]),
    )


def _points(clouds: list[Float32[np.ndarray, "_ f"] | None], present: Bool[Tensor, "b"]) -> PointBatch | None:
    if any(cloud is None for cloud in clouds):
        return None
    counts = torch.tensor([len(cloud) for cloud in clouds])
    sample = torch.repeat_interleave(torch.arange(len(clouds)), counts)
    return PointBatch(torch.from_numpy(np.concatenate(clouds)), sample, present.clone())


def _boxes(labels: list[Boxes | None]) -> BoxBatch | None:
    if any(boxes is None for boxes in labels):
        return None
    merged = concatenate_boxes(labels)
    counts = torch.tensor([len(boxes) for boxes in labels])
    return BoxBatch(
        center_m=torch.from_numpy(merged.center_m),
        size_lwh_m=torch.from_numpy(merged.size_lwh_m),
        yaw_rad=torch.from_numpy(merged.yaw_rad),
        velocity_mps=torch.from_numpy(merged.velocity_mps),
        label=torch.from_numpy(merged.label),
        attribute=torch.from_numpy(merged.attribute),
        num_points=torch.from_numpy(merged.num_points),
        sample=torch.repeat_interleave(torch.arange(len(labels)), counts),
    )
