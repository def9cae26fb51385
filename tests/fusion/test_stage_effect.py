"""Stages that can change nothing are refused before training, and only these: the oracle is a training step itself."""

from types import SimpleNamespace

import pytest
import torch

from fusion.model import FusionModel
from fusion.stage_effect import branches_that_may_run
from fusion.stages import Stage
from fusion.task import DEFAULT_WEIGHTS, FusionTask
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import small_batch
from tests.fusion.toy_model import ToyModel

BATCH = small_batch(2)
NOTHING = dict.fromkeys((*DEFAULT_WEIGHTS, "exits", "tokens"), 0.0)
IDLE = {
    "the router of a full route": ({"trainable": ("router",)}, "route full does not ask the router"),
    "the router of random routes": ({"trainable": ("router",), "route": "random"}, "route random does not ask"),
    "the router of a sandwich": ({"trainable": ("router",), "route": "sandwich"}, "route sandwich does not ask"),
    "exits that rest": ({"trainable": ("exits",), "losses": {"exits": 0.0}}, "losses of the exits weigh 0"),
    "cameras that are never kept": (
        {"trainable": ("cameras",), "route": "random", "keep": {"camera": 0.0}},
        "route random never runs cameras",
    ),
    "views that are never kept": (
        {"trainable": ("cameras",), "route": "random", "keep": {"view": 0.0}},
        "route random never runs cameras",
    ),
    "a sensor that is not named": (
        {"trainable": ("lidar", "router"), "route": "fixed", "units": ("RADAR", "CAMERAS")},
        "route fixed never runs lidar and route fixed does not ask the router",
    ),
    "a lite branch of a full route": ({"trainable": ("lidar.lite",)}, "route full never runs lidar"),
    "a full branch of a lite route": ({"trainable": ("radar.full",), "lite_share": 1.0}, "route full never runs radar"),
}
"""What a step refuses as well. ``cameras`` are the full and the lite ones: these share their parameters."""
BUSY = {
    "a router that is asked": {"trainable": ("router",), "route": "learned"},
    "a router that has lessons": {"trainable": ("router",), "route": "oracle"},
    "exits beside a router at rest": {"trainable": ("router", "exits")},
    "cameras where nothing is kept": {
        "trainable": ("cameras",),
        "route": "random",
        "keep": {"camera": 0.0, "lidar": 0.0, "radar": 0.0},
    },
    "the only branch that there is": {"trainable": ("cameras",), "lite_share": 1.0},
    "a lite branch of a learnt route": {"trainable": ("lidar.lite", "router"), "route": "learned"},
    "depth alone": {"trainable": ("cameras",), "losses": NOTHING | {"depth": 1.0}},
    "tokens alone": {"trainable": ("trunk",), "losses": NOTHING | {"tokens": 1.0}},
}


@pytest.fixture(scope="module")
def model() -> FusionModel:
    return adaptive_model().train()


def one_step(model: FusionModel, monkeypatch, **settings) -> torch.Tensor:
    """The loss of a step, and gradients in the model."""
    task = FusionTask(model, [Stage("one", 1.0, **settings)], seed=2)
    task.num_steps = 2
    trainer = SimpleNamespace(
        global_step=1, global_rank=0, world_size=1, accumulate_grad_batches=1, log_every_n_steps=10
    )
    monkeypatch.setattr(FusionTask, "trainer", trainer)
    model.zero_grad()
    task.on_train_batch_start(BATCH, 0)
    loss = task.training_step(BATCH, 0)
    loss.backward()
    return loss


@pytest.mark.parametrize("name", IDLE)
def test_a_stage_that_no_step_could_train_is_refused_beforehand(name, model, monkeypatch):
    settings, reason = IDLE[name]
    refused = "stage 'one': expected a loss that depends on something that the stage trains, got none"
    with pytest.raises(ValueError, match=f"^{refused}, since .*{reason}") as error:
        FusionTask(model, [Stage("one", 1.0, **settings)])
    assert "\n" not in str(error.value)
    monkeypatch.setattr("fusion.task.require_effect", lambda *_: None)
    with pytest.raises(ValueError, match=f"^{refused}; "):
        one_step(model, monkeypatch, **settings)


@pytest.mark.parametrize("name", BUSY)
def test_a_stage_that_a_step_trains_is_not(name, model, monkeypatch):
    assert torch.isfinite(one_step(model, monkeypatch, **BUSY[name]))
    learning = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert all(parameter.requires_grad for parameter in learning)
    assert sum(float(parameter.grad.abs().sum()) for parameter in learning) > 0


@pytest.mark.parametrize("losses", [NOTHING, NOTHING | {"budget": 1.0}])
def test_losses_that_all_weigh_nothing(losses, model):
    """The term ``budget`` is of learnt routes alone."""
    with pytest.raises(ValueError, match="got none, since .*losses that reach trunk weigh 0"):
        FusionTask(model, [Stage("one", 1.0, trainable=("trunk", "cameras"), losses=losses)])
    FusionTask(model, [Stage("one", 1.0, route="learned", losses=NOTHING | {"budget": 1.0})])


@pytest.mark.parametrize("route", ["paired", "oracle"])
def test_a_lesson_without_weight(route, model):
    stage = Stage("one", 1.0, route=route, trainable=("router",), losses={"router": 0.0})
    with pytest.raises(ValueError, match="losses that teach the router weigh 0"):
        FusionTask(model, [stage])


def test_a_weight_of_the_task_counts_as_well(model):
    stage = Stage("one", 1.0, trainable=("exits",))
    with pytest.raises(ValueError, match="losses of the exits weigh 0"):
        FusionTask(model, [stage], loss_weights={"exits": 0.0})
    # Later exits that build on earlier ones run whatever their own losses weigh: the detection loss teaches them.
    FusionTask(adaptive_model(cascade=True), [stage], loss_weights={"exits": 0.0})


def test_every_stage_is_looked_at_and_other_models_are_left_alone(model):
    stages = [Stage("all", 0.5), Stage("idle", 1.0, trainable=("router",))]
    with pytest.raises(ValueError, match="stage 'idle'"):
        FusionTask(model, stages)
    FusionTask(ToyModel(), stages)


def test_branches_that_may_run_are_those_that_are_drawn():
    """Against many draws: with probabilities well inside (0, 1) nothing possible is missed in 300."""
    generator = torch.Generator().manual_seed(0)
    exists = torch.ones(len(UNITS), 3, dtype=torch.bool)
    exists[LIDAR_UNIT, 1], exists[RADAR_UNIT, 1:] = False, False
    present = exists[:, 1:].any(dim=1).expand(300, -1)
    for settings in (
        {"route": "full"},
        {"route": "fixed", "units": ("CAM_FRONT", "LIDAR"), "lite_share": 0.5},
        {"route": "random", "keep": {"camera": 0.0, "lidar": 1.0}, "lite_share": 0.5},
        {"route": "random", "keep": {"lidar": 0.0, "view": 0.8}, "lite_share": 1.0},
        {"route": "random", "keep": {"view": 0.0, "lidar": 0.0}},
    ):
        stage = Stage("one", 1.0, **settings)
        chosen = stage.choice_of(present, generator, exists)
        if "lidar" in settings.get("keep", {}) and settings["keep"].get("view", 1.0) == 0.8:
            chosen = chosen[(chosen[:, :NUM_CAMERAS] != 0).sum(dim=1) > 1]  # without those that nothing was left for
        drawn = torch.nn.functional.one_hot(chosen, 3).bool().any(dim=0)
        drawn[:, 0] = False
        assert torch.equal(branches_that_may_run(stage, exists), drawn), settings
