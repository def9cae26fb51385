"""One training step at a time: what moves, what stands still, what the draws depend on."""

import pytest
import torch

from fusion.optim import OptimizerSettings
from fusion.routing.plan import fixed_plan
from fusion.stages import Stage
from fusion.task import DEFAULT_WEIGHTS, FusionTask, checked_validation_budget
from fusion.trainer import build_trainer
from sensors.rig import LIDAR_UNIT, UNITS
from tests.fusion.random_batch import random_batch
from tests.fusion.toy_data import ToyData
from tests.fusion.toy_model import ToyModel
from tests.fusion.train_toy import toy_task

LEARNING = OptimizerSettings(learning_rate=1e-2, router_learning_rate=1e-2, warm_up_steps=0, weight_decay=0.5)


def fitted(tmp_path, stages, num_batches: int = 3, **lightning) -> tuple[dict, FusionTask]:
    """Parameters before, and the task after one epoch."""
    torch.manual_seed(0)
    task = FusionTask(ToyModel(), stages, LEARNING, seed=1)
    before = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    options = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 0, "log_every_n_steps": 1} | lightning
    trainer = build_trainer(tmp_path, **options)
    trainer.fit(task, datamodule=ToyData(num_batches))
    return before, task


def moved(before: dict, task: FusionTask) -> set[str]:
    return {name for name, value in task.model.named_parameters() if not torch.equal(value, before[name])}


def test_units_that_nobody_chose_stand_still_and_have_no_moments(tmp_path):
    before, task = fitted(tmp_path, [Stage("a", 1.0, route="fixed", units=("LIDAR",))])
    changed = moved(before, task)
    assert {name.split(".")[0] for name in changed} == {"lidar", "trunk", "head"}
    assert not any(name.startswith("lidar.lite") for name in changed)
    state = task.trainer.optimizers[0].state
    idle = [value for name, value in task.model.named_parameters() if name not in changed]
    assert idle
    assert not any(parameter in state for parameter in idle)


def test_units_stop_when_their_stage_ends(tmp_path):
    """Momentum and weight decay must not go on moving what a later stage freezes."""
    before, task = fitted(tmp_path / "one", [Stage("a", 1.0, trainable=("camera", "head"))], num_batches=2)
    stages = [Stage("a", 0.5, trainable=("camera", "head")), Stage("b", 1.0, trainable=("trunk",))]
    task.trainer = None
    longer_before, longer = fitted(tmp_path / "two", stages, num_batches=4)
    assert moved(before, task) == {name for name in moved(longer_before, longer) if not name.startswith("trunk")}
    rows = (tmp_path / "two" / "train.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rows[1:]] == ["a", "a", "b", "b"]
    steps = longer.trainer.optimizers[0].state
    counts = {name.split(".")[0]: int(steps[p]["step"]) for name, p in longer.model.named_parameters() if p in steps}
    assert counts == {"camera": 2, "head": 2, "trunk": 2}


def test_the_loss_falls(tmp_path):
    _, task = fitted(tmp_path, [Stage("a", 1.0)], num_batches=25)
    losses = [float(row.split(",")[4]) for row in (tmp_path / "train.csv").read_text().splitlines()[1:]]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_a_step_does_not_depend_on_the_global_generators(tmp_path):
    tables = []
    for seed in (1, 2):
        task = toy_task()
        torch.manual_seed(seed)
        trainer = build_trainer(tmp_path / str(seed), max_epochs=2, accelerator="cpu", limit_val_batches=0)
        trainer.fit(task, datamodule=ToyData(num_batches=4))
        tables.append((tmp_path / str(seed) / "train.csv").read_text())
    assert tables[0] == tables[1]


def test_a_step_in_bfloat16(tmp_path):
    before, task = fitted(tmp_path, [Stage("a", 1.0, route="learned")], num_batches=1, precision="bf16-mixed")
    assert any(name.startswith("trunk") for name in moved(before, task))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in task.model.parameters())


def test_precisions_that_would_turn_the_batch_into_halves_are_refused(tmp_path):
    with pytest.raises(ValueError, match="bf16-mixed"):
        build_trainer(tmp_path, precision="bf16-true")


def test_budget_loss_teaches_the_router_to_spend_less(tmp_path):
    stages = [
        Stage("a", 1.0, route="learned", budget=0.3, losses=dict.fromkeys(DEFAULT_WEIGHTS, 0.0) | {"budget": 1.0})
    ]
    torch.manual_seed(0)
    task = FusionTask(ToyModel(), stages, OptimizerSettings(5e-2, 5e-2, schedule="constant", warm_up_steps=0))
    trainer = build_trainer(tmp_path, max_epochs=1, accelerator="cpu", limit_val_batches=0)
    trainer.fit(task, datamodule=ToyData(num_batches=30))
    header, *rows = [row.split(",") for row in (tmp_path / "train.csv").read_text().splitlines()]
    losses = [float(row[header.index("budget")]) for row in rows]
    assert losses[0] > 0.1
    assert losses[-1] < 0.1 * losses[0]


def test_usage_of_other_ranks_enters_the_budget_loss(monkeypatch):
    """Two ranks: mean excess of both squared; each rank's gradient is that of its own cost, to be averaged by DDP."""
    task = toy_task()

    class TwoRanks:
        world_size = 2

        class strategy:
            reduce = staticmethod(lambda value, reduce_op: (value + 0.4) / 2)  # the other rank's excess is 0.4

    monkeypatch.setattr(FusionTask, "trainer", TwoRanks)
    choice = torch.zeros(2, len(UNITS), dtype=torch.int64)
    cost = torch.tensor([1.1, 1.3], requires_grad=True)  # budgets are 1: mean excess 0.2
    shifted = task._with_usage_of_all_ranks(fixed_plan(choice, choice == 0, cost))
    from fusion.routing.budget import budget_loss

    loss = budget_loss(shifted)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.3**2, rel=1e-5)
    assert cost.grad.tolist() == pytest.approx([2 * 0.3 / 2] * 2, rel=1e-5)


def test_learning_rate_factor_of_a_stage(tmp_path):
    stages = [Stage("a", 0.5), Stage("b", 1.0, learning_rate_factor=0.1)]
    torch.manual_seed(0)
    task = FusionTask(ToyModel(), stages, OptimizerSettings(1e-2, 3e-2, schedule="constant", warm_up_steps=0))
    trainer = build_trainer(tmp_path, max_epochs=1, accelerator="cpu", limit_val_batches=0)
    trainer.fit(task, datamodule=ToyData(num_batches=4))
    header, *rows = [row.split(",") for row in (tmp_path / "train.csv").read_text().splitlines()]
    rates = [float(row[header.index("learning_rate")]) for row in rows]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3])


def test_unknown_loss_weights_are_one_line():
    with pytest.raises(ValueError, match="depht"):
        FusionTask(ToyModel(), [Stage("a", 1.0)], loss_weights={"depht": 1.0})


def test_validation_of_a_fixed_stage_uses_its_units_alone():
    task = toy_task()
    batch = random_batch(2, image_size_px=(16, 32), num_points=20, lost=((0, "LIDAR_TOP"),))
    plan = task.plan_of(Stage("a", 1.0, route="fixed", units=("LIDAR",)), batch, torch.Generator())
    assert plan.choice[:, LIDAR_UNIT].tolist() == [0, 2]
    assert int(plan.choice.sum()) == 2


@pytest.mark.parametrize("budget", [1.5, 0.01, float("nan"), "least", None, True])
def test_a_validation_budget_that_no_model_keeps_is_one_line(budget):
    with pytest.raises(ValueError, match=r"^validation_budget: expected a .* in \[0.2500, 1\].*, got") as error:
        checked_validation_budget(budget, 0.25)
    assert "\n" not in str(error.value)
    assert checked_validation_budget(0.25, 0.25) == 0.25


def test_a_task_is_validated_at_its_budget_and_nowhere_else():
    model = ToyModel()
    assert FusionTask(model, [Stage("a", 1.0)], validation_budget=0.6).validation_budget == 0.6
    with pytest.raises(ValueError, match="^validation_budget: expected a budget in"):
        FusionTask(model, [Stage("a", 1.0)], validation_budget=model.min_budget - 0.01)
