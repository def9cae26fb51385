"""Snow on LiDAR: flakes that cover part of a beam and send their own echo (Hahner et al., LiDAR snowfall, CVPR 2022).

The level is the snowfall rate in mm/h of melted water, at a terminal velocity of 1.2 m/s. Gunn and Marshall's diameters
are of the melted flakes and their rate is that of the melted water; the published code takes the diameters for the
flakes' own and the rate to the power 1.5, so that more snow holds fewer flakes. That is only in ``published_weather``.
"""

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.lidar_echoes import BIN_M, strongest_echo
from sensors.faults.lidar_flakes import (
    FLAKE_DENSITY,
    Flakes,
    flakes_in_beams,
    flakes_per_m2,
    gunn_slope_per_m,
    occupancy_of,
)
from sensors.faults.lidar_fog import WEAKEST_POWER, clear_air_headroom, echoes_at, overlap_at, range_of
from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.lidar import LidarSweep

SNOW_LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
VELOCITY_MPS = 1.2
FLAKE_REFLECTIVITY = 0.9
SAME_PLACE_M = 0.2
_MATTERS = 0.04
"""Flakes with less of the target's power cannot move the peak by 0.2 m: there the pulse still has 0.956 of its peak."""


def lidar_snow(sweep: LidarSweep, level: float, rng: np.random.Generator, frame: Frame) -> LidarSweep:
    """Flakes hide part of the target, and the strongest echo of all wins."""
    range_m = range_of(sweep)
    headroom = clear_air_headroom(sweep.intensity, range_m, rng)
    slope = gunn_slope_per_m(level) * FLAKE_DENSITY ** (1 / 3)
    flakes = flakes_in_beams(range_m, flakes_per_m2(occupancy_of(level, VELOCITY_MPS), slope), slope, rng)
    return echoes_at(sweep, range_m, *snowy_echoes(range_m, sweep.intensity, headroom, flakes))


def snowy_echoes(
    range_m: Float[np.ndarray, "n"],
    intensity: Float[np.ndarray, "n"],
    headroom: Float[np.ndarray, "n"],
    flakes: Flakes,
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Range, intensity and whether anything is seen.

    All echoes of a beam are compared as received powers. The published code lets a flake's power stand for the target's
    in every beam with a flake; that is only in ``published_weather``.
    """
    open_share = 1 - np.bincount(flakes.beam, flakes.share, len(range_m))
    target = np.maximum(intensity / (255 * range_m**2), WEAKEST_POWER) * open_share
    flake = FLAKE_REFLECTIVITY * flakes.share * overlap_at(flakes.distance_m) / flakes.distance_m**2
    beams = np.flatnonzero(np.bincount(flakes.beam, flake, len(range_m)) > _MATTERS * target)
    number = np.full(len(range_m), -1)
    number[beams] = np.arange(len(beams))
    among = number[flakes.beam] >= 0
    peak_m, power = strongest_echo(
        np.concatenate([number[flakes.beam[among]], np.arange(len(beams))]),
        np.concatenate([flakes.distance_m[among], range_m[beams]]),
        np.concatenate([flake[among], target[beams]]),
    )
    snow = (np.abs(peak_m - range_m[beams]) >= SAME_PLACE_M) & (power >= WEAKEST_POWER) & (peak_m < range_m[beams])
    seen_m, seen = range_m.copy(), open_share * intensity
    from_flake = np.zeros(len(range_m), bool)
    from_flake[beams[snow]] = True
    seen_m[beams[snow]] = np.maximum(peak_m[snow], BIN_M)
    seen[beams[snow]] = np.minimum(255 * power[snow] * peak_m[snow] ** 2, 255)
    return seen_m, seen, from_flake | (open_share * headroom >= 1)


LIDAR_SNOW = SensorFault("lidar_snow", "weather", "lidar", "mm/h", SNOW_LEVELS, effect=lidar_snow, worst=10.0)
