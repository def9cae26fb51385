"""Tables that survive a stopped run, and a progress display that a log file can hold."""

import csv
import io
import math

import pytest
import torch
from rich.console import Console

from fusion.callbacks import LastCheckpoint, TrainingProgress, append_rows, drop_rows_after
from fusion.checkpoint import read_checkpoint
from fusion.trainer import build_trainer
from tests.fusion.toy_data import ToyData
from tests.fusion.train_toy import toy_task

OPTIONS = {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1}


def test_floats_come_back_to_the_last_bit(tmp_path):
    values = torch.rand(20).tolist() + [1e-30, math.pi]
    append_rows(tmp_path / "train.csv", [{"step": i, "loss": value} for i, value in enumerate(values)])
    with open(tmp_path / "train.csv", newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == values


def test_rows_after_a_step_are_dropped_also_a_torn_one(tmp_path):
    path = tmp_path / "train.csv"
    append_rows(path, [{"step": step, "loss": 0.5} for step in range(1, 6)])
    with open(path, "a") as file:
        file.write("6,0.")  # killed while writing
    drop_rows_after(path, 3)
    assert path.read_text() == "step,loss\n1,0.5\n2,0.5\n3,0.5\n"
    drop_rows_after(tmp_path / "none.csv", 3)


def test_a_checkpoint_holds_plain_data_and_its_place_in_training(tmp_path):
    trainer = build_trainer(tmp_path, checkpoint_every_n_steps=2, **OPTIONS)
    task = toy_task()
    task.run_config = {"model": {"_target_": "somewhere"}, "seed": 3}
    trainer.fit(task, datamodule=ToyData(num_batches=3))
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert checkpoint["hyper_parameters"] == {"model": {"_target_": "somewhere"}, "seed": 3}
    assert set(checkpoint["callbacks"]["WeightAverage"]["average"]) == {n for n, _ in task.model.named_parameters()}
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt").keys() == checkpoint.keys()


def test_a_checkpoint_interval_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 or more"):
        LastCheckpoint(tmp_path / "last.ckpt", 0)


def test_progress_in_a_log_file_is_one_line_at_a_time(tmp_path):
    text = io.StringIO()
    trainer = build_trainer(tmp_path, **OPTIONS)
    display = TrainingProgress(every_s=0.0, console=Console(file=text, width=200))
    trainer.callbacks[1] = display
    trainer.fit(toy_task(), datamodule=ToyData(num_batches=3))
    lines = text.getvalue().splitlines()
    assert len(lines) == 3
    assert "step 3/3" in lines[-1]
    assert lines[-1].startswith("train 100%")
    assert lines[-1].rstrip().endswith("0:00 left")
    for word in ("loss", "samples/s", "learned"):
        assert word in lines[-1]


def test_a_diverged_training_stops_in_one_line(tmp_path):
    task = toy_task()
    task.loss_weights["heatmap"] = float("nan")
    with pytest.raises(ValueError, match="diverged") as error:
        build_trainer(tmp_path, **OPTIONS).fit(task, datamodule=ToyData(num_batches=3))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_training_stops_at_its_time_limit(tmp_path):
    trainer = build_trainer(tmp_path, max_minutes=0.01 / 60, **(OPTIONS | {"max_epochs": 50}))
    trainer.fit(toy_task(), datamodule=ToyData(num_batches=5))
    assert 0 < trainer.global_step < 250
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


def test_a_training_that_leaves_out_stages_says_so(tmp_path):
    """Two steps, 0 and .5 of the way, are in the first and the last of the stages until .25, .5 and 1."""
    with pytest.raises(ValueError, match="got none for random: the 2 optimiser steps"):
        build_trainer(tmp_path, **OPTIONS).fit(toy_task(), datamodule=ToyData(num_batches=2))
    trainer = build_trainer(tmp_path, fast_dev_run=True, **OPTIONS)
    with pytest.warns(UserWarning, match="ended at step 1 of 1, in stage 'points' and before random, learned"):
        trainer.fit(toy_task(), datamodule=ToyData(num_batches=2))
    assert trainer.global_step == 1
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
