"""How far each part of a picture is away, from the LiDAR where it saw something, and fog by that distance."""

from dataclasses import replace

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from sensors.camera import CameraImage, project
from sensors.faults.camera_pixels import blended
from sensors.frame import Frame
from sensors.lidar import LidarSweep

SKY_M = 300.0
_DEPTH_COLUMNS = 100
_HIGHEST_BEAM_RAD = np.deg2rad(10.0)
_GUIDE_CELLS, _GUIDE_SMOOTHNESS = 13, 0.01


def camera_fog(image: CameraImage, level: float, rng: np.random.Generator, frame: Frame) -> CameraImage:
    """Koschmieder: what is left of the scene is exp(-alpha d), the rest is airlight.

    The airlight is the picture's own brightest tenth, greyed, so that a night's fog is dark. The density varies in
    space by a fifth.
    """
    height, width = image.pixels.shape[:2]
    coarse_m = coarse_depth_m(image, frame.lidar)
    density = 1 + 0.2 * cv2.resize(
        rng.standard_normal((3, 5), dtype=np.float32), coarse_m.shape[::-1], interpolation=cv2.INTER_CUBIC
    )
    left = np.exp(-level * np.clip(density, 0.3, 2) * coarse_m).astype(np.float32)
    base, slope = _along_edges(left, image.pixels)
    bright = np.quantile(image.pixels[:: max(1, height // 45), :: max(1, width // 80)], 0.9, axis=(0, 1))
    airlight = 0.3 * bright + 0.7 * bright.mean()
    return replace(image, pixels=blended(image.pixels, airlight, base, slope))


def _along_edges(
    coarse: Float32[np.ndarray, "ch cw"], pixels: UInt8[np.ndarray, "h w 3"]
) -> tuple[Float32[np.ndarray, "ch cw"], Float32[np.ndarray, "ch cw"]]:
    """Base and slope of a guided filter (He & Sun, Fast guided filter, 2015): ``base + slope * brightness``."""
    small = cv2.resize(pixels, coarse.shape[::-1], interpolation=cv2.INTER_AREA)
    guide = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    def mean(values):
        return cv2.blur(values, (_GUIDE_CELLS, _GUIDE_CELLS))

    covariance = mean(guide * coarse) - mean(guide) * mean(coarse)
    slope = covariance / (mean(guide * guide) - mean(guide) ** 2 + _GUIDE_SMOOTHNESS)
    return mean(mean(coarse) - slope * mean(guide)), mean(slope)


def coarse_depth_m(image: CameraImage, lidar: tuple[LidarSweep, ...]) -> Float32[np.ndarray, "ch cw"]:
    """Distance along each ray on a coarse raster of the picture: the LiDAR's where it saw something near there.

    Elsewhere the flat ground at z = 0 of the ego frame, and above the horizon the sky. Above the LiDAR's highest beam
    a column goes on as that beam saw it: walls rise, sky stays sky.
    """
    height, width = image.pixels.shape[:2]
    columns = min(_DEPTH_COLUMNS, width)
    rows = max(1, round(height * columns / width))
    # Centres of the raster's cells in pixels; pixel centres are at whole numbers.
    u, v = ((np.arange(columns) + 0.5) * width / columns - 0.5, (np.arange(rows) + 0.5) * height / rows - 0.5)
    grid = np.stack([*np.meshgrid(u, v), np.ones((rows, columns))], axis=-1)
    rays = grid @ np.linalg.inv(image.image_from_camera).T @ image.ego_from_camera.rotation.T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    down = np.maximum(-rays[..., 2], 1e-6)
    depth = np.minimum(max(float(image.ego_from_camera.translation_m[2]), 0.5) / down, SKY_M).astype(np.float32)
    if not lidar or not len(lidar[0]):
        return depth
    xyz_m = (image.ego_from_camera.inverse() @ lidar[0].ego_from_lidar).points(lidar[0].xyz_m)
    xyz_m = xyz_m[np.flatnonzero(xyz_m[:, 2] > 0.5)]
    pixel, _ = project(xyz_m, image.image_from_camera)
    ix, iy = np.floor((pixel + 0.5) * (columns / width)).astype(np.int64).T
    seen = (ix >= 0) & (ix < columns) & (iy >= 0) & (iy < rows)
    cell = iy[seen] * columns + ix[seen]
    count = np.bincount(cell, minlength=rows * columns).reshape(rows, columns).astype(np.float32)
    nearness = np.bincount(cell, 1 / np.linalg.norm(xyz_m[seen], axis=1), rows * columns)
    nearness = nearness.reshape(rows, columns).astype(np.float32)
    # The beams leave gaps between their rows: spread what they saw, most of all upwards and downwards.
    weight = cv2.GaussianBlur(count, (0, 0), sigmaX=1.0, sigmaY=2.0)
    spread = cv2.GaussianBlur(nearness, (0, 0), sigmaX=1.0, sigmaY=2.0)
    trust = np.clip(weight / 0.05, 0, 1)
    depth = 1 / (trust * spread / np.maximum(weight, 1e-6) + (1 - trust) / depth)
    above = np.arcsin(np.clip(rays[..., 2], -1, 1)) > _HIGHEST_BEAM_RAD
    highest = np.clip(above.sum(axis=0), 0, rows - 1)
    depth = np.where(above, depth[highest, np.arange(columns)][None], depth)
    return cv2.GaussianBlur(depth, (0, 0), 1.0)
