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
_NUM_GHOSTS, _NUM_SPIKES, _GHOST_BRIGHTNESS = 9, 6, 0.8


def sun_place(rng: np.random.Generator) -> Float[np.ndarray, "2"]:
    """Where the sun stands: x as a share of the width, y as one of the height; in the upper part."""
    return rng.uniform((0.15, 0.05), (0.85, 0.38))


def glare(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """A veil that hides ``share`` of the contrast 200 px of 1600 from the sun, more near it and less far away.

    It falls with the distance to the power 1.5, near the square of the eye's (Vos, 1984, glare by stray light).
    """
    x, y, away = _from_sun(pixels.shape[:2], sun_place(rng))
    spikes = 1 + 0.35 * _spikes(x, y, away, rng.uniform(0, np.pi)) * cv2.exp(away * np.float32(-1 / 0.1))
    nearness = (_REFERENCE + _CORE) / (away + np.float32(_CORE))
    left = cv2.exp(np.float32(np.log1p(-share)) * nearness * cv2.sqrt(nearness) * spikes)
    # The sun itself is white at any level that shows at all.
    disk = np.clip((np.float32(_CORE * share**0.3) - away) / np.float32(0.3 * _CORE) + np.float32(0.5), 0, 1)
    return blended(pixels, _SUN_RGB, np.minimum(left, 1 - disk))


def _spikes(
    x: Float32[np.ndarray, "1 cw"], y: Float32[np.ndarray, "ch 1"], away: Float32[np.ndarray, "ch cw"], turn_rad: float
) -> Float32[np.ndarray, "ch cw"]:
    """cos^8 of six times the angle from ``turn_rad``: a star of twelve rays, by powers of a direction."""
    direction = np.zeros((*away.shape, 2), np.float32)
    np.divide(x, away, out=direction[..., 0], where=away > 0)
    np.divide(y, away, out=direction[..., 1], where=away > 0)
    cosine, sine = cv2.split(direction)
    cosine, sine = cosine * cosine - sine * sine, 2 * cosine * sine
    third = (cosine * (cosine * cosine - 3 * sine * sine), sine * (3 * cosine * cosine - sine * sine))
    turn = _NUM_SPIKES * turn_rad
    along = third[0] * np.float32(np.cos(turn)) + third[1] * np.float32(np.sin(turn))
    for _ in range(3):
        along *= along
    return along


def lens_flare(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Coloured ghosts on the line from the sun through the middle, and a ring, as bright as ``strength`` of white."""
    height, width = pixels.shape[:2]
    shape = _coarse(pixels.shape[:2])
    sun = (sun_place(rng) - 0.5) * [1, height / width]
    layer = np.zeros((*shape, 3), np.float32)
    for k in range(_NUM_GHOSTS):
        # One in each ninth of the line, so that they never all fall outside of the picture.
        along, radius, brightness = (
            rng.uniform(k, k + 1) * 0.3 - 1.6,
            0.012 + 0.07 * rng.random() ** 2,
            rng.uniform(0.6, 1),
        )
        tint = brightness * (0.45 + 0.55 * rng.random(3))
        _add_ghost(layer, -along * sun, radius, tint, ring=k % 3 == 0)
    _, _, away = _from_sun(pixels.shape[:2], 0.5 + sun * [1, width / height])
    # What dazzles is itself bright already where its reflections only begin to show.
    core = np.float32(min(1.5 * strength**-0.6, 1e30)) * cv2.exp(away * np.float32(-1 / 0.035))
    bloom = core + np.float32(0.15) * cv2.exp(away * np.float32(-1 / 0.3))
    layer += cv2.merge([bloom * np.float32(part / 255) for part in _SUN_RGB])
    # Screened, as light adds up to white.
    layer = cv2.convertScaleAbs(layer, alpha=255 * strength)
    layer = cv2.resize(layer, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.add(pixels, cv2.multiply(layer, cv2.bitwise_not(pixels), scale=1 / 255))


def _coarse(shape: tuple[int, int]) -> tuple[int, int]:
    columns = min(_COARSE_COLUMNS, shape[1])
    return max(1, round(shape[0] * columns / shape[1])), columns


def _from_sun(
    shape: tuple[int, int], sun: Float[np.ndarray, "2"]
) -> tuple[Float32[np.ndarray, "1 cw"], Float32[np.ndarray, "ch 1"], Float32[np.ndarray, "ch cw"]]:
    """From the sun to the right, down, and along, in shares of the width, on a coarse raster."""
    rows, columns = _coarse(shape)
    x = (np.arange(columns, dtype=np.float32) + 0.5) / columns - np.float32(sun[0])
    y = ((np.arange(rows, dtype=np.float32) + 0.5) / rows - np.float32(sun[1])) * np.float32(shape[0] / shape[1])
    return x[None], y[:, None], cv2.sqrt(np.square(x)[None] + np.square(y)[:, None])


def _add_ghost(
    layer: Float32[np.ndarray, "ch cw 3"],
    at: Float[np.ndarray, "2"],
    radius: float,
    tint: Float[np.ndarray, "3"],
    ring: bool,
) -> None:
    """A disk with a soft edge, brighter towards it; or that edge alone. Lengths are shares of the width."""
    size = np.array(layer.shape[1::-1])
    middle, reach = (np.asarray(at) + size / (2 * size[0])) * size[0] - 0.5, 1.06 * radius * size[0]
    first, end = np.clip(np.ceil(middle - reach), 0, size).astype(int), np.clip(middle + reach + 1, 0, size).astype(int)
    x, y = ((np.arange(*span) - centre) / (radius * size[0]) for *span, centre in zip(first, end, middle, strict=True))
    squared = (np.square(x)[None] + np.square(y)[:, None]).astype(np.float32)
    if not squared.size:
        return
    inside = np.clip((1 - cv2.sqrt(squared)) / np.float32(0.12) + np.float32(0.5), 0, 1)
    profile = inside * (squared * squared * squared if ring else 0.5 + 0.5 * squared)
    layer[first[1] : end[1], first[0] : end[0]] += (
        profile[..., None] * tint.astype(np.float32) * np.float32(_GHOST_BRIGHTNESS)
    )


CAMERA_GLARE = SensorFault(
    "camera_glare", "glare", "camera", "share of contrast", (0.1, 0.2, 0.35, 0.5, 0.7), effect=OnPixels(glare)
)
CAMERA_LENS_FLARE = SensorFault(
    "camera_lens_flare", "glare", "camera", "share of white", (0.2, 0.35, 0.55, 0.8, 1.0), effect=OnPixels(lens_flare)
)
GLARE_FAULTS = (CAMERA_GLARE, CAMERA_LENS_FLARE)
