"""The Lightning data module: a nuScenes version, real or synthetic, to batches."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.augment import BevAugmentation, ImageAugmentation
from datamodules.fault_stages import FaultStage, StagedFaults
from datamodules.held import HeldSamples, ReplayedSamples
from datamodules.index import open_index
from datamodules.inject import FaultInjector
from datamodules.lanes import SceneLanes
from datamodules.loader import TrainingLoader, sample_loader
from datamodules.nuscenes import NuScenesFrames
from datamodules.prepare import Corruptor, Preparation, PreparedSamples
from datamodules.samplers import TrainingBatches, class_balanced_weights


class NuScenesDataModule(LightningDataModule):
    """Training and evaluation batches of one version.

    Args:
        root, version: where the data set lies.
        train_split, val_split: predefined splits, or custom ones of ``splits.json``.
        image_size_px: (height, width) of every view; None reads no pictures.
        lidar_sweeps, radar_sweeps: sweeps per frame, the keyframe's included; 0 leaves the sensor out of the run.
        batch_size: per process.
        eval_batch_size: of evaluation; as ``batch_size`` where None.
        num_workers: processes that read and prepare; 0 does it in this one.
        seed: of order and augmentation. Faults have their own, in the injector.
        total_epochs: length of training, for progress.
        injector: lets sensors fail in training; None trains on clean samples.
        depth_stride: pixels per cell of the depth target in training; None for none.
        point_range_m: six numbers, x, y, z from and x, y, z to; points outside are left out. None keeps all.
        image_augmentation, bev_augmentation: of training; None for none.
        balance_classes: draw training samples so that every class is seen equally often.
        missing: what a file that is not there means: ``error`` or ``absent``.
        cameras_from: training progress before which no picture is read, for stages that leave the cameras out.
        center_maps: whether training also has the centres of objects in the pictures, on the cells of the depth target.
        scene_lanes: train on scenes in their order, one per row of the batch (``datamodules.lanes``).
    """

    def __init__(
        self,
        root: str | Path,
        version: str,
        train_split: str,
        val_split: str,
        image_size_px: Sequence[int] | None = (256, 704),
        lidar_sweeps: int = 10,
        radar_sweeps: int = 6,
        batch_size: int = 4,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        total_epochs: int = 1,
        injector: Corruptor | None = None,
        depth_stride: int | None = None,
        point_range_m: Sequence[float] | None = None,
        image_augmentation: ImageAugmentation | None = None,
        bev_augmentation: BevAugmentation | None = None,
        balance_classes: bool = False,
        missing: str = "error",
        cameras_from: float = 0.0,
        scene_lanes: bool = False,
        center_maps: bool = False,
    ):
        super().__init__()
        _check_counts(batch_size=(batch_size, 1), num_workers=(num_workers, 0), total_epochs=(total_epochs, 1))
        if eval_batch_size is not None:
            _check_counts(eval_batch_size=(eval_batch_size, 1))
        self.root, self.version = Path(root), version
        self.train_split, self.val_split = train_split, val_split
        self.lidar_sweeps, self.radar_sweeps, self.missing = lidar_sweeps, radar_sweeps, missing
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.seed, self.total_epochs = num_workers, seed, total_epochs
        self.injector, self.balance_classes = injector, balance_classes
        if not 0.0 <= cameras_from <= 1.0:
            raise ValueError(f"expected cameras_from in [0, 1], a share of training, got {cameras_from}")
        if scene_lanes and balance_classes:
            raise ValueError("expected scene_lanes or balance_classes, got both; lanes keep the order of scenes")
        self.cameras_from, self.scene_lanes = cameras_from, scene_lanes
        size_px = None if image_size_px is None else tuple(image_size_px)
        range_m = None if point_range_m is None else tuple(point_range_m)
        stride = depth_stride if size_px is not None else None
        self.preparation = Preparation(
            size_px, stride, range_m, image_augmentation, bev_augmentation, seed, center_maps
        )
        self.clean_preparation = Preparation(size_px, point_range_m=range_m)
        self._frames: dict[str, NuScenesFrames] = {}
        self._held: dict[str, HeldSamples] = {}
        # Weak: in a cycle of the two the workers would be ended late, and by waiting for them to time out.
        self._training: weakref.ref[TrainingLoader] | None = None
        self._resume: dict[str, int] = {}
        self._fault_stages: tuple[FaultStage, ...] = ()

    def prepare_data(self) -> None:
        """Build the index once, before other processes want it."""
        open_index(self.root, self.version)

    def frames(self, split: str) -> NuScenesFrames:
        """The frames of a split as this run reads them."""
        if split not in self._frames:
            self._frames[split] = NuScenesFrames(
                self.root,
                self.version,
                split,
                self.lidar_sweeps,
                self.radar_sweeps,
                self.preparation.image_size_px is not None,
                self.missing,
            )
        return self._frames[split]

    def train_dataloader(self) -> TrainingLoader:
        """Training batches in an order that depends on (seed, epoch) alone, resumed where training stands."""
        frames = self.frames(self.train_split)
        if self.scene_lanes:
            batches = SceneLanes(frames.scene_rows, self.batch_size, self.seed, self.total_epochs)
        else:
            weights = class_balanced_weights(frames.class_counts) if self.balance_classes else None
            batches = TrainingBatches(len(frames), self.batch_size, self.seed, self.total_epochs, weights)
        injector = self.injector
        if self._fault_stages:
            injector = StagedFaults(injector, self._fault_stages, len(batches), self.total_epochs)
        samples = PreparedSamples(frames, self.preparation, injector, self.cameras_from)
        loader = TrainingLoader(samples, batches, self.num_workers, self._trainer_position)
        if self._resume:
            loader.load_state_dict(self._resume)
        self._training = weakref.ref(loader)
        return loader

    def val_dataloader(self) -> DataLoader:
        """Clean validation batches; of several ranks each gets its part, made equally long by samples seen twice."""
        loader = self.evaluation_loader(self.val_split)
        num_ranks = 1 if self.trainer is None else self.trainer.world_size
        if num_ranks == 1:
            return loader
        own = DistributedSampler(loader.dataset, num_ranks, self.trainer.global_rank, shuffle=False)
        return sample_loader(loader.dataset, self.num_workers, batch_size=self.eval_batch_size, sampler=own)

    def evaluation_loader(
        self, split: str, corruptor: Corruptor | None = None, batch_size: int | None = None
    ) -> DataLoader:
        """Batches of a split in its own order, without augmentation, under the given failures."""
        held = self._held.get(split)
        if held is None:
            samples = PreparedSamples(self.frames(split), self.clean_preparation, corruptor)
        else:
            samples = ReplayedSamples(held, corruptor)
            if self.num_workers:  # what the workers are to have, they must be born with
                held.fill()
        return sample_loader(samples, self.num_workers, batch_size=batch_size or self.eval_batch_size, shuffle=False)

    @contextmanager
    def holding(self, split: str, max_gb: float | int) -> Iterator[HeldSamples]:
        """While it is open, evaluation loaders of the split read and prepare each sample once, as far as memory goes.

        The batches are the same to the bit. For many passes over one split under different failures.
        """
        held = self._held[split] = HeldSamples(self.frames(split), self.clean_preparation, max_gb)
        try:
            yield held
        finally:
            del self._held[split]

    def lane_loader(self, split: str, num_lanes: int, corruptor: Corruptor | None = None) -> DataLoader:
        """As ``evaluation_loader``, scene by scene: row i goes on where row i of the batch before stopped."""
        frames = self.frames(split)
        lanes = SceneLanes(frames.scene_rows, num_lanes, self.seed, total_epochs=1, once=True)
        return sample_loader(
            PreparedSamples(frames, self.clean_preparation, corruptor), self.num_workers, batch_sampler=lanes
        )

    def set_fault_stages(self, stages: Sequence[FaultStage]) -> None:
        """Let the stages of training say how much of the injector's plan acts, in training loaders built from now on.

        Raises:
            ValueError: a stage wants some of the plan, and there is none, or a corruptor that is no FaultInjector and
                cannot be kept from acting either.
        """
        has_none = self.injector is None
        asking = next((stage.name for stage in stages if (stage.asks if has_none else stage.changes)), None)
        if asking is not None and not isinstance(self.injector, FaultInjector):
            found = "none" if self.injector is None else type(self.injector).__name__
            raise ValueError(
                f"stage '{asking}': expected data with a plan of faults, of which the stage takes its share, got "
                f"{found}; choose one by faults=NAME or leave faults out of the stages"
            )
        thinned = isinstance(self.injector, FaultInjector) and any(stage.changes for stage in stages)
        self._fault_stages = tuple(stages) if thinned else ()

    def set_resume_position(self, epoch: int, consumed_batches: int) -> None:
        """Start the next training iteration there: for loops of one's own; a fitting trainer's progress decides."""
        self.load_state_dict({"epoch": epoch, "consumed_batches": consumed_batches})

    def state_dict(self) -> dict[str, int]:
        """Epoch and consumed batches, and what makes them meaningful."""
        loader = self._living_loader()
        return dict(self._resume) if loader is None else loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where a checkpoint was written."""
        self._resume = dict(state_dict)
        loader = self._living_loader()
        if loader is not None and self._resume:
            loader.load_state_dict(self._resume)

    def _living_loader(self) -> TrainingLoader | None:
        return None if self._training is None else self._training()

    def _trainer_position(self) -> tuple[int, int] | None:
        """Epoch and batches done in it, by the fitting trainer's own (restored) progress; None outside of fit.

        Asked when the next batch is about to be fetched: ``current.ready`` then counts exactly the batches before it.
        """
        if self.trainer is None or not self.trainer.training:
            return None
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


def _check_counts(**counts: tuple[object, int]) -> None:
    """Raises ValueError unless every (value, least) is a whole number of at least that."""
    for name, (value, least) in counts.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"expected {name} as a whole number of at least {least}, got {value!r}; change it")
