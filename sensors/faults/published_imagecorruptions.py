"""The corruptions of Hendrycks & Dietterich (2019) in the form of Michaelis et al. (2019), severities 1 to 5.

Own code after the published definitions. At 1600 columns the numbers are the published ones; lengths in pixels scale
with the width elsewhere. As there, results are cut (not rounded) to whole grey levels, noise is per pixel at any size,
blurs (in ``published_blur``) draw their angle per picture. ``frost`` is left out: it needs photographs.
"""

from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float32, UInt8, UInt32

from sensors.faults.camera_pixels import CUT, STRIP_ROWS, Pixels, chosen, noisy
from sensors.faults.noise_fields import plasma, uniform_words
from sensors.faults.protocol import Number
from sensors.faults.published_blur import blurred_one_way, zoomed
from sensors.rig import IMAGE_WIDTH_PX


def gaussian_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    sigma = chosen((0.08, 0.12, 0.18, 0.26, 0.38), severity)
    return noisy(pixels, np.arange(256) - CUT, np.full(256, 255 * sigma), rng)


def speckle_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    sigma = chosen((0.15, 0.2, 0.35, 0.45, 0.6), severity)
    return noisy(pixels, np.arange(256) - CUT, sigma * np.arange(256.0), rng)


def shot_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    photons = chosen((60, 25, 12, 5, 3), severity)
    counts = photon_table(tuple(photons * np.arange(256) / 255), photons)
    return counted(pixels, (255 * np.arange(photons + 1) / photons + 1e-6).astype(np.uint8)[counts], rng)


def counted(pixels: Pixels, table: UInt8[np.ndarray, "n"], rng: np.random.Generator) -> Pixels:
    """Every value becomes one of the 4096 equally likely ones that the table holds for its grey level."""
    index = (uniform_words(rng, pixels.shape) >> np.uint16(4)) | (pixels.astype(np.uint32) << np.uint32(12))
    return np.take(table, index, mode="clip")


@lru_cache(maxsize=8)
def photon_table(expected: tuple[float, ...], white: int) -> UInt8[np.ndarray, "n"]:
    """Poisson counts at 4096 quantiles, for each of 256 expected counts; clipped at ``white``, which is under 256."""
    mean = np.maximum(np.array(expected), 1e-12)[:, None]
    counts = np.arange(white + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    reached = np.exp(counts * np.log(mean) - mean - log_factorial).cumsum(axis=1)
    quantiles = (np.arange(4096) + 0.5) / 4096
    places = [np.minimum(np.searchsorted(row, quantiles), white) for row in reached]
    return np.concatenate(places).astype(np.uint8)


def impulse_noise(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return salt_and_pepper(pixels, chosen((0.03, 0.06, 0.09, 0.17, 0.27), severity), rng)


def salt_and_pepper(pixels: Pixels, share: Number, rng: np.random.Generator) -> Pixels:
    """Half of the share of values becomes white, half black; a larger share holds the smaller one."""
    draws = uniform_words(rng, pixels.shape).reshape(len(pixels), -1)
    half = round(share * 32768)
    flat = pixels.reshape(len(pixels), -1)
    kept = cv2.bitwise_and(flat, cv2.compare(draws, float(half), cv2.CMP_GE))
    return cv2.bitwise_or(kept, cv2.compare(draws, float(65536 - half), cv2.CMP_GE)).reshape(pixels.shape)


def fog(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    strength, decay = chosen(((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)), severity)
    return fogged(pixels, strength * plasma(pixels.shape[:2], decay, rng), strength)


def fogged(pixels: Pixels, added: Float32[np.ndarray, "h w"], strength: Number) -> Pixels:
    """(x + added) m / (m + strength), where m is the brightest value of the picture."""
    brightest = float(pixels.max()) / 255
    scale = brightest / (brightest + strength) if brightest else 0.0
    # Stored to 1/65535: an eight bit veil would lose a third of a grey level.
    veil = cv2.merge([cv2.multiply(added, 255 * scale)] * 3)
    return cv2.addWeighted(pixels, scale, veil, 1.0, -CUT, dtype=cv2.CV_8U)


def snow(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    *flakes, mix = chosen(
        (
            *((0.1, 0.3, 3.0, 0.5, 10, 4, 0.8), (0.2, 0.3, 2.0, 0.5, 12, 4, 0.7), (0.55, 0.3, 4.0, 0.9, 12, 8, 0.7)),
            *((0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55)),
        ),
        severity,
    )
    return snowed(snow_haze(pixels, mix), snow_layer(pixels.shape[:2], tuple(flakes), rng))


def snow_layer(
    shape: tuple[int, int], flakes: tuple[Number, ...], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w"]:
    """Blown flakes: (mean, deviation, zoom, threshold, radius, sigma) of normal noise, enlarged, cut and blurred."""
    mean, deviation, zoom, threshold, radius, sigma = flakes
    factor = max(1.0, zoom * shape[1] / IMAGE_WIDTH_PX)
    # Only the middle of the noise is enlarged: the rest need not be drawn.
    crop = [int(np.ceil(length / factor)) for length in shape]
    layer = np.zeros(shape, np.float32)
    top, left = ((length - part) // 2 for length, part in zip(shape, crop, strict=True))
    noise = rng.standard_normal(crop, dtype=np.float32) * np.float32(deviation) + np.float32(mean)
    layer[top : top + crop[0], left : left + crop[1]] = noise
    layer = zoomed(layer, factor)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    return blurred_one_way(np.rint(255 * layer).astype(np.uint8), radius, sigma, rng.uniform(-135, -45))


def snow_haze(pixels: Pixels, mix: Number) -> Pixels:
    """mix x + (1 - mix) max(x, 1.5 grey + 0.5)."""
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    hazed = cv2.addWeighted(pixels, mix, grey, 1.5 * (1 - mix), 127.5 * (1 - mix) - CUT)
    return cv2.max(pixels, hazed)


def snowed(pixels: Pixels, layer: UInt8[np.ndarray, "h w"]) -> Pixels:
    """The flakes and the same flakes turned by half a turn, added."""
    both = cv2.add(layer, cv2.rotate(layer, cv2.ROTATE_180))
    return cv2.add(pixels, cv2.cvtColor(both, cv2.COLOR_GRAY2RGB))


def brightness(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return value_raised(pixels, chosen((0.1, 0.2, 0.3, 0.4, 0.5), severity))


def value_raised(pixels: Pixels, added: Number) -> Pixels:
    """HSV value plus ``added`` of 1, hue and saturation kept: the colours are scaled by one factor."""
    red, green, blue = cv2.split(pixels)
    value = cv2.max(cv2.max(red, green), blue).astype(np.uint16) << 8
    table = _value_table(float(added))
    return cv2.merge([np.take(table, value | colour, mode="clip") for colour in (red, green, blue)])


@lru_cache(maxsize=8)
def _value_table(added: Number) -> UInt8[np.ndarray, "65536"]:
    """What a colour becomes, by 256 value + colour; black becomes grey."""
    value, colour = np.divmod(np.arange(65536), 256)
    raised = np.minimum(value + 255 * added, 255)
    scaled = colour * raised / np.maximum(value, 1)
    return np.clip(np.where(value == 0, 255 * added, scaled) + 1e-6, 0, 255).astype(np.uint8)


def contrast(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    kept = chosen((0.4, 0.3, 0.2, 0.1, 0.05), severity)
    means = cv2.mean(pixels)[:3]
    table = np.stack([(np.arange(256) - mean) * kept + mean for mean in means], axis=1)
    return cv2.LUT(pixels, table.astype(np.uint8)[None])


def saturate(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    factor, added = chosen(((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)), severity)
    return resaturated(pixels, factor, added)


def resaturated(pixels: Pixels, factor: Number, added: Number) -> Pixels:
    """HSV saturation times ``factor`` plus ``added``; as published, grey has the hue of red."""
    red, green, blue = cv2.split(pixels)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    table = _saturation_table(factor, added)
    grow = cv2.merge([np.take(table, low + (high.astype(np.uint16) << 8))] * 3)
    high = cv2.merge([high] * 3)
    changed = cv2.subtract(high, cv2.multiply(cv2.subtract(high, pixels), grow, dtype=cv2.CV_32F), dtype=cv2.CV_32F)
    if added:
        grey = (high[..., 0] == low) & (low > 0)
        changed[..., 1:][grey] = low[grey, None] * (1 - added)
    return cv2.convertScaleAbs(np.maximum(changed - CUT + 1e-3, 0))


@lru_cache(maxsize=8)
def _saturation_table(factor: Number, added: Number) -> Float32[np.ndarray, "65536"]:
    """How much farther from the highest channel each channel moves, by 256 highest + lowest."""
    high, low = np.divmod(np.arange(65536), 256)
    before = np.where(high > low, 1 - low / np.maximum(high, 1), 0)
    after = np.clip(before * factor + added, 0, 1)
    return (after / np.where(before > 0, before, 1)).astype(np.float32)


def jpeg_compression(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    return recoded(pixels, chosen((25, 18, 15, 10, 7), severity))


def recoded(pixels: Pixels, quality: int) -> Pixels:
    """As it comes back from a JPEG of that quality."""
    done, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    )
    assert done, "OpenCV could not encode a JPEG from uint8 RGB"
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def pixelate(pixels: Pixels, severity: int, rng: np.random.Generator) -> Pixels:
    share = chosen((0.6, 0.5, 0.4, 0.3, 0.25), severity)
    height, width = pixels.shape[:2]
    small = box_reduced(pixels, (max(1, int(width * share)), max(1, int(height * share))))
    rows = (2 * np.arange(height) + 1) * len(small) // (2 * height)
    return cv2.resize(small, (width, len(small)), interpolation=cv2.INTER_NEAREST_EXACT)[rows]


def box_reduced(pixels: Pixels, size_px: tuple[int, int]) -> UInt8[np.ndarray, "sh sw 3"]:
    """Reduced to (width, height): first over the columns, then over the rows, each rounded, as Pillow does."""
    narrow = np.empty((len(pixels), size_px[0]), np.uint32)
    # Pixels of four bytes are gathered as numbers; strips of rows stay in the cache.
    for top in range(0, len(pixels), STRIP_ROWS):
        strip = cv2.cvtColor(pixels[top : top + STRIP_ROWS], cv2.COLOR_RGB2RGBA)
        narrow[top : top + STRIP_ROWS] = _box_means(strip.view(np.uint32)[..., 0], size_px[0], 1)
    small = _box_means(narrow, size_px[1], 0)
    return cv2.cvtColor(small.view(np.uint8).reshape(*small.shape, 4), cv2.COLOR_RGBA2RGB)


def _box_means(quads: UInt32[np.ndarray, "h w"], num: int, axis: int) -> UInt32[np.ndarray, "m n"]:
    """The rounded mean, byte by byte, of the whole rows (or columns) whose middles fall into each of ``num`` boxes."""
    edges = (np.arange(num + 1) * (quads.shape[axis] / num) + 0.5).astype(int)
    counts = np.diff(edges)
    means = np.empty((num, quads.shape[1]) if axis == 0 else (len(quads), num), np.uint32)
    for count in np.unique(counts).tolist():
        boxes = np.flatnonzero(counts == count)
        total = np.take(quads, edges[boxes], axis).view(np.uint8).astype(np.uint16)
        for step in range(1, count):
            total = cv2.add(total, np.take(quads, edges[boxes] + step, axis).view(np.uint8), dtype=cv2.CV_16U)
        mean = ((total + np.uint16(count // 2)) // np.uint16(count)).astype(np.uint8).view(np.uint32)
        means[(boxes, slice(None)) if axis == 0 else (slice(None), boxes)] = mean
    return means
