"""A data module over random batches whose loader can go on in the middle of an epoch."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.batch import Batch
from tests.fusion.random_batch import random_batch


class _Batches(Dataset):
    """Item (epoch, index) is a whole batch that depends on nothing else."""

    def __init__(self, batch_size: int, training: bool, image_size_px: tuple[int, int], depth_stride: int):
        self.batch_size = batch_size
        self.training, self.image_size_px, self.depth_stride = training, image_size_px, depth_stride

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        sizes = {"image_size_px": self.image_size_px, "depth_stride": self.depth_stride}
        return random_batch(self.batch_size, seed=1000 * epoch + index, num_points=60, **sizes)


class _Positions:
    """Yields (epoch, index) from the position on; says the length of a whole epoch."""

    def __init__(self, num_batches: int, rank: int = 0, world_size: int = 1):
        self.num_batches, self.rank, self.world_size = num_batches, rank, world_size
        self.epoch, self.consumed = 0, 0

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self):
        consumed, self.consumed = self.consumed, 0
        for index in range(consumed, self.num_batches):
            yield self.epoch, index * self.world_size + self.rank


class ToyData(pl.LightningDataModule):
    """``num_batches`` training batches per epoch and rank, two validation batches."""

    def __init__(
        self,
        num_batches: int = 6,
        batch_size: int = 2,
        num_workers: int = 0,
        image_size_px: tuple[int, int] = (16, 32),
        depth_stride: int = 16,
    ):
        super().__init__()
        self.image_size_px, self.depth_stride = image_size_px, depth_stride
        self.num_batches, self.batch_size, self.num_workers = num_batches, batch_size, num_workers
        self._position = (0, 0)
        self.fault_stages = ()

    def set_fault_stages(self, stages) -> None:
        """Keeps what it is told; its batches have no faults to thin out."""
        self.fault_stages = tuple(stages)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        positions = _Positions(self.num_batches, trainer.global_rank, trainer.world_size)
        positions.epoch, positions.consumed = self._position
        return self._loader(positions, training=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader([(99, 0), (99, 1)], training=False)

    def _loader(self, sampler, training: bool) -> DataLoader:
        return DataLoader(
            _Batches(self.batch_size, training, self.image_size_px, self.depth_stride),
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
        )

    def state_dict(self) -> dict:
        epoch, consumed = self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return {"position": [epoch + 1, 0] if consumed >= self.num_batches else [epoch, consumed]}

    def load_state_dict(self, state_dict: dict) -> None:
        self._position = tuple(state_dict["position"])


torch.set_num_threads(1)
