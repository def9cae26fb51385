"""Batches in scene order, for models that carry something from one keyframe to the next.

Row i of every batch is lane i: it goes through whole scenes, keyframe by keyframe, one scene after the other. Where a
lane enters a scene, the key says that what was carried is void (``SampleKey.state_reset``).
"""

import heapq

import numpy as np
from jaxtyping import Int64

from datamodules.prepare import SampleKey
from datamodules.samplers import EpochBatches, check_at_least_one, rank_and_world_size

_ORDER = 0x1A7E


class SceneLanes(EpochBatches):
    """Lanes of whole scenes, shared out over ranks: a scene is on one rank alone.

    Scenes are dealt to all lanes of all ranks, long ones first, each to the shortest lane. In training the epoch
    decides which scenes share a lane and their order, and lanes shorter than the longest begin again at their own first
    scene, so that every rank has equally many batches of equal size in every epoch.

    Args:
        scene_rows: the scene of each sample; samples of one scene follow each other in time.
        batch_size: lanes per rank.
        seed: of the order.
        total_epochs: at whose end progress is 1; later epochs stay at 1.
        once: for evaluation: every sample exactly once, scenes in their own order, keys without epoch and progress. The
            last rows of a batch end first, and ranks may differ in their number of batches.

    Raises:
        ValueError: fewer scenes than lanes, or a scene in pieces.
    """

    def __init__(
        self, scene_rows: Int64[np.ndarray, "n"], batch_size: int, seed: int, total_epochs: int, once: bool = False
    ):
        check_at_least_one(samples=len(scene_rows), batch_size=batch_size, total_epochs=total_epochs)
        self.batch_size, self.seed, self.total_epochs, self.once = batch_size, seed, total_epochs, once
        self._starts = np.flatnonzero(np.diff(scene_rows, prepend=scene_rows[0] - 1))
        self._lengths = np.diff(self._starts, append=len(scene_rows))
        if len(np.unique(scene_rows)) != len(self._starts):
            raise ValueError("expected the samples of a scene one after the other, got a scene in pieces; sort them")
        if len(self._starts) < self._num_lanes:
            raise ValueError(
                f"expected at least as many scenes as lanes (batch_size x ranks = {self._num_lanes}), got "
                f"{len(self._starts)} scenes; choose a smaller batch_size"
            )

    @property
    def _num_lanes(self) -> int:
        return self.batch_size * rank_and_world_size()[1]

    def __len__(self) -> int:
        """Batches of a whole epoch of this rank: the same in every epoch, since only the lengths of scenes decide."""
        rank, world_size = rank_and_world_size()
        lengths = [sum(self._lengths[lane]) for lane in self._dealt(0)]
        return int(max(lengths[rank::world_size] if self.once else lengths))

    def batches_of(self, epoch: int) -> list[list[SampleKey]]:
        rank, world_size = rank_and_world_size()
        lanes = [self._steps(lane) for lane in self._dealt(epoch)][rank::world_size]
        num_steps = len(self)
        if self.once:
            places = [[lane[step] for lane in lanes if step < len(lane)] for step in range(num_steps)]
            return [[SampleKey(sample, None, float("nan"), begins) for sample, begins in row] for row in places]
        share = 1 / (self.total_epochs * num_steps * self._num_lanes)
        batches = []
        for step in range(num_steps):
            first = (epoch * num_steps + step) * self._num_lanes + rank
            places = [lane[step % len(lane)] for lane in lanes]
            progress = [min((first + row * world_size) * share, 1.0) for row in range(len(lanes))]
            batches.append(
                [SampleKey(i, epoch, now, begins, step) for (i, begins), now in zip(places, progress, strict=True)]
            )
        return batches

    def _dealt(self, epoch: int) -> list[list[int]]:
        """The scenes of every lane of all ranks, longest lane first."""
        generator = np.random.default_rng([_ORDER, self.seed, epoch])
        scenes = np.arange(len(self._starts)) if self.once else generator.permutation(len(self._starts))
        longest_first = scenes[np.argsort(-self._lengths[scenes], kind="stable")]
        lanes: list[list[int]] = [[] for _ in range(self._num_lanes)]
        shortest = [(0, lane) for lane in range(len(lanes))]
        for scene in longest_first.tolist():
            length, lane = heapq.heappop(shortest)
            lanes[lane].append(scene)
            heapq.heappush(shortest, (length + int(self._lengths[scene]), lane))
        by_length = sorted(shortest, key=lambda entry: (-entry[0], entry[1]))
        return [
            sorted(lanes[lane]) if self.once else generator.permutation(lanes[lane]).tolist() for _, lane in by_length
        ]

    def _steps(self, scenes: list[int]) -> list[tuple[int, bool]]:
        """Sample, and whether a scene begins, of every step of a lane."""
        return [(int(self._starts[scene]) + i, i == 0) for scene in scenes for i in range(int(self._lengths[scene]))]
