"""Five radars: surfaces in the field of view give detections with an RCS, a radial speed and nuScenes' status codes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from datamodules.town.caster import NOBODY, Caster, Moment, turned
from datamodules.town.meshes import GROUND
from datamodules.town.world import World
from sensors.radar import RadarSweep
from sensors.transforms import RigidTransform

MAX_POINTS = 125
NEAR_RANGE_M, FAR_RANGE_M = 70.0, 250.0
"""Continental ARS 408-21: 120 degrees wide to 70 m, 18 degrees wide to 250 m."""
_NEAR_AZIMUTH_RAD = np.deg2rad(np.arange(-60.0, 60.1, 1.0))
_FAR_AZIMUTH_RAD = np.deg2rad(np.arange(-9.0, 9.01, 0.25))
_ELEVATION_RAD = np.deg2rad((-6.0, -2.5, -0.8, 0.0, 1.0, 3.0, 6.0))
_SPEED_NOISE_MPS = 0.08
_MOVING_MPS = 0.4
_NUM_CLUTTER = 14.0
_STATUS_CODES = (0, 11, 7, 9, 16, 4, 10, 15)
_STATUS_SHARES = (0.80, 0.06, 0.04, 0.03, 0.03, 0.02, 0.01, 0.01)


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
    sensor's motion.
    """
    ego_from_radar = world.ego_from_sensor[channel]
    global_from_radar = world.ego.transform(time_s) @ ego_from_radar
    moment = caster.at(time_s)
    targets = _joined([_surfaces(world, moment, global_from_radar, time_s, rng), _clutter(rng)])
    order = np.argsort(np.hypot(*targets.xy_m.T), kind="stable")[:MAX_POINTS]
    xy, speed = targets.xy_m[order], targets.speed_mps[order]
    toward = xy / np.hypot(xy[:, 0], xy[:, 1])[:, None]
    compensated = toward * speed[:, None]
    raw = compensated - _sensor_velocity(world, ego_from_radar, global_from_radar, time_s)[:2]
    return _sweep(xy, raw, compensated, targets.rcs_dbsm[order], targets.owner[order], speed, rng)


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


def _surfaces(world: World, moment: Moment, global_from_radar: RigidTransform, time_s: float, rng) -> _Targets:
    """Echoes from what the rays meet; a large, near surface that faces the radar answers more surely and more often."""
    local = _rays()
    direction = turned(global_from_radar.rotation, local)
    origin = np.broadcast_to(global_from_radar.translation_m.astype(np.float32), direction.shape)
    hits = moment.cast(origin, direction)
    azimuth = np.arctan2(local[:, 1], local[:, 0])
    limit = np.where(np.abs(azimuth) <= _FAR_AZIMUTH_RAD[-1] + 1e-6, FAR_RANGE_M, NEAR_RANGE_M)
    solid = (hits.range_m < limit) & (hits.range_m > 0.6) & (moment.surfaces.part[hits.triangle] != GROUND)
    rows = np.flatnonzero(solid)
    range_m, owner = hits.range_m[rows].astype(float), moment.surfaces.owner[hits.triangle[rows]].astype(int)
    facing = -(hits.normal[rows] * direction[rows]).sum(axis=1)
    rcs = _rcs(world, owner, facing, rng)
    answers = rng.random(len(rows)) < _answer_rate(world, owner, rcs, range_m)
    rows, range_m, owner, rcs = rows[answers], range_m[answers], owner[answers], rcs[answers]
    range_m = range_m + rng.normal(0.0, 0.12, len(rows))
    bearing = azimuth[rows] + rng.normal(0.0, np.deg2rad(0.5), len(rows))
    xy = np.stack([np.cos(bearing), np.sin(bearing)], axis=1) * range_m[:, None]
    speed = _radial_speed(world, owner, xy, global_from_radar, time_s) + rng.normal(0.0, _SPEED_NOISE_MPS, len(rows))
    return _Targets(xy, speed, rcs, owner)


def _rcs(world: World, owner, facing, rng) -> Float[np.ndarray, "n"]:
    """dBsm from the size of the thing and how squarely it is met: a car about 10, a person about -3."""
    length, width, height = np.array([actor.size_lwh_m for actor in world.actors] + [(3.0, 1.0, 2.0)]).T
    base = 10 * np.log10(np.maximum(np.sqrt(length * width) * height, 0.02)) + 3.0
    return base[owner] + 6.0 * np.log10(np.maximum(facing, 0.05)) + rng.normal(0.0, 3.0, len(owner))


def _answer_rate(world: World, owner, rcs_dbsm, range_m) -> Float[np.ndarray, "n"]:
    """Probability that one ray's surface becomes a detection, so that a thing gives a few and not one per ray."""
    rays_of = np.bincount(owner + 1, minlength=len(world.actors) + 1)[owner + 1]
    wanted = np.where(owner == NOBODY, 55.0, 0.6 + 3.0 * np.clip((rcs_dbsm + 8.0) / 25.0, 0.0, 1.5))
    heard = 1 / (1 + np.exp((40 * np.log10(range_m / 60.0) - rcs_dbsm - 4.0) / 4.0))
    return np.minimum(1.0, wanted / rays_of) * heard


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


def _clutter(rng) -> _Targets:
    """Weak echoes from nothing in particular, a few of them moving."""
    count = int(rng.poisson(_NUM_CLUTTER))
    bearing, range_m = rng.uniform(-1.05, 1.05, count), rng.uniform(1.0, 75.0, count)
    xy = np.stack([np.cos(bearing), np.sin(bearing)], axis=1) * range_m[:, None]
    speed = np.where(rng.random(count) < 0.1, rng.normal(0.0, 4.0, count), rng.normal(0.0, 0.1, count))
    return _Targets(xy, speed, rng.normal(-4.0, 4.0, count), np.full(count, NOBODY))


def _joined(parts: list[_Targets]) -> _Targets:
    names = ("xy_m", "speed_mps", "rcs_dbsm", "owner")
    return _Targets(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _sweep(xy_m, raw, compensated, rcs_dbsm, owner, speed_mps, rng) -> RadarSweep:
    count = len(xy_m)
    moving = np.abs(speed_mps) > _MOVING_MPS
    coming = moving & (speed_mps < 0)
    still = rng.choice((1, 3), count, p=(0.7, 0.3))
    dyn_prop = np.where(coming, 2, np.where(moving, 0, still))
    clean = rng.random(count) < 0.85

    def codes(values):
        return np.asarray(values).astype(np.int8)

    return RadarSweep(
        xyz_m=np.concatenate([xy_m, np.zeros((count, 1))], axis=1).astype(np.float32),
        velocity_raw_mps=raw.astype(np.float32),
        velocity_mps=compensated.astype(np.float32),
        rcs_dbsm=(np.round(rcs_dbsm * 2) / 2).astype(np.float32),
        track_id=np.arange(count, dtype=np.int16),
        dyn_prop=codes(dyn_prop),
        is_quality_valid=codes(np.ones(count)),
        ambig_state=codes(np.where(clean, 3, rng.integers(0, 3, count))),
        invalid_state=codes(rng.choice(_STATUS_CODES, count, p=_STATUS_SHARES)),
        pdh0=codes(np.where(owner == NOBODY, rng.choice((1, 3, 6), count, p=(0.7, 0.2, 0.1)), 1)),
        x_rms=codes(rng.integers(19, 23, count)),
        y_rms=codes(rng.integers(19, 24, count)),
        vx_rms=codes(rng.integers(16, 18, count)),
        vy_rms=codes(np.full(count, 3)),
        lag_s=0.0,
        ego_from_radar=RigidTransform.identity(),
    )
