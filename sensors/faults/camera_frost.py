"""Frost on the lens or the window before it."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from sensors.faults.camera_pixels import OnPixels, Pixels, blended, mixed
from sensors.faults.noise_fields import quantile_of, smooth_field
from sensors.faults.protocol import SensorFault

_COARSE_COLUMNS = 400
_FROST_RGB = np.array([226.0, 233.0, 240.0])
_NUM_NEEDLES, _SIDE_NEEDLES, _GREYS = 500, 12, 6


def frost(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Ice over ``share`` of the view, from the border inwards: bright crystals, and a blurred picture between them."""
    height, width = pixels.shape[:2]
    columns = min(_COARSE_COLUMNS, width)
    coarse = (max(1, round(height * columns / width)), columns)
    y = np.linspace(-1, 1, coarse[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, coarse[1], dtype=np.float32)[None]
    crystals = _crystals(coarse, rng)
    growth = np.maximum(np.abs(x), np.abs(y)) + 0.28 * smooth_field(coarse, 5, rng, octaves=3) + 0.25 * crystals
    cover = np.clip(0.5 + (growth - quantile_of(growth, 1 - share)) / 0.25, 0, 1).astype(np.float32)
    small = (max(1, width // 4), max(1, height // 4))
    behind = cv2.GaussianBlur(cv2.resize(pixels, small, interpolation=cv2.INTER_AREA), (0, 0), 0.3 + width / 640)
    behind = cv2.resize(behind, (width, height), interpolation=cv2.INTER_LINEAR)
    # Ice is as bright as the day: it scatters the light of the whole picture.
    white = _FROST_RGB * min(1.0, 0.35 + float(np.mean(cv2.mean(pixels)[:3])) / 160)
    icy = blended(behind, white, (0.8 - 0.65 * crystals).astype(np.float32))
    return mixed(pixels, icy, cv2.resize(cover, (width, height), interpolation=cv2.INTER_LINEAR))


def _crystals(shape: tuple[int, int], rng: np.random.Generator) -> Float32[np.ndarray, "ch cw"]:
    """Feathers in [0, 1]: bent needles with side needles of uneven length at about 60 deg, slightly out of focus."""
    start = rng.random((_NUM_NEEDLES, 1, 2)) * [1, shape[0] / shape[1]]
    angle, bend = rng.uniform((0, -0.5), (2 * np.pi, 0.5), (_NUM_NEEDLES, 2)).T[..., None]
    length = 0.015 + 0.1 * rng.random((_NUM_NEEDLES, 1)) ** 2
    along = np.sort(rng.uniform(0.05, 0.95, (_NUM_NEEDLES, _SIDE_NEEDLES)), axis=1)
    reach = rng.uniform(0.1, 0.5, along.shape) * (1 - along) * length
    turn = rng.choice([-1.0, 1.0], along.shape) * rng.uniform(0.8, 1.2, along.shape)
    heading = angle + bend * along
    spine = start + (along * length)[..., None] * _unit(heading)
    tips = spine + reach[..., None] * _unit(heading + turn)
    layer = np.zeros((2 * shape[0], 2 * shape[1]), np.uint8)
    ends = np.rint(16 * layer.shape[1] * np.stack([spine, tips], axis=2)).astype(np.int32)
    spines = np.rint(16 * layer.shape[1] * spine).astype(np.int32)
    for group in range(_GREYS):
        lines = [*spines[group::_GREYS], *ends[group::_GREYS].reshape(-1, 2, 2)]
        cv2.polylines(layer, lines, False, 60 + 25 * group, 1, cv2.LINE_AA, 4)
    return _softened(layer, shape, rng)


def _unit(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _softened(
    layer: UInt8[np.ndarray, "h w"], shape: tuple[int, int], rng: np.random.Generator
) -> Float32[np.ndarray, "ch cw"]:
    """The feathers slightly out of focus, in grainy rime."""
    feathers = cv2.resize(cv2.GaussianBlur(layer, (0, 0), 0.9), shape[::-1], interpolation=cv2.INTER_AREA)
    grain = np.clip(0.5 + 0.2 * smooth_field(shape, 40, rng, octaves=2), 0, 1)
    return np.clip(feathers * np.float32(2 / 255) + 0.4 * grain, 0, 1).astype(np.float32)


CAMERA_FROST = SensorFault(
    *("camera_frost", "view", "camera", "share of view", (0.1, 0.2, 0.35, 0.55, 0.75)),
    effect=OnPixels(frost),
    worst=1.0,
)
