"""Lanes: scenes whole and in order, resets marked, ranks disjoint, resumable."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import lanes as lanes_module
from datamodules.collate import collate
from datamodules.lanes import SceneLanes
from datamodules.loader import TrainingLoader
from datamodules.nuscenes import NuScenesFrames
from datamodules.prepare import Preparation, PreparedSamples

LENGTHS = [4, 3, 5, 4, 1, 2, 4]
SCENE = np.repeat([7, 2, 9, 4, 5, 1, 3], LENGTHS)


def at_rank(monkeypatch, rank, world_size):
    monkeypatch.setattr(lanes_module, "rank_and_world_size", lambda: (rank, world_size))


def check_lane(keys, scene):
    """A lane goes through scenes step by step; it says so where it enters one, which is at its first sample."""
    assert keys[0].state_reset
    for before, now in pairwise(keys):
        goes_on = now.index == before.index + 1 and scene[now.index] == scene[before.index]
        assert goes_on != now.state_reset
    for key in keys:
        if key.state_reset:
            assert key.index == 0 or scene[key.index - 1] != scene[key.index], "a scene is entered at its start"


@given(st.lists(st.integers(1, 6), min_size=3, max_size=12), st.integers(1, 3), st.integers(0, 5))
def test_every_row_goes_through_whole_scenes(lengths, batch_size, epoch):
    scene = np.repeat(np.arange(len(lengths)), lengths)
    batches = SceneLanes(scene, batch_size, seed=3, total_epochs=2)
    rows = list(zip(*batches.batches_of(epoch), strict=True))
    assert len(rows) == batch_size
    for row in rows:
        assert len(row) == len(batches)
        check_lane(row, scene)
    assert {key.index for row in rows for key in row} == set(range(len(scene)))
    assert len(batches) <= -(-len(scene) // batch_size) + max(lengths), "dealt evenly"


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("once", [False, True])
def test_a_scene_is_on_one_rank_alone(monkeypatch, world_size, once):
    owners, sizes = {}, []
    for rank in range(world_size):
        at_rank(monkeypatch, rank, world_size)
        batches = SceneLanes(SCENE, 2, seed=0, total_epochs=1, once=once)
        epoch = list(batches)
        assert len(epoch) == len(batches)
        sizes.append(len(epoch))
        for key in (key for batch in epoch for key in batch):
            assert owners.setdefault(int(SCENE[key.index]), rank) == rank
    assert set(owners) == set(SCENE.tolist())
    if not once:
        assert len(set(sizes)) == 1, "ranks that train together need equally many steps"


def test_an_evaluation_sees_every_sample_once_and_rows_end_from_the_back():
    epoch = list(SceneLanes(SCENE, 3, seed=0, total_epochs=1, once=True))
    keys = [key for batch in epoch for key in batch]
    assert sorted(key.index for key in keys) == list(range(len(SCENE)))
    assert all(key.epoch is None and np.isnan(key.progress) for key in keys)
    sizes = [len(batch) for batch in epoch]
    assert sizes == sorted(sizes, reverse=True)
    for row in range(3):
        check_lane([batch[row] for batch in epoch if row < len(batch)], SCENE)


def test_epochs_differ_in_order_and_not_in_length():
    batches = SceneLanes(SCENE, 2, seed=1, total_epochs=4)
    epochs = [batches.batches_of(epoch) for epoch in range(4)]
    assert len({len(epoch) for epoch in epochs}) == 1
    orders = [tuple(key.index for batch in epoch for key in batch) for epoch in epochs]
    assert len(set(orders)) == 4
    assert orders[2] == tuple(key.index for batch in SceneLanes(SCENE, 2, 1, 4).batches_of(2) for key in batch)
    progress = [key.progress for epoch in epochs for batch in epoch for key in batch]
    np.testing.assert_allclose(progress, np.arange(len(progress)) / len(progress))


@pytest.mark.parametrize("consumed", [0, 3, 12])
def test_a_resumed_epoch_is_the_rest_of_it(consumed):
    batches = SceneLanes(SCENE, 2, seed=1, total_epochs=4)
    assert len(batches) == 12
    batches.set_position(1, consumed)
    assert list(batches) == batches.batches_of(1)[consumed:]
    assert next(iter(batches))[0].epoch == 2


def test_too_many_lanes_and_scenes_in_pieces_are_refused():
    with pytest.raises(ValueError, match="8.*7 scenes"):
        SceneLanes(SCENE, 8, 0, 1)
    with pytest.raises(ValueError, match="pieces"):
        SceneLanes(np.array([0, 1, 0]), 1, 0, 1)
    with pytest.raises(ValueError, match="at least one"):
        SceneLanes(np.zeros(0, np.int64), 1, 0, 1)


def test_batches_carry_the_mark(small_set):
    """Two scenes of 4 and 3 samples in two lanes: the shorter begins again."""
    frames = NuScenesFrames(small_set, "v1.0-small", "small_train", cameras=False)
    samples = PreparedSamples(frames, Preparation(None))
    batches = SceneLanes(frames.scene_rows, 2, seed=0, total_epochs=1)
    loader = TrainingLoader(samples, batches, num_workers=0)
    epoch = list(loader)
    assert [batch.scenes for batch in epoch] == [("scene-a", "scene-b")] * 4
    assert [batch.state_reset.tolist() for batch in epoch] == [[True, True], [False] * 2, [False] * 2, [False, True]]
    assert loader.state_dict()["epoch"] == 1
    alone = collate([samples[0], samples[1]])
    assert alone.state_reset.all(), "samples by themselves carry nothing over"
