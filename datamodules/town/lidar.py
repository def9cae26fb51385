"""LIDAR_TOP: 32 beams that turn once in 50 ms while the vehicle and everybody else moves.

As in nuScenes the timestamp is the end of the turn, which begins to the left and runs clockwise, and the points are
compensated for the vehicle's own motion (they are given as of the timestamp) but not for that of others. Returns fade
with distance, glancing angles, dark surfaces, fog and rain; glass and wet road often give none.
"""

import numpy as np
from jaxtyping import Float, Float32

from datamodules.town.caster import Caster, turned
from datamodules.town.light import Light
from datamodules.town.meshes import GLASS, GROUND
from datamodules.town.roads import ASPHALT, GRASS, PAINT, PAVING
from datamodules.town.world import World
from sensors.lidar import LidarSweep
from sensors.rig import LIDAR, LIDAR_BEAMS
from sensors.transforms import RigidTransform

ELEVATIONS_RAD = np.deg2rad(np.linspace(-30.67, 10.67, LIDAR_BEAMS))
"""Velodyne HDL-32E, the lowest beam first."""
NUM_AZIMUTHS = 1080
TURN_S = 0.05
MAX_RANGE_M = 100.0
MIN_RANGE_M = 1.2
_START_RAD = np.deg2rad(-92.0)
"""Where a turn begins, from the sensor's y axis (forward) towards x (right): as in a real file."""
_RANGE_NOISE_M = 0.02
_HALF_POWER_M = 100.0
"""Range of a surface of reflectivity 0.5 that is hit squarely in clear air."""
_DROPPED = 0.03
_GLASS_LOST = 0.65
_WET_SHARE = 0.75
"""Of the light on a flooded road this part is mirrored away."""
_BACKSCATTER = 1.75
_GROUND_REFLECTIVITY = np.zeros(4, np.float32)
_GROUND_REFLECTIVITY[[GRASS, ASPHALT, PAVING, PAINT]] = (0.30, 0.14, 0.25, 0.60)


def scan(world: World, caster: Caster, time_s: float, rng: np.random.Generator) -> LidarSweep:
    """The turn that ends at a time of the world's clock."""
    local, ring = _rays(float(rng.random()))
    origin, direction = _moved(world, time_s, local)
    range_m, facing, part, reflectivity = _cast(world, caster, time_s, origin, direction)
    hit = np.flatnonzero(range_m < MAX_RANGE_M)
    range_m, facing, part, reflectivity = range_m[hit], facing[hit], part[hit], reflectivity[hit]
    kept = _returned(range_m, facing, part, reflectivity, world.light, rng)
    range_m = range_m + rng.standard_normal(len(range_m), np.float32) * np.float32(_RANGE_NOISE_M)
    intensity = _intensity(range_m, facing, reflectivity, world.light, rng)
    if world.light.lidar_extinction_per_m > 0.002:
        range_m, intensity, kept = _scattered(range_m, intensity, kept, world.light, rng)
    kept &= range_m > MIN_RANGE_M
    rows = hit[kept]
    point = origin[rows] + direction[rows] * range_m[kept, None]
    lidar_from_global = (world.ego.transform(time_s) @ world.ego_from_sensor[LIDAR]).inverse()
    xyz = turned(lidar_from_global.rotation, point) + lidar_from_global.translation_m.astype(np.float32)
    return LidarSweep(xyz, intensity[kept], ring[rows], 0.0, RigidTransform.identity())


def _rays(phase: float) -> tuple[Float32[np.ndarray, "n 3"], np.ndarray]:
    """Unit directions in the sensor frame (x right, y forward, z up) in the order of time, and their rings."""
    azimuth = _START_RAD + (np.arange(NUM_AZIMUTHS) + phase) * (2 * np.pi / NUM_AZIMUTHS)
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


def column_times(time_s: float) -> Float[np.ndarray, "n"]:
    """When each column of a turn that ends at ``time_s`` is measured."""
    return time_s - TURN_S * (1.0 - np.arange(1, NUM_AZIMUTHS + 1) / NUM_AZIMUTHS)


def _moved(world: World, time_s: float, local) -> tuple[Float32[np.ndarray, "n 3"], Float32[np.ndarray, "n 3"]]:
    """Origin and direction of each ray in the global frame, from where the vehicle is at its time.

    The vehicle's pose is interpolated between four of the turn: at 3 m/s^2 that is wrong by less than 0.2 mm.
    """
    knots = np.linspace(time_s - TURN_S, time_s, 4)
    poses = np.array([world.ego.pose(float(knot)) for knot in knots])
    times = column_times(time_s)
    x, y, z, yaw = (np.interp(times, knots, poses[:, k]) for k in range(4))
    mounted = world.ego_from_sensor[LIDAR]
    c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    ray = turned(mounted.rotation, local).reshape(NUM_AZIMUTHS, LIDAR_BEAMS, 3)
    direction = np.stack([ray[..., 0] * c - ray[..., 1] * s, ray[..., 0] * s + ray[..., 1] * c, ray[..., 2]], axis=-1)
    arm = mounted.translation_m
    origin = np.stack([x + c[:, 0] * arm[0] - s[:, 0] * arm[1], y + s[:, 0] * arm[0] + c[:, 0] * arm[1], z + arm[2]], 1)
    return np.repeat(origin, LIDAR_BEAMS, axis=0).astype(np.float32), direction.reshape(-1, 3).astype(np.float32)


def _met_at(world: World, caster: Caster, time_s: float) -> list[float]:
    """When the beam meets each moving actor, from its bearing; a whole actor is seen as of that one time.

    A lorry close by spans 60 degrees, so its ends are off by 4 ms: 4 cm at 10 m/s.
    """
    mounted, times = world.ego_from_sensor[LIDAR], []
    for actor in caster.moving:
        met = time_s - TURN_S / 2
        for _ in range(2):
            x, y, z, _ = actor.motion.pose(met)
            local = (world.ego.transform(met) @ mounted).inverse().points(np.array([x, y, z]))
            turned_by = (np.arctan2(local[0], local[1]) - _START_RAD) % (2 * np.pi)
            met = time_s - TURN_S * (1.0 - turned_by / (2 * np.pi))
        times.append(float(met))
    return times


def _cast(world: World, caster: Caster, time_s: float, origin, direction):
    """Range, cosine of incidence, part and reflectivity of what each ray meets at its own time."""
    moment = caster.seen_at(_met_at(world, caster, time_s))
    hits = moment.cast(origin, direction)
    facing = -(hits.normal * direction).sum(axis=1)
    part, reflectivity = moment.surfaces.part[hits.triangle], moment.surfaces.reflectivity[hits.triangle]
    ground = np.flatnonzero((part == GROUND) & (hits.range_m < MAX_RANGE_M))
    place = origin[ground] + direction[ground] * hits.range_m[ground, None]
    reflectivity[ground] = _GROUND_REFLECTIVITY[world.ground.at(place[:, 0], place[:, 1])]
    return hits.range_m, facing, part, reflectivity


def _returned(range_m, facing, part, reflectivity, light: Light, rng) -> np.ndarray:
    """Which echoes are strong enough: received power falls with the squared range, and twice through fog and rain."""
    clear = np.exp(np.float32(-2 * light.lidar_extinction_per_m) * range_m)
    strength = reflectivity / np.float32(0.5) * np.maximum(facing, 0.01) ** np.float32(0.4) * clear
    if light.rain_mm_h > 0:
        strength[part == GROUND] *= 1.0 - _WET_SHARE * min(light.rain_mm_h / 20.0, 1.0)
    reach_m = _HALF_POWER_M * np.sqrt(strength)
    softness = reach_m * 0.08 + 0.5
    seen = rng.random(len(range_m), np.float32) < 1 / (1 + np.exp(np.clip((range_m - reach_m) / softness, -20, 20)))
    lost = np.full(len(range_m), _DROPPED, np.float32)
    lost[(part == GLASS) & (facing < 0.97)] = _GLASS_LOST
    return seen & (rng.random(len(range_m), np.float32) > lost)


def _intensity(range_m, facing, reflectivity, light: Light, rng) -> Float32[np.ndarray, "n"]:
    """0 to 255: what a calibrated device makes of material and incidence; air it cannot see dims it."""
    clear = np.exp(np.float32(-light.lidar_extinction_per_m) * range_m)
    speckle = 1 + np.float32(0.25) * rng.standard_normal(len(range_m), np.float32)
    value = 140.0 * reflectivity * (0.3 + 0.7 * facing) * clear * speckle
    return np.clip(np.round(value), 0, 255).astype(np.float32)


def _scattered(range_m, intensity, kept, light: Light, rng):
    """Some beams return from fog or drops, the denser the more and mostly close by."""
    draw = rng.random(len(range_m), np.float32)
    distance = (MIN_RANGE_M + rng.exponential(5.0, len(range_m))).astype(np.float32)
    fooled = (draw < _BACKSCATTER * light.lidar_extinction_per_m) & (distance < range_m)
    faint = rng.integers(0, 8, len(range_m)).astype(np.float32)
    return np.where(fooled, distance, range_m), np.where(fooled, faint, intensity), kept | fooled
