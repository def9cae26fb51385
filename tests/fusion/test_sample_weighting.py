"""Sample weights by meta-learning: gradients by hand and by finite differences, a short training, resumed exactly."""

import csv
import math
import multiprocessing
import signal

import pytest
import torch
from torch import nn

from fusion.checkpoint import read_checkpoint
from fusion.commands.compose import compose, instantiate
from fusion.sample_weighting import SampleWeighting, losses_at_exits, meta_gradient, whole_shares
from fusion.stage_entry import meet_data
from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from fusion.trunk.exits_losses import SampleWeights
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import IMAGE_SIZE_PX, small_batch, small_model
from tests.fusion.test_resume import assert_equal
from tests.fusion.toy_data import ToyData
from tests.fusion.train_toy import LEARNING, KillAt


class Given(nn.Module):
    """Weights that are parameters themselves."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, losses):
        return self.values


def test_the_meta_gradient_by_hand():
    """Two samples teach a scalar theta by w_i (theta - a_i)^2; a third judges by (theta' - 4)^2.

    theta' = 3 - 0.1 * mean(w_i * 2 (3 - a_i)) = 3 - 0.1 * (0.5 * 4 + 2.0 * (-2)) / 2 = 3.1,
    d judged / d w_i = 2 (theta' - 4) * (-0.1 * 2 (3 - a_i) / 2): 0.36 and -0.18.
    """
    theta = torch.tensor(3.0, requires_grad=True)
    weigher = Given([[0.5], [2.0]])
    losses = (theta - torch.tensor([[1.0], [4.0]])).square()
    judged, (gradient,) = meta_gradient(weigher, losses, {"theta": theta}, 0.1, lambda at: (at["theta"] - 4.0).square())
    assert float(judged) == pytest.approx(0.9**2, rel=1e-5)
    assert gradient.flatten().tolist() == pytest.approx([0.36, -0.18], rel=1e-5)
    assert theta.grad is None
    assert weigher.values.grad is None
    losses.sum().backward()  # the graph of the losses is still there
    assert float(theta.grad) == pytest.approx(2 * 2 + 2 * -1)


def test_the_meta_gradient_of_the_weight_network_by_finite_differences():
    torch.manual_seed(0)
    weigher, theta = SampleWeights(2).double(), torch.tensor([0.3, -0.8], dtype=torch.float64, requires_grad=True)
    data = torch.randn(5, 2, dtype=torch.float64)
    weigher.forward = lambda losses: _weights_in_double(weigher, losses)

    def judged():
        losses = (data @ theta)[:, None].square() * torch.tensor([1.0, 2.0], dtype=torch.float64)
        return meta_gradient(weigher, losses, {"theta": theta}, 0.1, lambda at: (data[:2] @ at["theta"]).sum().sin())

    _, gradients = judged()
    for parameter, gradient in zip(weigher.parameters(), gradients, strict=True):
        for place in range(0, parameter.numel(), 7):
            ends = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                ends.append(float(judged()[0]))
                with torch.no_grad():
                    parameter.view(-1)[place] -= step
            assert float(gradient.view(-1)[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)


def _weights_in_double(weigher, losses):
    raw = weigher.layers(losses.detach())
    return 1 + weigher.reach * (raw - raw.mean(dim=0, keepdim=True))


def test_shares_of_whole_samples_have_the_asked_mean():
    shares = [0.5, 0.3, 0.2]
    for count in (1, 2, 3, 7):
        roundings = [(k + 0.5) / 200 for k in range(200)]
        found = torch.tensor([whole_shares(shares, count, rounding) for rounding in roundings])
        torch.testing.assert_close(found.sum(dim=1), torch.ones(200))
        assert ((found * count) - (found * count).round()).abs().max() < 1e-5
        torch.testing.assert_close(found.mean(dim=0), torch.tensor(shares), atol=0.01, rtol=0)


def stages(**options) -> list[Stage]:
    step = SampleWeighting(3, learning_rate=0.05, **options)
    return [Stage("first", 0.5), Stage("weighted", 1.0, route="custom", step=step, keep={"camera": 0.5})]


def task_of(**options) -> FusionTask:
    torch.manual_seed(4)
    return FusionTask(adaptive_model().train(), stages(**options), LEARNING, seed=5)


def one_step(task, batch, virtual_rate: float | None = None):
    """The step of the last stage on a batch, outside of a trainer."""
    task.stage = task.curriculum.stages[-1]
    step = task.stage.step
    step.virtual_learning_rate = virtual_rate or step.virtual_learning_rate
    torch.manual_seed(0)  # noise of the tokens
    return step, *step(task, batch, torch.Generator().manual_seed(1))


def test_a_step_moves_the_weight_network_and_the_terms_reweigh_the_losses():
    task, batch = task_of(), small_batch(4)
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    step, output, terms = one_step(task, batch)
    moved = {name for name, value in task.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("custom_steps.0.weigher") for name in moved)
    assert all(parameter.grad is None for parameter in task.parameters())
    losses = losses_at_exits(task, output, batch)
    with torch.no_grad():
        weights = step.weigher(losses)
    assert float(weights.std()) > 0
    plain, weighted = losses.mean(dim=0).sum(), (weights * losses).mean(dim=0).sum()
    torch.testing.assert_close(terms["sample_weights"], weighted - plain)
    # The columns' means are the task's own terms: the last exit's detection loss, and the term `exits`.
    own = task.loss_terms(output, batch)
    torch.testing.assert_close(losses[:, :2].mean(dim=0).sum(), own["exits"])
    last = sum(task.loss_weights[name] * own[name] for name in ("heatmap", "height", "offset", "log_size", "heading"))
    last = last + task.loss_weights["velocity"] * own["velocity"] + task.loss_weights["attribute"] * own["attribute"]
    torch.testing.assert_close(losses[:, 2].mean(), last)
    terms["sample_weights"].backward()
    assert all(value.grad is None for name, value in task.named_parameters() if "weigher" in name)


def test_the_judges_say_what_they_lose_after_the_virtual_step():
    """A large virtual step on the heads changes what the judges lose; a tiny one leaves it as it was."""
    batch = small_batch(4)
    judged = [float(one_step(task_of(), batch, rate)[0].judged) for rate in (1e-9, 1e-8, 0.05)]
    assert judged[0] == pytest.approx(judged[1], rel=1e-5)
    assert judged[2] != pytest.approx(judged[0], rel=1e-3)


def test_parameters_before_the_exits_may_take_part_in_the_virtual_step():
    step = one_step(task_of(virtual=("trunk", "exits", "head")), small_batch(3))[0]
    assert math.isfinite(float(step.judged))


def test_a_last_batch_that_is_too_small_is_weighted_and_teaches_nothing():
    task = task_of()
    before = [value.detach().clone() for value in task.custom_steps.parameters()]
    step, _, terms = one_step(task, small_batch(1))
    assert float(terms["sample_weights"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert not step.optimizer.state
    assert all(torch.equal(*pair) for pair in zip(before, task.custom_steps.parameters(), strict=True))


def train(folder, kill_at: int | None = None, resume: bool = False) -> FusionTask:
    task = task_of()
    if resume:
        torch.manual_seed(999)
    trainer = build_trainer(
        folder,
        checkpoint_every_n_steps=2,
        callbacks=[] if kill_at is None else [KillAt(kill_at, "on_train_batch_end")],
        max_epochs=2, accelerator="cpu", devices=1, num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    data = ToyData(4, batch_size=3, image_size_px=IMAGE_SIZE_PX, depth_stride=8)
    trainer.fit(task, datamodule=data, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return task


def test_a_training_resumed_in_mid_epoch_has_the_same_weights_and_moments(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    step = train(whole).stage.step
    process = multiprocessing.get_context("fork").Process(target=train, args=(stopped, 7))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    resumed = train(stopped, resume=True)
    assert (stopped / "train.csv").read_text() == (whole / "train.csv").read_text()
    found, expected = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (stopped, whole))
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_equal(found[part], expected[part], part)
    moments = expected["state_dict"]["custom_steps.0._extra_state"]["optimizer"]["state"]
    assert [int(moment["step"]) for moment in moments.values()] == [4] * 4, "one step of its own in each of four"
    assert all(float(moment["exp_avg"].abs().max()) > 0 for moment in list(moments.values())[:3])
    assert torch.equal(resumed.stage.step.weigher.layers[0].weight, step.weigher.layers[0].weight)
    with open(whole / "train.csv", newline="") as file:
        terms = [float(row["sample_weights"]) for row in csv.DictReader(file)]
    assert terms[:4] == [0.0] * 4
    assert all(term != 0 and math.isfinite(term) for term in terms[4:])


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (small_model, {}, "stage 'weighted': expected a model with 3 exits, its own head included.*got 0"),
        (lambda: adaptive_model(places=(0,), first_group=[]), {}, "got 2; set num_exits"),
        (adaptive_model, {"virtual": ("neck",)}, "expected virtual parameters among those that the stage trains"),
    ],
)
def test_models_that_do_not_fit_are_one_line(model, options, message):
    with pytest.raises(ValueError, match=message) as error:
        FusionTask(model().train(), stages(**options), LEARNING)
    assert "\n" not in str(error.value)


def test_settings_and_batches_that_cannot_be_are_one_line():
    with pytest.raises(ValueError, match="expected at least two exits"):
        SampleWeighting(1)
    task = task_of()
    task.stage = Stage("rests", 1.0, route="custom", step=task.curriculum.stages[-1].step, losses={"exits": 0.0})
    with pytest.raises(ValueError, match="stage 'weighted': expected batches of at least 3 samples.*batch_size=2"):
        meet_data(task.curriculum, ToyData(batch_size=2))
    meet_data(task.curriculum, ToyData(batch_size=3))
    with pytest.raises(ValueError, match="stage 'rests': expected early exits that learn beside their sample weights"):
        task.stage.step(task, small_batch(2), torch.Generator())


def test_the_shipped_stages_have_the_step():
    config = compose(["stages=sample-weights"]).stages
    task = instantiate(config, _partial_=True)(model=adaptive_model().train(), seed=0)
    assert isinstance(task.curriculum.stages[-1].step, SampleWeighting)
    assert task.loss_weights["sample_weights"] == 1.0
