"""The order of training: complete, reproducible, equally shared, resumable."""

import numpy as np
import pytest

from datamodules import samplers
from datamodules.prepare import SampleKey
from datamodules.samplers import TrainingBatches, class_balanced_weights


def at_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(samplers, "rank_and_world_size", lambda: (rank, world_size))


def test_an_epoch_holds_every_sample_once():
    batches = TrainingBatches(11, 3, seed=1, total_epochs=2)
    epoch = list(batches)
    assert [len(batch) for batch in epoch] == [3, 3, 3, 2]
    assert len(batches) == 4
    assert sorted(key.index for batch in epoch for key in batch) == list(range(11))


def test_progress_runs_from_zero_to_one_over_the_training():
    batches = TrainingBatches(10, 4, seed=1, total_epochs=3)
    progress = [key.progress for _ in range(4) for batch in batches for key in batch]
    np.testing.assert_allclose(progress[:30], np.arange(30) / 30)
    assert progress[30:] == [1.0] * 10, "epochs beyond the plan stay at the end"


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [key.index for key in TrainingBatches(50, 1, seed, 5).keys(epoch)]

    assert order(3, 2) == order(3, 2)
    assert order(3, 2) != order(3, 1)
    assert order(3, 2) != order(4, 2)


@pytest.mark.parametrize("consumed", range(5))
def test_a_resumed_epoch_is_the_rest_of_it(consumed):
    whole = TrainingBatches(11, 3, seed=1, total_epochs=2)
    whole.set_position(1, 0)
    expected = list(whole)
    resumed = TrainingBatches(11, 3, seed=1, total_epochs=2)
    resumed.set_position(1, consumed)
    assert list(resumed) == expected[consumed:]
    assert len(resumed) == 4, "the length stays that of the epoch"
    assert next(iter(resumed))[0].epoch == 2


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("num_samples", [1, 10, 12])
def test_ranks_share_an_epoch_equally(monkeypatch, num_samples, world_size):
    parts = []
    for rank in range(world_size):
        at_rank(monkeypatch, rank, world_size)
        batches = TrainingBatches(num_samples, 2, seed=0, total_epochs=1)
        parts.append(batches.keys(0))
        assert len(list(batches)) == len(batches)
    assert len({len(part) for part in parts}) == 1
    everything = [key.index for keys in zip(*parts, strict=True) for key in keys]
    assert set(everything) == set(range(num_samples))
    assert len(everything) < num_samples + world_size
    at_rank(monkeypatch, 0, 1)
    alone = [key.index for key in TrainingBatches(num_samples, 2, 0, 1).keys(0)]
    assert everything[:num_samples] == alone, "the ranks together walk the order of one process"


def test_class_balance():
    """90 samples of class 0, 9 of class 1, 1 of class 2, class 3 nowhere: each seen class gets a third."""
    counts = np.zeros((101, 4), np.int64)
    counts[:90, 0], counts[90:99, 1], counts[99, 2] = 5, 1, 2
    weights = class_balanced_weights(counts)
    np.testing.assert_allclose([weights[:90].sum(), weights[90:99].sum(), weights[99], weights[100]], [1 / 3] * 3 + [0])
    drawn = TrainingBatches(101, 4, 0, 1, weights).keys(0)
    assert len(drawn) == 101
    assert 15 < sum(key.index == 99 for key in drawn) < 55
    with pytest.raises(ValueError, match="balance_classes"):
        class_balanced_weights(np.zeros((3, 4), np.int64))


def test_impossible_positions_and_sizes_are_refused():
    batches = TrainingBatches(11, 3, 0, 1)
    for position in ((-1, 0), (0, 5), (0, -1)):
        with pytest.raises(ValueError, match="0 to 4"):
            batches.set_position(*position)
    for sizes in ((0, 3, 0, 1), (3, 0, 0, 1), (3, 3, 0, 0)):
        with pytest.raises(ValueError, match="at least one"):
            TrainingBatches(*sizes)


def test_keys_are_plain():
    key = TrainingBatches(3, 1, 0, 1).keys(0)[0]
    assert isinstance(key, SampleKey)
    assert [type(value) for value in key] == [int, int, float, bool, int]
