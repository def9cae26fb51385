"""Motion, defocus and zoom blur: every kernel is continuous down to no blur at all."""

import cv2
import numpy as np
from jaxtyping import Float, Float32

from sensors.faults.camera_pixels import OnPixels, Pixels, width_share
from sensors.faults.protocol import SensorFault

_LONGEST_DIRECT_PATH_PX = 8.0


def motion_blur(pixels: Pixels, length_px: float, rng: np.random.Generator) -> Pixels:
    """The picture averaged along a straight path of ``length_px`` at an angle of U(-45, 45) deg to the rows."""
    angle = np.deg2rad(rng.uniform(-45, 45))
    return blurred_along(pixels, length_px * width_share(pixels), angle)


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


def defocus(pixels: Pixels, radius_px: float, rng: np.random.Generator) -> Pixels:
    """Every point becomes a disk; wide disks are applied to a reduced picture, which shows no more detail anyway."""
    radius_px = radius_px * width_share(pixels)
    step = max(1, int(radius_px / 1.5))
    height, width = pixels.shape[:2]
    small = pixels
    if step > 1:
        small = cv2.resize(small, (max(1, width // step), max(1, height // step)), interpolation=cv2.INTER_AREA)
    small = cv2.filter2D(small, -1, _disk_kernel(radius_px / step), borderType=cv2.BORDER_REFLECT_101)
    if step > 1:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    return small


def _disk_kernel(radius_px: float) -> Float32[np.ndarray, "k k"]:
    """A disk, filled evenly by a sunflower of points."""
    index = np.arange(256) + 0.5
    distance, angle = radius_px * np.sqrt(index / 256), index * np.pi * (3 - np.sqrt(5))
    return _kernel_through(np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1))


def zoom_blur(pixels: Pixels, growth: float, rng: np.random.Generator) -> Pixels:
    """The mean of enlargements by 1 to 1 + ``growth`` about a point near the middle: fast forward motion.

    Each doubling adds the picture to itself, enlarged by the range so far, so that eight pictures make 128 steps.
    """
    height, width = pixels.shape[:2]
    centre = np.array([width - 1, height - 1]) * rng.uniform(0.45, 0.55, 2)
    num_doublings = max(1, int(np.ceil(np.log2(growth * width / 2 / 1.5 + 1e-6))))
    step = np.log1p(growth) / (2**num_doublings - 1)
    blurred = pixels
    for doubling in range(num_doublings):
        scale = np.exp(-step * 2**doubling)
        matrix = np.array([[scale, 0, centre[0] * (1 - scale)], [0, scale, centre[1] * (1 - scale)]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        larger = cv2.warpAffine(blurred, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        blurred = cv2.addWeighted(blurred, 0.5, larger, 0.5, 0)
    return blurred


CAMERA_MOTION_BLUR = SensorFault(
    "camera_motion_blur", "blur", "camera", "px of 1600", (6.0, 12.0, 20.0, 32.0, 48.0), effect=OnPixels(motion_blur)
)
CAMERA_DEFOCUS = SensorFault(
    "camera_defocus", "blur", "camera", "px of 1600, radius", (2.0, 3.5, 5.0, 8.0, 12.0), effect=OnPixels(defocus)
)
CAMERA_ZOOM_BLUR = SensorFault(
    "camera_zoom_blur", "blur", "camera", "growth", (0.02, 0.04, 0.08, 0.14, 0.22), effect=OnPixels(zoom_blur)
)
BLUR_FAULTS = (CAMERA_MOTION_BLUR, CAMERA_DEFOCUS, CAMERA_ZOOM_BLUR)
