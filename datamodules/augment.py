"""Augmentation folded into calibration: one 3x3 on ``image_from_camera``, one 4x4 on every ``ego_from_x``.

Draws are keyed by (seed, epoch, token) through a hash: no global random state, no dependence on workers or order.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from sensors.boxes import Boxes
from sensors.transforms import wrap_angle


def keyed_generator(seed: int, epoch: int, token: str, purpose: str) -> np.random.Generator:
    """The random generator of one purpose for one sample in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{token}/{purpose}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


@dataclass(frozen=True)
class Crop:
    """Cut a window out of a picture, resize it, perhaps mirror it.

    Attributes:
        left_px, top_px, width_px, height_px: the window, in pixels of the picture.
        size_px: height and width of the result.
        mirrored: left and right exchanged, after resizing.
    """

    left_px: int
    top_px: int
    width_px: int
    height_px: int
    size_px: tuple[int, int]
    mirrored: bool = False

    @property
    def cropped_from_image(self) -> Float64[np.ndarray, "3 3"]:
        """Homogeneous map of pixel positions, to be put in front of ``image_from_camera``.

        Pixel centres are at whole numbers, so a resize by s sends u to s (u + 1/2) - 1/2.
        """
        height_px, width_px = self.size_px
        sx, sy = width_px / self.width_px, height_px / self.height_px
        shift_x = sx * (0.5 - self.left_px) - 0.5
        shift_y = sy * (0.5 - self.top_px) - 0.5
        matrix = np.array([[sx, 0.0, shift_x], [0.0, sy, shift_y], [0.0, 0.0, 1.0]])
        if self.mirrored:
            matrix = np.array([[-1.0, 0.0, width_px - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ matrix
        return matrix

    def apply(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "ch cw 3"]:
        """The pixels of the window: area-averaged when it shrinks, linear when it grows."""
        height_px, width_px = self.size_px
        window = pixels[self.top_px : self.top_px + self.height_px, self.left_px : self.left_px + self.width_px]
        if (self.height_px, self.width_px) != self.size_px:
            shrinks = width_px < self.width_px
            window = cv2.resize(
                window, (width_px, height_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            )
        return window[:, ::-1] if self.mirrored else window


@dataclass(frozen=True)
class ImageAugmentation:
    """How the window of a training picture is drawn.

    Attributes:
        zoom: range of the factor beyond the plain fit; at least 1, so that no pixel must be invented.
        lift: largest upward shift of the window, as a share of the cropped sky.
        mirror_probability: of exchanging left and right (the geometry stays right: it is in the matrix).
        tint: largest relative change of the brightness of red, green and blue, each for itself.
        shade: largest relative change of the brightness of all three together.
    """

    zoom: Sequence[float] = (1.0, 1.1)
    lift: float = 0.1
    mirror_probability: float = 0.0
    tint: float = 0.0
    shade: float = 0.0

    def __post_init__(self):
        if not 1.0 <= self.zoom[0] <= self.zoom[1]:
            raise ValueError(f"expected zoom as a range of factors of at least 1, got {tuple(self.zoom)}")
        if not (0.0 <= self.lift <= 1.0 and 0.0 <= self.mirror_probability <= 1.0):
            raise ValueError(
                f"expected lift and mirror_probability in [0, 1], got {self.lift} and {self.mirror_probability}"
            )
        if not (0.0 <= self.tint < 1.0 and 0.0 <= self.shade < 1.0):
            raise ValueError(f"expected tint and shade in [0, 1), got {self.tint} and {self.shade}")

    def draw_gains(self, generator: np.random.Generator) -> Float64[np.ndarray, "3"]:
        """Random factors on red, green and blue."""
        tint, shade = generator.uniform(-1, 1, size=3), generator.uniform(-1, 1)
        return (1 + self.shade * shade) * (1 + self.tint * tint)

    def draw(self, image_px: tuple[int, int], size_px: tuple[int, int], generator: np.random.Generator) -> Crop:
        """A random window; ``image_px`` and ``size_px`` are (height, width)."""
        zoom, across, up, mirror = generator.uniform(size=4)
        plain = fitting_crop(image_px, size_px, self.zoom[0] + zoom * (self.zoom[1] - self.zoom[0]))
        left_px = int(across * (image_px[1] - plain.width_px + 1))
        top_px = plain.top_px - int(up * self.lift * plain.top_px)
        return replace(plain, left_px=left_px, top_px=top_px, mirrored=bool(mirror < self.mirror_probability))


def recoloured(pixels: UInt8[np.ndarray, "h w 3"], gains: Float64[np.ndarray, "3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with each colour multiplied; what is brighter than white stays white."""
    table = np.clip(np.arange(256)[:, None] * gains, 0, 255).round().astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(pixels), table[None])


def fitting_crop(image_px: tuple[int, int], size_px: tuple[int, int], zoom: float = 1.0) -> Crop:
    """The largest window of the wanted shape: the whole width at the bottom, the sky cut off.

    Args:
        image_px, size_px: (height, width) of the picture and of the result.
        zoom: how much narrower than that the window is.
    """
    scale = zoom * max(size_px[0] / image_px[0], size_px[1] / image_px[1])
    height_px = min(max(round(size_px[0] / scale), 1), image_px[0])
    width_px = min(max(round(size_px[1] / scale), 1), image_px[1])
    return Crop((image_px[1] - width_px) // 2, image_px[0] - height_px, width_px, height_px, size_px)


@dataclass(frozen=True)
class BevAugmentation:
    """How the ground plane of a training sample is turned, mirrored and scaled.

    Attributes:
        yaw_rad: largest rotation about +z, either way.
        scale: range of the factor on all lengths and speeds.
        flip_x_probability: of exchanging front and rear.
        flip_y_probability: of exchanging left and right.
    """

    yaw_rad: float = 0.3927
    scale: Sequence[float] = (0.95, 1.05)
    flip_x_probability: float = 0.5
    flip_y_probability: float = 0.5

    def __post_init__(self):
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected scale as a range of positive factors, got {tuple(self.scale)}")

    def draw(self, generator: np.random.Generator) -> Float64[np.ndarray, "4 4"]:
        """A random ``aug_from_ego``: mirror, then turn, then scale."""
        yaw, size, flip_x, flip_y = generator.uniform(size=4)
        yaw_rad = (2 * yaw - 1) * self.yaw_rad
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        mirror = np.diag(
            [
                -1.0 if flip_x < self.flip_x_probability else 1.0,
                -1.0 if flip_y < self.flip_y_probability else 1.0,
                1.0,
            ]
        )
        aug_from_ego = np.eye(4)
        scale = self.scale[0] + size * (self.scale[1] - self.scale[0])
        aug_from_ego[:3, :3] = scale * np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ mirror
        return aug_from_ego


def inverse_of(aug_from_ego: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """``ego_from_aug``: for a scaled orthogonal matrix the transpose over the squared scale."""
    linear = aug_from_ego[:3, :3]
    ego_from_aug = np.eye(4)
    ego_from_aug[:3, :3] = linear.T / (linear[0] @ linear[0])
    return ego_from_aug


def augmented_boxes(boxes: Boxes, aug_from_ego: Float64[np.ndarray, "4 4"]) -> Boxes:
    """Boxes in the augmented ego frame: centres, sizes, headings and velocities follow the points."""
    linear = aug_from_ego[:3, :3]
    scale = float(np.cbrt(abs(np.linalg.det(linear))))
    flat = linear[:2, :2]
    heading = np.stack([np.cos(boxes.yaw_rad), np.sin(boxes.yaw_rad)], axis=1) @ flat.T
    return replace(
        boxes,
        center_m=(boxes.center_m @ linear.T).astype(np.float32),
        size_lwh_m=(boxes.size_lwh_m * scale).astype(np.float32),
        yaw_rad=wrap_angle(np.arctan2(heading[:, 1], heading[:, 0])).astype(np.float32),
        velocity_mps=(boxes.velocity_mps @ flat.T).astype(np.float32),
    )
