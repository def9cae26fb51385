"""LiDAR weather exactly as other suites publish it; rows and sources as in ``published_lidar``.

Fog: Hahner et al., ICCV 2021. Snow and wet ground: Hahner et al., CVPR 2022. Rain: Kilic et al., LISA, 2021.
"""

import numpy as np
from jaxtyping import Bool, Float

from sensors.faults.published_lidar import Points


def multicorrupt_fog(points: Points, alpha: float, beta: float, rng: np.random.Generator) -> Points:
    """Fog with the backscattering coefficient given apart, no limit at 255, and range noise r0 / U(r0 - 10, r0 + 10)."""
    raise NotImplementedError


def multicorrupt_snow(points: Points, snowfall_mmph: float, velocity_mps: float, rng: np.random.Generator) -> Points:
    """Snow with a noise floor of .7."""
    raise NotImplementedError


def thu_fog(points: Points, alpha: float, rng: np.random.Generator) -> Points:
    """Fog with beta = .046 alpha / ln 20, responses limited to 255, and range noise r0 / U(r0 - 1, r0 + 1)."""
    raise NotImplementedError


def thu_rain(points: Points, rate_mmph: float, rng: np.random.Generator) -> Float[np.ndarray, "n 6"]:
    """LISA's rain: a sixth column says 0 lost (x y z intensity 0), 1 scattered, 2 kept. Lost points stay, at the origin."""
    raise NotImplementedError


def thu_snow(points: Points, rain_rate_mmph: float, occupancy: float, rng: np.random.Generator) -> Points:
    """Snow from the pre-drawn rates (2.62/42.7/200/368/791 at 7.7e-7 ... 3.5e-5), floor .7, then 1 mm of water."""
    raise NotImplementedError


def robo3d_fog(points: Points, beta: float, rng: np.random.Generator, alpha: float = 0.06) -> Points:
    """Fog with the backscattering coefficient of the table and the default attenuation."""
    raise NotImplementedError


def robo3d_snow(points: Points, snowfall_mmph: float, velocity_mps: float, rng: np.random.Generator) -> Points:
    """Snow with a noise floor of .7."""
    raise NotImplementedError


def robo3d_wet_ground(
    points: Points, ground: Bool[np.ndarray, "n"], water_height_mm: float, noise_floor: float
) -> Points:
    """Water on the ground points (published: from point labels); fewer than 1000 of them stay as they are."""
    raise NotImplementedError
