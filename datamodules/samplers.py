"""Which samples, in which order, and when in training: a pure function of (seed, epoch), sharded over ranks.

Keys carry the epoch and the progress, so that augmentation, faults and schedules depend on nothing else: not on
workers, prefetching, or whether a run was resumed.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch.distributed
from jaxtyping import Int64

from datamodules.prepare import SampleKey

_ORDER = 0x5EED


def rank_and_world_size() -> tuple[int, int]:
    """Of this process in torch.distributed; (0, 1) where it is not initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def class_balanced_weights(class_counts: Int64[np.ndarray, "n c"]) -> np.ndarray:
    """Probability of each sample under class-balanced sampling: draw a class, then a sample that holds it.

    After Zhu et al., Class-balanced Grouping and Sampling for Point Cloud 3D Object Detection, 2019 (section 3.1),
    without enlarging the epoch. Samples without any box are not drawn.

    Raises:
        ValueError: there is not one box.
    """
    holds = class_counts > 0
    per_class = holds.sum(axis=0)
    seen = per_class > 0
    if not seen.any():
        raise ValueError("expected at least one box for balance_classes, got a split without any; turn it off")
    return (holds[:, seen] / per_class[seen]).sum(axis=1) / seen.sum()


def check_at_least_one(**counts: int) -> None:
    """Raises ValueError for a count below one."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"expected at least one of {name}, got {value}")


class EpochBatches:
    """Batches of ``SampleKey``, one epoch per iteration, starting wherever it was told to.

    What ``batches_of`` yields for an epoch is a pure function of it, of equal number in every epoch.
    """

    batch_size: int
    _epoch, _consumed = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch of this rank."""
        raise NotImplementedError

    def batches_of(self, epoch: int) -> list[list[SampleKey]]:
        """All batches of this rank in one epoch, in order."""
        raise NotImplementedError

    def set_position(self, epoch: int, consumed_batches: int) -> None:
        """The next iteration yields what is left of ``epoch`` after that many batches; the one after it is whole."""
        if epoch < 0 or not 0 <= consumed_batches <= len(self):
            raise ValueError(
                f"expected an epoch and 0 to {len(self)} consumed batches, got {epoch} and {consumed_batches}; "
                "was the checkpoint made with another batch size or data set?"
            )
        self._epoch, self._consumed = epoch, consumed_batches

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, consumed = self._epoch, self._consumed
        self._epoch, self._consumed = epoch + 1, 0
        yield from self.batches_of(epoch)[consumed:]


class TrainingBatches(EpochBatches):
    """Every sample by itself, in shuffled order.

    Every rank gets equally many samples: the permutation is padded from its own start. Ranks take turns, so that the
    k-th batches of all ranks together are a stretch of the permutation.

    Args:
        num_samples: of the whole split.
        batch_size: per rank.
        seed: of the order.
        total_epochs: at whose end progress is 1; later epochs stay at 1.
        weights: probability of each sample, drawn with replacement; None for a permutation.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        total_epochs: int,
        weights: np.ndarray | None = None,
    ):
        check_at_least_one(samples=num_samples, batch_size=batch_size, total_epochs=total_epochs)
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.total_epochs, self.weights = total_epochs, weights

    def __len__(self) -> int:
        """Batches of a whole epoch of this rank."""
        _, world_size = rank_and_world_size()
        return math.ceil(math.ceil(self.num_samples / world_size) / self.batch_size)

    def batches_of(self, epoch: int) -> list[list[SampleKey]]:
        keys = self.keys(epoch)
        return [keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)]

    def keys(self, epoch: int) -> list[SampleKey]:
        """All keys of this rank in one epoch, in order."""
        rank, world_size = rank_and_world_size()
        generator = np.random.default_rng([_ORDER, self.seed, epoch])
        if self.weights is None:
            order = generator.permutation(self.num_samples)
        else:
            order = generator.choice(self.num_samples, size=self.num_samples, p=self.weights)
        padded = np.resize(order, math.ceil(self.num_samples / world_size) * world_size)
        own = padded[rank::world_size].tolist()
        share = 1 / (len(padded) * self.total_epochs)
        first = epoch * len(padded) + rank
        return [
            SampleKey(index, epoch, min((first + i * world_size) * share, 1.0), batch=i // self.batch_size)
            for i, index in enumerate(own)
        ]
