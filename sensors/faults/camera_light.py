"""Too little light, too much of it, and wrong tones and colours."""

import cv2
import numpy as np
from jaxtyping import Float

from sensors.faults.camera_noise import encoded_spread
from sensors.faults.camera_pixels import OnPixels, Pixels, encoded, linear_light, noisy, tone, width_share
from sensors.faults.protocol import SensorFault
from sensors.faults.published_imagecorruptions import value_raised

FULL_WELL_ELECTRONS = 8000.0
READ_NOISE_ELECTRONS = 12.0
_LEVELS = np.arange(256.0)
_RGB_NM = np.array([610.0, 550.0, 465.0])
_SECOND_RADIATION_NM_K = 1.4388e7
_DAYLIGHT_MIRED = 1e6 / 6500


def dark(pixels: Pixels, stops: float, rng: np.random.Generator) -> Pixels:
    """Less light: grey levels are decoded to linear light, photons and read-out noise counted, and encoded again."""
    electrons = FULL_WELL_ELECTRONS / width_share(pixels) ** 2
    read_noise = READ_NOISE_ELECTRONS / width_share(pixels)
    light = linear_light(_LEVELS) * 2.0**-stops
    sigma = np.sqrt(light * electrons + read_noise**2) / electrons
    return noisy(pixels, encoded(light), encoded_spread(light, sigma), rng)


def overexposed(pixels: Pixels, stops: float, rng: np.random.Generator) -> Pixels:
    """More light: linear light is multiplied and clipped at white."""
    return tone(pixels, encoded(linear_light(_LEVELS) * 2.0**stops))


def brightened(pixels: Pixels, added: float, rng: np.random.Generator) -> Pixels:
    """That share of white is added to the HSV value; hue and saturation stay."""
    return value_raised(pixels, added)


def contrast_lost(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Grey levels are pulled to the picture's mean."""
    mean = np.array(cv2.mean(pixels)[:3])
    return tone(pixels, (_LEVELS[:, None] - mean) * (1 - share) + mean)


def colour_lost(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Colours are pulled to the grey of the same brightness."""
    grey = np.repeat([[0.299, 0.587, 0.114]], 3, axis=0)
    return cv2.transform(pixels, (1 - share) * np.eye(3) + share * grey)


def wrong_white(pixels: Pixels, mired: float, rng: np.random.Generator) -> Pixels:
    """White balanced for another colour temperature, too warm or too cold by chance, as that of a black body."""
    gains = black_body_gains(mired)
    if rng.random() < 0.5:
        gains = 1 / gains
    return tone(pixels, encoded(linear_light(_LEVELS)[:, None] * gains))


def black_body_gains(mired: float) -> Float[np.ndarray, "3"]:
    """Red, green and blue light of a black body that many mired below 6500 K, relative to one of 6500 K; green 1."""
    kelvin = 1e6 / np.array([[_DAYLIGHT_MIRED], [_DAYLIGHT_MIRED + mired]])
    before, after = 1 / np.expm1(_SECOND_RADIATION_NM_K / (_RGB_NM * kelvin))
    gains = after / before
    return gains / gains[1]


CAMERA_DARK = SensorFault("camera_dark", "light", "camera", "stops", (1.0, 2.0, 3.0, 4.0, 5.0), effect=OnPixels(dark))
CAMERA_OVEREXPOSED = SensorFault(
    "camera_overexposed", "light", "camera", "stops", (0.5, 1.0, 1.5, 2.0, 3.0), effect=OnPixels(overexposed)
)
CAMERA_BRIGHTNESS = SensorFault(
    "camera_brightness", "light", "camera", "share of white", (0.1, 0.2, 0.3, 0.4, 0.5), effect=OnPixels(brightened)
)
CAMERA_CONTRAST_LOSS = SensorFault(
    *("camera_contrast_loss", "light", "camera", "share", (0.2, 0.4, 0.6, 0.8, 0.9)),
    effect=OnPixels(contrast_lost),
    worst=1.0,
)
CAMERA_COLOR_LOSS = SensorFault(
    "camera_color_loss", "light", "camera", "share", (0.2, 0.4, 0.6, 0.8, 1.0), effect=OnPixels(colour_lost)
)
CAMERA_WHITE_BALANCE = SensorFault(
    "camera_white_balance", "light", "camera", "mired", (25.0, 50.0, 90.0, 140.0, 200.0), effect=OnPixels(wrong_white)
)
LIGHT_FAULTS = (
    *(CAMERA_DARK, CAMERA_OVEREXPOSED, CAMERA_BRIGHTNESS, CAMERA_CONTRAST_LOSS),
    *(CAMERA_COLOR_LOSS, CAMERA_WHITE_BALANCE),
)
