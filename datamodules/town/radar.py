"""Five radars: surfaces in the field of view give detections with an RCS, a radial speed and nuScenes' status codes.

What one object returns: its rays fall into cells of the radar's resolution; each cell is one possible detection. The
object's mean RCS follows from what it is made of, how large it is and how squarely it is met; it fluctuates from sweep
to sweep (Swerling case 1: exponential), and a cell is detected with that case's probability at its signal-to-noise
ratio, which falls with the fourth power of the range. Levels were chosen so that the points per box match those of
real nuScenes (``docs/town.md``); shares of the status codes are those of one real file.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from datamodules.town.bodies import SIZES_LWH_M
from datamodules.town.caster import NOBODY, Caster, Hits, Moment, turned
from datamodules.town.meshes import FOLIAGE, GROUND
from datamodules.town.radar_codes import status_codes
from datamodules.town.world import World
from sensors.radar import RadarSweep
from sensors.transforms import RigidTransform

MAX_POINTS = 125
NEAR_RANGE_M, FAR_RANGE_M = 70.0, 250.0
"""Continental ARS 408-21: 120 degrees wide to 70 m, 18 degrees wide to 250 m."""
_NEAR_AZIMUTH_RAD = np.deg2rad(np.arange(-60.0, 60.1, 1.0))
_FAR_AZIMUTH_RAD = np.deg2rad(np.arange(-9.0, 9.01, 0.25))
_ELEVATION_RAD = np.deg2rad((-6.0, -2.5, -0.8, 0.0, 1.0, 3.0, 6.0))
_CELL_M, _CELL_RAD = 1.0, np.deg2rad(4.0)
"""Resolution in range and azimuth: two surfaces of one object closer than this answer as one."""
_SCENERY_CELL_M, _SCENERY_CELL_RAD = 1.2, 0.05
_GRID_M, _RAW_STEP_MPS = 0.2, 0.25
"""Steps in which the device reports positions and relative speeds (seen in a real file)."""
_SPEED_NOISE_MPS = 0.14
_MEAN_RCS_DBSM = {
    **{"car": 8.0, "truck": 14.0, "bus": 17.0, "trailer": 15.0, "construction_vehicle": 12.0, "motorcycle": 1.0},
    **{"bicycle": -1.0, "pedestrian": -3.5, "traffic_cone": -15.0, "barrier": -3.0},
}
"""Of the whole object met squarely, rounded from published 77 GHz measurements; spread between instances below."""
_INSTANCE_SPREAD_DB = 3.0
_SCENERY_RCS_DBSM, _FOLIAGE_RCS_DBSM = 2.0, -6.0
_SNR_AT_RCS_0_DB, _REFERENCE_M = 14.0, 20.0
_FALSE_ALARM_LOG = np.log(1e-3)
_NUM_CLUTTER, _NUM_SPRAY = 12.0, 14.0
_GHOST_SHARE = 0.05
_LOOKING_BACK = {
    **{"car": 0.21, "truck": 0.34, "bus": 0.75, "trailer": 0.34, "construction_vehicle": 0.36, "motorcycle": 0.22},
    **{"bicycle": 0.40, "pedestrian": 0.35, "traffic_cone": 0.24, "barrier": 0.50},
}
"""Share of an object's cells that send power back at all: smooth metal mirrors most of it away, while the rails, axles
and steps of large vehicles are corners that send it back. Fitted to the points per box of real tables."""
_SCENERY_LOOKING_BACK = 0.75


@dataclass(frozen=True, eq=False)
class _Targets:
    """Detections before they are cut to MAX_POINTS, sensor frame, flat."""

    xy_m: Float[np.ndarray, "n 2"]
    speed_mps: Float[np.ndarray, "n"]
    rcs_dbsm: Float[np.ndarray, "n"]
    owner: Int[np.ndarray, "n"]


def measure(world: World, caster: Caster, channel: str, time_s: float, rng: np.random.Generator) -> RadarSweep:
    """One measurement of one radar.

    The compensated velocity is the radial part of the target's own, so exactly radial; the raw one is that minus the
    sensor's motion, in the device's steps.
    """
    ego_from_radar = world.ego_from_sensor[channel]
    global_from_radar = world.ego.transform(time_s) @ ego_from_radar
    echoes = _echoes(world, caster.at(time_s), global_from_radar, time_s, rng)
    targets = _joined([echoes, _ghosts(echoes, rng), _clutter(world.light.rain_mm_h, rng)])
    xy = np.round(targets.xy_m / _GRID_M) * _GRID_M
    distance = np.hypot(*xy.T)
    kept = np.flatnonzero(distance > _GRID_M)
    order = kept[np.argsort(distance[kept], kind="stable")][:MAX_POINTS]
    xy, speed = xy[order], targets.speed_mps[order]
    compensated = xy / distance[order, None] * speed[:, None]
    raw = compensated - _sensor_velocity(world, ego_from_radar, global_from_radar, time_s)[:2]
    return RadarSweep(
        xyz_m=np.concatenate([xy, np.zeros((len(xy), 1))], axis=1).astype(np.float32),
        velocity_raw_mps=(np.round(raw / _RAW_STEP_MPS) * _RAW_STEP_MPS).astype(np.float32),
        velocity_mps=compensated.astype(np.float32),
        rcs_dbsm=(np.round(targets.rcs_dbsm[order] * 2) / 2).astype(np.float32),
        track_id=np.arange(len(xy), dtype=np.int16),
        **status_codes(speed, targets.owner[order] == NOBODY, rng),
        lag_s=0.0,
        ego_from_radar=RigidTransform.identity(),
    )


def _sensor_velocity(world: World, ego_from_radar, global_from_radar, time_s: float) -> Float[np.ndarray, "3"]:
    """Of the radar itself, in its own frame, turning included."""
    arm = world.ego.transform(time_s).vectors(ego_from_radar.translation_m)
    turning = np.cross((0.0, 0.0, world.ego.yaw_rate(time_s)), arm)
    return global_from_radar.inverse().vectors(world.ego.velocity(time_s) + turning)


def _rays() -> np.ndarray:
    azimuth = np.concatenate([_NEAR_AZIMUTH_RAD, _FAR_AZIMUTH_RAD])
    flat = np.cos(_ELEVATION_RAD)[:, None]
    z = np.broadcast_to(np.sin(_ELEVATION_RAD)[:, None], (len(_ELEVATION_RAD), len(azimuth)))
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], axis=-1).reshape(-1, 3).astype(np.float32)


_LOCAL_RAYS = _rays()
_RAY_AZIMUTH = np.arctan2(_LOCAL_RAYS[:, 1], _LOCAL_RAYS[:, 0])
_RAY_LIMIT_M = np.where(np.abs(_RAY_AZIMUTH) <= _FAR_AZIMUTH_RAD[-1] + 1e-6, FAR_RANGE_M, NEAR_RANGE_M)


def _echoes(world: World, moment: Moment, global_from_radar: RigidTransform, time_s: float, rng) -> _Targets:
    """Detections of what the rays meet: one at most per object and cell of the radar's resolution."""
    direction = turned(global_from_radar.rotation, _LOCAL_RAYS)
    origin = np.broadcast_to(global_from_radar.translation_m.astype(np.float32), direction.shape)
    hits = moment.cast(origin, direction)
    rows = _strongest(moment, hits, direction)
    range_m, owner = hits.range_m[rows].astype(float), moment.surfaces.owner[hits.triangle[rows]].astype(int)
    facing = -(hits.normal[rows] * direction[rows]).sum(axis=1)
    rcs = _rcs(world, owner, facing, rng)
    bare = owner == NOBODY
    leafy = bare & (moment.surfaces.part[hits.triangle[rows]] == FOLIAGE)
    rcs[leafy] += _FOLIAGE_RCS_DBSM - _SCENERY_RCS_DBSM
    heard = rng.random(len(rows)) < _detection_rate(rcs, range_m, world.light.rain_mm_h)
    shares = np.array([*(_LOOKING_BACK[actor.name] for actor in world.actors), _SCENERY_LOOKING_BACK])
    heard &= rng.random(len(rows)) < shares[owner]
    rows, range_m, owner, rcs = rows[heard], range_m[heard], owner[heard], rcs[heard]
    range_m = range_m + rng.normal(0.0, 0.12, len(rows))
    bearing = _RAY_AZIMUTH[rows] + rng.normal(0.0, np.deg2rad(0.5), len(rows))
    xy = np.stack([np.cos(bearing), np.sin(bearing)], axis=1) * range_m[:, None]
    speed = _radial_speed(world, owner, xy, global_from_radar, time_s) + rng.normal(0.0, _SPEED_NOISE_MPS, len(rows))
    return _Targets(xy, speed, rcs, owner)


def _strongest(moment: Moment, hits: Hits, direction) -> Int[np.ndarray, "k"]:
    """One ray per object and cell: the one that meets its surface most squarely."""
    solid = (hits.range_m < _RAY_LIMIT_M) & (hits.range_m > 0.6) & (moment.surfaces.part[hits.triangle] != GROUND)
    rows = np.flatnonzero(solid)
    facing = -(hits.normal[rows] * direction[rows]).sum(axis=1)
    distance, azimuth = hits.range_m[rows], _RAY_AZIMUTH[rows] + 1.2
    cell = (distance / _CELL_M).astype(np.int64) * 128 + (azimuth / _CELL_RAD).astype(int)
    fine = (distance / _SCENERY_CELL_M).astype(np.int64) * 128 + (azimuth / _SCENERY_CELL_RAD).astype(int)
    owner = moment.surfaces.owner[hits.triangle[rows]].astype(np.int64)
    key = np.where(owner == NOBODY, fine, cell) * 32768 + owner + 1
    order = np.lexsort((-facing, key))
    first = np.ones(len(order), bool)
    first[1:] = key[order][1:] != key[order][:-1]
    return rows[order[first]]


def _rcs(world: World, owner, facing, rng) -> Float[np.ndarray, "n"]:
    """dBsm of single cells: what the object is, its size, its aspect, and the fluctuation of this sweep."""
    mean = np.array([_MEAN_RCS_DBSM[actor.name] for actor in world.actors])
    volume = np.array([np.prod(actor.size_lwh_m) for actor in world.actors])
    usual = np.array([np.prod(SIZES_LWH_M[actor.name][0]) for actor in world.actors])
    grown = 20 / 3 * np.log10(volume / usual)
    own = world.rng("rcs").normal(0.0, _INSTANCE_SPREAD_DB, len(world.actors))
    base = np.array([*(mean + grown + own), _SCENERY_RCS_DBSM])
    swerling = 10 * np.log10(np.maximum(rng.exponential(1.0, len(base)), 1e-3))
    swerling[-1] = 0.0
    glint = rng.normal(0.0, 2.5, len(owner))
    return base[owner] + swerling[owner] + glint + 8.0 * np.log10(np.maximum(facing, 0.03))


def _detection_rate(rcs_dbsm, range_m, rain_mm_h: float) -> Float[np.ndarray, "n"]:
    """Probability of detection: Pfa ** (1 / (1 + SNR)). Heavy rain takes about 0.1 dB in 10 m, fog nothing."""
    snr_db = _SNR_AT_RCS_0_DB + rcs_dbsm - 40 * np.log10(np.maximum(range_m, 3.0) / _REFERENCE_M)
    snr = 10 ** ((snr_db - 0.0005 * rain_mm_h * range_m) / 10)
    return np.exp(_FALSE_ALARM_LOG / (1 + snr))


def _radial_speed(world: World, owner, xy_m, global_from_radar, time_s: float) -> Float[np.ndarray, "n"]:
    """Of each target over ground, along the line of sight; positive when receding."""
    toward = xy_m / np.hypot(xy_m[:, 0], xy_m[:, 1])[:, None]
    inverse = global_from_radar.inverse()
    speed = np.zeros(len(owner))
    for index in np.unique(owner[owner != NOBODY]):
        velocity = inverse.vectors(world.actors[index].motion.velocity(time_s))
        chosen = owner == index
        speed[chosen] = toward[chosen] @ velocity[:2]
    return speed


def _ghosts(echoes: _Targets, rng) -> _Targets:
    """Multipath: some echoes come a second time, by a detour over a wall or the ground: farther, weaker, aside."""
    rows = np.flatnonzero(rng.random(len(echoes.owner)) < _GHOST_SHARE)
    detour = rng.uniform(1.5, 14.0, len(rows))
    bearing = np.arctan2(echoes.xy_m[rows, 1], echoes.xy_m[rows, 0]) + rng.normal(0.0, 0.10, len(rows))
    distance = np.hypot(*echoes.xy_m[rows].T) + detour
    xy = np.stack([np.cos(bearing), np.sin(bearing)], axis=1) * distance[:, None]
    speed = echoes.speed_mps[rows] * rng.uniform(0.6, 1.2, len(rows))
    return _Targets(xy, speed, echoes.rcs_dbsm[rows] - rng.uniform(4.0, 12.0, len(rows)), np.full(len(rows), NOBODY))


def _clutter(rain_mm_h: float, rng) -> _Targets:
    """Weak echoes from nothing in particular, a few of them moving; in rain, more of them close by."""
    count, spray = int(rng.poisson(_NUM_CLUTTER)), int(rng.poisson(_NUM_SPRAY * min(rain_mm_h / 30.0, 1.5)))
    bearing = rng.uniform(-1.05, 1.05, count + spray)
    range_m = np.concatenate([rng.uniform(1.0, 90.0, count), 1.0 + rng.exponential(8.0, spray)])
    xy = np.stack([np.cos(bearing), np.sin(bearing)], axis=1) * range_m[:, None]
    moving = rng.random(count + spray) < 0.1
    speed = np.where(moving, rng.normal(0.0, 4.0, count + spray), rng.normal(0.0, 0.15, count + spray))
    rcs = rng.normal(-3.0, 4.5, count + spray)
    return _Targets(xy, speed, rcs, np.full(count + spray, NOBODY))


def _joined(parts: list[_Targets]) -> _Targets:
    names = ("xy_m", "speed_mps", "rcs_dbsm", "owner")
    return _Targets(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
