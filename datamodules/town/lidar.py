"""LIDAR_TOP: 32 beams, range noise, returns that fade with distance, glancing angles, dark surfaces and fog."""

import numpy as np
from jaxtyping import Float32

from datamodules.town.caster import Caster, turned
from datamodules.town.meshes import GROUND
from datamodules.town.roads import ASPHALT, GRASS, PAINT, PAVING
from datamodules.town.world import World
from sensors.lidar import LidarSweep
from sensors.rig import LIDAR, LIDAR_BEAMS
from sensors.transforms import RigidTransform

ELEVATIONS_RAD = np.deg2rad(np.linspace(-30.67, 10.67, LIDAR_BEAMS))
"""Velodyne HDL-32E, the lowest beam first."""
NUM_AZIMUTHS = 1080
MAX_RANGE_M = 95.0
MIN_RANGE_M = 1.2
_RANGE_NOISE_M = 0.02
_HALF_POWER_M = 100.0
"""Range of a surface of reflectivity 0.5 that is hit squarely in clear air."""
_DROPPED = 0.03
_BACKSCATTER_PER_M = 0.35
_GROUND_REFLECTIVITY = np.zeros(4, np.float32)
_GROUND_REFLECTIVITY[[GRASS, ASPHALT, PAVING, PAINT]] = (0.35, 0.17, 0.30, 0.60)


def scan(world: World, caster: Caster, time_s: float, rng: np.random.Generator) -> LidarSweep:
    """One turn, taken as of one moment."""
    global_from_lidar = world.ego.transform(time_s) @ world.ego_from_sensor[LIDAR]
    local, ring = _rays(float(rng.random()))
    direction = turned(global_from_lidar.rotation, local)
    origin = np.broadcast_to(global_from_lidar.translation_m.astype(np.float32), direction.shape)
    moment = caster.at(time_s)
    hits = moment.cast(origin, direction)
    hit = np.flatnonzero(hits.range_m < MAX_RANGE_M)
    range_m, local, ring = hits.range_m[hit], local[hit], ring[hit]
    facing = -(hits.normal[hit] * direction[hit]).sum(axis=1)
    reflectivity = moment.surfaces.reflectivity[hits.triangle[hit]]
    ground = np.flatnonzero(moment.surfaces.part[hits.triangle[hit]] == GROUND)
    place = origin[hit[ground]] + direction[hit[ground]] * range_m[ground, None]
    reflectivity[ground] = _GROUND_REFLECTIVITY[world.ground.at(place[:, 0], place[:, 1])]
    fog = world.light.fog_density_per_m
    kept = _returned(range_m, facing, reflectivity, fog, rng)
    range_m = range_m + rng.standard_normal(len(range_m), np.float32) * np.float32(_RANGE_NOISE_M)
    intensity = _intensity(range_m, facing, reflectivity, fog, rng)
    if fog > 0.01:
        range_m, intensity, kept = _scattered(range_m, intensity, kept, fog, rng)
    kept &= range_m > MIN_RANGE_M
    return LidarSweep(
        (local * range_m[:, None])[kept].astype(np.float32), intensity[kept], ring[kept], 0.0, RigidTransform.identity()
    )


def _rays(phase: float) -> tuple[Float32[np.ndarray, "n 3"], np.ndarray]:
    """Unit directions in the sensor frame (x right, y forward, z up), column by column, and their rings."""
    azimuth = (np.arange(NUM_AZIMUTHS) + phase) * (2 * np.pi / NUM_AZIMUTHS)
    flat = np.cos(ELEVATIONS_RAD)
    rays = np.stack(
        [
            np.sin(azimuth)[:, None] * flat,
            np.cos(azimuth)[:, None] * flat,
            np.broadcast_to(np.sin(ELEVATIONS_RAD), (NUM_AZIMUTHS, LIDAR_BEAMS)),
        ],
        axis=-1,
    )
    ring = np.tile(np.arange(LIDAR_BEAMS, dtype=np.uint8), NUM_AZIMUTHS)
    return rays.reshape(-1, 3).astype(np.float32), ring


def _returned(range_m, facing, reflectivity, fog_density_per_m: float, rng) -> np.ndarray:
    """Which echoes are strong enough: received power falls with the squared range, and twice through fog."""
    strength = reflectivity / 0.5 * np.maximum(facing, 0.01) ** 0.4 * np.exp(-2 * fog_density_per_m * range_m)
    reach_m = _HALF_POWER_M * np.sqrt(strength)
    softness = reach_m * 0.08 + 0.5
    seen = rng.random(len(range_m), np.float32) < 1 / (1 + np.exp(np.clip((range_m - reach_m) / softness, -20, 20)))
    return seen & (rng.random(len(range_m), np.float32) > _DROPPED)


def _intensity(range_m, facing, reflectivity, fog_density_per_m: float, rng) -> Float32[np.ndarray, "n"]:
    clear = np.exp(-fog_density_per_m * range_m)
    speckle = 1 + 0.2 * rng.standard_normal(len(range_m), np.float32)
    value = 130.0 * reflectivity * (0.35 + 0.65 * facing) * clear * speckle
    return np.clip(np.round(value), 0, 255).astype(np.float32)


def _scattered(range_m, intensity, kept, fog_density_per_m: float, rng):
    """Some beams return from the fog itself, the denser the more and mostly close by."""
    draw = rng.random(len(range_m), np.float32)
    distance = (MIN_RANGE_M + rng.exponential(5.0, len(range_m))).astype(np.float32)
    fooled = (draw < _BACKSCATTER_PER_M * fog_density_per_m * 5.0) & (distance < range_m)
    faint = rng.integers(0, 8, len(range_m)).astype(np.float32)
    return np.where(fooled, distance, range_m), np.where(fooled, faint, intensity), kept | fooled
