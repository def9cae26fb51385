"""What sticks to the lens: dirt, drops, and things that cover it; all out of focus, all procedural.

Levels are the share of the view that is covered; a higher level covers the same places and more.
"""

import cv2
import numpy as np
from jaxtyping import Float, Float32

from sensors.faults.camera_pixels import OnPixels, Pixels, blended, mixed
from sensors.faults.noise_fields import quantile_of, smooth_field
from sensors.faults.protocol import SensorFault

_COARSE = (112, 200)
_DIRT_RGB = np.array([58.0, 48.0, 38.0])
_COVERS_RGB = np.array([[20, 20, 22], [62, 50, 34], [48, 60, 34], [96, 98, 102], [120, 84, 40]], float)
_NUM_DROPS, _INVERSION, _LEAST_DROP_PX = 600, 3.0, 1e-3


def lens_dirt(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Brown spots out of focus; a higher level grows the same spots."""
    relief = smooth_field(_COARSE, 5, rng) + 0.5 * smooth_field(_COARSE, 14, rng)
    cover = np.clip(0.5 + (relief - quantile_of(relief, 1 - share)) / 0.3, 0, 1)
    thickness = np.clip(0.88 + 0.06 * smooth_field(_COARSE, 30, rng), 0.75, 0.97)
    return blended(pixels, _DIRT_RGB, (1 - thickness * cover).astype(np.float32))


def covered(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Leaves, tape, mud or a bag on the lens: one to three opaque patches in dark colours with a soft edge."""
    patches = [_patch_distance(rng) for _ in range(int(rng.integers(1, 4)))]
    nearness = np.min(patches, axis=0)
    edge = quantile_of(nearness, share)
    cover = np.clip(0.5 + (edge - nearness) / 2.5, 0, 1).astype(np.float32)
    shade = np.clip(1 + 0.15 * smooth_field(_COARSE, 9, rng, octaves=3), 0.5, 1.5)
    colours = _COVERS_RGB[rng.integers(len(_COVERS_RGB), size=len(patches))]
    colour = colours[np.argmin(patches, axis=0)] * shade[..., None]
    size = pixels.shape[1::-1]
    patch = cv2.resize(np.clip(colour, 0, 255).astype(np.uint8), size, interpolation=cv2.INTER_LINEAR)
    return mixed(pixels, patch, cv2.resize(0.98 * cover, size, interpolation=cv2.INTER_LINEAR))


def _patch_distance(rng: np.random.Generator) -> Float32[np.ndarray, "ch cw"]:
    """Cells from the middle of a patch, divided by the radius of its wavy outline in that direction."""
    y, x = np.mgrid[: _COARSE[0], : _COARSE[1]].astype(np.float32)
    centre = (rng.uniform(0.1, 0.9, 2) * _COARSE[::-1]).astype(np.float32)
    angle = np.arctan2(y - centre[1], x - centre[0])
    outline = np.full(_COARSE, rng.uniform(0.5, 1.5), np.float32)
    size = outline[0, 0]
    for wave, (height, turn) in enumerate(rng.uniform((-0.3, 0), (0.3, 2 * np.pi), (5, 2)), start=1):
        outline += np.float32(size * height / wave) * np.cos(wave * angle + np.float32(turn))
    return np.hypot(x - centre[0], y - centre[1]) / outline


def lens_drops(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Drops of water: each is a small lens that shows the scene upside down, blurred, with a dark upper rim."""
    height, width = pixels.shape[:2]
    step = int(np.clip(width // 400, 1, 4))
    rows, columns = max(1, height // step), max(1, width // step)
    small = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    radius, centres = _drops(share, rng)
    map_x, map_y = np.meshgrid(np.arange(columns, dtype=np.float32), np.arange(rows, dtype=np.float32))
    cover, light = np.zeros((rows, columns), np.float32), np.ones((rows, columns), np.float32)
    # A drop of no size at all has no direction either.
    shown = radius * columns > _LEAST_DROP_PX
    for r, (cx, cy) in zip(radius[shown] * columns, centres[shown] * [columns, rows], strict=True):
        reach = int(1.3 * r) + 2
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        part = (slice(top, int(cy) + reach), slice(left, int(cx) + reach))
        over = cover[part]
        dx = (np.arange(left, left + over.shape[1], dtype=np.float32) - np.float32(cx)) / np.float32(r)
        dy = (np.arange(top, top + over.shape[0], dtype=np.float32) - np.float32(cy))[:, None] / np.float32(r)
        away = cv2.sqrt(dx * dx + np.float32(0.81) * dy * dy)
        inside = np.minimum((np.float32(1.1) - away) * np.float32(1 / 0.4), 1)
        wins = inside > over
        np.copyto(map_x[part], np.float32(cx) - np.float32(_INVERSION * r) * dx, where=wins)
        np.copyto(map_y[part], np.float32(cy) - np.float32(_INVERSION * r) * dy, where=wins)
        rim = np.minimum(away, 1)
        np.copyto(light[part], 1 - rim * rim * rim * (np.float32(0.18) - np.float32(0.27) * dy), where=wins)
        np.copyto(over, inside, where=wins)
    scene = cv2.blur(small, (2 * (columns // 60) + 1,) * 2)
    lensed = cv2.remap(scene, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    lensed = np.clip(cv2.blur(lensed, (3, 3)) * light[..., None], 0, 255).astype(np.uint8)
    lensed = cv2.resize(lensed, (width, height), interpolation=cv2.INTER_LINEAR)
    return mixed(pixels, lensed, cv2.resize(cover, (width, height), interpolation=cv2.INTER_LINEAR))


def _drops(share: float, rng: np.random.Generator) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n 2"]]:
    """Radii as shares of the width and places as shares of the picture, until that share of the view is covered.

    Places are uniform, so n disks of a mean area a leave exp(-n a) of the view free; the last disk is grown to fit.
    """
    size, x, y = rng.random((3, _NUM_DROPS))
    radius = 0.008 + 0.034 * size**3
    area = np.pi * radius**2 / 0.5625
    wanted = -np.log(1 - min(share, 0.99))
    before = np.concatenate([[0], np.cumsum(area)[:-1]])
    num = max(1, int((before < wanted).sum()))
    radius[num - 1] *= np.sqrt(min((wanted - before[num - 1]) / area[num - 1], 1.0))
    return radius[:num], np.stack([x, y], axis=1)[:num]


CAMERA_LENS_DIRT = SensorFault(
    *("camera_lens_dirt", "view", "camera", "share of view", (0.05, 0.1, 0.2, 0.35, 0.5)),
    effect=OnPixels(lens_dirt),
    worst=1.0,
)
CAMERA_OCCLUSION = SensorFault(
    *("camera_occlusion", "view", "camera", "share of view", (0.05, 0.1, 0.2, 0.35, 0.5)),
    effect=OnPixels(covered),
    worst=1.0,
)
CAMERA_LENS_DROPS = SensorFault(
    "camera_lens_drops", "view", "camera", "share of view", (0.03, 0.07, 0.14, 0.22, 0.32), effect=OnPixels(lens_drops)
)
LENS_FAULTS = (CAMERA_LENS_DIRT, CAMERA_OCCLUSION, CAMERA_LENS_DROPS)
