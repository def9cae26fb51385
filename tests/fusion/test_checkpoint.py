"""Checkpoint files: whole or not at all, plain data, and refused in one line when they do not fit."""

import os
from collections import OrderedDict

import pytest
import torch
from torch import nn

from fusion.checkpoint import (
    AtomicCheckpointIO,
    load_model,
    model_weights,
    read_checkpoint,
    require_plain,
    start_from,
)


def checkpoint_of(model: nn.Module, average: dict | None = None) -> dict:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    callbacks = {} if average is None else {"WeightAverage": {"num_updates": 3, "average": average}}
    return {"state_dict": state, "callbacks": callbacks}


@pytest.fixture
def saved(tmp_path):
    model = nn.Linear(2, 3)
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(model), tmp_path / "folder" / "last.ckpt")
    return model, tmp_path / "folder" / "last.ckpt"


def test_weights_come_back(saved):
    model, path = saved
    other = nn.Linear(2, 3)
    load_model(path, other)
    assert torch.equal(other.weight, model.weight)
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_the_average_is_preferred_unless_the_last_weights_are_asked_for(tmp_path):
    model = nn.Linear(2, 3)
    average = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
    checkpoint = checkpoint_of(model, average)
    assert torch.equal(model_weights(checkpoint)["weight"], torch.ones(3, 2))
    assert torch.equal(model_weights(checkpoint, average=False)["weight"], model.weight)
    checkpoint["callbacks"]["WeightAverage"]["num_updates"] = 0
    assert torch.equal(model_weights(checkpoint)["weight"], model.weight)


def test_a_kill_while_writing_leaves_the_former_checkpoint(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def killed(checkpoint, file):
        file.write(b"half a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint(checkpoint_of(model), path)
    assert path.read_bytes() == before


def test_what_would_need_a_pickle_is_refused_by_its_place():
    require_plain({"a": [1, 2.0, "x", None, torch.zeros(1), OrderedDict(b=(True,))]})
    with pytest.raises(TypeError, match=r"OptimizerLike at checkpoint\['a'\]\[1\]"):
        require_plain({"a": [1, type("OptimizerLike", (), {})()]})


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_one_line(saved, share):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="expected a whole checkpoint") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)


def test_other_files_are_one_line(tmp_path):
    path = tmp_path / "other.ckpt"
    for content in ({"weights": torch.zeros(1)}, [1, 2]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="state_dict"):
            read_checkpoint(path)
    path.write_text("a text")
    with pytest.raises(ValueError, match="whole checkpoint"):
        read_checkpoint(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="whole checkpoint"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()


def test_another_model_is_refused_by_the_first_differences(saved):
    _, path = saved
    with pytest.raises(ValueError, match=r"weight \[3, 2\] instead of \[5, 2\]") as error:
        load_model(path, nn.Linear(2, 5))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"0.bias \['absent'\] instead of \[3\]; .* and 1 more"):
        load_model(path, nn.Sequential(nn.Linear(2, 3)))


class Parts(nn.Module):
    """Names as in FusionModel."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.lidar, self.cameras, self.router = nn.Linear(2, width), nn.Linear(2, 3), nn.Linear(2, 3)
        self.merge = nn.ModuleDict(
            {"projections": nn.ModuleDict({"lidar": nn.Linear(3, 3), "camera": nn.Linear(3, 3)})}
        )
        self.trunk = nn.Linear(3, 3)


def test_a_part_of_another_run_is_taken_over_and_nothing_else(tmp_path):
    source, model, untouched = Parts(), Parts(), Parts()
    untouched.load_state_dict(model.state_dict())
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(source), tmp_path / "a.ckpt")
    assert start_from(model, "lidar", tmp_path / "a.ckpt") == 4
    for name, value in model.state_dict().items():
        origin = source if name.startswith(("lidar", "merge.projections.lidar")) else untouched
        assert torch.equal(value, origin.state_dict()[name]), name
    # A router was taught with the prices and the losses of its own model.
    assert start_from(model, "all", tmp_path / "a.ckpt") == 10
    assert torch.equal(model.trunk.weight, source.trunk.weight)
    assert torch.equal(model.router.weight, untouched.router.weight)


def test_a_part_that_does_not_fit_is_refused_by_name(tmp_path):
    AtomicCheckpointIO().save_checkpoint(checkpoint_of(Parts(4)), tmp_path / "a.ckpt")
    model = Parts()
    before = model.lidar.weight.clone()
    with pytest.raises(ValueError, match=r"lidar\.weight \[4, 2\], which the model has not \(2 such\)"):
        start_from(model, "lidar", tmp_path / "a.ckpt")
    assert torch.equal(model.lidar.weight, before)
    with pytest.raises(ValueError, match="expected start_from to name all, camera, lidar, radar, got 'head'"):
        start_from(model, "head", tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="part 'radar'.*got none"):
        start_from(model, "radar", tmp_path / "a.ckpt")
