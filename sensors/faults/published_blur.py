"""The blurs of ``published_imagecorruptions``: by a bell, a disk, along a line, and by enlargement."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sensors.faults.camera_pixels import CUT, Pixels, chosen, width_share
from sensors.faults.protocol import Number
from sensors.rig import IMAGE_WIDTH_PX


def gaussian_blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    sigma = chosen((1.0, 2.0, 3.0, 4.0, 6.0), severity) * width_share(pixels)
    return cv2.GaussianBlur(pixels, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def defocus_blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    radius, alias_sigma = chosen(((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)), severity)
    share = width_share(pixels)
    radius_px = max(1, round(radius * share))
    half = max(8 if radius <= 8 else radius, radius_px) if share == 1 else radius_px + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x**2 + y**2 <= radius_px**2).astype(np.float32)
    window = (3, 3) if radius <= 8 else (5, 5)
    disk = cv2.GaussianBlur(disk / disk.sum(), window, alias_sigma)
    rows = np.flatnonzero(disk.any(axis=1))
    disk = disk[rows[0] : rows[-1] + 1, rows[0] : rows[-1] + 1]
    return cv2.filter2D(pixels, -1, disk, delta=-CUT, borderType=cv2.BORDER_REFLECT_101)


def motion_blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    radius, sigma = chosen(((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)), severity)
    return blurred_one_way(pixels, radius, sigma, rng.uniform(-45, 45))


def blurred_one_way(
    pixels: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"], radius_px: Number, sigma_px: Number, angle_deg: float
) -> UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]:
    """Half a bell along a straight path of 2 radius + 1 whole steps from each pixel, edges repeated, result cut."""
    share = pixels.shape[1] / IMAGE_WIDTH_PX
    steps = np.arange(2 * max(1, round(radius_px * share)) + 1)
    weights = np.exp(-(steps**2) / (2 * (sigma_px * share) ** 2))
    angle = np.deg2rad(angle_deg)
    at = np.ceil(np.outer(steps, [np.cos(angle), np.sin(angle)]) - 0.5).astype(int)
    low = at.min(axis=0)
    kernel = np.zeros(tuple((at.max(axis=0) - low + 1)[::-1]), np.float32)
    np.add.at(kernel, (at[:, 1] - low[1], at[:, 0] - low[0]), weights / weights.sum())
    anchor = (int(-low[0]), int(-low[1]))
    return cv2.filter2D(pixels, -1, kernel, anchor=anchor, delta=-CUT, borderType=cv2.BORDER_REPLICATE)


def zoom_blur(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    end, step = chosen(((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)), severity)
    return zoom_mean(pixels, np.arange(1, end, step))


def zoom_mean(pixels: Pixels, factors: Float[np.ndarray, "n"]) -> Pixels:
    """Mean of the picture and its enlargements about the middle, cut to whole grey levels."""
    total = pixels.astype(np.float32)
    for factor in factors:
        cv2.accumulate(zoomed(pixels, float(factor)), total)
    return cv2.convertScaleAbs(np.maximum(total / (len(factors) + 1) - CUT, 0))


def zoomed(layer: np.ndarray, factor: float) -> np.ndarray:
    """The middle enlarged, linear between pixels, corner pixel on corner pixel, as SciPy's zoom places them."""
    matrix = np.zeros((2, 3))
    for axis, length in enumerate((layer.shape[1], layer.shape[0])):
        crop = int(np.ceil(length / factor))
        enlarged = round(crop * factor)
        matrix[axis, axis] = (crop - 1) / max(enlarged - 1, 1)
        matrix[axis, 2] = (length - crop) // 2
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(layer, matrix, layer.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
