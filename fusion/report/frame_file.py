"""A frame reduced to what a picture shows, as one ``.npz`` without pickle."""

import io
import json
import os
import tempfile
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np

from sensors.boxes import Boxes
from sensors.camera import CameraImage, decode_pixels, encode_jpeg
from sensors.frame import Frame
from sensors.lidar import LidarSweep
from sensors.radar import RadarSweep
from sensors.rig import CAMERAS, RADARS
from sensors.transforms import RigidTransform

IMAGE_WIDTH_PX = 640
MAX_LIDAR_POINTS = 30_000


def save_frame(path: Path, frame: Frame) -> None:
    """Write the newest sweeps (LiDAR thinned to 30,000 points), smaller pictures, labels and poses."""
    arrays = {"pose": frame.global_from_ego.matrix}
    for channel, image in frame.cameras.items():
        small = _smaller(image)
        arrays[f"{channel}/jpeg"] = np.frombuffer(encode_jpeg(small.pixels), np.uint8)
        arrays[f"{channel}/intrinsics"] = small.image_from_camera
        arrays[f"{channel}/pose"] = small.ego_from_camera.matrix
    for sweep in frame.lidar[:1]:
        kept = sweep.select(np.arange(0, len(sweep), 1 + len(sweep) // MAX_LIDAR_POINTS))
        arrays["lidar/rows"] = np.concatenate([kept.xyz_m, kept.intensity[:, None]], axis=1).astype(np.float32)
        arrays["lidar/ring"] = kept.ring
        arrays["lidar/pose"] = sweep.ego_from_lidar.matrix
    for channel, sweeps in frame.radars.items():
        arrays[f"{channel}/pose"] = sweeps[0].ego_from_radar.matrix
        for field in fields(RadarSweep):
            if field.name not in ("lag_s", "ego_from_radar"):
                arrays[f"{channel}/{field.name}"] = getattr(sweeps[0], field.name)
    if frame.boxes is not None:
        arrays |= {f"boxes/{field.name}": getattr(frame.boxes, field.name) for field in fields(Boxes)}
    facts = {
        "token": frame.token,
        "scene": frame.scene,
        "timestamp_us": frame.timestamp_us,
        "ego_speed_mps": frame.ego_speed_mps,
        "conditions": sorted(frame.conditions),
    }
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    _write_npz(path, arrays)


def load_frame(path: Path) -> Frame:
    """The reduced frame; sweeps have lag 0.

    Raises:
        ValueError: the file is no frame of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"expected a kept frame in {path}, got a broken file ({error}); evaluate again") from None
    facts = json.loads(arrays["facts"].tobytes())
    boxes = {field.name: arrays.get(f"boxes/{field.name}") for field in fields(Boxes)}
    return Frame(
        **{**facts, "conditions": frozenset(facts["conditions"])},
        global_from_ego=_transform(arrays["pose"]),
        cameras={channel: _image(arrays, channel) for channel in CAMERAS if f"{channel}/jpeg" in arrays},
        lidar=(_lidar(arrays),) if "lidar/rows" in arrays else (),
        radars={channel: (_radar(arrays, channel),) for channel in RADARS if f"{channel}/pose" in arrays},
        boxes=None if boxes["label"] is None else Boxes(**boxes),
    )


def _smaller(image: CameraImage) -> CameraImage:
    """At most IMAGE_WIDTH_PX wide; the intrinsics follow, with pixel centres at whole numbers."""
    height, width = image.pixels.shape[:2]
    scale = IMAGE_WIDTH_PX / width
    if scale >= 1:
        return image
    size = (IMAGE_WIDTH_PX, round(height * scale))
    pixels = cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA)
    resize = np.diag([size[0] / width, size[1] / height, 1.0])
    resize[:2, 2] = (np.array([resize[0, 0], resize[1, 1]]) - 1) / 2
    return replace(image, pixels=pixels, image_from_camera=resize @ image.image_from_camera)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(buffer.getvalue())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _transform(matrix: np.ndarray) -> RigidTransform:
    return RigidTransform(matrix[:3, :3], matrix[:3, 3])


def _image(arrays: dict[str, np.ndarray], channel: str) -> CameraImage:
    pixels = decode_pixels(arrays[f"{channel}/jpeg"].tobytes(), channel)
    return CameraImage(pixels, arrays[f"{channel}/intrinsics"], _transform(arrays[f"{channel}/pose"]), 0.0)


def _lidar(arrays: dict[str, np.ndarray]) -> LidarSweep:
    rows = arrays["lidar/rows"]
    return LidarSweep(rows[:, :3], rows[:, 3], arrays["lidar/ring"], 0.0, _transform(arrays["lidar/pose"]))


def _radar(arrays: dict[str, np.ndarray], channel: str) -> RadarSweep:
    columns = {
        field.name: arrays[f"{channel}/{field.name}"]
        for field in fields(RadarSweep)
        if field.name not in ("lag_s", "ego_from_radar")
    }
    return RadarSweep(**columns, lag_s=0.0, ego_from_radar=_transform(arrays[f"{channel}/pose"]))
