"""One keyframe of a world: when each sensor measures, the bytes of its files, and what the tables must know."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from datamodules.town import lidar, radar
from datamodules.town.cameras import CameraRenderer
from datamodules.town.caster import NOBODY, Caster
from datamodules.town.meshes import placed_vertices
from datamodules.town.names import visibility_token
from datamodules.town.world import SceneKey, World, build_world, scene_keys
from sensors.camera import encode_jpeg, project
from sensors.lidar import LidarSweep, encode_lidar
from sensors.radar import RadarSweep, encode_radar
from sensors.rig import CAMERAS, LIDAR, NUSCENES_RIG, RADARS
from sensors.transforms import RigidTransform

CAMERA_LAG_US = {
    **{"CAM_FRONT_LEFT": 42_500, "CAM_FRONT": 35_500, "CAM_FRONT_RIGHT": 27_500},
    **{"CAM_BACK_RIGHT": 20_000, "CAM_BACK": 11_000, "CAM_BACK_LEFT": 1_000},
}
"""How long before the LiDAR's timestamp each camera is exposed: the turning LiDAR triggers one after the other."""
LABEL_RANGE_M = 85.0
_SUFFIX = {"camera": ".jpg", "lidar": ".pcd.bin", "radar": ".pcd"}
_PROBES = 40
_JPEG_QUALITY = (80, 95)


@dataclass(frozen=True)
class Shot:
    """One measurement to make: its channel, time, and whether it belongs to the keyframe."""

    channel: str
    timestamp_us: int
    is_key_frame: bool

    def filename(self, logfile: str) -> str:
        """nuScenes' pattern, relative to the root."""
        folder = "samples" if self.is_key_frame else "sweeps"
        suffix = _SUFFIX[NUSCENES_RIG[self.channel].modality]
        return f"{folder}/{self.channel}/{logfile}__{self.channel}__{self.timestamp_us}{suffix}"


@dataclass(frozen=True)
class WrittenFile:
    """A file for the caller to put in place."""

    filename: str
    content: bytes


class SceneSampler:
    """Makes the keyframes of one scene; building it costs about a second, a keyframe about half of one."""

    def __init__(self, config, key: SceneKey):
        self.world: World = build_world(config, key)
        self._caster = Caster(self.world)
        self._renderer = CameraRenderer(self.world, self._caster)
        self._probes_of: dict[int, np.ndarray] = {}

    def scene_record(self) -> dict:
        """What the tables must know about the scene, JSON-ready."""
        world = self.world
        return {
            "description": world.description,
            "start_us": world.start_us,
            "image_size_px": list(world.image_size_px),
            "calibration": {
                channel: {
                    "translation": pose.translation_m.tolist(),
                    "rotation": pose.quaternion_wxyz.tolist(),
                    "camera_intrinsic": world.image_from_camera[channel].tolist() if channel in CAMERAS else [],
                }
                for channel, pose in world.ego_from_sensor.items()
            },
            "instances": [{"category": actor.category, "size_lwh_m": list(actor.size_lwh_m)} for actor in world.actors],
        }

    def shots(self, index: int) -> list[Shot]:
        """Everything that is measured for one keyframe, sweeps before it included, in order of channel and time."""
        world = self.world
        reference_us = world.keyframe_us(index)
        rng = world.rng("shutter", index)
        shots = []
        for channel in CAMERAS:
            key_us = reference_us - CAMERA_LAG_US[channel] + int(rng.integers(-400, 401))
            for k in range(world.config.camera_sweeps, 0, -1):
                shots.append(Shot(channel, key_us - round(k * 1e6 / 12) + int(rng.integers(-300, 301)), False))
            shots.append(Shot(channel, key_us, True))
        for k in range(world.config.lidar_sweeps, 0, -1):
            shots.append(Shot(LIDAR, reference_us - 50_000 * k + int(rng.integers(-200, 201)), False))
        shots.append(Shot(LIDAR, reference_us, True))
        for channel in RADARS:
            offset_us = int(world.rng("radar phase", channel).integers(-30_000, 30_000))
            key_us = reference_us + offset_us + int(rng.integers(-1000, 1001))
            for k in range(world.config.radar_sweeps, 0, -1):
                shots.append(Shot(channel, key_us - round(k * 1e6 / 13) + int(rng.integers(-500, 501)), False))
            shots.append(Shot(channel, key_us, True))
        return shots

    def sample(self, index: int, logfile: str) -> tuple[list[WrittenFile], dict]:
        """The files of one keyframe, and its record for the tables, JSON-ready."""
        files, rows, counted = [], [], {LIDAR: [], "RADAR": []}
        for shot in self.shots(index):
            content, xyz_m = self._measure(shot)
            files.append(WrittenFile(shot.filename(logfile), content))
            global_from_ego = self.world.ego.transform(self.world.time_s(shot.timestamp_us))
            rows.append(
                {
                    "channel": shot.channel,
                    "timestamp": shot.timestamp_us,
                    "is_key_frame": shot.is_key_frame,
                    "filename": files[-1].filename,
                    "num_bytes": len(content),
                    "translation": global_from_ego.translation_m.tolist(),
                    "rotation": global_from_ego.quaternion_wxyz.tolist(),
                }
            )
            if shot.is_key_frame and xyz_m is not None:
                global_from_sensor = global_from_ego @ self.world.ego_from_sensor[shot.channel]
                kind = LIDAR if shot.channel == LIDAR else "RADAR"
                counted[kind].append(global_from_sensor.points(xyz_m.astype(np.float64)))
        record = {"timestamp": self.world.keyframe_us(index), "data": rows}
        return files, {**record, "labels": self._labels(index, counted[LIDAR][0], np.concatenate(counted["RADAR"]))}

    def _measure(self, shot: Shot) -> tuple[bytes, Float32[np.ndarray, "n 3"] | None]:
        """Bytes of one measurement, and its points in the sensor's own frame where it has any."""
        world, time_s = self.world, self.world.time_s(shot.timestamp_us)
        rng = world.rng(shot.channel, shot.timestamp_us - world.start_us + 10_000_000)
        if shot.channel in CAMERAS:
            quality = int(rng.integers(*_JPEG_QUALITY))
            return encode_jpeg(self._renderer.render(shot.channel, time_s, rng), quality), None
        sweep: LidarSweep | RadarSweep
        if shot.channel == LIDAR:
            sweep = lidar.scan(world, self._caster, time_s, rng)
            return encode_lidar(sweep), sweep.xyz_m
        sweep = radar.measure(world, self._caster, shot.channel, time_s, rng)
        return encode_radar(sweep), sweep.xyz_m

    def _labels(self, index: int, lidar_m, radar_m) -> list[dict]:
        """Every actor in range, with its points and how much of it can be seen."""
        world, time_s = self.world, self.world.time_s(self.world.keyframe_us(index))
        ego_xy = np.array(world.ego.pose(time_s)[:2])
        everyone = np.array([actor.motion.pose(time_s) for actor in world.actors]).reshape(-1, 4)
        near = np.flatnonzero(np.hypot(*(everyone[:, :2] - ego_xy).T) < LABEL_RANGE_M).tolist()
        poses = everyone[near]
        centers = np.array([world.actors[i].box_center_m(time_s) for i in near]).reshape(-1, 3)
        sizes = np.array([world.actors[i].size_lwh_m for i in near]).reshape(-1, 3)
        yaws = poses[:, 3]
        num_lidar, num_radar = (count_inside(points, centers, sizes, yaws) for points in (lidar_m, radar_m))
        visible = self._visible_shares(near, time_s)
        return [
            {
                "instance": i,
                "translation": centers[k].tolist(),
                "rotation": RigidTransform.from_yaw(yaws[k]).quaternion_wxyz.tolist(),
                "num_lidar_pts": int(num_lidar[k]),
                "num_radar_pts": int(num_radar[k]),
                "visibility": visibility_token(float(visible[k])),
                "attribute": world.actors[i].attribute(time_s),
            }
            for k, i in enumerate(near)
        ]

    def _visible_shares(self, chosen: list[int], time_s: float) -> Float[np.ndarray, "n"]:
        """nuScenes' visibility: the share of each actor that the six pictures show, by counting rays to its surface."""
        if not chosen:
            return np.zeros(0)
        world = self.world
        poses = np.array([world.actors[i].motion.pose(time_s) for i in chosen])
        points = placed_vertices(
            np.concatenate([self._probes(i) for i in chosen]), *np.repeat(poses, _PROBES, axis=0).T
        ).astype(np.float64)
        eye, shown = np.zeros_like(points), np.zeros(len(points), bool)
        global_from_ego = world.ego.transform(time_s)
        height, width = world.image_size_px
        for channel in CAMERAS:
            global_from_camera = global_from_ego @ world.ego_from_sensor[channel]
            pixel, depth = project(global_from_camera.inverse().points(points), world.image_from_camera[channel])
            framed = (depth > 0.1) & (pixel >= 0).all(axis=1) & (pixel[:, 0] < width) & (pixel[:, 1] < height) & ~shown
            eye[framed], shown = global_from_camera.translation_m, shown | framed
        toward = points - eye
        direction = (toward / np.linalg.norm(toward, axis=1, keepdims=True)).astype(np.float32)
        moment = self._caster.at(time_s)
        hits = moment.cast(eye.astype(np.float32), direction)
        owner = np.where(shown, moment.surfaces.owner[hits.triangle], NOBODY).reshape(len(chosen), _PROBES)
        return (owner == np.array(chosen)[:, None]).mean(axis=1)

    def _probes(self, index: int) -> Float32[np.ndarray, "k 3"]:
        """Points spread over the surface of an actor, in its own frame: larger triangles get more of them."""
        if index not in self._probes_of:
            body = self.world.actors[index].body
            corners = body.vertices_m[body.triangles]
            area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
            edges = np.cumsum(area) / area.sum()
            picked = np.searchsorted(edges, (np.arange(_PROBES) + 0.5) / _PROBES)
            self._probes_of[index] = corners[picked].mean(axis=1)
        return self._probes_of[index]


def count_inside(
    xyz_m: Float[np.ndarray, "p 3"],
    center_m: Float[np.ndarray, "n 3"],
    size_lwh_m: Float[np.ndarray, "n 3"],
    yaw_rad: Float[np.ndarray, "n"],
) -> Int[np.ndarray, "n"]:
    """Points in each box, faces included; sorted along x first, since most points are far from most boxes."""
    xyz_m = xyz_m[np.argsort(xyz_m[:, 0], kind="stable")]
    counts = np.zeros(len(yaw_rad), np.int64)
    for i in range(len(yaw_rad)):
        reach = float(np.hypot(*size_lwh_m[i, :2])) / 2 + 1e-6
        first, last = np.searchsorted(xyz_m[:, 0], (center_m[i, 0] - reach, center_m[i, 0] + reach))
        local = xyz_m[first:last] - center_m[i]
        c, s = np.cos(yaw_rad[i]), np.sin(yaw_rad[i])
        along, across = local[:, 0] * c + local[:, 1] * s, local[:, 1] * c - local[:, 0] * s
        half = size_lwh_m[i] / 2
        counts[i] = ((np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(local[:, 2]) <= half[2])).sum()
    return counts


def all_samples(config) -> Iterator[tuple[SceneKey, int]]:
    """Every keyframe of a town, scene by scene."""
    for key in scene_keys(config):
        for index in range(config.samples_per_scene):
            yield key, index
