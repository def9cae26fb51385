"""Rain and snow as a camera sees them, from the precipitation rate in mm/h of water: pixels in, pixels out.

Three things are drawn: what falls close to the lens, the veil of what falls farther away, and what the weather does to
the light and to the road. More rain holds the same drops and more.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32

from sensors.faults.camera_particles import fallen, rain_drops, snow_flakes
from sensors.faults.camera_pixels import Pixels, blended, mixed, tone
from sensors.faults.noise_fields import smooth_field

FOCAL_SHARE = 1266 / 1600
HORIZON_SHARE = 0.53
CAMERA_HEIGHT_M, STREET_M = 1.5, 60.0
_COARSE = (112, 200)
_WET_ALBEDO, _MOST_REFLECTED, _ROAD_SPREAD = 0.55, 0.55, 28.0


def camera_rain(
    pixels: Pixels, rate_mm_h: float, rng: np.random.Generator, depth_m: Float32[np.ndarray, "ch cw"] | None = None
) -> Pixels:
    """Duller light, a wet road, haze that grows with the distance, and streaks.

    Args:
        rate_mm_h: 1 is drizzle, 10 steady rain, 50 a cloudburst; 0 changes nothing.
        depth_m: distance along each ray on a coarse raster; if not given, the flat ground, and 60 m above it.
    """
    if rate_mm_h == 0:
        return pixels
    harmed = overcast(pixels, 1 - np.exp(-rate_mm_h / 15))
    harmed = wet_road(harmed, 1 - np.exp(-rate_mm_h / 5))
    harmed = hazed(harmed, rain_extinction(rate_mm_h), rng, depth_m)
    return fallen(harmed, rain_drops(rate_mm_h, rng), bright_light(harmed))


def camera_snow(
    pixels: Pixels, rate_mm_h: float, rng: np.random.Generator, depth_m: Float32[np.ndarray, "ch cw"] | None = None
) -> Pixels:
    """Duller light, a veil that grows with the distance, and flakes.

    Args:
        rate_mm_h: of water; 0.5 is light snow, 2.5 heavy, 10 a blizzard; 0 changes nothing.
        depth_m: distance along each ray on a coarse raster; if not given, the flat ground, and 60 m above it.
    """
    if rate_mm_h == 0:
        return pixels
    harmed = overcast(pixels, 0.6 * (1 - np.exp(-rate_mm_h / 2)))
    harmed = hazed(harmed, snow_extinction(rate_mm_h), rng, depth_m)
    return fallen(harmed, snow_flakes(rate_mm_h, rng), np.minimum(1.1 * bright_light(harmed) + 10, 250))


def rain_extinction(rate_mm_h: float) -> float:
    """1/m in visible light: 1.076 R^0.67 dB/km (ITU-R P.1817)."""
    return 1.076 * rate_mm_h**0.67 / (10 / np.log(10)) / 1000


def snow_extinction(rate_mm_h: float) -> float:
    """1/m in visible light: a visibility (5 % contrast) of about 1 km at 1 mm/h of water that falls as R^-0.72."""
    return np.log(20) / 1000 * rate_mm_h**0.72


def bright_light(pixels: Pixels) -> Float[np.ndarray, "3"]:
    """The brightest tenth of the picture, greyed: what scatters in the air and through drops; dark at night."""
    height, width = pixels.shape[:2]
    bright = np.quantile(pixels[:: max(1, height // 45), :: max(1, width // 80)], 0.9, axis=(0, 1))
    return 0.3 * bright + 0.7 * bright.mean()


def overcast(pixels: Pixels, share: float) -> Pixels:
    """Clouds: up to one stop less light, a third of the colour gone, softer shadows."""
    grey = np.array([[0.299, 0.587, 0.114]])
    duller = cv2.transform(pixels, (1 - 0.35 * share) * np.eye(3) + 0.35 * share * np.repeat(grey, 3, axis=0))
    levels = np.arange(256.0)
    dimmed = levels * 2 ** (-share / 2.2)
    return tone(duller, dimmed + 0.15 * share * (110 * 2 ** (-share / 2.2) - dimmed))


def hazed(
    pixels: Pixels, extinction_per_m: float, rng: np.random.Generator, depth_m: Float32[np.ndarray, "ch cw"] | None
) -> Pixels:
    """Koschmieder's law: exp(-extinction x distance) of the scene is left; the density varies by a fifth."""
    if depth_m is None:
        depth_m = flat_depth_m(pixels.shape[0] / pixels.shape[1])
    density = np.clip(1 + 0.2 * smooth_field(depth_m.shape, 3, rng), 0.3, 2)
    left = np.exp(-extinction_per_m * density * depth_m).astype(np.float32)
    return blended(pixels, bright_light(pixels), left)


def flat_depth_m(aspect: float) -> Float32[np.ndarray, "ch cw"]:
    """Distance to the flat ground for a nuScenes-like camera of that height over width; a street's 60 m above it."""
    rows = np.arange(_COARSE[0]) + 0.5
    down = np.maximum(rows / _COARSE[0] - HORIZON_SHARE, 1e-3) * aspect / FOCAL_SHARE
    depth = np.minimum(CAMERA_HEIGHT_M * np.hypot(1, down) / down, STREET_M)
    return np.repeat(depth[:, None], _COARSE[1], axis=1).astype(np.float32)


def wet_road(pixels: Pixels, wetness: float) -> Pixels:
    """A film of water on the ground: darker, and a blurred mirror of what stands on it, most of all at a flat angle.

    The ground is what lies below the horizon and has the colour of the road ahead. Wet asphalt sends back 55 % of the
    light of dry asphalt (Lekner & Dorf, Why some things are darker when wet, 1988); the mirror follows Schlick's
    approximation for water.
    """
    height, width = pixels.shape[:2]
    road = road_share(pixels)
    horizon = min(height - 1, round(HORIZON_SHARE * height))
    down = (np.arange(_COARSE[0]) + 0.5) / _COARSE[0] - HORIZON_SHARE
    sine = np.sin(np.arctan(np.maximum(down, 0) * height / width / FOCAL_SHARE))
    mirror = np.minimum(0.02 + 0.98 * (1 - sine) ** 5, _MOST_REFLECTED)[:, None]
    darker = blended(pixels, np.zeros(3), (1 - wetness * road * (1 - _WET_ALBEDO ** (1 / 2.2))).astype(np.float32))
    small = cv2.resize(pixels, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
    rows = np.clip(2 * horizon / 4 - np.arange(len(small)), 0, len(small) - 1).astype(int)
    blur = (2 * (len(small) // 40) + 1, 2 * (len(small) // 12) + 1)
    reflection = cv2.resize(cv2.blur(small[rows], blur), (width, height), interpolation=cv2.INTER_LINEAR)
    share = cv2.resize((wetness * road * mirror).astype(np.float32), (width, height))
    darker[horizon:] = mixed(darker[horizon:], reflection[horizon:], share[horizon:])
    return darker


def road_share(pixels: Pixels) -> Float32[np.ndarray, "ch cw"]:
    """How much each cell of a coarse raster looks like the road just ahead, 0 above the horizon."""
    small = cv2.resize(pixels, _COARSE[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    ahead = np.median(small[78:106, 60:140].reshape(-1, 3), axis=0)
    likeness = np.exp(-((small - ahead) ** 2).sum(axis=2) / (2 * 3 * _ROAD_SPREAD**2))
    below = np.clip(((np.arange(_COARSE[0]) + 0.5) / _COARSE[0] - HORIZON_SHARE) / 0.04, 0, 1)
    return cv2.blur((likeness * below[:, None]).astype(np.float32), (5, 3))
