"""The conditions and what they do to the three sensors."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Light:
    """Light and air of a scene.

    Attributes:
        toward_sun: unit vector, global frame.
        sun_rgb, ambient_rgb: irradiance, 1 about the white of a sunny day.
        horizon_rgb, zenith_rgb: of the sky; fog fades into the horizon's.
        fog_density_per_m: extinction for cameras and, both ways, for LiDAR; radar does not notice.
        night: street lamps, headlights and lit windows are on.
        exposure: gain before the gamma curve.
        noise: standard deviation of a mid grey after exposure, of 1.
    """

    toward_sun: tuple[float, float, float]
    sun_rgb: tuple[float, float, float]
    ambient_rgb: tuple[float, float, float]
    horizon_rgb: tuple[float, float, float]
    zenith_rgb: tuple[float, float, float]
    fog_density_per_m: float
    night: bool
    exposure: float
    noise: float


def light_of(condition: str, rng: np.random.Generator) -> Light:
    """Light and air for one of CONDITIONS; hour, haze and exposure vary."""
    azimuth, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(22.0, 65.0))
    sun = (float(np.cos(azimuth) * np.cos(height)), float(np.sin(azimuth) * np.cos(height)), float(np.sin(height)))
    exposure = float(rng.uniform(0.85, 1.2))
    if condition == "night":
        dark, glow = (0.010, 0.012, 0.022), (0.035, 0.030, 0.032)
        return Light(sun, (0.012, 0.014, 0.020), (0.014, 0.015, 0.022), glow, dark, 0.0, True, 2.2 * exposure, 0.05)
    if condition == "fog":
        grey = (0.66, 0.68, 0.70)
        density = float(rng.uniform(0.025, 0.05))
        return Light(sun, (0.12, 0.12, 0.11), (0.55, 0.57, 0.60), grey, grey, density, False, 0.9 * exposure, 0.014)
    warm = float(rng.uniform(0.0, 0.2))
    return Light(
        sun,
        (0.85, 0.82 - warm * 0.4, 0.76 - warm),
        (0.30, 0.34, 0.40),
        (0.72, 0.78, 0.85),
        (0.25, 0.45, 0.78),
        float(rng.uniform(0.0, 0.0015)),
        False,
        exposure,
        0.010,
    )
