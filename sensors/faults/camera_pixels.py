"""What the camera faults share: uint8 RGB pixels, noise and veils on them, and how a function of pixels is a fault.

Lengths in pixels, and noise, are stated for a picture of 1600 columns and scale with the width: a fault on a reduced
picture is what the reduction of the faulty picture would show (noise averages out as pixels are binned).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from sensors.camera import CameraImage
from sensors.faults.noise_fields import LARGEST_WHOLE_SIGMA, unit_noise, whole_noise
from sensors.faults.protocol import Number
from sensors.frame import Frame
from sensors.rig import IMAGE_WIDTH_PX

Pixels = UInt8[np.ndarray, "h w 3"]
DISPLAY_GAMMA = 2.2
STRIP_ROWS = 32
CUT = 0.5
"""Subtracted before OpenCV rounds, which then cuts: published code cuts to whole grey levels."""


@dataclass(frozen=True)
class OnPixels:
    """A function of (pixels, level, draws) as the effect of a fault; a class, so that it travels to other processes."""

    function: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

    def __call__(self, image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
        return replace(image, pixels=self.function(image.pixels, level, rng))


def width_share(pixels: Pixels) -> float:
    """Width relative to the 1600 columns for which lengths are stated."""
    return pixels.shape[1] / IMAGE_WIDTH_PX


def noisy(
    pixels: Pixels, mean: Float[np.ndarray, "256"], sigma: Float[np.ndarray, "256"], rng: np.random.Generator
) -> Pixels:
    """Every grey level becomes its ``mean`` plus normal noise of its ``sigma``, both in grey levels.

    In strips of rows that stay in the cache, which is twice as fast as the whole picture at once.
    """
    # Three times as fast as the default generator; the draws are as many as pixels.
    draws = np.random.Generator(np.random.SFC64(rng.integers(1 << 63)))
    offset = mean - np.arange(256)
    alike = np.ptp(offset) < 1e-9 and np.ptp(sigma) < 1e-9 and sigma[0] <= LARGEST_WHOLE_SIGMA
    mean, sigma = mean.astype(np.float32), sigma.astype(np.float32)
    harmed = np.empty_like(pixels)
    # As many pixels as 32 rows of a full picture.
    rows = max(STRIP_ROWS, STRIP_ROWS * IMAGE_WIDTH_PX // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        strip = pixels[top : top + rows]
        if alike:
            grey = whole_noise(draws, strip.shape, float(sigma[0]), float(offset[0]))
            grey += strip
            harmed[top : top + rows] = np.clip(grey, 0, 255, out=grey)
        else:
            spread = cv2.multiply(cv2.LUT(strip, sigma), unit_noise(draws, strip.shape))
            harmed[top : top + rows] = cv2.add(cv2.LUT(strip, mean), spread, dtype=cv2.CV_8U)
    return harmed


def blended(
    pixels: Pixels,
    colour: Float[np.ndarray, "3"],
    left: Float32[np.ndarray, "ch cw"],
    slope: Float32[np.ndarray, "ch cw"] | None = None,
) -> Pixels:
    """The picture behind a veil of one colour.

    Args:
        left: share of the picture that is left, on a coarse raster.
        slope: added to it per brightness of the pixel in [0, 1], so that the veil follows the picture's edges.
    """
    height, width = pixels.shape[:2]
    left = cv2.resize(left, (width, height), interpolation=cv2.INTER_LINEAR)
    if slope is not None:
        slope = cv2.resize(slope * np.float32(1 / 255), (width, height), interpolation=cv2.INTER_LINEAR)
    veiled, veil = np.empty_like(pixels), np.empty_like(pixels[:STRIP_ROWS])
    veil[:] = np.rint(colour)
    for top in range(0, height, STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        part = left[strip]
        if slope is not None:
            grey = cv2.cvtColor(pixels[strip], cv2.COLOR_RGB2GRAY)
            part = np.clip(part + slope[strip] * grey, 0, 1)
        veiled[strip] = cv2.blendLinear(pixels[strip], veil[: len(part)], part, 1 - part)
    return veiled


def mixed(pixels: Pixels, other: Pixels, share: Float32[np.ndarray, "h w"]) -> Pixels:
    """The other picture, with its share of every pixel, over the first."""
    return cv2.blendLinear(pixels, np.ascontiguousarray(other), 1 - share, share)


def linear_light(grey: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Light in [0, 1] of grey levels 0 to 255."""
    return (grey / 255) ** DISPLAY_GAMMA


def encoded(light: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Grey levels 0 to 255 of light, clipped at white."""
    return 255 * np.clip(light, 0, 1) ** (1 / DISPLAY_GAMMA)


def tone(pixels: Pixels, grey: Float[np.ndarray, "256"] | Float[np.ndarray, "256 3"]) -> Pixels:
    """Every grey level becomes that of a table, of one for all colours or of one for each."""
    table = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return cv2.LUT(pixels, table if table.ndim == 1 else table[None])


def chosen(values: tuple, severity: int) -> Number | tuple:
    """The parameter of a severity that counts from 1.

    Raises:
        ValueError: there is no such severity.
    """
    if severity not in range(1, len(values) + 1):
        raise ValueError(f"expected a severity from 1 to {len(values)}, got {severity}; choose one of these")
    return values[int(severity) - 1]
