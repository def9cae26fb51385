"""LiDAR points in the wrong place: noise, false returns, and motion within the turn."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.lidar_loss import COLUMN_DEG, azimuth_rad
from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

_IMPULSE_M = 0.5
_FARTHEST_FALSE_M = 100.0
_GLARE_SIGMA_M, _SUN_RADIUS_RAD = 2.0, np.deg2rad(15.0)
_JITTER_SHARE, _VIBRATIONS = 0.15, 3
_SEGMENTS, _RAD_PER_M = 100, 0.1


def _range_noise(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    return _farther(sweep, level * rng.standard_normal(len(sweep), dtype=np.float32))


def _uniform_noise(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    noise = level * (2 * rng.random((len(sweep), 3), dtype=np.float32) - 1)
    return _at(sweep, sweep.xyz_m + noise)


def _impulse_noise(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Some points are off by half a metre, nearer or farther."""
    hit, sign = rng.random(len(sweep)) < level, np.where(rng.random(len(sweep)) < 0.5, -1, 1)
    return _farther(sweep, np.where(hit, sign * _IMPULSE_M, 0.0))


def _intensity_noise(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    noisy = sweep.intensity + level * rng.standard_normal(len(sweep), dtype=np.float32)
    return replace(sweep, intensity=np.clip(noisy, 0, 255).astype(sweep.intensity.dtype))


def _crosstalk(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Another LiDAR's pulses instead of the own echo: any range up to 100 m, any intensity."""
    hit = rng.random(len(sweep)) < level
    false_m, intensity = rng.uniform(1.0, _FARTHEST_FALSE_M, len(sweep)), rng.uniform(0, 255, len(sweep))
    hurt = _farther(sweep, np.where(hit, false_m - _range_m(sweep), 0.0))
    return replace(hurt, intensity=np.where(hit, np.rint(intensity), sweep.intensity).astype(sweep.intensity.dtype))


def _glare(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """A low sun: the points that look nearest to it scatter along their rays by 2 m, fewer towards the rim."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.deg2rad(15))
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    off_rad = np.arccos(np.clip(sweep.xyz_m @ sun.astype(np.float32) / _range_m(sweep), -1, 1))
    exposure = off_rad + _SUN_RADIUS_RAD * rng.exponential(0.3, len(sweep))
    noise_m = _GLARE_SIGMA_M * rng.standard_normal(len(sweep))
    return _farther(sweep, np.where(_smallest(exposure, level), noise_m, 0.0))


def _smallest(values: Float[np.ndarray, "n"], share: float) -> Bool[np.ndarray, "n"]:
    chosen = np.zeros(len(values), bool)
    count = int(np.ceil(share * len(values)))
    chosen[np.argpartition(values, count - 1)[:count] if count else []] = True
    return chosen


def _azimuth_jitter(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """The encoder errs: all beams of one firing turn by the same small angle about the sensor's axis."""
    firings = np.deg2rad(level) * rng.standard_normal(int(np.ceil(360 / COLUMN_DEG)) + 2)
    angle = firings[(np.rad2deg(azimuth_rad(sweep)) / COLUMN_DEG).astype(np.int64)]
    c, s = np.cos(angle), np.sin(angle)
    x, y, z = sweep.xyz_m.T
    return _at(sweep, np.stack([c * x - s * y, s * x + c * y, z], axis=1))


def _motion_blur(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """A vibrating mount: a few waves of displacement along the turn in x, y and z, and 15 % of it as jitter.

    The published blur moves the whole cloud by one offset.
    """
    phase, amplitude = rng.uniform(0, 2 * np.pi, (_VIBRATIONS, 3)), rng.standard_normal((_VIBRATIONS, 3))
    wave = np.arange(1, _VIBRATIONS + 1)[:, None] * azimuth_rad(sweep).astype(np.float64)
    shift = np.einsum("vc,vnc->nc", amplitude, np.cos(wave[:, :, None] + phase[:, None])) * np.sqrt(2 / _VIBRATIONS)
    jitter = np.clip(_JITTER_SHARE * rng.standard_normal((len(sweep), 3)), -3, 3)
    return _at(sweep, sweep.xyz_m + level * (shift + jitter))


def _motion_compensation(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """A wrong pose for each of 100 segments of the turn: N(0, level) per axis, and 0.1 rad per metre of it about z.

    The published noise is added to the entries of the rotation matrix, which then is none; here each pose is rigid.
    """
    shift = level * rng.standard_normal((_SEGMENTS, 3))
    angle = level * _RAD_PER_M * rng.standard_normal(_SEGMENTS)
    segment = np.minimum((azimuth_rad(sweep) * (_SEGMENTS / (2 * np.pi))).astype(np.int64), _SEGMENTS - 1)
    c, s = np.cos(angle)[segment], np.sin(angle)[segment]
    x, y, z = sweep.xyz_m.T
    return _at(sweep, np.stack([c * x - s * y, s * x + c * y, z], axis=1) + shift[segment])


def _range_m(sweep: LidarSweep) -> Float[np.ndarray, "n"]:
    x, y, z = sweep.xyz_m.T
    return np.maximum(np.sqrt(x * x + y * y + z * z), np.float32(1e-3))


def _farther(sweep: LidarSweep, added_m: Float[np.ndarray, "n"]) -> LidarSweep:
    """Points moved along their rays, never through the sensor."""
    moved = np.flatnonzero(added_m)
    range_m = _range_m(sweep)[moved]
    stretch = np.maximum(range_m + added_m[moved].astype(range_m.dtype), 0) / range_m
    xyz_m = sweep.xyz_m.copy()
    xyz_m[moved] *= stretch[:, None]
    return _at(sweep, xyz_m)


def _at(sweep: LidarSweep, xyz_m: Float[np.ndarray, "n 3"]) -> LidarSweep:
    return replace(sweep, xyz_m=np.ascontiguousarray(xyz_m, sweep.xyz_m.dtype))


LIDAR_RANGE_NOISE = SensorFault(
    "lidar_range_noise", "noise", "lidar", "m", (0.02, 0.05, 0.1, 0.2, 0.4), effect=_range_noise
)
LIDAR_UNIFORM_NOISE = SensorFault(
    "lidar_uniform_noise", "noise", "lidar", "m to either side", (0.02, 0.05, 0.1, 0.2, 0.4), effect=_uniform_noise
)
LIDAR_IMPULSE_NOISE = SensorFault(
    "lidar_impulse_noise",
    "noise",
    "lidar",
    "share of points",
    (0.03, 0.05, 0.1, 0.2, 0.4),
    effect=_impulse_noise,
    worst=1.0,
)
LIDAR_INTENSITY_NOISE = SensorFault(
    "lidar_intensity_noise", "noise", "lidar", "of 255", (5.0, 10.0, 20.0, 40.0, 80.0), effect=_intensity_noise
)
LIDAR_CROSSTALK = SensorFault(
    "lidar_crosstalk",
    "false points",
    "lidar",
    "share of points",
    (0.004, 0.01, 0.02, 0.05, 0.1),
    effect=_crosstalk,
    worst=1.0,
)
LIDAR_GLARE = SensorFault(
    "lidar_glare",
    "false points",
    "lidar",
    "share of points",
    (0.01, 0.02, 0.03, 0.04, 0.05),
    effect=_glare,
    per_sweep=False,
    worst=1.0,
)
LIDAR_AZIMUTH_JITTER = SensorFault(
    "lidar_azimuth_jitter", "noise", "lidar", "deg", (0.05, 0.1, 0.2, 0.4, 0.8), effect=_azimuth_jitter
)
LIDAR_MOTION_BLUR = SensorFault(
    "lidar_motion_blur", "noise", "lidar", "m", (0.04, 0.06, 0.1, 0.15, 0.25), effect=_motion_blur
)
LIDAR_MOTION_COMPENSATION = SensorFault(
    "lidar_motion_compensation",
    "alignment",
    "lidar",
    "m (and 0.1 rad per m)",
    (0.02, 0.04, 0.08, 0.15, 0.3),
    effect=_motion_compensation,
)

NOISE_FAULTS = (
    *(LIDAR_RANGE_NOISE, LIDAR_UNIFORM_NOISE, LIDAR_IMPULSE_NOISE, LIDAR_INTENSITY_NOISE),
    *(LIDAR_CROSSTALK, LIDAR_GLARE, LIDAR_AZIMUTH_JITTER, LIDAR_MOTION_BLUR, LIDAR_MOTION_COMPENSATION),
)
