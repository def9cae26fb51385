"""Reading only what is asked for: the keyframes of a scene one after the other, each sensor opened when it is wanted.

Three kinds of glance, for routers that look at health or thumbnails:

- ``full``: every picture decoded, the newest sweep of every point sensor read: what evaluation shows the router.
- ``reduced``: pictures decoded at an eighth of their size (by OpenCV's reduced JPEG decoding); LiDAR and radar as they
  were when last read. Sharpness, contrast and shares of pixels then differ a little from what the router trained on.
- ``last``: nothing is opened; every sensor as it was when last read.

A sensor that was never looked at in this scene is looked at once, and again where its last look is older than
``look_every_s``. Ages grow meanwhile, so the router sees how old its knowledge is.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int

from datamodules.augment import fitting_crop, inverse_of
from datamodules.batch import LIDAR_FIELDS, RADAR_FIELDS, Batch
from datamodules.chains import Reference
from datamodules.collate import collate
from datamodules.nuscenes import NuScenesFrames
from datamodules.points import lidar_points, radar_points
from datamodules.prepare import Preparation, Sample, Views
from fusion.routing.plan import LITE, SKIP
from sensors.camera import CameraImage, decode_pixels
from sensors.frame import Frame
from sensors.health import HEALTH_FIELDS, THUMBNAIL_SIZE_PX, health_of, thumbnails_of
from sensors.rig import CAMERAS, CHANNELS, LIDAR, LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, RADARS, UNITS

GLANCES = ("full", "reduced", "last")
_REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_REDUCED[8] = cv2.IMREAD_REDUCED_COLOR_8
_LEAST_ROWS = 4 * THUMBNAIL_SIZE_PX[0]
_AGE = HEALTH_FIELDS.index("age")
_IDENTITY = np.eye(4)


@dataclass(eq=False)
class Keyframe:
    """One keyframe, of which nothing has been read at first.

    Attributes:
        row: of the index.
        frame: reference time, pose and speed; measurements are added as they are read.
        present: channels that the tables and the disk have.
        encoded: pictures as they lie on disk, read so far.
        pixels: of the pictures that were decoded in full.
        opened: channels of which a file was opened.
    """

    row: int
    reference: Reference
    frame: Frame
    present: Bool[np.ndarray, "12"]
    encoded: dict[str, bytes] = field(default_factory=dict)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    opened: set[str] = field(default_factory=set)

    @property
    def unit_present(self) -> Bool[np.ndarray, "8"]:
        """In the order of UNITS."""
        return np.append(self.present[: LIDAR_UNIT + 1], self.present[LIDAR_UNIT + 1 :].any())


class SceneSenses:
    """The sensors of a vehicle that opens only what it wants.

    Args:
        frames: the keyframes; their numbers of sweeps are those of the full branches.
        preparation: size of pictures and range of points, as in evaluation.
        glance: one of GLANCES.
        inputs: what the router looks at (``Router.inputs``); what it does not look at is not read for it.
        newest_s: of the model's LiDAR (``PointBranches.newest_s``): the lite branch reads only those sweeps.
        look_every_s: after this long a sensor is looked at again, even if it does not run; None for never.

    Raises:
        ValueError: an unknown kind of glance.
    """

    def __init__(
        self,
        frames: NuScenesFrames,
        preparation: Preparation,
        glance: str = "reduced",
        inputs: Sequence[str] = ("health", "thumbnails"),
        newest_s: float = 0.02,
        look_every_s: float | None = None,
    ):
        if glance not in GLANCES:
            raise ValueError(f"expected glance to be one of {', '.join(GLANCES)}, got '{glance}'")
        self.frames, self.preparation, self.glance_kind = frames, preparation, glance
        self.inputs, self.newest_s, self.look_every_s = tuple(inputs), newest_s, look_every_s
        self._blind = frames.without_cameras().with_sweeps(0, 0)
        self._single = frames.with_sweeps(min(frames.lidar_sweeps, 1), min(frames.radar_sweeps, 1))
        self.forget()

    def forget(self) -> None:
        """What was seen belongs to another scene."""
        self._health = np.zeros((len(CHANNELS), len(HEALTH_FIELDS)), np.float32)
        self._thumbnails = np.zeros((NUM_CAMERAS, 3, *THUMBNAIL_SIZE_PX), np.float32)
        self._seen_us = dict.fromkeys(CHANNELS)

    def keyframe(self, i: int) -> Keyframe:
        """Metadata of a keyframe; no sensor file is opened."""
        row, frames = int(self.frames.rows[i]), self.frames
        present = np.zeros(len(CHANNELS), bool)
        reads = {LIDAR: bool(frames.lidar_sweeps)}
        for column, channel in enumerate(CHANNELS):
            wanted = frames.cameras if channel in CAMERAS else reads.get(channel, bool(frames.radar_sweeps))
            newest = frames.chains.keyframe(row, channel)
            lost = frames.missing == "absent" and newest >= 0 and not self._path(newest).is_file()
            present[column] = wanted and newest >= 0 and not lost
        return Keyframe(row, frames.chains.reference(row), self._blind[i], present)

    def glance(self, keyframe: Keyframe) -> tuple[Float32[np.ndarray, "12 k"], Float32[np.ndarray, "6 3 h w"]]:
        """Health and thumbnails as this kind of glance gives them; zeros where absent or not looked at."""
        looked = [channel for channel in CHANNELS if self._wants_look(keyframe, channel)]
        if looked:
            frame = self._glimpse(keyframe, looked)
            health, thumbnails = health_of(frame), thumbnails_of(frame)
            self._remember(keyframe, looked, health, thumbnails)
        now = self._health.copy()
        for column, channel in enumerate(CHANNELS):
            if channel not in looked and self._seen_us[channel] is not None:
                passed_s = 1e-6 * (keyframe.frame.timestamp_us - self._seen_us[channel])
                now[column, _AGE] = np.clip(now[column, _AGE] + 10 * passed_s, -10.0, 10.0)
        thumbnails = self._thumbnails * keyframe.present[:NUM_CAMERAS, None, None, None]
        return now * keyframe.present[:, None], thumbnails

    def read(self, keyframe: Keyframe, choice: Int[np.ndarray, "8"]) -> None:
        """Opens what the route chose and nothing else: pictures are decoded, sweeps read; what was read stays."""
        frames, measured = self.frames, {}
        for unit, channel in enumerate(CAMERAS):
            if choice[unit] != SKIP:
                measured[channel] = self._picture(keyframe, channel)
        lidar: tuple = ()
        if choice[LIDAR_UNIT] != SKIP:
            keyframe.opened.add(LIDAR)
            lidar = self._lidar_reader(keyframe, choice).measurement(keyframe.row, keyframe.reference, LIDAR) or ()
            if choice[LIDAR_UNIT] == LITE and not sum(map(len, lidar)):
                lidar = frames.measurement(keyframe.row, keyframe.reference, LIDAR) or ()
        radars = {}
        for channel in RADARS if choice[RADAR_UNIT] != SKIP else ():
            if keyframe.present[CHANNELS.index(channel)]:
                keyframe.opened.add(channel)
                radars[channel] = frames.measurement(keyframe.row, keyframe.reference, channel)
        before = keyframe.frame
        keyframe.frame = replace(
            before,
            cameras={**before.cameras, **measured},
            lidar=lidar or before.lidar,
            radars={**before.radars, **radars},
        )
        if self.glance_kind != "full" and "health" in self.inputs:
            new = [LIDAR, *radars] if choice[LIDAR_UNIT] != SKIP else [*radars]
            read = [channel for channel in new if keyframe.frame.present(channel)]
            if self.glance_kind == "last":
                read += list(measured)
            if read:
                self._remember(keyframe, read, health_of(keyframe.frame), thumbnails_of(keyframe.frame))

    def batch(self, keyframe: Keyframe, sensors: Collection[str] = ("camera", "lidar", "radar")) -> Batch:
        """What was read as a batch of one sample: pictures cut and resized, points gathered. The rest is absent.

        Args:
            sensors: others are left out altogether.
        """
        frame, range_m = keyframe.frame, self.preparation.point_range_m
        health = np.zeros((len(CHANNELS), len(HEALTH_FIELDS)), np.float32)
        has_pictures = self.preparation.image_size_px is not None
        num_lidar = self.frames.lidar_sweeps if "lidar" in sensors else 0
        num_radar = self.frames.radar_sweeps if "radar" in sensors else 0
        sample = Sample(
            frame=frame,
            views=views_of(frame, self.preparation) if "camera" in sensors and has_pictures else None,
            lidar=_points(frame.lidar, lidar_points, frame, range_m, len(LIDAR_FIELDS), num_lidar),
            radar=_points(frame.radars, radar_points, frame, range_m, len(RADAR_FIELDS), num_radar),
            boxes=None,
            ego_from_ego_aug=inverse_of(_IDENTITY),
            health=health,
            thumbnails=np.zeros((NUM_CAMERAS, 3, *THUMBNAIL_SIZE_PX), np.float32),
            channel_present=np.array([frame.present(channel) for channel in CHANNELS]),
            faults=(),
            progress=float("nan"),
        )
        return collate([sample])

    def units_opened(self, keyframe: Keyframe) -> list[bool]:
        """For each of UNITS, whether any of its files was opened."""
        opened = [channel in keyframe.opened for channel in (*CAMERAS, LIDAR)]
        flags = [*opened, any(channel in keyframe.opened for channel in RADARS)]
        assert len(flags) == len(UNITS)
        return flags

    def _wants_look(self, keyframe: Keyframe, channel: str) -> bool:
        if not keyframe.present[CHANNELS.index(channel)]:
            return False
        if "health" not in self.inputs and not ("thumbnails" in self.inputs and channel in CAMERAS):
            return False
        seen_us = self._seen_us[channel]
        if seen_us is None or self.glance_kind == "full":
            return True
        if self.glance_kind == "reduced" and channel in CAMERAS:
            return True
        since_s = 1e-6 * (keyframe.frame.timestamp_us - seen_us)
        return self.look_every_s is not None and since_s >= self.look_every_s

    def _glimpse(self, keyframe: Keyframe, looked: Sequence[str]) -> Frame:
        """The frame with small pictures, or full ones for a full glance, and the newest sweeps."""
        cameras, radars, lidar = {}, {}, ()
        for channel in looked:
            keyframe.opened.add(channel)
            if channel in CAMERAS:
                cameras[channel] = self._picture(keyframe, channel, reduced=self.glance_kind != "full")
            elif channel == LIDAR:
                lidar = self._single.measurement(keyframe.row, keyframe.reference, LIDAR) or ()
            else:
                radars[channel] = self._single.measurement(keyframe.row, keyframe.reference, channel)
        return replace(keyframe.frame, cameras=cameras, lidar=lidar, radars=radars)

    def _remember(self, keyframe: Keyframe, looked: Sequence[str], health: np.ndarray, thumbnails: np.ndarray) -> None:
        for channel in looked:
            column = CHANNELS.index(channel)
            self._health[column] = health[column]
            self._seen_us[channel] = keyframe.frame.timestamp_us
            if column < NUM_CAMERAS:
                self._thumbnails[column] = thumbnails[column]

    def _picture(self, keyframe: Keyframe, channel: str, reduced: bool = False) -> CameraImage:
        """A picture in full, or as small as a glance needs it."""
        frames, newest = self.frames, self.frames.chains.keyframe(keyframe.row, channel)
        path = self._path(newest)
        keyframe.opened.add(channel)
        if channel not in keyframe.encoded:
            keyframe.encoded[channel] = path.read_bytes()
        height_px = int(frames.index.measurements.size_px[newest][1])
        factor = max(size for size in _REDUCED if size == 1 or height_px // size >= _LEAST_ROWS)
        if reduced and factor > 1:
            pixels = _reduced(keyframe.encoded[channel], factor, path)
        else:
            if channel not in keyframe.pixels:
                keyframe.pixels[channel] = decode_pixels(keyframe.encoded[channel], str(path))
            pixels = keyframe.pixels[channel]
            frames.require_size(newest, pixels)
        return frames.calibrated(newest, keyframe.reference, pixels)

    def _lidar_reader(self, keyframe: Keyframe, choice: Int[np.ndarray, "8"]) -> NuScenesFrames:
        """All sweeps, or for the lite branch those that it will take."""
        frames = self.frames
        if choice[LIDAR_UNIT] != LITE:
            return frames
        chains = frames.chains
        chain = chains.sweeps(chains.keyframe(keyframe.row, LIDAR), frames.lidar_sweeps)
        lags_s = [chains.lag_s(step, keyframe.reference) for step in chain]
        taken = sum(lag_s <= lags_s[0] + self.newest_s + 1e-6 for lag_s in lags_s)
        return frames.with_sweeps(taken, frames.radar_sweeps)

    def _path(self, measurement: int) -> Path:
        return self.frames.root / self.frames.index.measurements.filename[measurement].decode()


def views_of(frame: Frame, preparation: Preparation) -> Views:
    """The frame's pictures as evaluation prepares them: the same window, no augmentation."""
    size_px = tuple(preparation.image_size_px)
    images = np.zeros((NUM_CAMERAS, 3, *size_px), np.float32)
    image_from_camera = np.tile(np.eye(3, dtype=np.float32), (NUM_CAMERAS, 1, 1))
    ego_from_camera = np.tile(np.eye(4, dtype=np.float32), (NUM_CAMERAS, 1, 1))
    present = np.zeros(NUM_CAMERAS, bool)
    for row, channel in enumerate(CAMERAS):
        image = frame.cameras.get(channel)
        if image is None:
            continue
        crop = fitting_crop(image.pixels.shape[:2], size_px)
        np.multiply(crop.apply(image.pixels).transpose(2, 0, 1), np.float32(1 / 255), out=images[row])
        image_from_camera[row] = crop.cropped_from_image @ image.image_from_camera
        ego_from_camera[row] = image.ego_from_camera.matrix
        present[row] = True
    return Views(images, image_from_camera, ego_from_camera, present, None)


def _points(measured, gather, frame: Frame, range_m, num_fields: int, num_sweeps: int):
    """Rows of points; none where nothing was read, None in a run without the sensor."""
    if not num_sweeps:
        return None
    return gather(frame, _IDENTITY, range_m) if measured else np.empty((0, num_fields), np.float32)


def _reduced(encoded: bytes, factor: int, path: Path) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), _REDUCED[factor])
    if decoded is None:
        raise ValueError(f"expected a whole picture in {path}, got {len(encoded)} bytes that are none; copy it again")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
