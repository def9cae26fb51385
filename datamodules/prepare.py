"""From a keyframe to what the network sees, one sample at a time, inside the loader's workers.

The order is the meaning: read, take targets from the clean frame, let sensors fail, look at their health, augment, turn
into arrays.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from datamodules.augment import (
    BevAugmentation,
    Crop,
    ImageAugmentation,
    augmented_boxes,
    fitting_crop,
    inverse_of,
    keyed_generator,
    recoloured,
)
from datamodules.nuscenes import NuScenesFrames
from datamodules.points import lidar_points, radar_points
from datamodules.schedules import Moment
from datamodules.targets import CleanTargets, center_maps, depth_targets, targets_of
from sensors.boxes import Boxes
from sensors.faults.severity import no_severities, unknown_severities
from sensors.frame import Frame, History
from sensors.health import health_of, thumbnails_of
from sensors.rig import CAMERAS, CHANNELS


class SampleKey(NamedTuple):
    """Which sample, and when in training: all that data, augmentation and faults depend on.

    Attributes:
        epoch: None outside training: no augmentation.
        progress: of training, in [0, 1]; NaN outside.
        state_reset: whether nothing may be carried over from the same row of the batch before.
        batch: place of its batch in the epoch, alike on all ranks; None outside training.
    """

    index: int
    epoch: int | None
    progress: float
    state_reset: bool = True
    batch: int | None = None


@runtime_checkable
class Corruptor(Protocol):
    """Lets sensors fail: a fault injector or a scenario."""

    def apply(
        self, frame: Frame, history: History, epoch: int | None, progress: float
    ) -> tuple[Frame, tuple[str, ...]]: ...


@runtime_checkable
class LabellingCorruptor(Protocol):
    """A corruptor that also knows the batch, and says how strongly it harmed each channel."""

    def labelled(
        self, frame: Frame, history: History, moment: Moment
    ) -> tuple[Frame, tuple[str, ...], Float32[np.ndarray, "12"]]: ...


@dataclass(frozen=True)
class Preparation:
    """How frames become samples.

    Attributes:
        image_size_px: height and width of every view; None in a run without cameras.
        depth_stride: pixels per cell of the depth target; None for no target.
        center_maps: whether the same cells also say where object centres are, by class.
        point_range_m: x, y, z from, x, y, z to in the (augmented) ego frame: points outside are left out. None for all.
        image_augmentation, bev_augmentation: applied to keys with an epoch only.
        seed: of the augmentation.
    """

    image_size_px: tuple[int, int] | None
    depth_stride: int | None = None
    point_range_m: tuple[float, ...] | None = None
    image_augmentation: ImageAugmentation | None = None
    bev_augmentation: BevAugmentation | None = None
    seed: int = 0
    center_maps: bool = False

    def __post_init__(self):
        size, stride = self.image_size_px, self.depth_stride
        if size is not None and (len(size) != 2 or min(size) <= 0):
            raise ValueError(f"expected image_size_px as (height, width), got {tuple(size)}")
        if size is not None and stride is not None and (stride <= 0 or size[0] % stride or size[1] % stride):
            raise ValueError(
                f"expected image_size_px to be whole multiples of depth_stride {stride}, got {tuple(size)}; change one"
            )
        if self.point_range_m is not None and len(self.point_range_m) != 6:
            raise ValueError(
                f"expected point_range_m as six numbers (x, y, z from, x, y, z to), got {tuple(self.point_range_m)}"
            )


@dataclass(frozen=True, eq=False)
class Views:
    """The six views of one sample, as in ``CameraBatch``."""

    images: Float32[np.ndarray, "6 3 h w"]
    image_from_camera: Float32[np.ndarray, "6 3 3"]
    ego_from_camera: Float32[np.ndarray, "6 4 4"]
    present: Bool[np.ndarray, "6"]
    depth_m: Float32[np.ndarray, "6 dh dw"] | None
    center_maps: Float32[np.ndarray, "6 10 dh dw"] | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One sample of a ``Batch``: the same fields without the batch. A part is None where the run has no such sensor."""

    frame: Frame
    views: Views | None
    lidar: Float32[np.ndarray, "p 5"] | None
    radar: Float32[np.ndarray, "q 10"] | None
    boxes: Boxes | None
    ego_from_ego_aug: Float64[np.ndarray, "4 4"]
    health: Float32[np.ndarray, "12 k"]
    thumbnails: Float32[np.ndarray, "6 3 th tw"]
    channel_present: Bool[np.ndarray, "12"]
    faults: tuple[str, ...]
    progress: float
    state_reset: bool = True
    fault_severity: Float32[np.ndarray, "12"] = field(default_factory=no_severities)


class PreparedSamples:
    """Map-style data set of ``Sample``.

    An integer key is a sample to evaluate: no augmentation, no training progress. A ``SampleKey`` is one to train on.

    Args:
        frames: what is read.
        preparation: how it is prepared.
        corruptor: lets sensors fail; None for clean samples.
        cameras_from: training progress before which no picture is read, for stages that leave the cameras out: the
            views are then absent.
    """

    def __init__(
        self,
        frames: NuScenesFrames,
        preparation: Preparation,
        corruptor: Corruptor | None = None,
        cameras_from: float = 0.0,
    ):
        if frames.cameras != (preparation.image_size_px is not None):
            raise ValueError(
                f"expected image_size_px exactly where the frames have cameras, got {preparation.image_size_px} and "
                f"cameras={frames.cameras}"
            )
        self.frames, self.preparation, self.corruptor = frames, preparation, corruptor
        self.blind_frames, self.cameras_from = frames.without_cameras(), cameras_from

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: "int | SampleKey") -> Sample:
        key = SampleKey(*key) if isinstance(key, tuple) else SampleKey(key, None, float("nan"))
        index, epoch, progress = key[:3]
        # NaN, the progress of an evaluation, is not below anything.
        frames = self.blind_frames if progress < self.cameras_from else self.frames
        frame = frames[index]
        targets = targets_of(frame)
        frame, faults, severity = self._corrupted(frame, frames.history(index), key)
        sample = self._prepared(frame, targets, faults, (epoch, progress))
        return replace(sample, state_reset=key.state_reset, fault_severity=severity)

    def prepared(self, frame: Frame) -> Sample:
        """A frame that no fault has touched, as a sample to evaluate."""
        return self._prepared(frame, targets_of(frame), (), (None, float("nan")))

    def clean_views(self, frame: Frame) -> Views:
        """The views of a frame without augmentation and targets; absent where the frame has none."""
        return self._views(frame, CleanTargets(None, np.zeros((0, 3), np.float32), {}), np.eye(4), None)

    def _corrupted(
        self, frame: Frame, history: History, key: SampleKey
    ) -> tuple[Frame, tuple[str, ...], Float32[np.ndarray, "12"]]:
        if self.corruptor is None:
            return frame, (), no_severities()
        # Outside training a schedule stands at its end.
        moment = Moment(key.epoch, 1.0 if key.epoch is None else key.progress, key.batch)
        if isinstance(self.corruptor, LabellingCorruptor):
            return self.corruptor.labelled(frame, history, moment)
        harmed, faults = self.corruptor.apply(frame, history, moment.epoch, moment.progress)
        return harmed, tuple(faults), unknown_severities(frame, harmed)

    def _prepared(
        self, frame: Frame, targets: CleanTargets, faults: tuple[str, ...], moment: tuple[int | None, float]
    ) -> Sample:
        preparation, (epoch, progress) = self.preparation, moment
        aug_from_ego = np.eye(4)
        if epoch is not None and preparation.bev_augmentation is not None:
            generator = keyed_generator(preparation.seed, epoch, frame.token, "bev")
            aug_from_ego = preparation.bev_augmentation.draw(generator)
        reads = self.frames
        boxes = targets.boxes
        return Sample(
            frame=frame,
            views=self._views(frame, targets, aug_from_ego, epoch) if preparation.image_size_px else None,
            lidar=lidar_points(frame, aug_from_ego, preparation.point_range_m) if reads.lidar_sweeps else None,
            radar=radar_points(frame, aug_from_ego, preparation.point_range_m) if reads.radar_sweeps else None,
            boxes=augmented_boxes(boxes, aug_from_ego) if boxes is not None else None,
            ego_from_ego_aug=inverse_of(aug_from_ego),
            health=health_of(frame),
            thumbnails=thumbnails_of(frame),
            channel_present=np.array([frame.present(channel) for channel in CHANNELS]),
            faults=tuple(faults),
            progress=progress,
        )

    def _views(
        self, frame: Frame, targets: CleanTargets, aug_from_ego: Float64[np.ndarray, "4 4"], epoch: int | None
    ) -> Views:
        size_px = tuple(self.preparation.image_size_px)
        images = np.zeros((len(CAMERAS), 3, *size_px), np.float32)
        image_from_camera = np.tile(np.eye(3, dtype=np.float32), (len(CAMERAS), 1, 1))
        ego_from_camera = np.tile(np.eye(4, dtype=np.float32), (len(CAMERAS), 1, 1))
        present = np.zeros(len(CAMERAS), bool)
        folded = {}
        for row, channel in enumerate(CAMERAS):
            image = frame.cameras.get(channel)
            if image is None:
                continue
            crop = self._crop(frame.token, channel, image.pixels.shape[:2], epoch)
            folded[channel] = crop.cropped_from_image
            pixels = self._recoloured(crop.apply(image.pixels), frame.token, channel, epoch)
            np.multiply(pixels.transpose(2, 0, 1), np.float32(1 / 255), out=images[row])
            image_from_camera[row] = folded[channel] @ image.image_from_camera
            ego_from_camera[row] = aug_from_ego @ image.ego_from_camera.matrix
            present[row] = True
        stride = self.preparation.depth_stride
        depth_m = depth_targets(targets, folded, size_px, stride) if stride is not None else None
        wanted = stride is not None and self.preparation.center_maps
        centers = center_maps(targets, folded, size_px, stride) if wanted else None
        return Views(images, image_from_camera, ego_from_camera, present, depth_m, centers)

    def _recoloured(
        self, pixels: UInt8[np.ndarray, "h w 3"], token: str, channel: str, epoch: int | None
    ) -> UInt8[np.ndarray, "h w 3"]:
        augmentation = self.preparation.image_augmentation
        if epoch is None or augmentation is None or not (augmentation.tint or augmentation.shade):
            return pixels
        generator = keyed_generator(self.preparation.seed, epoch, token, f"colour/{channel}")
        return recoloured(pixels, augmentation.draw_gains(generator))

    def _crop(self, token: str, channel: str, image_px: tuple[int, int], epoch: int | None) -> Crop:
        preparation = self.preparation
        size_px = tuple(preparation.image_size_px)
        if epoch is None or preparation.image_augmentation is None:
            return fitting_crop(image_px, size_px)
        generator = keyed_generator(preparation.seed, epoch, token, f"image/{channel}")
        return preparation.image_augmentation.draw(image_px, size_px, generator)
