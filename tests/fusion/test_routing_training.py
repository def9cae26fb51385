"""Stages with several routes, other budget terms, and the watch over collapse, in small trainings of the toy model."""

import csv

import pytest
import torch

from fusion.callbacks import CollapseAlarm, RestUnusedUnits
from fusion.optim import OptimizerSettings
from fusion.routed_steps import paired_step, sample_losses
from fusion.routing.objectives import LagrangianBudget
from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from tests.fusion.random_batch import random_batch
from tests.fusion.toy_data import ToyData
from tests.fusion.toy_model import ToyModel

LEARNING = OptimizerSettings(learning_rate=1e-2, router_learning_rate=1e-2, warm_up_steps=0)
QUICK = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 1, "log_every_n_steps": 1}


def trained(folder, stages, callbacks=(), num_batches: int = 2, **options) -> FusionTask:
    torch.manual_seed(0)
    task = FusionTask(ToyModel(), stages, LEARNING, seed=1, **options)
    build_trainer(folder, callbacks=callbacks, **QUICK).fit(task, datamodule=ToyData(num_batches))
    return task


def rows_of(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_paired_and_sandwich_stages_train_what_they_should(tmp_path):
    stages = [
        Stage("sandwich", 0.5, route="sandwich"),
        Stage("paired", 1.0, route="paired", trainable=("router",), budget=("least", 1.0)),
    ]
    task = trained(tmp_path, stages)
    sandwich, paired = rows_of(tmp_path / "train.csv")
    assert float(sandwich["distillation"]) > 0
    assert float(sandwich["router"]) == float(paired["distillation"]) == 0
    assert float(paired["router"]) > 0
    state = task.trainer.optimizers[0].state
    assert any(parameter in state for parameter in task.model.router.parameters())
    assert any(parameter in state for parameter in task.model.trunk.parameters())


def test_without_such_stages_there_are_no_such_columns():
    task = FusionTask(ToyModel(), [Stage("a", 1.0)], LEARNING)
    assert not {"router", "distillation"} & set(task.loss_weights)
    with pytest.raises(ValueError, match="got router"):
        FusionTask(ToyModel(), [Stage("a", 1.0)], LEARNING, loss_weights={"router": 1.0})
    task = FusionTask(ToyModel(), [Stage("a", 1.0, route="paired")], LEARNING, loss_weights={"router": 3.0})
    assert task.loss_weights["router"] == 3.0


def test_losses_of_samples_have_the_mean_of_the_batch_and_teach_the_router_alone():
    torch.manual_seed(0)
    model, batch = ToyModel().eval(), random_batch(3, 5, image_size_px=(16, 32), num_points=60)
    task = FusionTask(model, [Stage("a", 1.0)], LEARNING)
    done = paired_step(model, batch, torch.full((3,), 0.9), torch.Generator().manual_seed(0), task.loss_weights)
    found = sample_losses(done.output, batch, model, task.loss_weights)
    whole = task.eval().loss_terms(done.output, batch)
    total = sum(task.loss_weights[name] * whole[name] for name in whole if name not in ("depth", "budget", "entropy"))
    assert found.mean().item() == pytest.approx(total.item(), rel=1e-5)
    assert not torch.equal(*done.choices)
    done.terms["router"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.router.parameters())
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("router"))


def test_a_lagrangian_in_training_moves_its_price_and_is_saved(tmp_path):
    term = LagrangianBudget(rate=10.0)
    trained(tmp_path, [Stage("a", 1.0, route="learned", budget=0.45)], budget_term=term)
    assert term.price.item() > 0  # an untrained router spends more than that
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["budget_term.price"].item() == term.price.item()
    assert float(rows_of(tmp_path / "train.csv")[-1]["budget"]) > 0


def test_the_alarm_reports_and_warns(tmp_path):
    alarm = CollapseAlarm(tmp_path, every_n_steps=2)
    with pytest.warns(UserWarning, match="may have collapsed"):
        trained(tmp_path, [Stage("a", 1.0, route="learned", budget=0.7)], [alarm], num_batches=4)
    rows = rows_of(tmp_path / "routes.csv")
    assert [int(row["step"]) for row in rows] == [2, 4]
    assert all(int(row["samples"]) == 4 and int(row["routes"]) >= 1 for row in rows)
    assert all("do not depend" in row["alarms"] for row in rows)  # an untrained router does not look


def test_the_watch_is_on_by_default_and_silent_without_a_learning_router(tmp_path):
    task = trained(tmp_path, [Stage("a", 1.0, route="fixed", units=("LIDAR",))])
    kinds = {type(callback): callback for callback in task.trainer.callbacks}
    assert CollapseAlarm in kinds
    assert not (tmp_path / "routes.csv").exists()
    assert kinds[RestUnusedUnits].updates == {"lidar.full": 2, "lidar.lite": 0, "radar.full": 0, "radar.lite": 0}
