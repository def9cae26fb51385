"""Noise of the sensor and of its read-out: the same draws at every level, scaled."""

import numpy as np

from sensors.faults.camera_pixels import OnPixels, Pixels, encoded, linear_light, noisy, width_share
from sensors.faults.protocol import SensorFault
from sensors.faults.published_imagecorruptions import salt_and_pepper

_LEVELS = np.arange(256.0)


def normal_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Normal noise of ``sigma`` grey levels at 1600 columns."""
    return noisy(pixels, _LEVELS, np.full(256, sigma * width_share(pixels)), rng)


def shot_noise(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Few photons behind a high gain: the light deviates by ``deviation`` of white at white, by its root below."""
    light = linear_light(_LEVELS)
    spread = deviation * width_share(pixels) * np.sqrt(np.maximum(light, 1 / 255))
    return noisy(pixels, _LEVELS, encoded_spread(light, spread), rng)


def encoded_spread(light: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Grey levels of a deviation of light, over the width of the noise: at black the curve is infinitely steep."""
    return (encoded(light + spread) - encoded(light - spread)) / 2


def impulse_noise(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """That share of values is black or white."""
    return salt_and_pepper(pixels, share, rng)


def speckle_noise(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """A gain of each value that deviates by that much from 1."""
    return noisy(pixels, _LEVELS, deviation * width_share(pixels) * _LEVELS, rng)


CAMERA_NOISE = SensorFault(
    "camera_noise", "noise", "camera", "grey levels", (10.0, 20.0, 30.0, 45.0, 65.0), effect=OnPixels(normal_noise)
)
CAMERA_SHOT_NOISE = SensorFault(
    "camera_shot_noise", "noise", "camera", "share of white", (0.05, 0.1, 0.15, 0.22, 0.32), effect=OnPixels(shot_noise)
)
CAMERA_IMPULSE_NOISE = SensorFault(
    *("camera_impulse_noise", "noise", "camera", "share of values", (0.01, 0.03, 0.08, 0.16, 0.3)),
    effect=OnPixels(impulse_noise),
    worst=1.0,
)
CAMERA_SPECKLE_NOISE = SensorFault(
    "camera_speckle_noise", "noise", "camera", "gain", (0.1, 0.2, 0.3, 0.45, 0.6), effect=OnPixels(speckle_noise)
)
NOISE_FAULTS = (CAMERA_NOISE, CAMERA_SHOT_NOISE, CAMERA_IMPULSE_NOISE, CAMERA_SPECKLE_NOISE)
