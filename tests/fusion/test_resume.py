"""Killed as by ``kill -9`` and resumed: every loss, weight and average equals that of the run that was left alone."""

import multiprocessing
import signal
from pathlib import Path

import pytest
import torch

from fusion.checkpoint import read_checkpoint
from tests.fusion.train_toy import EPOCHS, train


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def killed(folder: Path, **settings) -> None:
    """Train in a process that ends itself by SIGKILL."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder,), kwargs=settings)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL


def assert_equal(found, expected, where: str = "checkpoint") -> None:
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}[{key}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, item in enumerate(expected):
            assert_equal(found[index], item, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


@pytest.mark.parametrize(
    ("step", "hook", "stage", "saved"),
    [
        (10, "on_train_batch_end", "random", 8),  # mid-epoch, in the second of three stages
        (12, "on_validation_batch_end", "random", 8),  # during the validation after the second epoch
    ],
)
def test_resumed_equals_uninterrupted(whole, tmp_path, step, hook, stage, saved):
    killed(tmp_path, kill_at=step, kill_in=hook, num_workers=2)
    last = (tmp_path / "train.csv").read_text().splitlines()[-1].split(",")
    assert (int(last[0]), last[2]) == (saved, stage)
    trainer = train(tmp_path, resume=True, num_workers=2)
    assert trainer.current_epoch == EPOCHS
    for name in ("train.csv", "validation.csv"):
        assert (tmp_path / name).read_text() == (whole / name).read_text()
    found, expected = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(found[part], expected[part], part)
    assert_equal(found["callbacks"]["WeightAverage"], expected["callbacks"]["WeightAverage"])


def test_resuming_a_finished_run_changes_nothing(whole):
    before = {name: (whole / name).read_text() for name in ("train.csv", "validation.csv")}
    trainer = train(whole, resume=True)
    assert trainer.global_step == 24
    assert {name: (whole / name).read_text() for name in before} == before
