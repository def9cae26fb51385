"""Camera corruptions of MultiCorrupt, of thu-ml's nuScenes-C and of RoboBEV's nuScenes-C on RGB pixels.

Own code after the published definitions, quirks included; exact at 1600 columns, lengths in pixels scaled with the
width elsewhere. Every function is ``f(pixels, severity, rng) -> pixels``; where a definition needs more (boxes in the
picture, the place of the sun), it takes that by keyword. Severities count from 1: three for MultiCorrupt, five for
the others; RoboBEV's easy, mid and hard index into these five.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, Float32

from sensors.faults.camera_pixels import Pixels, chosen, noisy, width_share
from sensors.faults.noise_fields import plasma, uniform_words
from sensors.faults.protocol import Number
from sensors.faults.published_blur import blurred_one_way, motion_blur, zoom_mean
from sensors.faults.published_imagecorruptions import (
    brightness,
    counted,
    fog,
    fogged,
    gaussian_noise,
    impulse_noise,
    photon_table,
    snow,
    snow_haze,
    snow_layer,
    snowed,
    value_raised,
)
from sensors.faults.published_layers import rain_layer, sun_glow
from sensors.rig import IMAGE_WIDTH_PX

_SPREAD = (0.02, 0.04, 0.06, 0.08, 0.10)


# MultiCorrupt (Beemelmanns et al., IV 2024): severities 1 to 3.


def multicorrupt_motion_blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    sigma = chosen((0.06, 0.10, 0.13), severity)
    return blurred_one_way(pixels, 15, 100 * sigma, rng.uniform(-45, 45))


def multicorrupt_brightness(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return value_raised(pixels, chosen((0.5, 0.6, 0.7), severity))


def multicorrupt_dark(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    scale, photons, sigma = chosen(((0.60, 250, 0.008), (0.40, 120, 0.018), (0.30, 50, 0.026)), severity)
    return dimmed(pixels, scale, photons, sigma, rng)


def dimmed(pixels: Pixels, scale: Number, photons: int, sigma: Number, rng: np.random.Generator) -> Pixels:
    """Stretched to the full range, squared, scaled; then a count of ``photons`` at white and normal noise."""
    low, high = float(pixels.min()), float(pixels.max())
    stretched = np.clip((np.arange(256) - low) / max(high - low, 1), 0, 1)
    table = photon_table(tuple(photons * scale * stretched**2), photons)
    # Counts, not grey levels, stand between the two kinds of noise: they are whole numbers and need no rounding.
    return noisy(counted(pixels, table, rng), np.arange(256) * (255 / photons) - 0.5, np.full(256, 255 * sigma), rng)


def multicorrupt_fog(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Plasma fog, thinned and lit by two further plasmas, then a grey veil that grows away from a box on the road."""
    strength, beta = chosen(((2.0, 0.0005), (3.0, 0.001), (4.0, 0.002)), severity)
    shape = pixels.shape[:2]
    clouds = plasma(shape, 1.7, rng) * (1 - 0.8 * plasma(shape, 1.7, rng)) * (1 + 0.5 * plasma(shape, 1.7, rng))
    foggy = fogged(pixels, strength * clouds, strength).astype(np.float32)
    share = width_share(pixels)
    uneven = 1 + rng.random(shape, dtype=np.float32) / 4
    path = 2 * _away_from_box(shape) / share * uneven + np.float32(np.sqrt(max(shape) / share))
    left = np.exp(np.float32(-beta) * path)[..., None]
    return (foggy * left + np.float32(127.5) * (1 - left)).astype(np.uint8)


def _away_from_box(shape: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Pixels from rows 0.65 to 0.99 and columns 0.1 to 0.85 of the picture, 0 inside."""
    height, width = shape
    rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    down = np.maximum(0, np.maximum(rows - int(height * 0.99), int(height * 0.65) - rows))
    across = np.maximum(0, np.maximum(columns - int(width * 0.85), int(width * 0.1) - columns))
    return np.hypot(down[:, None], across[None])


def multicorrupt_snow(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    mean, zoom, threshold, radius, sigma, mix = chosen(
        ((0.3, 5.0, 0.9, 7, 7, 0.9), (0.4, 4.0, 0.85, 8, 8, 0.85), (0.5, 3.0, 0.8, 10, 10, 0.8)), severity
    )
    layer = snow_layer(pixels.shape[:2], (mean, 0.3, zoom, threshold, radius, sigma), rng)
    darker = cv2.convertScaleAbs(snow_haze(pixels, mix), alpha=0.9)
    return snowed(darker, layer)


# RoboBEV's nuScenes-C (Xie et al., 2023): severities 1 to 5, of which each type uses three.


def robobev_motion_blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return motion_blur(pixels, severity, rng)


def robobev_color_quant(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """The highest 5 - severity bits; severities 1 to 4."""
    bits = chosen((4, 3, 2, 1), severity)
    return cv2.bitwise_and(pixels, np.full_like(pixels, 256 - (1 << (8 - bits))))


def robobev_brightness(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return brightness(pixels, severity, rng)


def robobev_low_light(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """As published, a severity takes the parameters of the next one; severities 1 to 4."""
    scale, photons, sigma = chosen(
        ((0.50, 250, 0.012), (0.40, 120, 0.018), (0.30, 50, 0.026), (0.20, 30, 0.038)), severity
    )
    return dimmed(pixels, scale, photons, sigma, rng)


def robobev_fog(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return fog(pixels, severity, rng)


def robobev_snow(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return snow(pixels, severity, rng)


# thu-ml's nuScenes-C (Dong et al., CVPR 2023): severities 1 to 5.


def thu_gaussian_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return gaussian_noise(pixels, severity, rng)


def thu_impulse_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return impulse_noise(pixels, severity, rng)


def thu_uniform_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    half = 255 * chosen((0.08, 0.12, 0.18, 0.26, 0.38), severity)
    draws = uniform_words(rng, pixels.shape).reshape(len(pixels), -1)
    noise = cv2.multiply(draws, 2 * half / 65535, dtype=cv2.CV_32F)
    flat = cv2.add(pixels.reshape(len(pixels), -1), noise, dtype=cv2.CV_32F)
    return cv2.add(flat, -half - 0.5, dtype=cv2.CV_8U).reshape(pixels.shape)


def thu_snow(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return value_at_most(greyed(snow(pixels, severity, rng), 0.3))


def thu_fog(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return greyed(fog(pixels, severity, rng), chosen((0.1, 0.2, 0.3, 0.4, 0.5), severity))


def thu_rain(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    density = chosen(((0.01, 0.06), (0.06, 0.10), (0.10, 0.15), (0.15, 0.20), (0.20, 0.25)), severity)
    return value_at_most(greyed(rain_layer(pixels, rng.uniform(*density), rng), 0.3))


def greyed(pixels: Pixels, share: float) -> Pixels:
    """A share of grey 128, cut to whole levels."""
    return (np.float32(128 * share) + np.float32(1 - share) * pixels).astype(np.uint8)


def value_at_most(pixels: Pixels, share: float = 0.7) -> Pixels:
    """HSV value scaled so that the brightest pixel gets that share of 256; through OpenCV's eight bit HSV."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    highest = max(int(hsv[..., 2].max()), 1)
    table = np.arange(256) / highest * 256 * share
    hsv[..., 2] = cv2.LUT(hsv[..., 2], np.clip(table, 0, 255).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def thu_sun_px(shape: tuple[int, int], rng: np.random.Generator) -> Float[np.ndarray, "2"]:
    """Where the sun stands in a picture of (height, width): x and y."""
    return np.array([rng.uniform(0.25, 0.75) * shape[1], rng.uniform(0.30, 0.45) * shape[0]])


def thu_sun_radius_px(shape: tuple[int, int], severity: int) -> float:
    """Within it of the sun's place the LiDAR points are removed: where the glow is over 0.8 of white."""
    return chosen((30, 40, 50, 60, 70), severity) * shape[1] / IMAGE_WIDTH_PX * float(np.sqrt(-2 * np.log(0.8 / 1.5)))


def thu_sun(
    pixels: Pixels, severity: int, rng: np.random.Generator, *, sun_px: Float[np.ndarray, "2"] | None = None
) -> Pixels:
    """A sun with one ghost on the line through the picture's middle; of the front camera only.

    Args:
        sun_px: its place, from ``thu_sun_px``, where the LiDAR is to lose the same part; drawn if not given.
    """
    height, width = shape = pixels.shape[:2]
    sun_px = thu_sun_px(shape, rng) if sun_px is None else sun_px
    slope = (height / 2 - sun_px[1]) / (width / 2 - sun_px[0] or 1e-9)
    x = np.arange(0, width, 10)
    y = slope * (x - sun_px[0]) + sun_px[1]
    x, y = x[(y > 0) & (y < height)], y[(y > 0) & (y < height)]
    glowing = pixels
    if len(x):
        opacity, at = rng.uniform(0.2, 0.5), rng.integers(max(len(x) - 1, 1))
        radius = rng.integers(1, max(height // 15, 2))
        colour = rng.integers(205, 255, 3).astype(float)
        glowing = sun_glow(glowing, (int(x[at]), int(y[at])), float(radius), colour, 4.0, opacity)
    radius = chosen((30, 40, 50, 60, 70), severity) * width_share(pixels)
    return sun_glow(glowing, (int(sun_px[0]), int(sun_px[1])), radius, np.full(3, 255.0), 1.5, 1.0)


def thu_motion_blur_front_back(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Of the front and the back camera: a zoom."""
    return zoom_mean(pixels, np.arange(1, 1 + chosen(_SPREAD, severity), 0.005))


def thu_motion_blur_sideways(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    """Of the four other cameras: along the rows, with weights that rise or fall along the path."""
    length = max(3, int(chosen(_SPREAD, severity) * pixels.shape[1] * 0.5)) | 1
    start = rng.uniform(0, 1)
    weights = np.linspace(start, 1 - start, length)
    return cv2.filter2D(pixels, -1, (weights / weights.sum())[None], borderType=cv2.BORDER_REFLECT_101)


def thu_moving_object(
    pixels: Pixels,
    severity: int,
    rng: np.random.Generator,
    *,
    corners_px: Sequence[Float[np.ndarray, "_ 2"]],
    sideways: bool,
) -> Pixels:
    """The same blurs inside the outlines of boxes only.

    Args:
        corners_px: of each box, the corners in front of the camera, projected.
        sideways: False for the front and the back camera.
    """
    spread = chosen(_SPREAD, severity)
    if sideways:
        blurred = thu_motion_blur_sideways(pixels, severity, rng)
    else:
        # As published: four steps from the second severity on.
        blurred = zoom_mean(pixels, np.arange(1, 1.02, 0.005) if severity == 1 else np.linspace(1, 1 + spread, 4))
    inside = np.zeros(pixels.shape[:2], np.uint8)
    for corners in corners_px:
        if len(corners):
            cv2.fillConvexPoly(inside, cv2.convexHull(corners.astype(np.int32)), 1)
    return np.where(inside[..., None] > 0, blurred, pixels)
