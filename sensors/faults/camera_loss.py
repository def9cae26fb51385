"""What coding, reading out and sending a picture lose."""

import cv2
import numpy as np
from jaxtyping import Float

from sensors.faults.camera_pixels import OnPixels, Pixels, tone, width_share
from sensors.faults.protocol import SensorFault
from sensors.faults.published_imagecorruptions import recoded

_LONGEST_BAND, _PACKETS_PER_SLICE, _SLICES = 0.03, 6, 56


def jpeg(pixels: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """JPEG at a low quality; its blocks are 8 pixels at any resolution."""
    return recoded(pixels, round(quality))


def pixelated(pixels: Pixels, block_px: float, rng: np.random.Generator) -> Pixels:
    """Every block has one colour, its mean."""
    height, width = pixels.shape[:2]
    block = max(1.0, 1 + (block_px - 1) * width_share(pixels))
    size = (max(1, round(width / block)), max(1, round(height / block)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def quantised(pixels: Pixels, bits: float, rng: np.random.Generator) -> Pixels:
    """2^bits grey levels per colour, from black to white."""
    steps = 2.0**bits - 1
    return tone(pixels, np.rint(np.arange(256) / 255 * steps) / steps * 255)


def rows_lost(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Bands of rows that the read-out lost: black, or the last row before again and again."""
    height = len(pixels)
    harmed = pixels.copy()
    middle, length, black = rng.random((3, 400))
    num_lost, lost = 0, np.zeros(height, bool)
    for k in range(len(middle)):
        band = _band(middle[k], length[k], height)
        wanted = round(share * height) - num_lost
        rows = band[~lost[band]][: max(wanted, 0)]
        harmed[rows] = 0 if black[k] < 0.5 else pixels[max(band[0] - 1, 0)]
        lost[rows] = True
        num_lost += len(rows)
        if num_lost >= round(share * height):
            break
    return harmed


def _band(middle: float, length: float, height: int) -> np.ndarray:
    """Whole rows about a place, both given as draws from [0, 1)."""
    rows = max(1, round(height * _LONGEST_BAND * length**2))
    top = int(middle * height)
    return np.arange(top, min(top + rows, height))


def packets_lost(pixels: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """Pieces of slices of 16 rows of 900 that never came: mid grey, or smeared down from the row above."""
    height, width = pixels.shape[:2]
    harmed = pixels.copy()
    lost, grey = rng.random((2, _SLICES, _PACKETS_PER_SLICE))
    cuts: Float[np.ndarray, "s p"] = np.sort(rng.random((_SLICES, _PACKETS_PER_SLICE - 1)), axis=1)
    rows = np.linspace(0, height, _SLICES + 1).round().astype(int)
    columns = np.pad((cuts * width).round().astype(int), ((0, 0), (1, 1)), constant_values=((0, 0), (0, width)))
    for k, packet in np.argwhere(lost < share):
        part = (slice(rows[k], rows[k + 1]), slice(columns[k, packet], columns[k, packet + 1]))
        above = pixels[max(rows[k] - 1, 0), part[1]]
        harmed[part] = 128 if grey[k, packet] < 0.4 else above
    return harmed


CAMERA_JPEG = SensorFault(
    "camera_jpeg",
    "coding",
    "camera",
    "quality",
    (30.0, 20.0, 12.0, 8.0, 5.0),
    effect=OnPixels(jpeg),
    clean=95.0,
    worst=1.0,
)
CAMERA_PIXELATE = SensorFault(
    *("camera_pixelate", "coding", "camera", "px of 1600", (3.0, 5.0, 8.0, 12.0, 18.0)),
    effect=OnPixels(pixelated),
    clean=1.0,
)
CAMERA_COLOR_QUANTISATION = SensorFault(
    *("camera_color_quantisation", "coding", "camera", "bits", (6.0, 5.0, 4.0, 3.0, 2.0)),
    effect=OnPixels(quantised),
    clean=8.0,
    worst=1.0,
)
CAMERA_ROW_LOSS = SensorFault(
    *("camera_row_loss", "coding", "camera", "share of rows", (0.05, 0.1, 0.2, 0.35, 0.5)),
    effect=OnPixels(rows_lost),
    worst=1.0,
)
CAMERA_PACKET_LOSS = SensorFault(
    *("camera_packet_loss", "coding", "camera", "share of packets", (0.03, 0.08, 0.16, 0.3, 0.5)),
    effect=OnPixels(packets_lost),
    worst=1.0,
)
LOSS_FAULTS = (CAMERA_JPEG, CAMERA_PIXELATE, CAMERA_COLOR_QUANTISATION, CAMERA_ROW_LOSS, CAMERA_PACKET_LOSS)
