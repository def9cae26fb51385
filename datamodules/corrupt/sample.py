"""One keyframe of a copy: its measurements through the faults, and what of them is new on disk and in the tables."""

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from datamodules.corrupt.files import link, put
from datamodules.corrupt.request import CopyRequest
from datamodules.corrupt.source import open_source
from sensors.camera import CameraImage
from sensors.faults.protocol import measurement_of
from sensors.frame import Frame, Single
from sensors.lidar import LidarSweep, encode_lidar
from sensors.radar import encode_radar
from sensors.rig import CHANNELS, LIDAR, RADARS
from sensors.transforms import RigidTransform

_POSES = ("ego_from_camera", "ego_from_lidar", "ego_from_radar")


class SampleCopier:
    """Writes the files of single keyframes.

    A measurement belongs to the keyframe that it leads to. So every file is harmed once, with the draws that an
    evaluation makes for it as the sweep of that place.

    Attributes:
        num_lacking: sweeps that the tables name and the disk lacks, where it holds keyframes alone.
    """

    def __init__(self, request: CopyRequest, out: Path):
        self.request, self.out = request, out
        self.scenario = request.corruptor()
        self.frames, self._chains, self.num_lacking = open_source(request)

    def chains(self, i: int) -> dict[str, list[int]]:
        """Rows of the measurements that belong to keyframe ``i``, by channel, newest first."""
        return self._chains[i]

    def harmed(self, i: int) -> tuple[Frame, Frame, tuple[str, ...]]:
        """Keyframe ``i`` with its own sweeps as read, the same after the faults, and the names of what was done.

        Raises:
            ValueError: a fault cannot be applied, or changes what has no place in a copy.
        """
        chains = self.chains(i)
        num_radar = max(len(chains[channel]) for channel in RADARS)
        frames = self.frames.with_sweeps(len(chains[LIDAR]), num_radar)
        frame = frames[i]
        own = {channel: sweeps[: len(chains[channel])] for channel, sweeps in frame.radars.items()}
        frame = replace(frame, radars=own)
        harmed, names = self.scenario.apply(frame, frames.history(i))
        if not np.array_equal(harmed.global_from_ego.matrix, frame.global_from_ego.matrix):
            raise ValueError(
                f"expected faults that leave the ego pose of sample {frame.token} as it is, got {', '.join(names)}; "
                "a copy keeps the labels and the pose: apply this one in the loader instead"
            )
        return frame, harmed, names

    def write(self, i: int) -> dict:
        """Write the files of keyframe ``i``; says what is in them: plain values."""
        clean, harmed, names = self.harmed(i)
        record = {"token": clean.token, "faults": list(names), "unchanged": 0, "written": {}, "lost": []}
        record |= {"changed": {}, "lost_channels": _lost_channels(clean, harmed)}
        for channel, chain in self.chains(i).items():
            before, after = _singles(clean, channel), _singles(harmed, channel)
            if len(after) > len(chain):
                raise ValueError(
                    f"expected at most {len(chain)} sweeps of {channel} in sample {clean.token}, got {len(after)} from "
                    f"{', '.join(names)}; a copy has no place for more"
                )
            for place, row in enumerate(chain):
                pair = (before[place], after[place] if place < len(after) else None) if before else None
                self._write_one(row, pair, record, clean)
        return record

    def _write_one(self, row: int, pair: "tuple[Single, Single | None] | None", record: dict, frame: Frame) -> None:
        """One file. ``pair`` is the measurement before and after; None for one that was not read."""
        name = self.frames.index.measurements.filename[row].decode()
        harmed = pair[1] if pair else None
        if pair and harmed is None:
            if self.request.lost == "missing":
                record["lost"].append(name)
                return
            harmed = _emptied(pair[0])
        if pair is None or _same_data(pair[0], harmed):
            link(self.out, name, self.frames.root / name)
            record["unchanged"] += 1
        else:
            content = self._encoded(harmed)
            put(self.out, name, content)
            record["written"][name] = len(content)
        change = self._table_change(row, pair, frame) if pair and pair[1] is not None else {}
        if change:
            record["changed"][name] = change

    def _encoded(self, measurement: Single) -> bytes:
        if isinstance(measurement, CameraImage):
            return encode_picture(measurement.pixels, self.request.jpeg_quality)
        return encode_lidar(measurement) if isinstance(measurement, LidarSweep) else encode_radar(measurement)

    def _table_change(self, row: int, pair: tuple[Single, Single], frame: Frame) -> dict:
        """What of a measurement's calibration, time and size has to be new in the tables."""
        clean, harmed = pair
        change = {}
        ego_from_sensor = _pose_of(harmed)
        moved = not np.array_equal(_pose_of(clean).matrix, ego_from_sensor.matrix)
        bent = isinstance(clean, CameraImage) and not np.array_equal(clean.image_from_camera, harmed.image_from_camera)
        if moved or bent:
            columns = self.frames.index.measurements
            global_from_ego_then = RigidTransform.from_quaternion(columns.pose_wxyz[row], columns.pose_m[row])
            believed = global_from_ego_then.inverse() @ frame.global_from_ego @ ego_from_sensor
            change |= {"translation": believed.translation_m.tolist(), "rotation": believed.quaternion_wxyz.tolist()}
        if bent:
            change["camera_intrinsic"] = np.asarray(harmed.image_from_camera, np.float64).tolist()
        if harmed.lag_s != clean.lag_s:
            change["timestamp"] = frame.timestamp_us - round(harmed.lag_s * 1e6)
        if isinstance(clean, CameraImage) and clean.pixels.shape != harmed.pixels.shape:
            change["height"], change["width"] = harmed.pixels.shape[:2]
        return change


def encode_picture(pixels: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    """JPEG with colour at full resolution: at half, as usual, coloured noise would be smoothed away again."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    assert done, "OpenCV could not encode a JPEG from uint8 RGB"
    return encoded.tobytes()


def _singles(frame: Frame, channel: str) -> tuple[Single, ...]:
    """The picture or the sweeps of a channel; none where it is absent."""
    if not frame.present(channel):
        return ()
    measurement = measurement_of(frame, channel)
    return measurement if isinstance(measurement, tuple) else (measurement,)


def _lost_channels(clean: Frame, harmed: Frame) -> list[str]:
    return [channel for channel in CHANNELS if clean.present(channel) and not harmed.present(channel)]


def _pose_of(measurement: Single) -> RigidTransform:
    return next(getattr(measurement, name) for name in _POSES if hasattr(measurement, name))


def _same_data(clean: Single, harmed: Single) -> bool:
    """Whether a file would hold the same: all but calibration and time."""
    names = [field.name for field in fields(clean) if field.name not in (*_POSES, "lag_s", "image_from_camera")]
    pairs = [(getattr(clean, name), getattr(harmed, name)) for name in names]
    return all(before is after or np.array_equal(before, after) for before, after in pairs)


def _emptied(measurement: Single) -> Single:
    """A black picture, or a cloud without points: what stands for a lost sensor where a file has to be."""
    if isinstance(measurement, CameraImage):
        return replace(measurement, pixels=np.zeros_like(measurement.pixels))
    return measurement.select(np.zeros(len(measurement), bool))
