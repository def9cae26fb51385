"""Random fields for camera faults: fast normal noise, uniform draws per pixel, plasma, smooth fields.

Everything is drawn from the generator that is handed in, so that no two pictures share a field.
"""

from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int16, UInt16

_CORNER_STEPS = 100.0


@lru_cache(maxsize=1)
def _normal_quantiles() -> Float32[np.ndarray, "256"]:
    """256 quantiles of a normal distribution, scaled so that the sum of two draws has variance 1."""
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    return (quantiles / (np.sqrt(2) * quantiles.std())).astype(np.float32)


def unit_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float = 1.0, mean: float = 0.0
) -> Float32[np.ndarray, "*shape"]:
    """Normal noise, standard unless told otherwise.

    The sum of two table look-ups of random bytes reaches 4 sigma and costs a third of ``standard_normal``.
    """
    size = int(np.prod(shape))
    words = rng.bit_generator.random_raw(-(-2 * size // 8))
    drawn = words.astype("<u8", copy=False).view(np.uint8)[: 2 * size].reshape(2, shape[0], -1)
    table = _normal_quantiles() * np.float32(sigma) + np.float32(mean / 2)
    return cv2.add(cv2.LUT(drawn[0], table), cv2.LUT(drawn[1], table)).reshape(shape)


NOISE_PARTS = 16
"""Steps of a grey level in which ``whole_noise`` adds before it rounds."""

LARGEST_WHOLE_SIGMA = 300.0
"""Grey levels; beyond it 16 bits do not hold the noise."""

_OTHER_LANES = ((111, 128), (145, 128))


@lru_cache(maxsize=1)
def _paired_quantiles() -> tuple[Float32[np.ndarray, "256 2"], Float32[np.ndarray, "256 2"]]:
    """Two quantiles for every value of a random byte, uncorrelated with each other, as are their squares."""
    quantiles, index = _normal_quantiles(), np.arange(256)
    first, second = (
        np.stack([quantiles, quantiles[(factor * index + shift) % 256]], axis=1) for factor, shift in _OTHER_LANES
    )
    return first, second


def whole_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: float, mean: float = 0.0
) -> Int16[np.ndarray, "*shape"]:
    """Normal noise in whole numbers, to be added to grey levels: rounding the sum would give the same.

    As ``unit_noise``, but one look-up of a byte serves two neighbouring values. They share their two bytes through
    orders in which they are uncorrelated, which halves the bytes and the look-ups. ``sigma`` is at most
    LARGEST_WHOLE_SIGMA.
    """
    size = int(np.prod(shape))
    pairs = -(-size // 2)
    words = rng.bit_generator.random_raw(-(-2 * pairs // 8))
    drawn = words.astype("<u8", copy=False).view(np.uint8)[: 2 * pairs].reshape(2, 1, pairs)
    noise = None
    # The shift below cuts; half a grey level more, less half a step, makes it round without a bias.
    for byte, table, middle in zip(drawn, _paired_quantiles(), (mean + 0.5 - 0.5 / NOISE_PARTS, 0.0), strict=True):
        steps = np.rint(NOISE_PARTS * (table * np.float32(sigma) + np.float32(middle))).astype(np.int16)
        looked_up = cv2.LUT(byte, steps.view(np.int32).reshape(256)).view(np.int16)
        noise = looked_up if noise is None else np.add(noise, looked_up, out=noise)
    noise >>= NOISE_PARTS.bit_length() - 1
    return noise.reshape(-1)[:size].reshape(shape)


def uniform_words(rng: np.random.Generator, shape: tuple[int, ...]) -> UInt16[np.ndarray, "*shape"]:
    """Whole numbers, uniform over [0, 65536)."""
    size = int(np.prod(shape))
    words = rng.bit_generator.random_raw(-(-size // 4))
    return words.astype("<u8", copy=False).view("<u2")[:size].reshape(shape)


def plasma(shape: tuple[int, int], decay: float | int, rng: np.random.Generator) -> Float32[np.ndarray, "h w"]:
    """Clouds between 0 and 1 by the diamond-square construction on a square that wraps around.

    The square's side is the power of two that holds the longer side of ``shape``; the top left part of it is returned.
    The displacement at each halving of the step is uniform within the square of a width that starts at 100 and is
    divided by ``decay`` (Hendrycks & Dietterich, Benchmarking neural network robustness, 2019, fog).
    """
    side = 1 << max(0, (max(shape) - 1).bit_length())
    heights = np.zeros((1, 1), np.float32)
    width = _CORNER_STEPS
    while len(heights) < side:
        heights = _halved_step(heights, width**2, rng)
        width /= decay
    heights -= heights.min()
    highest = heights.max()
    return (heights[: shape[0], : shape[1]] / (highest if highest > 0 else 1)).astype(np.float32)


def _halved_step(
    corners: Float32[np.ndarray, "n n"], displacement: float, rng: np.random.Generator
) -> Float32[np.ndarray, "m m"]:
    """Twice as many points each way: the middles of the squares, then those of the diamonds between."""
    n = len(corners)
    draws = rng.random((3, n, n), dtype=np.float32)
    draws -= np.float32(0.5)
    draws *= np.float32(2 * displacement)
    # Padded by one that wraps around, so that neighbours are slices and not rolled copies.
    wrapped = np.pad(corners, ((0, 1), (0, 1)), mode="wrap")
    beside = wrapped[:, :-1] + wrapped[:, 1:]
    middles = draws[0] + np.float32(0.25) * (beside[:-1] + beside[1:])
    around = np.pad(middles, ((1, 0), (1, 0)), mode="wrap")
    finer = np.empty((2 * n, 2 * n), np.float32)
    finer[::2, ::2] = corners
    finer[1::2, 1::2] = middles
    finer[::2, 1::2] = draws[1] + np.float32(0.25) * (around[1:, 1:] + around[:-1, 1:] + beside[:-1])
    finer[1::2, ::2] = draws[2] + np.float32(0.25) * (
        around[1:, 1:] + around[1:, :-1] + wrapped[:-1, :-1] + wrapped[1:, :-1]
    )
    return finer


def smooth_field(
    shape: tuple[int, int], cells: int, rng: np.random.Generator, octaves: int = 1
) -> Float32[np.ndarray, "h w"]:
    """Standard normal values on a coarse raster of that many cells per height, interpolated; finer octaves count half.

    The raster has twice as many columns as rows, whatever the shape.
    """
    field = np.zeros(shape, np.float32)
    for octave in range(octaves):
        rows = cells * 2**octave
        coarse = rng.standard_normal((rows, 2 * rows), dtype=np.float32) * np.float32(0.5**octave)
        field += cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return field


def quantile_of(field: Float[np.ndarray, "h w"], share: float | int) -> float:
    """The value that this share of the field lies below; on a tiny field too."""
    return float(np.quantile(field, np.clip(share, 0, 1)))
