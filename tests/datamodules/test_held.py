"""Held samples: the same to the bit as samples that are read anew, never written into, within their memory."""

import pickle
import zlib

import numpy as np
import pytest

from datamodules import nuscenes
from datamodules.datamodule import NuScenesDataModule
from datamodules.held import HeldSamples, ReplayedSamples, arrays_of
from datamodules.prepare import Preparation, PreparedSamples
from sensors.faults.catalogue import CATALOGUE
from sensors.faults.severity import no_severities
from sensors.faults.suites import PUBLISHED_FAULTS, Scenario, suite_named
from sensors.faults.suites.failover import FAILOVER
from tests.datamodules.small_set import write_small_set

QUICK = suite_named("quick")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_small_set(tmp_path_factory.mktemp("small"))


def module_of(root, **changed) -> NuScenesDataModule:
    options = {"image_size_px": (18, 32), "lidar_sweeps": 2, "radar_sweeps": 2, "batch_size": 3, **changed}
    return NuScenesDataModule(root, "v1.0-small", "small_train", "small_train", **options)


def word(value: object) -> int:
    """Of every byte of every array."""
    total = 0
    for array in arrays_of(value):
        total = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), total)
    return total


def outcome(samples, index: int):
    """A sample, or what it was refused with."""
    try:
        return samples[index]
    except ValueError as error:
        return str(error)


def assert_same(one, other) -> None:
    if isinstance(one, str):
        assert one == other
        return
    assert (one.faults, one.progress != one.progress, one.state_reset) == (
        other.faults,
        other.progress != other.progress,
        other.state_reset,
    )
    left, right = list(arrays_of(one)), list(arrays_of(other))
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def all_scenarios() -> list[Scenario]:
    """Every fault of the catalogue and of the publications at its last level, and suites with several and in time."""
    faults = [*CATALOGUE, *PUBLISHED_FAULTS]
    return [*QUICK, *FAILOVER, *(Scenario(fault.name, ((fault, fault.levels[-1]),)) for fault in faults)]


def test_every_fault_gives_the_same_sample_and_leaves_what_is_held_alone(root):
    data = module_of(root)
    frames = data.frames("small_train")
    held = HeldSamples(frames, data.clean_preparation, 1.0)
    chosen = (2,)
    before = {index: word(held.get(index)) for index in chosen}
    compared = 0
    for scenario in all_scenarios():
        plain = PreparedSamples(frames, data.clean_preparation, scenario)
        replayed = ReplayedSamples(held, scenario)
        for index in chosen:
            wanted = outcome(plain, index)
            assert_same(wanted, outcome(replayed, index))
            compared += not isinstance(wanted, str)
        assert {index: word(held.get(index)) for index in chosen} == before, scenario.name
    assert compared > 100
    assert len(held) == len(chosen)


class Scribbler:
    """A fault as nobody should write one."""

    def apply(self, frame, history, epoch, progress):
        frame.cameras["CAM_FRONT"].pixels[:] = 0
        return frame, ("scribble",)


def test_a_fault_that_writes_into_what_it_was_given_is_refused(root):
    data = module_of(root)
    with data.holding("small_train", 1.0), pytest.raises(ValueError, match="read-only"):
        next(iter(data.evaluation_loader("small_train", Scribbler())))


def test_files_are_read_once_while_it_is_open(root, monkeypatch):
    data = module_of(root)
    read = []
    original = nuscenes.read_pixels
    monkeypatch.setattr(nuscenes, "read_pixels", lambda path: read.append(path) or original(path))
    wanted = [word(list(arrays_of(batch.camera.images.numpy()))) for batch in data.evaluation_loader("small_train")]
    num_files = len(read)
    assert num_files == len(set(read)) > 0
    read.clear()
    with data.holding("small_train", 1.0) as held:
        for scenario in (None, QUICK[2], None):
            batches = list(data.evaluation_loader("small_train", scenario))
        assert [word(list(arrays_of(batch.camera.images.numpy()))) for batch in batches] == wanted
        assert len(held) == len(data.frames("small_train"))
    assert len(read) == num_files
    list(data.evaluation_loader("small_train"))
    assert len(read) == 2 * num_files


def test_memory_is_bounded_and_the_rest_is_read_anew(root):
    data = module_of(root)
    frames = data.frames("small_train")
    everything = HeldSamples(frames, data.clean_preparation, 1.0)
    everything.fill()
    assert len(everything) == len(frames)
    # Every byte that is kept alive is counted: the arrays' own at least.
    own = {id(array): array.nbytes for index in range(len(frames)) for array in arrays_of(everything.get(index))}
    assert sum(own.values()) <= everything.num_bytes < 2 * sum(own.values())
    two = HeldSamples(frames, data.clean_preparation, 1.0)
    two.get(0)
    two.get(1)
    limit_gb = (two.num_bytes + 100) / 1e9
    with data.holding("small_train", limit_gb) as held:
        for sample, plain in zip(
            ReplayedSamples(held, QUICK[1]), PreparedSamples(frames, data.clean_preparation, QUICK[1]), strict=False
        ):
            assert_same(plain, sample)
        assert len(held) == 2
        assert held.num_bytes <= held.max_bytes
    assert held.get(5) is None


def test_forked_workers_have_what_was_held_before_them(root, monkeypatch):
    """What they read afterwards would fail: the files are gone for them."""
    data = module_of(root, num_workers=2)
    plain = module_of(root)
    with data.holding("small_train", 1.0) as held:
        loader = data.evaluation_loader("small_train", QUICK[-1])
        assert len(held) == len(data.frames("small_train"))
        monkeypatch.setattr(nuscenes, "read_pixels", None)
        batches = list(loader)
    monkeypatch.undo()
    wanted = list(plain.evaluation_loader("small_train", QUICK[-1]))
    for one, other in zip(batches, wanted, strict=True):
        assert (one.tokens, one.faults) == (other.tokens, other.faults)
        for name in ("images", "image_from_camera", "ego_from_camera", "present"):
            assert (getattr(one.camera, name) == getattr(other.camera, name)).all()
        assert (one.radar.points == other.radar.points).all()
        assert (one.health == other.health).all()
    # A worker that is started afresh gets the files, not the memory.
    copied = pickle.loads(pickle.dumps(held))
    assert (len(copied), copied.num_bytes) == (0, 0)
    assert len(pickle.dumps(held)) < held.num_bytes / 4


def test_targets_are_not_held(root):
    data = module_of(root)
    with pytest.raises(ValueError, match="got one with depth targets"):
        HeldSamples(data.frames("small_train"), Preparation((16, 32), depth_stride=8), 1.0)
    assert no_severities().sum() == 0
