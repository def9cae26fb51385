"""The training loader: it starts each epoch exactly where the trainer stands."""

import contextlib
from collections.abc import Callable, Iterator

import cv2
import torch
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.collate import collate
from datamodules.prepare import PreparedSamples
from datamodules.samplers import EpochBatches


def start_worker(_: int) -> None:
    """One thread per worker: workers are the parallelism, and threads of several would fight for the cores."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    # numpy's BLAS has threads of its own. The package that can stop them comes with the devkit; without it, the same
    # numbers take longer.
    with contextlib.suppress(ImportError):
        import threadpoolctl

        threadpoolctl.threadpool_limits(1)


def sample_loader(samples: PreparedSamples, num_workers: int, **options) -> DataLoader:
    """A loader of batches; ``options`` are the DataLoader's own."""
    if num_workers:
        # A forked worker inherits OpenCV's thread pool without its threads, and waits for them for ever.
        cv2.setNumThreads(1)
    return DataLoader(
        samples,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


class TrainingLoader:
    """Batches of training samples, resumable in mid-epoch whatever the workers have prefetched.

    An iterator asks ``position`` for (epoch, consumed batches) only when its *first batch* is asked for: Lightning
    creates the iterator before it has restored its own progress, and then asks for the first batch of the rest. The
    length is always that of the whole epoch, as Lightning expects of a loader that can resume.

    Not a DataLoader itself, so that Lightning leaves its order alone under DDP: ranks are shared out by the sampler.

    Args:
        samples: what to prepare.
        batches: the order.
        num_workers: processes; 0 prepares in this one. They live as long as the loader.
        position: tells where training stands; None to go by ``load_state_dict`` and the own count.
    """

    def __init__(
        self,
        samples: PreparedSamples,
        batches: EpochBatches,
        num_workers: int,
        position: Callable[[], tuple[int, int] | None] | None = None,
    ):
        self.batches, self._ask = batches, position
        self.loader = sample_loader(samples, num_workers, batch_sampler=batches, persistent_workers=num_workers > 0)
        self.epoch, self.consumed_batches = 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        asked = self._ask() if self._ask is not None else None
        self.epoch, self.consumed_batches = asked or self._normalised()
        self.batches.set_position(self.epoch, self.consumed_batches)
        for batch in self.loader:
            # Counted before it is handed out: a checkpoint written during this batch's step comes after the step.
            self.consumed_batches += 1
            yield batch
        self.epoch, self.consumed_batches = self._normalised()

    @property
    def _iterator(self):
        """The DataLoader's own attribute of this name: by it, Lightning ends the workers when fit ends."""
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, iterator):
        self.loader._iterator = iterator

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from: batches handed out, not batches prefetched."""
        epoch, consumed_batches = self._normalised()
        return {
            "epoch": epoch,
            "consumed_batches": consumed_batches,
            "batch_size": self.batches.batch_size,
            "num_batches": len(self),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position.

        Raises:
            ValueError: in mid-epoch, and the batches are not those of then.
        """
        now = {"batch_size": self.batches.batch_size, "num_batches": len(self)}
        changed = [f"{name} {state[name]}" for name in now if state.get(name, now[name]) != now[name]]
        if changed and state["consumed_batches"]:
            raise ValueError(
                f"expected {', '.join(changed)} to resume in mid-epoch, got batch_size {now['batch_size']}, "
                f"num_batches {now['num_batches']}; keep batch size, devices and data, or resume from an epoch's end"
            )
        self.epoch, self.consumed_batches = state["epoch"], state["consumed_batches"]

    def _normalised(self) -> tuple[int, int]:
        """The position; the end of an epoch is the start of the next."""
        if self.consumed_batches >= len(self):
            return self.epoch + 1, 0
        return self.epoch, self.consumed_batches
