"""What a user may get wrong about a training: one line, exit code 2, and no folder is left."""

import csv
from pathlib import Path

import pytest

from fusion.cli import main
from fusion.commands.compose import compose
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET

NONE = "stage 'full': expected a loss that depends on something that the stage trains, got none, since "
CHANGE = "; change its trainable, its route and units, or its losses"


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    """Seven samples, small pictures."""
    root = scorable_small_set(tmp_path_factory.mktemp("small")).root
    few = [f"data.root={root}", *SMALL_SET, "data.lidar_sweeps=1", "data.radar_sweeps=1", "data.num_workers=0"]
    return [*few, "data.batch_size=1", "model=tiny", "model.cameras.image_size_px=[32,64]", "trainer=cpu"]


def mistake(words: list[str], run: Path, capsys) -> str:
    assert main(["train", *words, f"run_dir={run}"]) == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    assert not run.exists()
    return text.removeprefix("dynfusion train: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.validation_budget=1.5"], "validation_budget: expected a budget in ["),
        (["stages.validation_budget=0.01"], "got 0.01; ask for a larger share"),
        (["+stages.stages.0.trainable=[router]"], f"{NONE}route full does not ask the router{CHANGE}"),
        (
            ["+stages.stages.0.trainable=router"],
            "stage 'full': expected trainable to be all or a list, such as [router]; got 'router'",
        ),
    ],
)
def test_before_anything_is_written(overrides, message, words, tmp_path, capsys):
    assert message in mistake(["stages=full", *overrides, *words], tmp_path / "run", capsys)


def test_a_training_too_short_for_its_stages(words, tmp_path, capsys):
    """Six steps are 0, 1/6, ..., 5/6 = .833 of the way: the first stage alone."""
    short = ["stages=demo", "trainer.max_epochs=1", "+trainer.limit_train_batches=6"]
    message = mistake([*short, *words], tmp_path / "run", capsys)
    assert message.startswith(
        "expected a step of training for every stage, got none for all-sensors, learned-routes: the 6 optimiser steps"
    )
    assert message.endswith("train longer (such as trainer.max_epochs), or change 'until' of the stages")


def test_an_empty_folder_that_was_there_stays_and_can_be_used(words, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    short = ["stages=demo", "trainer.max_epochs=1", "+trainer.limit_train_batches=6"]
    for _ in range(2):
        assert main(["train", *short, *words, f"run_dir={run}"]) == 2
        assert "expected a step of training for every stage" in capsys.readouterr().err
        assert not list(run.iterdir())


def test_the_words_of_the_gradients_page(words, tmp_path, capsys):
    run = tmp_path / "run"
    short = ["stages=full", "trainer.max_epochs=1", "+trainer.limit_train_batches=1", "trainer.limit_val_batches=0"]
    page = ["trainer.gradients_every_n_steps=1", "trainer.modality_balance=0.5"]
    assert main(["train", *short, *page, *words, f"run_dir={run}"]) == 0
    with open(run / "gradients.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert min(float(row[f"factor_{name}"]) for name in ("camera", "lidar", "radar")) < 1


@pytest.mark.parametrize("trainer", ["default", "cpu", "gpu", "ddp"])
def test_every_trainer_knows_them(trainer):
    config = compose([f"trainer={trainer}", "trainer.gradients_every_n_steps=20", "trainer.modality_balance=0.5"])
    assert (config.trainer.gradients_every_n_steps, config.trainer.modality_balance) == (20, 0.5)
