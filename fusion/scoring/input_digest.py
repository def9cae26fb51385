"""One short word for everything that a model was given."""

import zlib
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import Batch, PointBatch
from sensors.frame import Frame
from sensors.transforms import RigidTransform


class InputDigest:
    """One short word for everything that a model was given, whatever the batch size.

    Two evaluations with equal words had equal inputs: how a fault that changes nothing is found out.
    """

    def __init__(self):
        self._checksums: dict[str, int] = {}

    def update(self, batch: Batch) -> None:
        """Go on with the samples of a batch (on the host)."""
        self._add("health", batch.health)
        self._add("thumbnails", batch.thumbnails)
        self._add("channel_present", batch.channel_present)
        if batch.camera is not None:
            for name in ("images", "image_from_camera", "ego_from_camera"):
                self._add(name, getattr(batch.camera, name))
        for name, points in (("lidar", batch.lidar), ("radar", batch.radar)):
            if points is not None:
                self._add_points(name, points)

    def _add_points(self, name: str, points: PointBatch) -> None:
        self._add(name, points.points)
        self._add(f"{name}_counts", torch.bincount(points.sample, minlength=len(points.present)))

    def _add(self, name: str, values: Tensor) -> None:
        encoded = values.contiguous().numpy().reshape(-1).view(np.uint8)
        self._checksums[name] = zlib.crc32(encoded, self._checksums.get(name, 0))

    @property
    def word(self) -> str:
        """Eight hexadecimal digits for each kind of input, in a fixed order."""
        return "".join(f"{self._checksums[name]:08x}" for name in sorted(self._checksums))


class FrameDigest:
    """The same for frames in numpy: every array and pose of every sensor, in order."""

    def __init__(self):
        self._checksum = 0

    def update(self, frame: Frame) -> None:
        """Go on with a frame."""
        sweeps = [("LIDAR", sweep) for sweep in frame.lidar]
        sweeps += [(channel, sweep) for channel in sorted(frame.radars) for sweep in frame.radars[channel]]
        for channel, measured in [(name, frame.cameras[name]) for name in sorted(frame.cameras)] + sweeps:
            self._add(channel.encode())
            for column in fields(measured):
                value = getattr(measured, column.name)
                value = value.matrix if isinstance(value, RigidTransform) else np.asarray(value)
                self._add(np.ascontiguousarray(value).reshape(-1).view(np.uint8))

    def _add(self, content) -> None:
        self._checksum = zlib.crc32(content, self._checksum)

    @property
    def word(self) -> str:
        """Eight hexadecimal digits."""
        return f"{self._checksum:08x}"
