"""What each lesson's loss is by hand, that one step moves the router the right way, and that its stage trains."""

from dataclasses import replace

import pytest
import torch

import tests.fusion.toy_data as toy_data
from fusion import router_lessons
from fusion.commands.compose import compose, instantiate
from fusion.optim import OptimizerSettings
from fusion.router_lessons import RouterLessons, broken_by_severity
from fusion.routing.configurations import ConfigurationRouter
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.router import glance_of
from fusion.stages import BY_ROUTER, Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from sensors.rig import CHANNELS, LIDAR, LIDAR_UNIT, RADAR_UNIT
from tests.fusion.random_batch import random_batch
from tests.fusion.toy_data import ToyData
from tests.fusion.toy_model import ToyModel

LEARNING = OptimizerSettings(learning_rate=1e-2, router_learning_rate=1e-2, warm_up_steps=0)
CONFIGURATIONS = [{"LIDAR": "full"}, {"CAMERAS": "lite"}, {"RADAR": "lite"}, {"CAMERAS": "full", "LIDAR": "full"}]


OUTPUTS: dict = {}
"""Any output will do: nothing here learns from it."""


def toy_batch(num: int = 2):
    return random_batch(num, seed=5, image_size_px=(16, 32), num_points=60)


def toy_model(configurations: bool = False) -> ToyModel:
    torch.manual_seed(0)
    model = ToyModel().eval()
    if configurations:
        model.router = ConfigurationRouter(CONFIGURATIONS, hidden=8)
    return model


def taught(monkeypatch, lesson: str, loss_of, batch, seed: int = 0, model=None, **options):
    """One step of a lesson in which a route's loss is ``loss_of(choice)``."""
    model = toy_model() if model is None else model

    def run(self, choices):
        if model not in OUTPUTS:
            OUTPUTS[model] = self.model(self.batch, plan=self.model.plan_of(choices[0], self.available))
        return OUTPUTS[model], [loss_of(choice).float() for choice in choices]

    monkeypatch.setattr(router_lessons._Lesson, "run", run)
    generator = torch.Generator().manual_seed(seed)
    lessons = RouterLessons(**options)
    done = lessons(lesson, model, batch, torch.full((len(batch),), 1.0), generator, {})
    return model, lessons, done


def logits_of(model, batch):
    glance = glance_of(batch, model.available(batch))
    return model.router.logits(glance, model.routes, torch.ones(len(batch)))


def totals_of(model, batch, choice):
    return logits_of(model, batch).gather(-1, choice[..., None])[..., 0].sum(dim=1)


def step_down(model, loss) -> None:
    """One small step of plain gradient descent on the router."""
    parameters = [parameter for parameter in model.router.parameters()]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= 1e-3 * gradient


def lidar_helps(choice):
    return 10.0 * (choice[:, LIDAR_UNIT] == SKIP)


def test_reinforce_by_hand_and_towards_the_better_route(monkeypatch):
    """-(R(drawn) - R(greedy)) log p(drawn): what beat the greedy route becomes more likely, what lost to it less."""
    batch, seen = toy_batch(1), set()
    for seed in range(30):
        model, lessons, done = taught(monkeypatch, "reinforce", lidar_helps, batch, seed, cost_weight=2.0)
        drawn, greedy = done.choices

        def log_prob(model=model, drawn=drawn, lessons=lessons):
            log_probs = lessons.draw.log_probs(logits_of(model, batch))
            return log_probs.gather(-1, drawn[..., None]).sum()

        reward = [-(lidar_helps(one) + 2.0 * model.prices().cost_of(one)) for one in (drawn, greedy)]
        advantage = float(reward[0] - reward[1])
        before = log_prob()
        assert done.terms["router"].item() == pytest.approx(-advantage * before.item(), rel=1e-4, abs=1e-6)
        if advantage:
            step_down(model, done.terms["router"])
            assert (log_prob() - before).item() * advantage > 0
            seen.add(advantage > 0)
    assert False in seen  # the untrained router's greedy route has everything on


def test_the_oracles_route_gains_on_the_others(monkeypatch):
    batch = toy_batch(2)
    model, _, done = taught(monkeypatch, "oracle", lidar_helps, batch, num_routes=4, cost_weight=0.1)
    totals = torch.stack([totals_of(model, batch, one) for one in done.choices], dim=1)
    joint = torch.stack([lidar_helps(one) + 0.1 * model.prices().cost_of(one) for one in done.choices], dim=1)
    labels = joint.argmin(dim=1)
    by_hand = -torch.log_softmax(totals, dim=1)[torch.arange(2), labels].mean()
    assert done.terms["router"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    step_down(model, done.terms["router"])
    after = torch.stack([totals_of(model, batch, one) for one in done.choices], dim=1)
    assert -torch.log_softmax(after, dim=1)[torch.arange(2), labels].mean() < by_hand


def test_broken_units_are_skipped_more(monkeypatch):
    batch = toy_batch(1)
    severity = torch.zeros(1, len(CHANNELS))
    severity[0, CHANNELS.index(LIDAR)] = 1.0
    batch = replace(batch, fault_severity=severity)
    model, _, done = taught(monkeypatch, "faults", lidar_helps, batch)
    keep = 1 - torch.softmax(logits_of(model, batch), dim=-1)[0, :, SKIP]
    sound = [unit for unit in range(8) if unit != LIDAR_UNIT]
    by_hand = (-(1 - keep[LIDAR_UNIT]).log() - keep[sound].log().mean()) / 2
    assert done.terms["router"].item() == pytest.approx(by_hand.item(), rel=1e-4)
    for _ in range(20):
        _, _, again = taught(monkeypatch, "faults", lidar_helps, batch, model=model)
        step_down(model, 100 * again.terms["router"])
    after = 1 - torch.softmax(logits_of(model, batch), dim=-1)[0, :, SKIP]
    assert after[LIDAR_UNIT] - after[sound].mean() < keep[LIDAR_UNIT] - keep[sound].mean()
    with pytest.raises(ValueError, match="how strongly"):
        taught(monkeypatch, "faults", lidar_helps, toy_batch(1))


def test_severity_of_channels_to_units():
    severity, present = torch.zeros(2, 12), torch.ones(2, 12, dtype=torch.bool)
    severity[0, 0], severity[0, 7], severity[0, 8] = 0.6, 1.0, 1.0  # a camera, two of five radars
    severity[1, 7:10], present[1, 10:] = 1.0, False  # all three that are there
    broken = broken_by_severity(severity, present, 0.5)
    assert broken.nonzero().tolist() == [[0, 0], [1, RADAR_UNIT]]


def test_who_gains_more_than_the_median_goes_dear(monkeypatch):
    """Gains 4 and 0: the median is 2. By hand: mean of s (L_cheap - 1) + (1 - s)(L_dear + 1)."""
    batch = toy_batch(2)

    def loss_of(choice):
        is_cheap = (choice != SKIP).sum(dim=1) <= 1
        return torch.where(is_cheap, torch.tensor([5.0, 1.0]), torch.tensor([1.0, 1.0]))

    model, _, done = taught(monkeypatch, "median", loss_of, batch)
    dear, cheap = done.choices
    assert (dear == FULL).all()
    assert ((cheap != SKIP).sum(dim=1) == 1).all()
    assert (cheap.max(dim=1).values == LITE).all()

    def prefers_cheap():
        return torch.sigmoid(totals_of(model, batch, cheap) - totals_of(model, batch, dear))

    share = prefers_cheap()
    losses = share * torch.tensor([4.0, 0.0]) + (1 - share) * torch.tensor([2.0, 2.0])
    assert done.terms["router"].item() == pytest.approx(losses.mean().item(), rel=1e-5)
    gradient = torch.autograd.grad(losses.mean(), share)[0]
    assert gradient.tolist() == pytest.approx([1.0, -1.0])  # the first away from the cheap route, the second to it


def test_a_configuration_router_learns_the_losses_of_its_configurations(monkeypatch):
    batch, wanted = toy_batch(2), torch.tensor([1.0, 3.0, 4.0, 0.5])

    def loss_of(choice):
        table = model.router.table
        return torch.stack([wanted[(table == row).all(dim=1)][0] for row in choice])

    model = toy_model(configurations=True)
    _, _, done = taught(monkeypatch, "configurations", loss_of, batch, model=model, num_routes=4)
    glance = glance_of(batch, model.available(batch))

    def predicted():
        return -model.router.configuration_logits(glance, model.routes, torch.ones(2))

    by_hand = torch.nn.functional.smooth_l1_loss(predicted(), wanted.expand(2, -1))
    assert done.terms["router"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    optimizer = torch.optim.Adam(model.router.parameters(), lr=0.1)
    for seed in range(150):
        _, _, done = taught(monkeypatch, "configurations", loss_of, batch, seed, model, num_routes=2)
        optimizer.zero_grad()
        done.terms["router"].backward()
        optimizer.step()
    assert predicted().argsort(dim=1).tolist() == [[3, 0, 1, 2]] * 2


def test_lessons_that_do_not_fit_the_router_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="ConfigurationRouter"):
        taught(monkeypatch, "configurations", lidar_helps, toy_batch(1))
    with pytest.raises(ValueError, match="ConfigurationRouter"):
        taught(monkeypatch, "oracle", lidar_helps, toy_batch(1), model=toy_model(configurations=True))
    with pytest.raises(ValueError, match="num_routes"):
        RouterLessons(num_routes=1)


@pytest.mark.parametrize("route", [route for route in BY_ROUTER if route not in ("learned", "paired")])
def test_every_lesson_is_a_stage(route, tmp_path, monkeypatch):
    def with_severity(*arguments, **options):
        batch = random_batch(*arguments, **options)
        return replace(batch, fault_severity=torch.rand(len(batch), len(CHANNELS)))

    monkeypatch.setattr(toy_data, "random_batch", with_severity)
    model = toy_model(configurations=route == "configurations").train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    task = FusionTask(model, [Stage("a", 1.0, route=route, trainable=("router",), budget=("least", 1.0))], LEARNING)
    quick = {"max_epochs": 1, "accelerator": "cpu", "limit_val_batches": 1, "log_every_n_steps": 1}
    build_trainer(tmp_path, **quick).fit(task, datamodule=ToyData(3))
    changed = {name.split(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"router"}
    assert "router" in (tmp_path / "train.csv").read_text().splitlines()[0]


def test_lessons_and_budget_terms_are_reachable_from_yaml():
    config = compose(
        [
            "+stages.lessons._target_=fusion.router_lessons.RouterLessons",
            "+stages.lessons.cost_weight=0.3",
            "+stages.budget_term._target_=fusion.routing.objectives.CorridorBudget",
        ]
    )
    config.stages.stages[1].route = "reinforce"
    task = instantiate(config.stages, _partial_=True)(model=toy_model())
    assert task.lessons.cost_weight == 0.3
    assert type(task.budget_term).__name__ == "CorridorBudget"
    assert FusionTask(toy_model(), [Stage("a", 1.0, route="paired")], LEARNING).lessons is None
