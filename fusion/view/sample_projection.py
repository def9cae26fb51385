"""LiDAR and radar points in a camera's picture, coloured by depth."""

from dataclasses import replace

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from sensors.camera import CameraImage, project
from sensors.frame import Frame

COLOUR_MAP = "turbo_r"
NEAR_M, FAR_M = 3.0, 60.0
"""The colours' ends: red is near, blue is far; by logarithm, since near things differ more."""
_MIN_DEPTH_M = 1.0
_GREY_LEVEL = 0.75


def points_in_view(
    xyz_ego_m: Float[np.ndarray, "n 3"], image: CameraImage
) -> tuple[Float[np.ndarray, "k 2"], Float[np.ndarray, "k"]]:
    """Pixels and depths of the points inside the picture and at least 1 m ahead; the farthest first.

    Args:
        xyz_ego_m: in the keyframe's ego frame.
    """
    height, width = image.pixels.shape[:2]
    pixel, depth_m = project(image.ego_from_camera.inverse().points(xyz_ego_m), image.image_from_camera)
    ahead = depth_m >= _MIN_DEPTH_M
    pixel, depth_m = pixel[ahead], depth_m[ahead]
    inside = ((pixel >= -0.5) & (pixel < [width - 0.5, height - 0.5])).all(axis=1)
    pixel, depth_m = pixel[inside], depth_m[inside]
    order = np.argsort(-depth_m, kind="stable")
    return pixel[order], depth_m[order]


def depth_colours(depth_m: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k 4"]:
    """RGBA of each depth, from red (3 m and less) to blue (60 m and more)."""
    share = np.log(np.maximum(depth_m.astype(np.float64), 1e-3) / NEAR_M) / np.log(FAR_M / NEAR_M)
    return matplotlib.colormaps[COLOUR_MAP](np.clip(share, 0, 1))


def draw_points(axes: Axes, frame: Frame, image: CameraImage, scale: float = 1.0) -> None:
    """LiDAR as dots, radar as larger diamonds with a dark edge, over a picture that ``draw_view`` has drawn.

    Args:
        scale: of the dots; 1 suits a tile 480 pixels wide.
    """
    if frame.lidar:
        pixel, depth_m = points_in_view(frame.lidar[0].to_ego(), image)
        axes.scatter(*pixel.T, s=2.0 * scale, c=depth_colours(depth_m), linewidths=0, zorder=2)
    for sweeps in frame.radars.values():
        pixel, depth_m = points_in_view(sweeps[0].to_ego()[0], image)
        style = {"marker": "D", "edgecolors": "black", "linewidths": 0.8, "zorder": 3}
        axes.scatter(*pixel.T, s=34.0 * scale, c=depth_colours(depth_m), **style)


def pale_image(image: CameraImage) -> CameraImage:
    """The same picture in dark grey, on which coloured points are seen."""
    grey = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY)
    pixels = np.repeat((grey * _GREY_LEVEL).astype(np.uint8)[..., None], 3, axis=2)
    return replace(image, pixels=pixels)
