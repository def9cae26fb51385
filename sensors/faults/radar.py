"""Radar faults on raw sweeps: metres, m/s along the line of sight, dBsm.

No published ladder of severities exists; these levels are ours.
"""

from dataclasses import fields, replace

import numpy as np
from jaxtyping import Float

from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.radar import RadarSweep

MAX_RANGE_M = 250.0
HALF_VIEW_RAD = np.deg2rad(60.0)
WEAKEST_DBSM = -5.0
GHOST_LOSS_DB = 10.0
AMBIGUITY_MPS = 20.0
_CLUTTER_RANGE_M = 100.0
_MAX_CLUTTER = 80
_BURST_CLUTTER = 10
_PLAIN_STATUS = dict(dyn_prop=1, is_quality_valid=1, ambig_state=3, invalid_state=0, pdh0=1)


def _point_drop(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    return sweep.select(rng.random(len(sweep)) >= level)


def _ghosts(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Multipath: the echo of a longer way in the same direction, weaker, with the radial velocity kept.

    A level above 1 gives some points a second ghost; ghosts beyond the radar's reach are not seen.
    """
    ghosts = []
    for copy in range(2):
        drawn, stretch = rng.random(len(sweep)), rng.uniform(1.5, 3.0, len(sweep)).astype(np.float32)
        seen = (drawn < level - copy) & (range_of(sweep) * stretch < MAX_RANGE_M)
        origin = sweep.select(seen)
        ghosts.append(
            replace(
                origin,
                xyz_m=origin.xyz_m * stretch[seen, None],
                rcs_dbsm=origin.rcs_dbsm - np.float32(GHOST_LOSS_DB),
            )
        )
    return concatenated([sweep, *ghosts])


def _clutter(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    num_points = int(level + rng.random())
    return concatenated([sweep, clutter(sweep, _MAX_CLUTTER, rng, frame).select(np.arange(num_points))])


def clutter(sweep: RadarSweep, num_points: int, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Points of nothing: uniform over the field of view, RCS N(-5, 5) dBsm, radial speed N(0, 3) m/s over ground."""
    azimuth = rng.uniform(-HALF_VIEW_RAD, HALF_VIEW_RAD, num_points)
    range_m = _CLUTTER_RANGE_M * np.sqrt(rng.random(num_points))
    line_of_sight = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=1)
    speed = rng.normal(0, 3, num_points)
    # A standing point seems to come towards a moving sensor with that part of its speed that lies along the line.
    raw_speed = speed - line_of_sight @ _forward_mps(sweep, frame)
    xyz_m = np.concatenate([line_of_sight * range_m[:, None], np.zeros((num_points, 1))], axis=1)
    status = {field.name: np.zeros(num_points, getattr(sweep, field.name).dtype) for field in _point_fields()}
    status.update({name: np.full_like(status[name], value) for name, value in _PLAIN_STATUS.items()})
    measured = dict(
        xyz_m=xyz_m,
        velocity_mps=line_of_sight * speed[:, None],
        velocity_raw_mps=line_of_sight * raw_speed[:, None],
        rcs_dbsm=rng.normal(-5, 5, num_points),
    )
    status.update({name: value.astype(getattr(sweep, name).dtype) for name, value in measured.items()})
    return RadarSweep(**status, lag_s=sweep.lag_s, ego_from_radar=sweep.ego_from_radar)


def _doppler_noise(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    return _faster(sweep, level * rng.standard_normal(len(sweep)))


def _doppler_alias(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """The measured relative speed is off by one ambiguity interval; ego compensation carries the error over."""
    hit, sign = rng.random(len(sweep)) < level, np.sign(rng.random(len(sweep)) - 0.5)
    return _faster(sweep, np.where(hit, sign * AMBIGUITY_MPS, 0.0))


def _faster(sweep: RadarSweep, added_mps: Float[np.ndarray, "n"]) -> RadarSweep:
    """Adds to the radial speed, positive away from the sensor, raw and compensated alike: both stay consistent."""
    along = sweep.xyz_m[:, :2] / np.maximum(range_of(sweep), 1e-3)[:, None] * added_mps[:, None].astype(np.float32)
    return replace(sweep, velocity_mps=sweep.velocity_mps + along, velocity_raw_mps=sweep.velocity_raw_mps + along)


def _rcs_loss(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Attenuation: what is then weaker than the receiver's limit vanishes."""
    weaker = replace(sweep, rcs_dbsm=sweep.rcs_dbsm - np.float32(level))
    return weaker.select(weaker.rcs_dbsm >= WEAKEST_DBSM)


def _range_azimuth_noise(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Polar noise in the sensor frame.

    The measured range rate knows nothing of the wrong azimuth, so the raw velocity turns along with the point. What the
    sensor adds for its own motion is worked out at the wrong azimuth: a standing point seems to move.
    """
    sigma_deg = np.interp(level, (0.0, *RADAR_RANGE_AZIMUTH_NOISE.levels), (0.0, 0.5, 1.0, 2.0, 3.0, 5.0))
    range_m = range_of(sweep)
    noise_m, noise_rad = (
        level * rng.standard_normal(len(sweep)),
        np.deg2rad(sigma_deg) * rng.standard_normal(len(sweep)),
    )
    stretch = np.maximum(range_m + noise_m, 0.1) / np.maximum(range_m, 1e-3)
    flat = _turned(sweep.xyz_m[:, :2], noise_rad)
    before, after = (xy / np.maximum(range_m, 1e-3)[:, None] for xy in (sweep.xyz_m[:, :2], flat))
    added_mps = (after - before) @ _forward_mps(sweep, frame)
    along = (after * added_mps[:, None]).astype(sweep.velocity_mps.dtype)
    flat = flat * stretch[:, None].astype(flat.dtype)
    return replace(
        sweep,
        xyz_m=np.concatenate([flat, sweep.xyz_m[:, 2:]], axis=1).astype(sweep.xyz_m.dtype),
        velocity_mps=_turned(sweep.velocity_mps, noise_rad) + along,
        velocity_raw_mps=_turned(sweep.velocity_raw_mps, noise_rad),
    )


def _interference(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Another radar's burst: a wedge of the view is lost, and clutter appears outside of it."""
    middle, half = rng.uniform(-HALF_VIEW_RAD, HALF_VIEW_RAD), np.deg2rad(level) / 2
    false = clutter(sweep, _BURST_CLUTTER, rng, frame)
    low, high = max(middle - half, -HALF_VIEW_RAD), min(middle + half, HALF_VIEW_RAD)
    # Azimuths uniform over the view become uniform over what the wedge leaves of it.
    share = (azimuth_of(false) + HALF_VIEW_RAD) / (2 * HALF_VIEW_RAD)
    outside = share * (2 * HALF_VIEW_RAD - (high - low)) - HALF_VIEW_RAD
    outside = np.where(outside < low, outside, outside + (high - low))
    return concatenated(
        [sweep.select(np.abs(azimuth_of(sweep) - middle) > half), _rotated(false, outside - azimuth_of(false), frame)]
    )


def _rotated(sweep: RadarSweep, angle_rad: Float[np.ndarray, "n"], frame: Frame) -> RadarSweep:
    """False points at other azimuths: same range and speed over ground, raw speed as seen from the moving sensor."""
    xyz_m = np.concatenate([_turned(sweep.xyz_m[:, :2], angle_rad), sweep.xyz_m[:, 2:]], axis=1)
    velocity = _turned(sweep.velocity_mps, angle_rad)
    line = xyz_m[:, :2] / np.maximum(np.hypot(xyz_m[:, 0], xyz_m[:, 1]), 1e-3)[:, None]
    closing = line @ _forward_mps(sweep, frame)
    raw = (velocity - line * closing[:, None]).astype(sweep.velocity_raw_mps.dtype)
    return replace(sweep, xyz_m=xyz_m, velocity_mps=velocity, velocity_raw_mps=raw)


def _forward_mps(sweep: RadarSweep, frame: Frame) -> Float[np.ndarray, "2"]:
    """The vehicle's velocity in the sensor frame."""
    return sweep.ego_from_radar.inverse().vectors(np.array([[frame.ego_speed_mps, 0.0, 0.0]]))[0, :2]


def _blocked(sweep: RadarSweep, level: float, rng: np.random.Generator, frame: Frame) -> RadarSweep:
    """Dirt on the cover, from one edge of the field of view; what lies beyond the view goes with its edge."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    inwards = np.maximum(side * azimuth_of(sweep), -HALF_VIEW_RAD)
    return sweep.select(inwards < HALF_VIEW_RAD * (1 - 2 * level))


def range_of(sweep: RadarSweep) -> Float[np.ndarray, "n"]:
    return np.hypot(sweep.xyz_m[:, 0], sweep.xyz_m[:, 1])


def azimuth_of(sweep: RadarSweep) -> Float[np.ndarray, "n"]:
    """From the boresight, counter-clockwise, in radians."""
    return np.arctan2(sweep.xyz_m[:, 1], sweep.xyz_m[:, 0])


def concatenated(sweeps: list[RadarSweep]) -> RadarSweep:
    """All points under the first one's lag and pose."""
    return replace(
        sweeps[0],
        **{field.name: np.concatenate([getattr(s, field.name) for s in sweeps]) for field in _point_fields()},
    )


def _point_fields():
    return [field for field in fields(RadarSweep) if field.name not in ("lag_s", "ego_from_radar")]


def _turned(xy: Float[np.ndarray, "n 2"], angle_rad: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.stack([c * xy[:, 0] - s * xy[:, 1], s * xy[:, 0] + c * xy[:, 1]], axis=1).astype(xy.dtype)


RADAR_POINT_DROP = SensorFault(
    "radar_point_drop", "points", "radar", "share of points", (0.1, 0.3, 0.5, 0.7, 0.9), effect=_point_drop, worst=1.0
)
RADAR_GHOSTS = SensorFault(
    "radar_ghosts", "false points", "radar", "share of points", (0.1, 0.2, 0.4, 0.8, 1.6), effect=_ghosts, worst=2.0
)
RADAR_CLUTTER = SensorFault(
    "radar_clutter", "false points", "radar", "points per sensor", (5.0, 10.0, 20.0, 40.0, 80.0), effect=_clutter
)
RADAR_DOPPLER_NOISE = SensorFault(
    "radar_doppler_noise", "noise", "radar", "m/s", (0.25, 0.5, 1.0, 2.0, 4.0), effect=_doppler_noise
)
RADAR_DOPPLER_ALIAS = SensorFault(
    "radar_doppler_alias",
    "noise",
    "radar",
    "share of points",
    (0.05, 0.1, 0.2, 0.4, 0.8),
    effect=_doppler_alias,
    worst=1.0,
)
RADAR_RANGE_AZIMUTH_NOISE = SensorFault(
    "radar_range_azimuth_noise",
    "noise",
    "radar",
    "m (and .5 1 2 3 5 deg)",
    (0.1, 0.25, 0.5, 1.0, 2.0),
    effect=_range_azimuth_noise,
)
RADAR_RCS_LOSS = SensorFault("radar_rcs_loss", "points", "radar", "dB", (3.0, 6.0, 9.0, 12.0, 15.0), effect=_rcs_loss)
RADAR_INTERFERENCE = SensorFault(
    "radar_interference", "view", "radar", "deg", (10.0, 20.0, 40.0, 60.0, 90.0), effect=_interference
)
RADAR_BLOCKED = SensorFault(
    "radar_blocked", "view", "radar", "share of view", (0.1, 0.25, 0.5, 0.75, 1.0), effect=_blocked, per_sweep=False
)

RADAR_FAULTS = (
    *(RADAR_POINT_DROP, RADAR_GHOSTS, RADAR_CLUTTER, RADAR_DOPPLER_NOISE, RADAR_DOPPLER_ALIAS),
    *(RADAR_RANGE_AZIMUTH_NOISE, RADAR_RCS_LOSS, RADAR_INTERFERENCE, RADAR_BLOCKED),
)
