"""Random batches with every field in its true shape and meaning, for tests that need no dataset.

The content is learnable: points cluster at the boxes, so a few steps of training lower the loss.
"""

import importlib
import importlib.util

import numpy as np
import torch

from datamodules.batch import LIDAR_FIELDS, RADAR_FIELDS, Batch, BoxBatch, CameraBatch, PointBatch
from sensors.rig import CAMERAS, CHANNELS, LIDAR, NUSCENES_RIG, RADARS


def random_batch(
    num_samples: int = 2,
    seed: int = 0,
    image_size_px: tuple[int, int] = (64, 176),
    depth_stride: int = 16,
    num_points: int = 400,
    half_m: float = 40.0,
    lost: tuple[tuple[int, str], ...] = (),
) -> Batch:
    """A batch of ``num_samples`` samples.

    Args:
        seed: same seed, same batch.
        image_size_px: height and width.
        depth_stride: pixels per cell of the depth target.
        num_points: LiDAR points per sample; the radar set has an eighth of them.
        half_m: boxes and points lie within this distance in x and y.
        lost: pairs (sample row, channel name) that are absent.
    """
    generator = torch.Generator().manual_seed(seed)
    channel_present = torch.ones(num_samples, len(CHANNELS), dtype=torch.bool)
    for row, channel in lost:
        channel_present[row, CHANNELS.index(channel)] = False
    num_cameras = len(CAMERAS)
    cameras_present = channel_present[:, :num_cameras]
    lidar_present = channel_present[:, CHANNELS.index(LIDAR)]
    radars_present = channel_present[:, [CHANNELS.index(name) for name in RADARS]]
    radar_present = radars_present.any(dim=1)
    boxes = _boxes(num_samples, half_m, generator)
    num_health, thumbnail_size_px = _glance_sizes()
    identity = torch.eye(4, dtype=torch.float64).expand(num_samples, 4, 4).clone()
    thumbnails = torch.rand(num_samples, num_cameras, 3, *thumbnail_size_px, generator=generator)
    health = torch.rand(num_samples, len(CHANNELS), num_health, generator=generator)
    return Batch(
        camera=_cameras(cameras_present, image_size_px, depth_stride, generator),
        lidar=_points(boxes, lidar_present, num_points, len(LIDAR_FIELDS), half_m, generator),
        radar=_points(boxes, radar_present, num_points // 8, len(RADAR_FIELDS), half_m, generator),
        boxes=boxes,
        tokens=tuple(f"token-{seed}-{row}" for row in range(num_samples)),
        scenes=tuple("scene-0001" for _ in range(num_samples)),
        timestamp_us=torch.arange(num_samples) * 500_000,
        global_from_ego=identity,
        ego_from_ego_aug=identity.clone(),
        health=health * channel_present[..., None],
        thumbnails=thumbnails * cameras_present[:, :, None, None, None],
        ego_speed_mps=torch.rand(num_samples, generator=generator) * 10,
        channel_present=channel_present,
        unit_present=torch.cat([cameras_present, lidar_present[:, None], radar_present[:, None]], dim=1),
        faults=tuple(() for _ in range(num_samples)),
        conditions=tuple(frozenset({"day"}) for _ in range(num_samples)),
        progress=torch.full((num_samples,), 0.5),
    )


def _glance_sizes() -> tuple[int, tuple[int, int]]:
    """Number of health fields, and height and width of a thumbnail."""
    if importlib.util.find_spec("sensors.health") is None:
        return 8, (24, 44)
    health = importlib.import_module("sensors.health")
    return len(health.HEALTH_FIELDS), health.THUMBNAIL_SIZE_PX


def _boxes(num_samples: int, half_m: float, generator: torch.Generator) -> BoxBatch:
    sample = torch.arange(num_samples).repeat_interleave(4)
    num = len(sample)
    low, high = torch.tensor([-0.8 * half_m, -0.8 * half_m, 0.3]), torch.tensor([0.8 * half_m, 0.8 * half_m, 1.5])
    label = torch.randint(0, 10, (num,), generator=generator)
    velocity = torch.randn(num, 2, generator=generator)
    velocity[::4] = torch.nan
    return BoxBatch(
        center_m=low + (high - low) * torch.rand(num, 3, generator=generator),
        size_lwh_m=torch.tensor([4.0, 1.8, 1.5]) * (0.8 + 0.4 * torch.rand(num, 3, generator=generator)),
        yaw_rad=(torch.rand(num, generator=generator) * 2 - 1) * np.pi,
        velocity_mps=velocity,
        label=label,
        attribute=torch.where(label == 0, 6, -1),
        num_points=torch.full((num,), 10),
        sample=sample,
    )


def _points(boxes, present, num_points, num_fields, half_m, generator) -> PointBatch:
    """Half of the points around the boxes, half anywhere; absent samples hold none."""
    rows = torch.nonzero(present)[:, 0]
    sample = rows.repeat_interleave(num_points)
    fields = torch.rand(len(sample), num_fields, generator=generator)
    anywhere = (torch.rand(len(sample), 3, generator=generator) * 2 - 1) * torch.tensor([half_m, half_m, 2.0])
    box = sample * 4 + torch.randint(0, 4, (len(sample),), generator=generator)
    near = boxes.center_m[box] + torch.randn(len(sample), 3, generator=generator) * 0.7
    is_near = torch.rand(len(sample), 1, generator=generator) < 0.5
    fields[:, :3] = torch.where(is_near, near, anywhere)
    return PointBatch(points=fields, sample=sample, present=present)


def _cameras(present, image_size_px, depth_stride, generator) -> CameraBatch:
    num_samples, num_cameras = present.shape
    height, width = image_size_px
    resize = np.diag([width / 1600, height / 900, 1.0])
    image_from_camera = np.stack([resize @ NUSCENES_RIG[name].intrinsics for name in CAMERAS])
    ego_from_camera = np.stack([NUSCENES_RIG[name].ego_from_sensor.matrix for name in CAMERAS])
    shape = (num_samples, num_cameras, height // depth_stride, width // depth_stride)
    depth_m = torch.rand(shape, generator=generator) * 50
    depth_m = depth_m * (torch.rand(shape, generator=generator) < 0.3) * present[:, :, None, None]
    images = torch.rand(num_samples, num_cameras, 3, height, width, generator=generator)
    return CameraBatch(
        images=images * present[:, :, None, None, None],
        image_from_camera=torch.from_numpy(image_from_camera).float().expand(num_samples, -1, -1, -1).clone(),
        ego_from_camera=torch.from_numpy(ego_from_camera).float().expand(num_samples, -1, -1, -1).clone(),
        present=present,
        depth_m=depth_m,
    )
