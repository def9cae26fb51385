"""Fog on LiDAR: attenuation and backscatter (Hahner et al., Fog simulation on real LiDAR point clouds, ICCV 2021).

The level is the extinction coefficient alpha in 1/m; at visibility ln(20) / alpha 5 % of the contrast is left.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.protocol import Number, SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

FOG_LEVELS = (0.005, 0.01, 0.02, 0.03, 0.06)
FOG_UNIT = "1/m (visibility 600 300 150 100 50 m)"
LIGHT_MPS = 299_792_458.0
OVERLAP_M = (0.9, 1.0)
"""Where the receiver begins to see the beam, and where it sees all of it."""

_PULSE_HALF_POWER_S = 20e-9
_PEAK_DELAY_M = LIGHT_MPS * _PULSE_HALF_POWER_S / 2
_HARD_REFLECTIVITY = 1e-6 / np.pi
_SPREAD = 0.5
_TABLE_END_M, _TABLE_STEP_M, _PULSE_STEPS = 30.0, 0.1, 128

WEAKEST_REFLECTIVITY, REACH_M = 0.1, 100.0
WEAKEST_POWER = WEAKEST_REFLECTIVITY / REACH_M**2
"""Of an echo that is still seen, where a white target at 1 m has 1: that of a 10 % target at 100 m in clear air."""


def lidar_fog(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Targets fade, and where the fog's own echo is stronger the point moves there."""
    range_m = range_of(sweep)
    headroom = clear_air_headroom(sweep.intensity, range_m, rng)
    spread = np.exp(rng.normal(0, _SPREAD, len(sweep)))
    seen_m, intensity, kept = foggy_echoes(range_m, sweep.intensity, level, headroom, spread)
    return echoes_at(sweep, range_m, seen_m, intensity, kept)


def foggy_echoes(
    range_m: Float[np.ndarray, "n"],
    intensity: Float[np.ndarray, "n"],
    alpha: Number,
    headroom: Float[np.ndarray, "n"],
    spread: Float[np.ndarray, "n"],
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Range, intensity and whether anything is seen.

    The echo of a target fades by exp(-2 alpha r). The fog's echo is the strongest place of its response before the
    target (equations 5-10), and is reported there less the delay of the pulse's peak, as a target's is. ``spread``
    stands for uneven fog; the published noise divides by a range that may be zero.
    """
    left = np.exp(-2 * alpha * range_m)
    response, peak_m = fog_response(alpha, range_m)
    scatter = range_m**2 * (backscatter_per_sr(alpha) / _HARD_REFLECTIVITY) * response
    from_fog = scatter > left
    kept = from_fog | (left * headroom >= 1)
    fog_m = np.minimum(np.maximum((peak_m - _PEAK_DELAY_M) * spread, OVERLAP_M[0]), range_m)
    seen_m = np.where(from_fog, fog_m, range_m)
    return seen_m, np.where(from_fog, np.minimum(scatter, 1.0), left) * intensity, kept


def backscatter_per_sr(alpha: Number) -> float:
    """beta of the fog, .046 over the visibility (Rasshofer et al., 2011)."""
    return 0.046 * alpha / np.log(20)


def fog_response(
    alpha: Number, range_m: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """The fog's strongest echo nearer than each range, in units of a unit target's power at 1 m, and where it is.

    The integral of a sin^2 pulse over attenuation, 1/r^2 and the overlap of emitter and receiver.
    """
    strongest, where = _response_table(float(alpha))
    index = np.clip(((range_m - OVERLAP_M[0]) / _TABLE_STEP_M + 1e-9).astype(np.int64), 0, len(where) - 1)
    return np.where(range_m > OVERLAP_M[0], strongest[index], 0.0), where[index]


@lru_cache(maxsize=64)
def _response_table(alpha: float) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "r"]]:
    at_m = np.arange(OVERLAP_M[0], _TABLE_END_M, _TABLE_STEP_M)
    time_s = (np.arange(_PULSE_STEPS) + 0.5) * (2 * _PULSE_HALF_POWER_S / _PULSE_STEPS)
    source_m = at_m[:, None] - LIGHT_MPS * time_s / 2
    safe_m = np.maximum(source_m, OVERLAP_M[0])
    pulse = np.sin(np.pi * time_s / (2 * _PULSE_HALF_POWER_S)) ** 2
    echo = pulse * overlap_at(source_m) * np.exp(-2 * alpha * safe_m) / safe_m**2
    response = echo.sum(axis=1) * (time_s[1] - time_s[0])
    strongest = np.maximum.accumulate(response)
    where = at_m[np.maximum.accumulate(np.where(response == strongest, np.arange(len(at_m)), 0))]
    return strongest, where


def overlap_at(range_m: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Share of the beam that the receiver sees at that range: 0 below 0.9 m, 1 from 1 m on."""
    return np.clip((range_m - OVERLAP_M[0]) / (OVERLAP_M[1] - OVERLAP_M[0]), 0, 1)


def range_of(sweep: LidarSweep) -> Float[np.ndarray, "n"]:
    """Distance from the sensor, never zero."""
    x, y, z = sweep.xyz_m.astype(np.float64).T
    return np.maximum(np.sqrt(x * x + y * y + z * z), 1e-3)


def clear_air_headroom(
    intensity: Float[np.ndarray, "n"], range_m: Float[np.ndarray, "n"], rng: np.random.Generator
) -> Float[np.ndarray, "n"]:
    """How many times stronger than just visible each echo was in clear air.

    A target weaker than a 10 % target at 100 m was seen nevertheless: it has a random headroom of 1 + Exp(1).
    """
    return np.maximum(intensity / (255 * WEAKEST_POWER * range_m**2), 1 + rng.exponential(1.0, len(range_m)))


def echoes_at(
    sweep: LidarSweep,
    range_m: Float[np.ndarray, "n"],
    seen_m: Float[np.ndarray, "n"],
    intensity: Float[np.ndarray, "n"],
    kept: Bool[np.ndarray, "n"],
) -> LidarSweep:
    """The sweep with its points moved along their rays from ``range_m`` to ``seen_m``; untouched ones stay exact."""
    moved = kept & (seen_m != range_m)
    xyz_m = sweep.xyz_m.copy()
    xyz_m[moved] *= (seen_m[moved] / range_m[moved]).astype(xyz_m.dtype)[:, None]
    return replace(sweep, xyz_m=xyz_m, intensity=np.rint(intensity).astype(sweep.intensity.dtype)).select(kept)


LIDAR_FOG = SensorFault("lidar_fog", "weather", "lidar", FOG_UNIT, FOG_LEVELS, effect=lidar_fog, worst=1.0)
