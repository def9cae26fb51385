"""What lens, sensor and weather make of the light that arrives: glare, bloom, drops, vignette, blur, gamma, noise."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from datamodules.town.light import Light

_CURVE_STEPS = 1 << 16
_GRAIN_PX = 97
"""The grain of one picture is cut out of a larger sheet at a random place."""
_BLOOM_FROM = 0.75
_SUN_RADIUS_RAD = np.deg2rad(1.2)


@dataclass(frozen=True)
class Shot:
    """One exposure.

    Attributes:
        light: of the scene.
        toward_sun: unit vector in the camera frame (z into the picture).
        image_from_camera: of the picture.
    """

    light: Light
    toward_sun: np.ndarray
    image_from_camera: np.ndarray


def exposed(radiance: Float32[np.ndarray, "h w 3"], shot: Shot, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """The picture that the camera stores; ``radiance`` is used up."""
    light = shot.light
    height, width = radiance.shape[:2]
    if light.night:
        _add_bloom(radiance)
    elif light.sunny:
        _add_sun_glare(radiance, shot)
    gain = np.float32(light.exposure * rng.uniform(0.93, 1.07) * (_CURVE_STEPS - 1))
    radiance *= _vignette(height, width) * gain
    np.clip(radiance, 0.0, _CURVE_STEPS - 1, out=radiance)
    shown = _curve(light.gamma)[radiance.astype(np.uint16)]
    if light.rain_mm_h > 0:
        shown = _with_streaks(shown, light, rng)
        _add_drops(shown, rng)
    if min(height, width) >= 100:
        shown = cv2.GaussianBlur(shown, (3, 3), float(rng.uniform(0.35, 0.6)))
    top, left = rng.integers(0, _GRAIN_PX, 2)
    shown += _grain(height, width)[top : top + height, left : left + width] * np.float32(light.noise * 255.0)
    return np.clip(shown, 0.0, 255.0, out=shown).astype(np.uint8)


@cache
def _curve(gamma: float) -> Float32[np.ndarray, "65536"]:
    """Shown brightness, 0.5 to 255.5, of linear light in equal steps; a table is many times faster than powers."""
    return (np.linspace(0.0, 1.0, _CURVE_STEPS) ** (1 / gamma) * 255.0 + 0.5).astype(np.float32)


@cache
def _grain(height: int, width: int) -> Float32[np.ndarray, "h w 3"]:
    size = (height + _GRAIN_PX, width + _GRAIN_PX, 3)
    return np.random.default_rng(11).standard_normal(size, np.float32)


@cache
def _vignette(height: int, width: int) -> Float32[np.ndarray, "h w 1"]:
    """Corners get 0.8 of the middle's light."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    squared = ((x - width / 2) ** 2 + (y - height / 2) ** 2) / np.float32((width / 2) ** 2 + (height / 2) ** 2)
    return (1.0 - 0.2 * squared * squared)[..., None].astype(np.float32)


def _add_bloom(radiance: Float32[np.ndarray, "h w 3"]) -> None:
    """Lamps spill over their surroundings, as in every night picture."""
    height, width = radiance.shape[:2]
    small = cv2.resize(radiance, (max(width // 4, 1), max(height // 4, 1)), interpolation=cv2.INTER_AREA)
    np.maximum(small - np.float32(_BLOOM_FROM * 0.35), 0.0, out=small)
    if small.max() > 0:
        wide = cv2.GaussianBlur(small, (0, 0), max(width / 160.0, 0.6))
        radiance += cv2.resize(wide, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(0.6)


def _add_sun_glare(radiance: Float32[np.ndarray, "h w 3"], shot: Shot) -> None:
    """The sun's disc and a veil around it, where the camera looks into it."""
    if shot.toward_sun[2] < 0.25:
        return
    height, width = radiance.shape[:2]
    matrix = shot.image_from_camera
    u, v = (matrix @ shot.toward_sun)[:2] / shot.toward_sun[2]
    x = (np.arange(width, dtype=np.float32) - np.float32(u)) / np.float32(matrix[0, 0])
    y = (np.arange(height, dtype=np.float32) - np.float32(v)) / np.float32(matrix[1, 1])
    squared = (y * y)[:, None] + (x * x)[None]
    # A disc is seen only where nothing hides it; the sky there is bright, so brightness tells.
    inside = (0 <= u < width) and (0 <= v < height)
    free = float(inside and radiance[int(v), int(u)].min() > 0.2)
    veil = np.float32(0.02 + 0.10 * free) / (squared * 14.0 + np.float32(0.06))
    veil += np.float32(3.0 * free) * np.exp(-squared / np.float32(_SUN_RADIUS_RAD**2))
    radiance += veil[..., None] * np.array(shot.light.sun_rgb, np.float32)


def _with_streaks(shown: Float32[np.ndarray, "h w 3"], light: Light, rng) -> Float32[np.ndarray, "h w 3"]:
    """Drops that fall during the exposure: short bright strokes, all slanting alike."""
    height, width = shown.shape[:2]
    overlay = np.zeros((height, width), np.uint8)
    count = int(light.rain_mm_h * 9)
    slant = rng.normal(0.0, 0.12)
    ends = rng.uniform((0, 0), (width, height), (count, 2))
    lengths = rng.uniform(0.015, 0.05, count) * height
    tints = rng.integers(30, 120, count)
    for (x, y), length, tint in zip(ends, lengths, tints, strict=True):
        stop = (int(x + slant * length), int(y + length))
        cv2.line(overlay, (int(x), int(y)), stop, int(tint), 1, cv2.LINE_AA)
    streaks = overlay.astype(np.float32)[..., None] * np.float32(0.35)
    return np.minimum(shown + streaks, 255.0)


def _add_drops(shown: Float32[np.ndarray, "h w 3"], rng) -> None:
    """Water on the lens blurs round patches."""
    height, width = shown.shape[:2]
    for _ in range(int(rng.poisson(4))):
        radius = max(int(rng.uniform(0.012, 0.035) * width), 2)
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        patch = shown[max(y - radius, 0) : y + radius, max(x - radius, 0) : x + radius]
        row, column = np.mgrid[0 : patch.shape[0], 0 : patch.shape[1]]
        middle = (min(y, radius), min(x, radius))
        round_ = ((row - middle[0]) ** 2 + (column - middle[1]) ** 2 < radius * radius)[..., None]
        patch[:] = np.where(round_, cv2.blur(patch, (radius, radius)) * np.float32(0.96) + np.float32(5.0), patch)
