"""Faults through the loader: the same whatever the workers, the order and the ranks; labels travel with the batch."""

import numpy as np
import pytest
import torch

import datamodules.samplers
from datamodules.inject import FaultInjector, FaultRule, OneOf, Together
from datamodules.loader import TrainingLoader
from datamodules.mixture import FaultMixture
from datamodules.nuscenes import NuScenesFrames
from datamodules.prepare import Preparation, PreparedSamples
from datamodules.samplers import TrainingBatches
from sensors.faults.time_course import Burst
from sensors.rig import CHANNELS, LIDAR
from tests.datamodules.small_set import write_small_set


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = write_small_set(tmp_path_factory.mktemp("faults"))
    return NuScenesFrames(root, "v1.0-small", "small_train", lidar_sweeps=2, radar_sweeps=2, cameras=False)


def injector():
    either = OneOf([FaultRule("lidar_drop", severity=1), FaultRule("radar_drop", severity=5)], [0.3, 0.3])
    return FaultInjector(
        [
            Together(either),
            FaultRule("lidar_stuck", severity=0.5),
            FaultRule(Burst("radar_point_drop", mean_burst_s=1.0, mean_gap_s=1.0), severity=0.5),
            FaultRule("lidar_late", 0.5, severity=2.0),
            FaultMixture(0.8, families=("noise", "points", "alignment")),
        ],
        seed=4,
    )


def samples_of(frames):
    return PreparedSamples(frames, Preparation(None), injector())


def row(batch, i):
    points = [part.points[part.sample == i].double().sum().item() for part in (batch.lidar, batch.radar)]
    return batch.tokens[i], batch.faults[i], batch.fault_severity[i].tolist(), points


def epoch_of(frames, num_workers):
    loader = TrainingLoader(samples_of(frames), TrainingBatches(len(frames), 2, 0, 3), num_workers, lambda: (1, 0))
    return [row(batch, i) for batch in loader for i in range(len(batch))]


def test_workers_and_order_do_not_matter(frames):
    alone = epoch_of(frames, 0)
    assert sum(bool(faults) for _, faults, _, _ in alone) > 3
    assert epoch_of(frames, 1) == epoch_of(frames, 4) == alone
    samples, keys = samples_of(frames), TrainingBatches(len(frames), 2, 0, 3).keys(1)
    for place in np.random.default_rng(0).permutation(len(keys)):
        sample = samples[keys[place]]
        token, faults, severity, points = alone[place]
        assert (sample.frame.token, sample.faults) == (token, faults)
        assert sample.fault_severity.tolist() == severity
        assert sample.lidar.astype(np.float64).sum() == pytest.approx(points[0])


def test_a_sample_meets_the_same_faults_on_every_rank_and_in_every_order(frames, monkeypatch):
    def sample_wise():
        rules = [FaultRule("lidar_range_noise", 0.8), FaultRule("radar_drop", 0.4, 1, each="channel")]
        return PreparedSamples(frames, Preparation(None), FaultInjector([*rules, FaultMixture(0.8)], seed=4))

    def by_token(rank, num_ranks, seed, num_workers=0):
        monkeypatch.setattr(datamodules.samplers, "rank_and_world_size", lambda: (rank, num_ranks))
        order = TrainingBatches(len(frames), 1, seed, 3)
        loader = TrainingLoader(sample_wise(), order, num_workers, lambda: (1, 0))
        return {batch.tokens[i]: row(batch, i) for batch in loader for i in range(len(batch))}

    alone = by_token(0, 1, seed=0)
    assert len(alone) == len(frames)
    assert sum(bool(faults) for _, faults, _, _ in alone.values()) > 3
    first, second = by_token(0, 2, seed=0), by_token(1, 2, seed=0, num_workers=2)
    assert set(first) - set(second)
    assert first | second == {token: alone[token] for token in first | second}
    assert by_token(0, 1, seed=9) == alone
    assert list(by_token(0, 1, seed=9)) != list(alone)


def test_batches_of_two_ranks_share_their_batch_wise_faults(frames, monkeypatch):
    drawn = {}
    for rank in (0, 1):
        monkeypatch.setattr(datamodules.samplers, "rank_and_world_size", lambda rank=rank: (rank, 2))
        batches = TrainingBatches(60, 5, 0, 3).batches_of(2)
        assert [{key.batch for key in batch} for batch in batches] == [{k} for k in range(6)]
        rules = FaultInjector(injector().rules[:1], seed=4)
        samples = PreparedSamples(frames, Preparation(None), rules)
        drawn[rank] = [{samples[key._replace(index=key.index % len(frames))].faults for key in b} for b in batches]
    assert drawn[0] == drawn[1]
    assert all(len(kinds) == 1 for kinds in drawn[0])
    assert len(set().union(*drawn[0])) > 1


def test_labels_reach_the_batch_and_tell_what_is_left(frames):
    loader = TrainingLoader(samples_of(frames), TrainingBatches(len(frames), 4, 0, 3), 0, lambda: (0, 0))
    for batch in loader:
        assert batch.fault_severity.dtype == torch.float32
        assert batch.fault_severity.shape == (len(batch), 12)
        assert ((batch.fault_severity >= 0) & (batch.fault_severity <= 1)).all()
        for i in range(len(batch)):
            assert bool(batch.faults[i]) == bool(batch.fault_severity[i].any())
            if not batch.channel_present[i, CHANNELS.index(LIDAR)]:
                assert batch.fault_severity[i, CHANNELS.index(LIDAR)] == 1
        # Cameras were never there, so nothing was done to them.
        assert not batch.fault_severity[:, :6].any()


def test_a_corruptor_of_ones_own_without_labels_counts_as_full_harm(frames):
    class NoLidar:
        def apply(self, frame, history, epoch, progress):
            from dataclasses import replace

            return replace(frame, lidar=()), ("mine@1.00",)

    sample = PreparedSamples(frames, Preparation(None), NoLidar())[1]
    assert sample.faults == ("mine@1.00",)
    assert sample.fault_severity.tolist() == [float(channel == LIDAR) for channel in CHANNELS]
