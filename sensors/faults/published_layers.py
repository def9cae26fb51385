"""Two layers of thu-ml's nuScenes-C: streaks of rain and the glow of a sun, after their published definitions."""

import cv2
import numpy as np
from jaxtyping import Float, Float32

from sensors.faults.camera_pixels import Pixels


def rain_layer(pixels: Pixels, density: float, rng: np.random.Generator) -> Pixels:
    """Salt on a smaller raster, thinned by a coarse random gate, enlarged, smeared downwards and laid over in grey.

    Drop size U(.4, .6), density uniformity U(.8, 1), angle U(-15, 15) deg, speed U(.04, .20) of the longer side.
    """
    height, width = pixels.shape[:2]
    uniformity, size, angle, speed = (rng.uniform(*limits) for limits in ((0.8, 1), (0.4, 0.6), (-15, 15), (0.04, 0.2)))
    small = (max(1, int(height * (1 - size))), max(1, int(width * (1 - size))))
    # Salt is the upper half of a Beta(1/2, 1/2), which is the sine of a uniform angle.
    salt = 127.5 * (1 + np.sin(rng.random(small, dtype=np.float32) * np.float32(np.pi / 2)))
    gate = rng.beta(1.0, max(1 - uniformity, 1e-6), (8, 8)).astype(np.float32)
    gate = np.clip(cv2.resize(gate, small[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    noise = (salt * gate * (rng.random(small, dtype=np.float32) < density)).astype(np.uint8)
    noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    length = int(speed * max(height, width))
    if length > 1:
        noise = cv2.filter2D(noise, -1, fading_line(max(length, 3) | 1, angle), borderType=cv2.BORDER_REFLECT_101)
    first = int(3 * noise.ravel()[:333].sum(dtype=np.int64) + noise.ravel()[333:334].sum())
    grey = 110 + 130 % (first if first > 0 else 1)
    share = np.clip(noise * np.float32(1.3 / 255), 0, 1)[..., None]
    return ((1 - share) * pixels + share * np.float32(grey)).astype(np.uint8)


def fading_line(length: int, angle_deg: float) -> Float32[np.ndarray, "k k"]:
    """An upright line of that many pixels whose weights fall from 1 at the top to 0, turned about its middle."""
    kernel = np.zeros((length, length), np.float32)
    kernel[:, length // 2] = np.linspace(1, 0, length)
    turned = cv2.warpAffine(
        kernel, cv2.getRotationMatrix2D((length // 2, length // 2), -angle_deg, 1.0), (length, length)
    )
    return turned / turned.sum()


def sun_glow(
    pixels: Pixels,
    at_px: tuple[int, int],
    radius_px: float,
    colour: Float[np.ndarray, "3"],
    strength: float,
    opacity: float,
) -> Pixels:
    """A bell of one colour of deviation ``radius_px``, cut at 1 after times ``strength``; only where it brightens.

    Lightness is that of HLS: the mean of the highest and the lowest channel.
    """
    height, width = pixels.shape[:2]
    reach = int(5 * radius_px) + 1
    rows = slice(max(0, at_px[1] - reach), min(height, at_px[1] + reach + 1))
    columns = slice(max(0, at_px[0] - reach), min(width, at_px[0] + reach + 1))
    down, across = (np.arange(height)[rows] - at_px[1], np.arange(width)[columns] - at_px[0])
    bell = np.outer(np.exp(-((down / radius_px) ** 2) / 2), np.exp(-((across / radius_px) ** 2) / 2))
    share = (opacity * np.clip(strength * bell, 0, 1))[..., None]
    glowing, part = pixels.copy(), pixels[rows, columns]
    glow = (share * colour + (1 - share) * part).astype(np.uint8)
    lightness, before = (half.max(axis=2).astype(int) + half.min(axis=2) for half in (glow, part))
    glowing[rows, columns] = np.where((lightness // 2 > before // 2)[..., None], glow, part)
    return glowing
