"""One scene of the town: roads, things, actors, the vehicle and its calibration, all from a seed."""

import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from datamodules.town.actors import Actor, Motion
from datamodules.town.carpark import fill_car_park
from datamodules.town.layouts import CAR_PARK, ego_doing, lay_out
from datamodules.town.light import Light, light_of
from datamodules.town.liveries import shuffled_materials
from datamodules.town.meshes import Mesh
from datamodules.town.population import REACH_M, Population, spacing_for
from datamodules.town.presets import CONDITIONS, TownConfig
from datamodules.town.roads import Ground
from datamodules.town.scenery import LAMP_HEIGHT_M, Prop, make_prop
from datamodules.town.wanderers import admit_all
from sensors.rig import IMAGE_HEIGHT_PX, IMAGE_WIDTH_PX, NUSCENES_RIG
from sensors.transforms import RigidTransform

KEYFRAME_S = 0.5
SPLITS = ("train", "val")
_FIRST_TIMESTAMP_US = 1_530_000_000_000_000
_SCENE_SPACING_US = 60_000_000


@dataclass(frozen=True)
class SceneKey:
    """Which scene of a town."""

    split: str
    index: int

    @property
    def name(self) -> str:
        return f"town-{self.split}-{self.index:04d}"


@dataclass(frozen=True, eq=False)
class World:
    """Everything that is there.

    Attributes:
        scenery: pavements first, then props and buildings, global frame.
        condition: one of CONDITIONS.
        lamps: xyz of the street lamps.
        start_us: timestamp of world time 0, the first keyframe's.
        ego_from_sensor: this vehicle's calibration, close to nuScenes' own.
        image_from_camera: of the written pictures.
        image_size_px: height and width.
    """

    key: SceneKey
    config: TownConfig
    condition: str
    description: str
    light: Light
    ground: Ground
    pavements: Mesh
    scenery: tuple[Prop, ...]
    actors: tuple[Actor, ...]
    ego: Motion
    lamps: Float32[np.ndarray, "n 3"]
    start_us: int
    ego_from_sensor: dict[str, RigidTransform]
    image_from_camera: dict[str, np.ndarray]
    image_size_px: tuple[int, int]

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """Random numbers that depend on seed, scene and purpose alone."""
        return _stream(self.config.seed, self.key, *purpose)

    def time_s(self, timestamp_us: int) -> float:
        return (timestamp_us - self.start_us) * 1e-6

    def keyframe_us(self, index: int) -> int:
        """Timestamp of a keyframe: half a second apart, give or take 2 ms."""
        jitter = 0 if index == 0 else int(self.rng("clock", index).integers(-2000, 2001))
        return self.start_us + round(index * KEYFRAME_S * 1e6) + jitter


def _stream(seed: int, key: SceneKey, *purpose: str | int) -> np.random.Generator:
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
    return np.random.default_rng([seed, SPLITS.index(key.split), key.index, *words])


def scene_keys(config: TownConfig) -> list[SceneKey]:
    """All scenes, training first."""
    counts = (config.num_train_scenes, config.num_val_scenes)
    return [SceneKey(split, i) for split, count in zip(SPLITS, counts, strict=True) for i in range(count)]


def condition_of(config: TownConfig, key: SceneKey) -> str:
    """One of CONDITIONS, dealt by quota, so that each share is met as closely as the number of scenes allows."""
    return _dealt(config, key)[0]


def is_dark(config: TownConfig, key: SceneKey) -> bool:
    """At night always; by the same kind of quota for ``dark_share`` of the scenes in fog and of those in rain."""
    condition, before = _dealt(config, key)
    wet_and_dark = int((before + 1) * config.dark_share) > int(before * config.dark_share)
    return condition == "night" or (condition in ("fog", "rain") and wet_and_dark)


def _dealt(config: TownConfig, key: SceneKey) -> tuple[str, int]:
    """The condition of a scene, and how many scenes of its split had it before."""
    weights = np.array(config.condition_weights) / sum(config.condition_weights)
    dealt = np.zeros(len(weights))
    for _ in range(key.index + 1):
        chosen = int(np.argmax((dealt.sum() + 1) * weights - dealt))
        dealt[chosen] += 1
    return CONDITIONS[chosen], int(dealt[chosen]) - 1


def build_world(config: TownConfig, key: SceneKey) -> World:
    """Lay out, paint, populate and calibrate one scene."""
    rng = _stream(config.seed, key, "world")
    condition, dark = condition_of(config, key), is_dark(config, key)
    told = f"Night {condition}" if dark and condition != "night" else condition.capitalize()
    duration_s = max(config.samples_per_scene - 1, 0) * KEYFRAME_S + 0.1
    place = lay_out(key.split, duration_s, rng)
    ego = Motion(place.road, 0.0, place.ego_d_m, 1, place.pace)
    stretch = (-REACH_M - 25.0, place.pace.travelled_m(duration_s) + REACH_M + 25.0)
    population = Population(place.road, place.crossing, ego, duration_s, spacing_for(config.num_actors), rng)
    if place.layout == CAR_PARK:
        fill_car_park(population)
    else:
        population.fill()
    admit_all(population, place.layout == CAR_PARK)
    lamps = place.lamps(stretch, rng)
    props = [make_prop("lamp", place.road, s, d, rng) for s, d in lamps]
    heads = [(*place.road.xy(s, d - np.sign(d) * 1.5), LAMP_HEIGHT_M) for s, d in lamps]
    calibration, cameras = _calibrate(config.image_scale, rng)
    actors = _within_reach(population.actors, ego, duration_s)
    if config.shuffle_materials:
        actors = shuffled_materials(actors, _stream(config.seed, key, "materials"))
    return World(
        key=key,
        config=config,
        condition=condition,
        description=f"{told}, {place.layout}, {ego_doing(place.pace)}",
        light=light_of(condition, rng, dark),
        ground=place.ground(),
        pavements=place.pavements(stretch),
        scenery=(*population.props, *props, *place.scenery(stretch, rng)),
        actors=tuple(actors),
        ego=ego,
        lamps=np.array(heads, np.float32),
        start_us=_start_us(config, key),
        ego_from_sensor=calibration,
        image_from_camera=cameras,
        image_size_px=(round(IMAGE_HEIGHT_PX * config.image_scale), round(IMAGE_WIDTH_PX * config.image_scale)),
    )


def _start_us(config: TownConfig, key: SceneKey) -> int:
    place = key.index + (config.num_train_scenes if key.split == "val" else 0)
    length_us = max(_SCENE_SPACING_US, round((config.samples_per_scene + 10) * KEYFRAME_S * 1e6))
    return _FIRST_TIMESTAMP_US + place * length_us + int(_stream(config.seed, key, "start").integers(1_000_000))


def _within_reach(actors: list[Actor], ego: Motion, duration_s: float) -> list[Actor]:
    times = np.linspace(0.0, duration_s, 5)
    egos = np.array([ego.pose(time)[:2] for time in times])
    near = []
    for actor in actors:
        track = np.array([actor.motion.pose(time)[:2] for time in times])
        if np.hypot(*(track - egos).T).min() < REACH_M + 10.0:
            near.append(actor)
    return near


def _calibrate(image_scale: float, rng) -> tuple[dict[str, RigidTransform], dict[str, np.ndarray]]:
    """Every vehicle is mounted a little differently: about a centimetre and a fraction of a degree."""
    poses, cameras = {}, {}
    for channel, spec in NUSCENES_RIG.items():
        angles = rng.normal(0.0, np.deg2rad(0.4 if spec.modality == "camera" else 0.15), 3)
        shift = rng.normal(0.0, 0.01, 3)
        if spec.modality == "radar":
            angles[:2] = 0.0
        nudge = RigidTransform.from_quaternion((1.0, *(angles / 2)), shift)
        turned = RigidTransform(
            nudge.rotation @ spec.ego_from_sensor.rotation, spec.ego_from_sensor.translation_m + shift
        )
        poses[channel] = RigidTransform.from_quaternion(turned.quaternion_wxyz, turned.translation_m)
        if spec.modality == "camera":
            matrix = spec.intrinsics * image_scale
            matrix[2, 2] = 1.0
            matrix[:2, :2] *= 1.0 + rng.normal(0.0, 0.003)
            matrix[:2, 2] += rng.normal(0.0, 8.0, 2) * image_scale
            cameras[channel] = matrix
    return poses, cameras
