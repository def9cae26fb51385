"""One camera picture with its calibration, and how it is read from and written to disk."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from sensors.transforms import RigidTransform


@dataclass(frozen=True, eq=False)
class CameraImage:
    """A picture of one camera.

    Attributes:
        pixels: RGB.
        image_from_camera: pinhole matrix of *these* pixels: after any resize, crop or flip. Pixel centres are at whole
            numbers, as in nuScenes.
        ego_from_camera: keyframe ego frame from the camera at its own exposure time, chained through global.
        lag_s: keyframe reference time minus exposure time; positive for an older picture.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    image_from_camera: Float[np.ndarray, "3 3"]
    ego_from_camera: RigidTransform
    lag_s: float


def read_pixels(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a picture file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a whole picture.
    """
    return decode_pixels(path.read_bytes(), str(path))


def decode_pixels(encoded: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an encoded picture; ``name`` is for the error message.

    OpenCV fills the missing rows of a truncated JPEG with grey and only warns, so the end marker is looked for first.
    """
    truncated_jpeg = encoded[:2] == b"\xff\xd8" and b"\xff\xd9" not in encoded[-32:]
    decoded = None
    if encoded and not truncated_jpeg:
        decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        what = "a JPEG that ends too early" if truncated_jpeg else f"{len(encoded)} bytes that are no picture"
        raise ValueError(f"expected a whole picture in {name}, got {what}; copy the file again")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def encode_jpeg(pixels: UInt8[np.ndarray, "h w 3"], quality: int = 90) -> bytes:
    """JPEG bytes of RGB pixels; the same pixels give the same bytes."""
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV could not encode a JPEG from uint8 RGB"
    return encoded.tobytes()


def project(
    xyz_m: Float[np.ndarray, "n 3"], image_from_camera: Float[np.ndarray, "3 3"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"]]:
    """Pixel positions and depths of points in the camera frame.

    Points at or behind the camera get the pixel NaN; their depth stays as it is.
    """
    depth_m = xyz_m[:, 2]
    homogeneous = xyz_m.astype(np.float64) @ image_from_camera.T
    ahead = depth_m > 1e-6
    divisor = np.where(ahead, homogeneous[:, 2], np.nan)
    return homogeneous[:, :2] / divisor[:, None], depth_m
