"""The conditions and what they do to the three sensors."""

from dataclasses import dataclass, replace

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
        gamma: of the picture's curve.
        rain_mm_h: rain; wets the road, streaks pictures, dims LiDAR and sprays near radar echoes.
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
    gamma: float = 2.2
    rain_mm_h: float = 0.0

    @property
    def sunny(self) -> bool:
        """Whether the sun casts shadows and glares."""
        return self.sun_rgb[0] > 0.3

    @property
    def lidar_extinction_per_m(self) -> float:
        """One way: fog's, and rain's power law 0.01 R^0.6 dB/m (Goodin et al., Electronics 2019), in nepers."""
        return self.fog_density_per_m + (0.01 * self.rain_mm_h**0.6 / 4.343 if self.rain_mm_h else 0.0)


def light_of(condition: str, rng: np.random.Generator, dark: bool = False) -> Light:
    """Light and air for one of CONDITIONS; hour, haze, rain and exposure vary.

    Args:
        dark: fog and rain at night: the air is that of the condition, the light is that of a night, and the town's
            own glow hangs in the wet air.
    """
    azimuth, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(12.0, 65.0))
    sun = (float(np.cos(azimuth) * np.cos(height)), float(np.sin(azimuth) * np.cos(height)), float(np.sin(height)))
    exposure, gamma = float(rng.uniform(0.85, 1.2)), float(rng.uniform(2.0, 2.4))
    if condition == "night":
        light = _night(sun, exposure)
    elif condition == "fog":
        grey = (0.66, 0.68, 0.70)
        density = float(rng.uniform(0.025, 0.05))
        light = Light(sun, (0.12, 0.12, 0.11), (0.55, 0.57, 0.60), grey, grey, density, False, 0.9 * exposure, 0.014)
    elif condition == "rain":
        grey, dull = (0.52, 0.55, 0.58), (0.38, 0.41, 0.45)
        rain, haze = float(rng.uniform(8.0, 35.0)), float(rng.uniform(0.003, 0.007))
        light = Light(sun, (0.06, 0.06, 0.06), (0.40, 0.42, 0.45), grey, dull, haze, False, exposure, 0.020)
        light = replace(light, rain_mm_h=rain)
    else:
        warm = float(rng.uniform(0.0, 0.2))
        light = Light(
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
    if dark and condition in ("fog", "rain"):
        wet, glow = light, (0.060, 0.053, 0.048)
        light = replace(_night(sun, exposure), horizon_rgb=glow, zenith_rgb=tuple(0.6 * part for part in glow))
        light = replace(light, fog_density_per_m=wet.fog_density_per_m, rain_mm_h=wet.rain_mm_h)
    return replace(light, gamma=gamma)


def _night(sun: tuple[float, float, float], exposure: float) -> Light:
    zenith, glow = (0.010, 0.012, 0.022), (0.035, 0.030, 0.032)
    return Light(sun, (0.012, 0.014, 0.020), (0.014, 0.015, 0.022), glow, zenith, 0.0, True, 2.2 * exposure, 0.05)
