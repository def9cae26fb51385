"""Training with exits and tokens: resumed exactly, the same on two ranks, rested where they weigh nothing, balanced."""

import csv
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from fusion.adaptive.depth_terms import GATE_PRICE
from fusion.checkpoint import read_checkpoint
from fusion.commands.compose import compose, config_folder, instantiate
from fusion.gradient_report import GradientReport, balance_factors
from fusion.heads.losses import center_loss, weighted_sum
from fusion.heads.targets import center_targets
from fusion.optim import OptimizerSettings
from fusion.routing.router import glance_of
from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from fusion.trunk.exits_losses import JointLoss, exit_losses, gate_targets
from fusion.trunk.exits_policies import LearnedGate
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import IMAGE_SIZE_PX, small_batch, small_model
from tests.fusion.test_resume import assert_equal
from tests.fusion.toy_data import ToyData
from tests.fusion.train_adaptive import leaving, train
from tests.fusion.train_toy import LEARNING

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def rows_of(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_killed_in_the_second_of_three_stages_goes_on_exactly(whole, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=train, args=(tmp_path,), kwargs={"kill_at": 9})
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    assert rows_of(tmp_path / "train.csv")[-1]["stage"] == "exits"  # saved at step 8, in the second epoch
    train(tmp_path, resume=True)
    for name in ("train.csv", "validation.csv", "gradients.csv"):
        assert (tmp_path / name).read_text() == (whole / name).read_text(), name
    found, expected = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (tmp_path, whole))
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(found[part], expected[part], part)


def test_exits_and_tokens_are_in_the_table(whole):
    rows = rows_of(whole / "train.csv")
    assert [row["stage"] for row in rows] == ["points"] * 5 + ["exits"] * 4 + ["all"] * 3
    assert all(float(row["exits"]) > 0 for row in rows)
    assert any(float(row["tokens"]) > 0 for row in rows)
    gradients = rows_of(whole / "gradients.csv")
    assert len(gradients) == 12
    for row in gradients[4:5]:
        shares = [float(row[f"share_{name}"]) for name in ("camera", "lidar", "radar")]
        assert sum(shares) == pytest.approx(1)
        assert -1 <= float(row["cosine_0_2"]) <= 1


def test_ranks_with_different_routes_and_exits_agree(tmp_path):
    command = [sys.executable, "-m", "tests.fusion.train_adaptive", str(tmp_path), "devices=2", "max_epochs=1"]
    command += ["strategy=ddp_find_unused_parameters_true", "limit_val_batches=1"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    left = [torch.load(tmp_path / f"left-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert not torch.equal(left[0]["routes"], left[1]["routes"]), "in the last step of training"
    assert [part["exit_of"].tolist() for part in left] == [[2, 2], [0, 0]], "one rank goes all the way, one leaves"
    alone = adaptive_model()
    alone.load_state_dict(one)
    for rank, part in enumerate(left):
        expected = leaving(alone, rank)
        assert part["gflops"] == expected["gflops"]
        torch.testing.assert_close(part["heatmap"], expected["heatmap"])


def test_a_router_that_stands_still_decides_as_at_evaluation(tmp_path):
    model = adaptive_model().train()
    stages = [
        Stage("router", 0.5, route="learned", budget=0.7, trainable=("router",)),
        Stage("settle", 1.0, route="learned", budget=0.7, trainable=("merge", "trunk", "head")),
    ]
    task = FusionTask(model, stages, LEARNING, seed=3)
    weight, seen = next(model.trunk.parameters()), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            routes, is_training = module.step_routes[0][0], module.model.router.training
            module.model.router.eval()
            plan = module.model.router(glance_of(batch, module.model.available(batch)), module.model.routes, 0.7)
            seen.append((module.stage.name, is_training, torch.equal(plan.choice, routes), weight.detach().clone()))

    trainer = build_trainer(
        tmp_path, max_epochs=4, accelerator="cpu", devices=1, callbacks=[Watch()], num_sanity_val_steps=0,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, datamodule=ToyData(6, image_size_px=IMAGE_SIZE_PX, depth_stride=8))
    first, second = ([row for row in seen if row[0] == name] for name in ("router", "settle"))
    assert all(is_training for _, is_training, _, _ in first)
    assert not all(same for _, _, same, _ in first), "noise that never changes a route proves nothing below"
    assert len(second) >= 4
    assert all(not is_training and same for _, is_training, same, _ in second)
    assert torch.equal(first[0][3], first[-1][3])
    assert not torch.equal(second[0][3], second[-1][3])


def test_a_stage_whose_loss_it_cannot_change_is_one_line(tmp_path):
    """Found out in the step where the data decides, here a route that keeps the cameras once in a million samples."""
    rare = Stage("idle", 1.0, route="random", keep={"camera": 1e-6}, trainable=("cameras",))
    task = FusionTask(adaptive_model().train(), [rare], LEARNING)
    trainer = build_trainer(tmp_path, max_epochs=1, accelerator="cpu", devices=1, num_sanity_val_steps=0)
    with pytest.raises(
        ValueError, match="stage 'idle': expected a loss that depends on something that the stage trains"
    ):
        trainer.fit(task, datamodule=ToyData(2, image_size_px=IMAGE_SIZE_PX, depth_stride=8))


def test_terms_are_those_of_the_losses():
    """By hand: the term ``exits`` of a pass is the sum of the two early exits' detection losses."""
    model, batch = adaptive_model().train(), small_batch(2)
    task = FusionTask(model, [Stage("a", 1.0)])
    assert task.depth_terms.names == ("exits", "tokens")
    torch.manual_seed(0)
    output = model(batch, plan=model.full_plan(batch))
    targets = center_targets(batch.boxes, len(batch), model.head.grid)
    terms = task.depth_terms(output, targets)
    expected = sum(weighted_sum(center_loss(answer, targets)) for answer in output.exits.outputs[:2])
    torch.testing.assert_close(terms["exits"], expected)
    use = model.trunk.stages[-1][1].last_use
    torch.testing.assert_close(terms["tokens"], (use.shares.mean(dim=1) - 0.5).square().mean())


def test_exits_that_weigh_nothing_do_not_run():
    model, batch = adaptive_model().train(), small_batch(2)
    task = FusionTask(model, [Stage("a", 1.0, losses={"exits": 0.0})])
    task.depth_terms.rest({"exits": 0.0, "tokens": 1.0})
    output = model(batch, plan=model.full_plan(batch))
    assert "exits" not in {one.branch for one in output.trace.executions}
    assert output.exits.outputs is None
    targets = center_targets(batch.boxes, len(batch), model.head.grid)
    assert float(task.depth_terms(output, targets)["exits"]) == 0
    task.depth_terms.rest({"exits": 0.5, "tokens": 1.0})
    assert model(batch, plan=model.full_plan(batch)).exits.outputs is not None


def test_a_learned_gate_has_a_term_of_its_own():
    model, batch = adaptive_model(policy=LearnedGate(2)).train(), small_batch(2)
    with torch.no_grad():
        for parameter in model.exits.policy.parameters():
            parameter.zero_()
    task = FusionTask(model, [Stage("a", 1.0)])
    output = model(batch, plan=model.full_plan(batch))
    targets = center_targets(batch.boxes, len(batch), model.head.grid)
    terms = task.depth_terms(output, targets)
    # Gates at 0 say 1/2 for every sample at both exits: log 2 each, those to be opened weighted by how many
    # others there are for one of them.
    way, losses = torch.linspace(0, 1, 3), exit_losses(output.exits.outputs, targets).detach()
    wanted = gate_targets(len(batch) * losses, way, GATE_PRICE)
    opened = wanted.sum(dim=0)
    weights = torch.where(wanted > 0, (len(batch) - opened).clamp_min(1) / opened.clamp_min(1), 1.0)
    assert terms["exit_gate"].item() == pytest.approx(math.log(2) * float(weights.mean()), rel=1e-5)
    terms["exit_gate"].backward()
    assert all(layer.bias.grad is not None for layer in model.exits.policy.layers)
    assert all(parameter.grad is None for parameter in model.head.parameters())


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [(small_model, JointLoss(with_last=False), "model with exits"), (adaptive_model, JointLoss(), "with_last: false")],
)
def test_an_exit_loss_that_does_not_fit_is_one_line(model, loss, message):
    with pytest.raises(ValueError, match=message):
        FusionTask(model(), [Stage("a", 1.0)], exit_loss=loss)


def test_balance_by_hand():
    shares = {"camera": 0.1, "lidar": 0.8, "radar": 0.1}
    assert balance_factors(shares, 1.0) == pytest.approx({"camera": 1.0, "lidar": 1 / 2.4, "radar": 1.0})
    assert balance_factors(shares, 0.5)["lidar"] == pytest.approx((1 / 2.4) ** 0.5)
    assert set(balance_factors(shares, 0.0).values()) == {1.0}


def test_a_sensor_ahead_moves_less_and_the_others_as_before():
    """Gradients 8 and 1: the step of the first is scaled by 1 / (2 * 8/9), whatever the optimiser makes of them."""
    model = nn.Module()
    model.lidar, model.radar, model.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
    module = SimpleNamespace(model=model, depth_terms=SimpleNamespace(watched=False, watched_losses=None))
    report = GradientReport(Path("unused"), balance=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, size in (("lidar", 8.0), ("radar", 1.0)):
        getattr(model, name).weight.grad = torch.full((1, 1), size)
    report.on_before_optimizer_step(None, module, optimizer)
    optimizer.step()
    report.on_train_batch_end(SimpleNamespace(global_step=1, is_global_zero=True), module, None, None, 0)
    moved = {name: float((before[name] - value).abs().sum()) for name, value in model.named_parameters()}
    assert moved["radar.weight"] == pytest.approx(0.1, rel=1e-4)
    assert moved["lidar.weight"] == pytest.approx(0.1 / (2 * 8 / 9), rel=1e-4)
    assert moved["head.weight"] == 0


class Doubled(nn.Module):
    """A toy of a bilevel step: a learned scale on the loss, beside the usual forward pass."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, task, batch, generator):
        model = task.model
        available = model.available(batch)
        choice = model.routes.random(available, 1.0, generator)
        model.router.logits(glance_of(batch, available), model.routes, torch.ones(len(batch)))
        output = model(batch, plan=model.plan_of(choice, available))
        return output, {"scale": (self.log_scale - 1.0).square()}


def test_a_custom_step_learns_and_is_in_the_checkpoint(tmp_path):
    step = Doubled()
    stages = [Stage("first", 0.5), Stage("bilevel", 1.0, route="custom", step=step)]
    task = FusionTask(adaptive_model().train(), stages, OptimizerSettings(1e-2, 1e-2, warm_up_steps=0))
    trainer = build_trainer(tmp_path, max_epochs=1, accelerator="cpu", limit_val_batches=1, num_sanity_val_steps=0)
    trainer.fit(task, datamodule=ToyData(4, image_size_px=IMAGE_SIZE_PX, depth_stride=8))
    assert float(step.log_scale.detach()) > 0
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(saved["custom_steps.0.log_scale"], step.log_scale.detach())
    with pytest.raises(ValueError, match="a step for route custom"):
        Stage("a", 1.0, route="custom")


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "stages").glob("*.yaml")))
def test_every_shipped_list_of_stages_trains(name, tmp_path):
    """Two steps in each stage, on a small model: every stage is entered and every loss is finite."""
    config = compose([f"stages={name}"]).stages
    if config._target_ != "fusion.task.FusionTask":
        pytest.skip("another task, with tests of its own")
    count = len(config.stages)
    for number, stage in enumerate(config.stages, start=1):
        stage.until = number / count
    model = (adaptive_model if config.get("exit_loss") else small_model)().train()
    task = instantiate(config, _partial_=True)(model=model, seed=0)
    trainer = build_trainer(tmp_path, max_epochs=1, accelerator="cpu", limit_val_batches=0)
    batch_size = 3 if name == "sample-weights" else 2  # two samples teach, one judges
    trainer.fit(task, datamodule=ToyData(2 * count, batch_size, image_size_px=IMAGE_SIZE_PX, depth_stride=8))
    rows = rows_of(tmp_path / "train.csv")
    assert len(dict.fromkeys(row["stage"] for row in rows)) == count
    assert all(torch.isfinite(torch.tensor(float(row["loss"]))) for row in rows)
