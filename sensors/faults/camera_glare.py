"""A low sun in the picture: light scattered by the lens, and reflections between its surfaces."""

import cv2
import numpy as np
from jaxtyping import Float, Float32

from sensors.faults.camera_pixels import OnPixels, Pixels, blended
from sensors.faults.protocol import SensorFault

_COARSE_COLUMNS = 400
_SUN_RGB = np.array([255.0, 248.0, 228.0])
_CORE, _REFERENCE = 0.02, 0.125
"""Radius of the sun's image with its bloom, and where the level of glare is stated, as shares of the width."""
_NUM_GHOSTS, _NUM_SPIKES = 9, 6


def sun_place(rng: np.random.Generator) -> Float[np.ndarray, "2"]:
    """Where the sun stands: x as a share of the width, y as one of the height; in the upper part."""
    return rng.uniform((0.15, 0.05), (0.85, 0.38))


def glare(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """A veil that hides ``share`` of the contrast 200 px of 1600 from the sun, more near it and less far away.

    It falls with the distance to the power 1.5, near the square of the eye's (Vos, 1984, glare by stray light).
    """
    away, angle = _from_sun(pixels.shape[:2], sun_place(rng))
    spikes = 1 + 0.35 * np.cos(_NUM_SPIKES * (angle - rng.uniform(0, np.pi))) ** 8 * np.exp(-away / 0.1)
    fall = ((_REFERENCE + _CORE) / (away + _CORE)) ** 1.5 * spikes
    hidden = 1 - (1 - share) ** fall
    # The sun itself is white at any level that shows at all.
    disk = np.clip((_CORE * share**0.3 - away) / (0.3 * _CORE) + 0.5, 0, 1)
    return blended(pixels, _SUN_RGB, (1 - np.maximum(hidden, disk)).astype(np.float32))


def lens_flare(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Coloured ghosts on the line from the sun through the middle, and a ring, as bright as ``strength`` of white."""
    height, width = pixels.shape[:2]
    shape = _coarse(pixels.shape[:2])
    sun = (sun_place(rng) - 0.5) * [1, height / width]
    layer = np.zeros((*shape, 3), np.float32)
    for k in range(_NUM_GHOSTS):
        along, radius, brightness = rng.uniform(-1.6, 1.1), 0.012 + 0.07 * rng.random() ** 2, rng.uniform(0.4, 1.0)
        tint = brightness * (0.45 + 0.55 * rng.random(3))
        _add_ghost(layer, -along * sun, radius, tint, ring=k % 3 == 0)
    away, _ = _from_sun(pixels.shape[:2], 0.5 + sun * [1, width / height])
    layer += (np.exp(-away / 0.035) * 1.5 + 0.12 * np.exp(-away / 0.3))[..., None] * (_SUN_RGB / 255).astype(np.float32)
    # Screened, as light adds up to white.
    layer = np.clip(255 * strength * layer, 0, 255).astype(np.uint8)
    layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.add(pixels, cv2.multiply(layer, cv2.bitwise_not(pixels), scale=1 / 255))


def _coarse(shape: tuple[int, int]) -> tuple[int, int]:
    columns = min(_COARSE_COLUMNS, shape[1])
    return max(1, round(shape[0] * columns / shape[1])), columns


def _from_sun(
    shape: tuple[int, int], sun: Float[np.ndarray, "2"]
) -> tuple[Float32[np.ndarray, "ch cw"], Float32[np.ndarray, "ch cw"]]:
    """Distance from the sun as a share of the width, and the direction, on a coarse raster."""
    rows, columns = _coarse(shape)
    x = (np.arange(columns, dtype=np.float32) + 0.5) / columns - np.float32(sun[0])
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / rows - np.float32(sun[1])) * np.float32(shape[0] / shape[1])
    return np.hypot(x[None], y[:, None]), np.arctan2(y[:, None], x[None])


def _add_ghost(
    layer: Float32[np.ndarray, "ch cw 3"],
    at: Float[np.ndarray, "2"],
    radius: float,
    tint: Float[np.ndarray, "3"],
    ring: bool,
) -> None:
    """A disk with a soft edge, brighter towards it; or that edge alone. Lengths are shares of the width."""
    rows, columns = layer.shape[:2]
    x = (np.arange(columns, dtype=np.float32) + 0.5) / columns - 0.5 - np.float32(at[0])
    y = (np.arange(rows, dtype=np.float32) + 0.5 - rows / 2) / columns - np.float32(at[1])
    away = np.hypot(x[None], y[:, None]) / np.float32(radius)
    inside = np.clip((1 - away) / 0.12 + 0.5, 0, 1)
    profile = inside * (away**6 if ring else 0.5 + 0.5 * away**2)
    layer += profile[..., None] * tint.astype(np.float32) * np.float32(0.5)


CAMERA_GLARE = SensorFault(
    "camera_glare", "glare", "camera", "share of contrast", (0.1, 0.2, 0.35, 0.5, 0.7), effect=OnPixels(glare)
)
CAMERA_LENS_FLARE = SensorFault(
    "camera_lens_flare", "glare", "camera", "share of white", (0.15, 0.3, 0.5, 0.75, 1.0), effect=OnPixels(lens_flare)
)
GLARE_FAULTS = (CAMERA_GLARE, CAMERA_LENS_FLARE)
