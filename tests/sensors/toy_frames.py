"""Small frames made by arithmetic, for tests of faults and health."""

from dataclasses import replace

import cv2
import numpy as np

from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import CameraImage
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep
from sensors.rig import CAMERAS, LIDAR, NUSCENES_RIG, RADARS
from sensors.transforms import RigidTransform


def toy_image(channel: str, seed: int, height: int = 90, width: int = 160) -> CameraImage:
    """Smooth blobs with edges, a bright sky and a dark road: something that blur, fog and darkness change."""
    rng = np.random.default_rng(seed)
    blobs = cv2.resize(
        rng.integers(0, 255, (9, 16, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_NEAREST
    )
    ramp = np.linspace(220, 60, height)[:, None, None]
    pixels = np.clip(0.5 * blobs + 0.5 * ramp, 0, 255).astype(np.uint8)
    spec = NUSCENES_RIG[channel]
    scale = np.diag([width / 1600, height / 900, 1.0])
    return CameraImage(pixels, scale @ spec.intrinsics, spec.ego_from_sensor, 0.01)


def toy_lidar(seed: int, num_points: int = 3200, lag_s: float = 0.0) -> LidarSweep:
    """32 beams on a cylinder world of 5 to 60 m."""
    rng = np.random.default_rng(seed)
    ring = (np.arange(num_points) % 32).astype(np.uint8)
    azimuth = rng.uniform(-np.pi, np.pi, num_points)
    range_m = rng.uniform(5, 60, num_points)
    elevation = np.deg2rad(-30 + 40 / 31 * ring.astype(float))
    xyz = np.stack(
        [range_m * np.cos(elevation) * np.cos(azimuth), range_m * np.cos(elevation) * np.sin(azimuth)]
        + [range_m * np.sin(elevation)],
        axis=1,
    )
    intensity = rng.uniform(0, 120, num_points).astype(np.float32)
    return LidarSweep(xyz.astype(np.float32), intensity, ring, lag_s, NUSCENES_RIG[LIDAR].ego_from_sensor)


def toy_radar(channel: str, seed: int, num_points: int = 60, lag_s: float = 0.0) -> RadarSweep:
    """Points within +-60 deg of the boresight; compensated velocity exactly radial."""
    rng = np.random.default_rng(seed)
    azimuth = rng.uniform(-np.pi / 3, np.pi / 3, num_points)
    range_m = rng.uniform(5, 150, num_points)
    radial = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    speed = rng.normal(0, 5, num_points) * (rng.random(num_points) < 0.5)
    xyz = np.concatenate([radial * range_m[:, None], np.zeros((num_points, 1))], axis=1)
    velocity = radial * speed[:, None]

    def codes(low, high):
        return rng.integers(low, high, num_points).astype(np.int8)

    return RadarSweep(
        xyz_m=xyz.astype(np.float32),
        velocity_raw_mps=(velocity - radial * (radial[:, :1] * 8.0)).astype(np.float32),
        velocity_mps=velocity.astype(np.float32),
        rcs_dbsm=rng.normal(5, 8, num_points).astype(np.float32),
        track_id=np.arange(num_points, dtype=np.int16),
        dyn_prop=codes(0, 8),
        is_quality_valid=codes(0, 2),
        ambig_state=codes(0, 5),
        invalid_state=codes(0, 2),
        pdh0=codes(0, 8),
        x_rms=codes(0, 20),
        y_rms=codes(0, 20),
        vx_rms=codes(0, 20),
        vy_rms=codes(0, 20),
        lag_s=lag_s,
        ego_from_radar=NUSCENES_RIG[channel].ego_from_sensor,
    )


def toy_boxes(seed: int, num_boxes: int = 20) -> Boxes:
    """Standing boxes of all classes in the LiDAR's world, large enough to hold some of its points."""
    rng = np.random.default_rng(seed)
    azimuth, range_m = rng.uniform(-np.pi, np.pi, num_boxes), rng.uniform(8, 35, num_boxes)
    center = np.stack([range_m * np.cos(azimuth), range_m * np.sin(azimuth), np.full(num_boxes, 2.0)], axis=1)
    return Boxes(
        center_m=center.astype(np.float32),
        size_lwh_m=np.tile(np.float32([[10.0, 8.0, 6.0]]), (num_boxes, 1)),
        yaw_rad=rng.uniform(-np.pi, np.pi, num_boxes).astype(np.float32),
        velocity_mps=np.zeros((num_boxes, 2), np.float32),
        label=np.arange(num_boxes) % len(DETECTION_NAMES),
        score=np.ones(num_boxes, np.float32),
        attribute=np.full(num_boxes, -1),
        num_points=np.full(num_boxes, 9),
    )


def toy_frame(token: str = "token-0", seed: int = 0, num_sweeps: int = 2, **sizes: int) -> Frame:
    """All twelve channels; ``num_sweeps`` LiDAR and radar sweeps."""
    num_points = sizes.pop("num_points", 3200)
    return Frame(
        token=token,
        scene="scene-toy",
        timestamp_us=1_500_000_000_000_000,
        global_from_ego=RigidTransform.identity(),
        ego_speed_mps=8.0,
        cameras={channel: toy_image(channel, seed + i, **sizes) for i, channel in enumerate(CAMERAS)},
        lidar=tuple(toy_lidar(seed + 10 + k, num_points, 0.05 * k) for k in range(num_sweeps)),
        radars={
            channel: tuple(toy_radar(channel, seed + 20 + 5 * i + k, lag_s=0.075 * k) for k in range(num_sweeps))
            for i, channel in enumerate(RADARS)
        },
        boxes=toy_boxes(seed + 40),
        ego_yaw_rate_radps=0.1,
    )


class ListHistory:
    """The past of a frame in a list of frames of one scene."""

    def __init__(self, frames: list[Frame], index: int):
        self.frames, self.index, self._read = frames, index, {}

    def past(self, channel: str, num_keyframes: int):
        earlier = self.index - num_keyframes
        if earlier < 0:
            return None
        frame = self.frames[earlier]
        if channel == LIDAR:
            return frame.lidar or None
        return frame.cameras.get(channel) if channel in CAMERAS else frame.radars.get(channel)

    def measurements(self, channel: str):
        """All pictures or sweeps up to now, newest first; keyframes are half a second apart."""
        if channel in self._read:
            return self._read[channel]
        found = self._read[channel] = []
        for age in range(self.index + 1):
            then = self.past(channel, age) or ()
            for single in then if isinstance(then, tuple) else (then,):
                found.append(replace(single, lag_s=single.lag_s + 0.5 * age))
        return found

    def lags_s(self, channel: str, within_s: float):
        lags_s = [single.lag_s for single in self.measurements(channel)]
        num_young = sum(lag_s <= within_s for lag_s in lags_s)
        return tuple(lags_s[: num_young + 1])

    def measured(self, channel: str, step: int):
        found = self.measurements(channel)
        return found[step] if step < len(found) else None
