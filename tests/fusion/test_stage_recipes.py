"""Shipped lists of stages: what their loader applies, what they move, and what a stage does to the gradients' table."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules.datamodule import NuScenesDataModule
from datamodules.inject import FaultInjector, FaultRule
from fusion.cli import main
from fusion.commands.compose import compose, instantiate
from fusion.gradient_report import GradientReport
from fusion.stage_entry import give_faults
from fusion.stages import Curriculum, Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from tests.datamodules.small_set import write_small_set
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import IMAGE_SIZE_PX
from tests.fusion.toy_data import ToyData
from tests.fusion.train_toy import LEARNING


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_curriculum_hardens_units_budgets_and_faults_together(tmp_path):
    """What the loader applies where. Seven samples, one to a batch, twenty epochs: batch n is at progress n / 140; a
    beam drop of .8 of the beams is the plan, so that a severity of .4 takes .32.
    """
    stages = instantiate(compose(["stages=curriculum"]).stages.stages)
    curriculum = Curriculum(stages)
    injector = FaultInjector([FaultRule("lidar_beam_drop", severity=0.8)])
    root = write_small_set(tmp_path)
    data = NuScenesDataModule(
        root, "v1.0-small", "small_train", "small_val", image_size_px=None, lidar_sweeps=1, radar_sweeps=0,
        batch_size=1, total_epochs=20, injector=injector,
    )  # fmt: skip
    give_faults(curriculum, data)
    expected = {
        (0, 0): ("points", None, None),
        (3, 6): ("points", None, None),  # 27 / 140 = .193
        (4, 0): ("front", "0.16", 0.5),  # .2 * .8
        (7, 0): ("all-units", "0.16", 0.5),
        (8, 3): ("all-units", "0.24", 0.5 + 0.5 * 10 / 21),  # 59 / 140: (59 - 49) / (70 - 49) of the stage
        (10, 0): ("rich", "0.32", 1.0),
        (13, 0): ("middling", "0.48", 1.0),
        (16, 0): ("all-budgets", "0.64", 1.0),
        (18, 0): ("all-budgets", "0.72", 1.0),  # half-way from .8 to 1
    }
    for (epoch, batch), (name, level, share) in expected.items():
        assert curriculum.at((7 * epoch + batch) / 140).name == name
        data.set_resume_position(epoch, batch)
        loader = data.train_dataloader()
        names = next(iter(loader)).faults[0]
        assert names in ((), (f"lidar_beam_drop@{level}",))
        if share in (None, 1.0):
            assert bool(names) == (share == 1.0)
    # Units and budgets harden along with them.
    units = [len(stage.units) if stage.route == "fixed" else 8 for stage in stages]
    budgets = [stage.budget_ends(0.3)[0] for stage in stages]
    assert units == [2, 5, 8, 8, 8, 8]
    assert budgets == [1.0, 1.0, 1.0, 0.8, 0.6, 0.3]


def test_the_curriculum_wants_faults_before_anything_is_written(tmp_path, capsys, monkeypatch):
    root = write_small_set(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    splits = ["data.version=v1.0-small", "data.train_split=small_train", "data.val_split=small_val"]
    assert main(["train", "stages=curriculum", f"data.root={root}", *splits]) == 2
    printed = capsys.readouterr().err.strip()
    assert "stage 'front': expected data with a plan of faults" in printed
    assert "got none; choose one by faults=NAME" in printed
    assert len(printed.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert isinstance(instantiate(compose(["experiment=curriculum"]).faults), FaultInjector)


def fitted(folder: Path, stages=None, num_batches: int = 6, **trainer) -> tuple[dict, FusionTask]:
    """The task after one epoch, and parameters by name as they were at the start of each stage and at the end."""
    model = adaptive_model().train()
    if stages is None:
        config = compose(["stages=two-stage-exits", "stages.optimizer.warm_up_steps=0"]).stages
        config.stages[0].until = 0.5
        task = instantiate(config, _partial_=True)(model=model, seed=0)
    else:
        task = FusionTask(model, stages, LEARNING)
    seen = {}

    def keep(module, _inputs):
        if task.stage.name not in seen:
            seen[task.stage.name] = {name: value.detach().clone() for name, value in module.named_parameters()}

    handle = model.register_forward_pre_hook(keep)
    options = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 0, "num_sanity_val_steps": 0} | trainer
    build_trainer(folder, gradients_every_n_steps=1, **options).fit(
        task, datamodule=ToyData(num_batches, image_size_px=IMAGE_SIZE_PX, depth_stride=8)
    )
    handle.remove()
    seen["end"] = {name: value.detach().clone() for name, value in model.named_parameters()}
    return seen, task


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_two_stages_train_the_trunk_first_and_the_exits_heads_alone(tmp_path):
    seen, task = fitted(tmp_path)
    first, second = moved(seen["detector"], seen["exits"]), moved(seen["exits"], seen["end"])
    assert not any(name.startswith("exits") for name in first)
    assert {"lidar", "radar", "trunk", "head", "merge"} <= {name.split(".")[0] for name in first}
    assert second == {name for name in seen["end"] if name.startswith("exits.")}
    state = task.trainer.optimizers[0].state
    counts = {name: int(state[p]["step"]) for name, p in task.model.named_parameters() if p in state}
    assert {counts[name] for name in second} == {3}
    assert all(count <= 3 for count in counts.values())
    rows = rows_of(tmp_path / "train.csv")
    assert [float(row["exits"]) > 0 for row in rows] == [False] * 3 + [True] * 3
    # Exits that rested in the first row have their columns none the less, and frozen encoders no share.
    gradients = rows_of(tmp_path / "gradients.csv")
    assert len(gradients) == 6
    assert all(math.isnan(float(row["cosine_0_1"])) for row in gradients)  # nothing shared trains in the second stage
    shares = [sum(float(row[f"share_{name}"]) for name in ("camera", "lidar", "radar")) for row in gradients]
    assert shares == pytest.approx([1.0] * 3 + [0.0] * 3)


def test_a_frozen_sensor_holds_nobody_back(tmp_path):
    """LiDAR and radar first, the LiDAR far ahead; then the LiDAR stands still: the radar has all of the gradient, and
    its steps are its own.
    """
    model = nn.Module()
    model.lidar, model.radar = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    module = SimpleNamespace(model=model, depth_terms=SimpleNamespace(watched=False, watched_losses=None))
    report = GradientReport(tmp_path, every_n_steps=1, balance=1.0)
    sizes = {1: {"lidar": 1.0, "radar": 3.0}, 2: {"radar": 3.0}, 3: {"lidar": 1.0, "radar": 3.0}}
    for step, gradients in sizes.items():
        model.lidar.requires_grad_("lidar" in gradients)
        for name in ("lidar", "radar"):
            size = gradients.get(name)
            getattr(model, name).weight.grad = None if size is None else torch.full((1, 1), size)
        report.on_before_optimizer_step(None, module, None)
        report.on_train_batch_end(SimpleNamespace(global_step=step, is_global_zero=True), module, None, None, 0)
        # A batch that only accumulates writes nothing.
        report.on_train_batch_end(SimpleNamespace(global_step=step, is_global_zero=True), module, None, None, 1)
    rows = [{key: float(value) for key, value in row.items()} for row in rows_of(tmp_path / "gradients.csv")]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["share_radar"] for row in rows] == pytest.approx([0.75, 1.0, 0.75])
    assert [row["share_lidar"] for row in rows] == pytest.approx([0.25, 0.0, 0.25])
    assert [row["factor_radar"] for row in rows] == pytest.approx([1 / (2 * 0.75), 1.0, 1 / (2 * 0.75)])


def test_cosines_are_named_by_the_exits_that_teach(tmp_path):
    """Gradients of three exits in a shared parameter, the middle one frozen off: (1, 0), none, (1, 1)."""
    model = nn.Module()
    model.merge, model.exits = nn.Linear(2, 1, bias=False), SimpleNamespace(heads=[0, 1])
    x = model.merge.weight
    losses = [x[0, 0], torch.zeros(()), x.sum()]
    module = SimpleNamespace(model=model, depth_terms=SimpleNamespace(watched=True, watched_losses=losses))
    report = GradientReport(tmp_path, every_n_steps=1)
    report.on_before_backward(None, module, losses[2])
    report.on_before_optimizer_step(None, module, None)
    report.on_train_batch_end(SimpleNamespace(global_step=1, is_global_zero=True), module, None, None, 0)
    (row,) = rows_of(tmp_path / "gradients.csv")
    assert float(row["cosine_0_2"]) == pytest.approx(1 / math.sqrt(2), rel=1e-6)
    assert math.isnan(float(row["cosine_0_1"]))
    assert math.isnan(float(row["cosine_1_2"]))


def test_shares_follow_what_a_stage_trains(tmp_path):
    every = {"route": "fixed", "units": ("LIDAR", "RADAR")}
    stages = [Stage("both", 0.5, **every), Stage("radar", 1.0, trainable=("radar", "merge", "head"), **every)]
    fitted(tmp_path, stages, num_batches=4)
    rows = [{key: float(value) for key, value in row.items()} for row in rows_of(tmp_path / "gradients.csv")]
    assert all(0 < row["share_lidar"] < 1 for row in rows[:2])
    assert [row["share_radar"] for row in rows[2:]] == [1.0, 1.0]
    assert [row["share_camera"] for row in rows] == [0.0] * 4
