"""Killed as by ``kill -9`` and resumed: every loss, weight and average equals that of the run that was left alone."""

import multiprocessing
import signal
from pathlib import Path

import pytest
import torch

from fusion.checkpoint import read_checkpoint
from fusion.trainer import build_trainer
from tests.datamodules.small_set import write_small_set
from tests.fusion.toy_data import ToyData
from tests.fusion.train_toy import EPOCHS, toy_task, train


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
    ("step", "hook", "stage", "saved", "num_workers"),
    [
        (5, "on_train_batch_end", "points", 4, 0),  # mid-epoch, in the first of three stages
        (10, "on_train_batch_end", "random", 8, 2),  # in the second
        (22, "on_train_batch_end", "learned", 20, 0),  # in the third
        (12, "on_validation_batch_end", "random", 8, 2),  # during the validation after the second epoch
    ],
)
def test_resumed_equals_uninterrupted(whole, tmp_path, step, hook, stage, saved, num_workers):
    killed(tmp_path, kill_at=step, kill_in=hook, num_workers=num_workers)
    last = (tmp_path / "train.csv").read_text().splitlines()[-1].split(",")
    assert (int(last[0]), last[2]) == (saved, stage)
    trainer = train(tmp_path, resume=True, num_workers=num_workers)
    assert trainer.current_epoch == EPOCHS
    for name in ("train.csv", "validation.csv"):
        assert (tmp_path / name).read_text() == (whole / name).read_text()
    found, expected = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_equal(found[part], expected[part], part)
    assert_equal(found["callbacks"]["WeightAverage"], expected["callbacks"]["WeightAverage"])


def test_resumed_with_faults_augmentation_and_workers_equals_uninterrupted(tmp_path):
    """The real reading: order, augmentation and faults go on at the batch after the last one that was trained, in a
    stage that takes a growing part of the faults and has a relaxation of its own.
    """
    root = write_small_set(tmp_path / "set")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, data_root=root, max_epochs=2)
    killed(stopped, data_root=root, max_epochs=2, kill_at=11, num_workers=2)
    assert (stopped / "train.csv").read_text().splitlines()[-1].startswith("8,1,learned,")
    train(stopped, data_root=root, max_epochs=2, resume=True, num_workers=2)
    for name in ("train.csv", "validation.csv"):
        assert (stopped / name).read_text() == (whole / name).read_text()


def test_a_checkpoint_of_another_model_is_not_resumed(whole, tmp_path):
    task = toy_task()
    task.model.extra = torch.nn.Linear(2, 2)
    trainer = build_trainer(tmp_path, max_epochs=1, accelerator="cpu")
    with pytest.raises(ValueError, match=r"extra.bias \['absent'\] instead of \[2\]"):
        trainer.fit(task, datamodule=ToyData(), ckpt_path=whole / "checkpoints" / "last.ckpt")


def test_resuming_a_finished_run_changes_nothing(whole):
    before = {name: (whole / name).read_text() for name in ("train.csv", "validation.csv")}
    trainer = train(whole, resume=True)
    assert trainer.global_step == 24
    assert {name: (whole / name).read_text() for name in before} == before
