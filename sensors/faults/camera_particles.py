"""Drops and flakes in flight, as streaks and specks over a picture.

Drop sizes: Marshall & Palmer, The distribution of raindrops with size, 1948. Fall speeds: Atlas, Srivastava & Sekhon,
1973. A drop covers a pixel for the share of the exposure in which it passes (Garg & Nayar, Vision and rain, 2007).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sensors.faults.camera_pixels import Pixels

EXPOSURE_S = 0.004
_FOCAL = 1266 / 1600
_NEAREST_M, _FARTHEST_M = 0.4, 4.0
_HIGHEST_RATE_MM_H, _SMALLEST_DROP_MM = 100.0, 0.6
_DROP_HIGHLIGHT = 2.5
"""A drop gathers light from half the sky: it is brighter than a grey disk of its size."""
_FLAKES_AT_10_MM_H, _FARTHEST_FLAKE_M = 8000, 5.0
_ALPHA_STEPS = 8


@dataclass(frozen=True)
class Particles:
    """Things in flight during one exposure.

    Attributes:
        middle: x and y as shares of the width, from the picture's middle.
        path: way during the exposure, in the same unit.
        width: across the path, in the same unit.
        opacity: of the middle of the trace, 0 to 1.
        soft: out of focus, because close to the lens.
    """

    middle: Float[np.ndarray, "n 2"]
    path: Float[np.ndarray, "n 2"]
    width: Float[np.ndarray, "n"]
    opacity: Float[np.ndarray, "n"]
    soft: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.width)


def rain_drops(rate_mm_h: float, rng: np.random.Generator) -> Particles:
    """The drops within 4 m that are thicker than half a pixel of 1600."""
    steepest = _marshall_palmer_slope(_HIGHEST_RATE_MM_H)
    per_m3 = 8000 / steepest * np.exp(-steepest * _SMALLEST_DROP_MM)
    num = int(per_m3 * _FARTHEST_M**3 / 3 / _FOCAL**2 * 0.5625)
    wind = np.deg2rad(rng.uniform(-15, 15))
    draws = rng.random((6, num), dtype=np.float32)
    diameter_mm = _SMALLEST_DROP_MM - np.log1p(-draws[1]) / np.float32(steepest)
    fewer = np.float32(_marshall_palmer_slope(min(rate_mm_h, _HIGHEST_RATE_MM_H)) - steepest)
    kept = np.flatnonzero(draws[0] < np.exp(-fewer * diameter_mm))
    depth_m = np.maximum(_FARTHEST_M * np.cbrt(draws[2, kept]), _NEAREST_M)
    kept, depth_m = (values[diameter_mm[kept] / 1000 * _FOCAL / depth_m > 0.5 / 1600] for values in (kept, depth_m))
    x, y, slant = draws[3:, kept].astype(float)
    diameter_mm, depth_m = diameter_mm[kept].astype(float), depth_m.astype(float)
    speed_mps = 9.65 - 10.3 * np.exp(-0.6 * diameter_mm)
    angle = wind + np.deg2rad(6) * (slant - 0.5)
    travel = speed_mps * EXPOSURE_S
    path = (travel * _FOCAL / depth_m)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    opacity = np.minimum(_DROP_HIGHLIGHT * diameter_mm / 1000 / travel, 0.6)
    middle = np.stack([x - 0.5, 0.6 * (y - 0.5)], axis=1)
    return Particles(middle, path, diameter_mm / 1000 * _FOCAL / depth_m, opacity, (depth_m < 0.8).astype(float))


def _marshall_palmer_slope(rate_mm_h: float) -> float:
    """1/mm: the share of drops falls by e with each 1/slope of diameter."""
    return 4.1 * max(rate_mm_h, 1e-6) ** -0.21


def snow_flakes(rate_mm_h: float, rng: np.random.Generator) -> Particles:
    """Flakes of 2 to 10 mm within 5 m: at 10 mm/h 8000 of them are in view, and their number goes with the rate."""
    num = 2 * _FLAKES_AT_10_MM_H
    wind_x, wind_y = rng.uniform(-2.0, 2.0), rng.uniform(0.8, 2.0)
    draws = rng.random((num, 6), dtype=np.float32).astype(float)
    draws = draws[: round(min(num, _FLAKES_AT_10_MM_H * rate_mm_h / 10))]
    size, depth, x, y, speed_x, speed_y = draws.T
    diameter_m = (2 + 8 * size**2) / 1000
    depth_m = np.maximum(_FARTHEST_FLAKE_M * np.cbrt(depth), 0.4)
    travel_m = EXPOSURE_S * np.stack([wind_x + speed_x - 0.5, wind_y + speed_y - 0.5], axis=1)
    path = travel_m * _FOCAL / depth_m[:, None]
    # A lens focused far away spreads what is close over its own opening, 4 mm.
    soft = depth_m < 1.5
    spread_m = np.where(soft, 0.004, 0.0)
    width = (diameter_m + spread_m) * _FOCAL / depth_m
    length = np.linalg.norm(path, axis=1)
    opacity = 0.95 * width / (width + length) * np.sqrt(diameter_m / (diameter_m + spread_m))
    middle = np.stack([x - 0.5, 0.6 * (y - 0.5)], axis=1)
    return Particles(middle, path, width, opacity, soft.astype(float))


def fallen(pixels: Pixels, particles: Particles, colour: Float[np.ndarray, "3"]) -> Pixels:
    """The particles in one colour over the picture."""
    near = particles.soft > 0
    pixel = pixels.shape[1] / 1600
    layer = np.zeros(pixels.shape[:2], np.uint8)
    # No lens is sharp to the pixel; what is close to it is out of focus.
    for rows, sigma in ((np.flatnonzero(~near), 0.9), (np.flatnonzero(near), 2.5)):
        if len(rows):
            traces = _traces(pixels.shape[:2], particles, rows)
            layer = cv2.max(layer, cv2.GaussianBlur(traces, (0, 0), max(0.3, sigma * pixel)))
    share = cv2.multiply(layer, 1 / 255, dtype=cv2.CV_32F)
    veil = np.empty_like(pixels)
    veil[:] = np.rint(colour)
    return cv2.blendLinear(pixels, veil, 1 - share, share)


def _traces(shape: tuple[int, int], particles: Particles, rows: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """Opacity of thick lines with round ends; those of like width and opacity are drawn together."""
    height, width_px = shape
    layer = np.zeros(shape, np.uint8)
    middle = particles.middle[rows] * width_px + [(width_px - 1) / 2, (height - 1) / 2]
    half_path = particles.path[rows] * width_px / 2
    across = particles.width[rows] * width_px
    # Thinner than a pixel is one pixel that covers less.
    opacity = particles.opacity[rows] * np.minimum(across, 1)
    thickness = np.maximum(np.rint(across), 1).astype(int)
    step = np.ceil(opacity * _ALPHA_STEPS).astype(int)
    ends = np.rint(16 * np.stack([middle - half_path, middle + half_path], axis=1)).astype(np.int32)
    kind = step * (1 + thickness.max(initial=0)) + thickness
    for group in np.unique(kind):
        chosen = np.flatnonzero(kind == group)
        value = int(round(255 * opacity[chosen].mean()))
        cv2.polylines(layer, list(ends[chosen]), False, value, int(thickness[chosen[0]]), cv2.LINE_AA, 4)
    return layer
