"""Camera faults on uint8 RGB pixels.

Lengths in pixels, and noise, are stated for a picture of 1600 columns and scale with the width: a fault on a reduced
picture is what the reduction of the faulty picture would show (noise averages out as pixels are binned).
"""

from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from sensors.camera import CameraImage
from sensors.faults.protocol import SensorFault
from sensors.frame import Frame
from sensors.rig import IMAGE_WIDTH_PX

Pixels = UInt8[np.ndarray, "h w 3"]

DISPLAY_GAMMA = 2.2
FULL_WELL_ELECTRONS = 8000.0
READ_NOISE_ELECTRONS = 12.0
_STRIP_ROWS = 32
_DIRT_RGB = (58.0, 48.0, 38.0)
_LONGEST_DIRECT_PATH_PX = 8.0


def _pixels_of(image: CameraImage, pixels: Pixels) -> CameraImage:
    return replace(image, pixels=pixels)


def _width_share(image: CameraImage) -> float:
    return image.pixels.shape[1] / IMAGE_WIDTH_PX


@lru_cache(maxsize=1)
def _normal_quantiles() -> np.ndarray:
    """256 quantiles of a normal distribution, scaled so that the sum of two draws has variance 1."""
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)])
    return (quantiles / (np.sqrt(2) * quantiles.std())).astype(np.float32)


def _unit_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32[np.ndarray, "h w 3"]:
    """Standard normal noise.

    The sum of two table look-ups of random bytes reaches 4 sigma and costs a third of ``standard_normal``.
    """
    size = int(np.prod(shape))
    words = rng.bit_generator.random_raw(-(-2 * size // 8))
    drawn = words.astype("<u8", copy=False).view(np.uint8)[: 2 * size].reshape(2, shape[0], -1)
    table = _normal_quantiles()
    return cv2.add(cv2.LUT(drawn[0], table), cv2.LUT(drawn[1], table)).reshape(shape)


def _noisy(
    pixels: Pixels, mean: Float[np.ndarray, "256"], sigma: Float[np.ndarray, "256"], rng: np.random.Generator
) -> Pixels:
    """Every grey level becomes its ``mean`` plus noise of its ``sigma``, both in grey levels.

    In strips of rows that stay in the cache, which is twice as fast as the whole picture at once.
    """
    mean, sigma = mean.astype(np.float32), sigma.astype(np.float32)
    noisy = np.empty_like(pixels)
    for top in range(0, len(pixels), _STRIP_ROWS):
        strip = pixels[top : top + _STRIP_ROWS]
        spread = cv2.multiply(cv2.LUT(strip, sigma), _unit_noise(rng, strip.shape))
        noisy[top : top + _STRIP_ROWS] = cv2.add(cv2.LUT(strip, mean), spread, dtype=cv2.CV_8U)
    return noisy


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
    veiled, veil = np.empty_like(pixels), np.empty_like(pixels[:_STRIP_ROWS])
    veil[:] = np.rint(colour)
    for top in range(0, height, _STRIP_ROWS):
        strip = slice(top, top + _STRIP_ROWS)
        part = left[strip]
        if slope is not None:
            grey = cv2.cvtColor(pixels[strip], cv2.COLOR_RGB2GRAY)
            part = np.clip(part + slope[strip] * grey, 0, 1)
        veiled[strip] = cv2.blendLinear(pixels[strip], veil[: len(part)], part, 1 - part)
    return veiled


def _dark(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Less light: grey levels are decoded to linear light, photons and read-out noise counted, and encoded again."""
    electrons = FULL_WELL_ELECTRONS / _width_share(image) ** 2
    read_noise = READ_NOISE_ELECTRONS / _width_share(image)
    light = (np.arange(256) / 255) ** DISPLAY_GAMMA * 2.0**-level
    sigma = np.sqrt(light * electrons + read_noise**2) / electrons
    encoded = 255 * light ** (1 / DISPLAY_GAMMA)
    # Slope of the encoding over the width of the noise: at black the curve itself is infinitely steep.
    upper = 255 * (light + sigma) ** (1 / DISPLAY_GAMMA)
    lower = 255 * np.maximum(light - sigma, 0) ** (1 / DISPLAY_GAMMA)
    return _pixels_of(image, _noisy(image.pixels, encoded, (upper - lower) / 2, rng))


def _overexposed(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """More light: linear light is multiplied and clipped at white."""
    light = (np.arange(256) / 255) ** DISPLAY_GAMMA * 2.0**level
    table = np.rint(255 * np.minimum(light, 1) ** (1 / DISPLAY_GAMMA)).astype(np.uint8)
    return _pixels_of(image, cv2.LUT(image.pixels, table))


def _noise(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    sigma = np.full(256, level * _width_share(image))
    return _pixels_of(image, _noisy(image.pixels, np.arange(256.0), sigma, rng))


def _motion_blur(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """The picture averaged along a straight path of ``level`` pixels at an angle of U(-45, 45) deg to the rows."""
    angle = np.deg2rad(rng.uniform(-45, 45))
    return _pixels_of(image, blurred_along(image.pixels, level * _width_share(image), angle))


def blurred_along(pixels: Pixels, length_px: float, angle_rad: float) -> Pixels:
    """Mean over a straight path centred on each pixel.

    A short path is one small kernel; each doubling adds the picture to itself, moved by the path so far.
    """
    num_doublings = max(0, int(np.ceil(np.log2(max(length_px, 1e-6) / _LONGEST_DIRECT_PATH_PX))))
    short_px = length_px / 2**num_doublings
    step = np.array([np.cos(angle_rad), np.sin(angle_rad)]) * short_px
    blurred = cv2.filter2D(pixels, -1, _line_kernel(step), borderType=cv2.BORDER_REFLECT_101)
    for doubling in range(num_doublings):
        dx, dy = np.rint(step * 2**doubling).astype(int).tolist()
        blurred = _averaged_with_moved(blurred, dx, dy)
    # The doublings pull the path to one side: bring its middle back.
    dx, dy = np.rint(step * (2**num_doublings - 1) / 2).astype(int).tolist()
    return _moved(blurred, -dx, -dy)


def _line_kernel(step_px: Float[np.ndarray, "2"]) -> Float32[np.ndarray, "k k"]:
    """A straight line of that extent, centred."""
    return _kernel_through(np.linspace(-0.5, 0.5, 65)[:, None] * step_px)


def _kernel_through(at_px: Float[np.ndarray, "p 2"]) -> Float32[np.ndarray, "k k"]:
    """The mean over offsets (x, y), each spread bilinearly over its four cells: continuous down to no blur at all."""
    half = int(np.ceil(np.abs(at_px).max())) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    low = np.floor(at_px).astype(int)
    share = at_px - low
    for ox, oy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (share[:, 0] if ox else 1 - share[:, 0]) * (share[:, 1] if oy else 1 - share[:, 1])
        np.add.at(kernel, (low[:, 1] + oy + half, low[:, 0] + ox + half), weight)
    rows, columns = kernel.any(axis=1), kernel.any(axis=0)
    trim = max(0, min(np.argmax(rows), np.argmax(rows[::-1]), np.argmax(columns), np.argmax(columns[::-1])))
    kernel = kernel[trim : len(kernel) - trim, trim : len(kernel) - trim]
    return (kernel / kernel.sum()).astype(np.float32)


def _moved(pixels: Pixels, dx: int, dy: int) -> Pixels:
    """The picture moved by whole pixels; what comes in at the border repeats the border."""
    height, width = pixels.shape[:2]
    dx, dy = int(np.clip(dx, 1 - width, width - 1)), int(np.clip(dy, 1 - height, height - 1))
    padded = cv2.copyMakeBorder(
        pixels[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)],
        *(max(dy, 0), max(-dy, 0), max(dx, 0), max(-dx, 0)),
        cv2.BORDER_REPLICATE,
    )
    return padded


def _averaged_with_moved(pixels: Pixels, dx: int, dy: int) -> Pixels:
    return cv2.addWeighted(pixels, 0.5, _moved(pixels, dx, dy), 0.5, 0)


def _defocus(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Every point becomes a disk; wide disks are applied to a reduced picture, which shows no more detail anyway."""
    radius_px = level * _width_share(image)
    step = max(1, int(radius_px / 1.5))
    height, width = image.pixels.shape[:2]
    small = image.pixels
    if step > 1:
        small = cv2.resize(small, (max(1, width // step), max(1, height // step)), interpolation=cv2.INTER_AREA)
    small = cv2.filter2D(small, -1, _disk_kernel(radius_px / step), borderType=cv2.BORDER_REFLECT_101)
    if step > 1:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return _pixels_of(image, small)


def _disk_kernel(radius_px: float) -> Float32[np.ndarray, "k k"]:
    """A disk, filled evenly by a sunflower of points."""
    index = np.arange(256) + 0.5
    distance, angle = radius_px * np.sqrt(index / 256), index * np.pi * (3 - np.sqrt(5))
    return _kernel_through(np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1))


def _contrast_loss(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Grey levels are pulled to the picture's mean."""
    mean = cv2.mean(image.pixels)[:3]
    table = np.stack([np.rint((np.arange(256) - m) * (1 - level) + m) for m in mean], axis=1).astype(np.uint8)
    return _pixels_of(image, cv2.LUT(image.pixels, table[None]))


def _jpeg(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """JPEG at a low quality; its blocks are 8 pixels at any resolution."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, round(level)]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(image.pixels, cv2.COLOR_RGB2BGR), quality)
    assert done, "OpenCV could not encode a JPEG from uint8 RGB"
    return _pixels_of(image, cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB))


def _pixelate(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    height, width = image.pixels.shape[:2]
    block = max(1.0, 1 + (level - 1) * _width_share(image))
    size = (max(1, round(width / block)), max(1, round(height / block)))
    small = cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA)
    return _pixels_of(image, cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))


def _lens_dirt(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Brown spots out of focus on the lens, that hide a share of the view; a higher level grows the same spots."""
    relief = sum(
        cv2.resize(
            rng.standard_normal((n, 2 * n), dtype=np.float32) * weight, (200, 112), interpolation=cv2.INTER_CUBIC
        )
        for n, weight in ((5, 1.0), (14, 0.5))
    )
    cover = np.clip(0.5 + (relief - np.quantile(relief, 1 - level)) / 0.3, 0, 1)
    return _pixels_of(image, blended(image.pixels, np.array(_DIRT_RGB), 1 - 0.95 * cover.astype(np.float32)))


CAMERA_DARK = SensorFault("camera_dark", "light", "camera", "stops", (1.0, 2.0, 3.0, 4.0, 5.0), effect=_dark)
CAMERA_OVEREXPOSED = SensorFault(
    "camera_overexposed", "light", "camera", "stops", (0.5, 1.0, 1.5, 2.0, 3.0), effect=_overexposed
)
CAMERA_MOTION_BLUR = SensorFault(
    "camera_motion_blur", "blur", "camera", "px of 1600", (6.0, 12.0, 20.0, 32.0, 48.0), effect=_motion_blur
)
CAMERA_DEFOCUS = SensorFault(
    "camera_defocus", "blur", "camera", "px of 1600, radius", (2.0, 3.5, 5.0, 8.0, 12.0), effect=_defocus
)
CAMERA_NOISE = SensorFault(
    "camera_noise", "noise", "camera", "grey levels", (10.0, 20.0, 30.0, 45.0, 65.0), effect=_noise
)
CAMERA_CONTRAST_LOSS = SensorFault(
    "camera_contrast_loss", "light", "camera", "share", (0.2, 0.4, 0.6, 0.8, 0.9), effect=_contrast_loss, worst=1.0
)
CAMERA_JPEG = SensorFault(
    "camera_jpeg", "coding", "camera", "quality", (30.0, 20.0, 12.0, 8.0, 5.0), effect=_jpeg, clean=95.0, worst=1.0
)
CAMERA_PIXELATE = SensorFault(
    "camera_pixelate", "coding", "camera", "px of 1600", (3.0, 5.0, 8.0, 12.0, 18.0), effect=_pixelate, clean=1.0
)
CAMERA_LENS_DIRT = SensorFault(
    "camera_lens_dirt", "view", "camera", "share of view", (0.05, 0.1, 0.2, 0.35, 0.5), effect=_lens_dirt, worst=1.0
)

CAMERA_FAULTS = (
    *(CAMERA_DARK, CAMERA_OVEREXPOSED, CAMERA_MOTION_BLUR, CAMERA_DEFOCUS, CAMERA_NOISE),
    *(CAMERA_CONTRAST_LOSS, CAMERA_JPEG, CAMERA_PIXELATE, CAMERA_LENS_DIRT),
)
