"""Configurations, nested paths, gate inputs, mixtures of experts and bucketed compilation."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.flop_counter import FlopCounterMode

from fusion.buckets import BucketedImages, compile_units
from fusion.routing.budget import RouteTable
from fusion.routing.configurations import ConfigurationRouter, nested_paths
from fusion.routing.gate_inputs import previous_outcome
from fusion.routing.moe import TopKMixture, importance_loss, load_loss, router_z_loss, switch_loss
from fusion.routing.plan import FULL, SKIP
from fusion.routing.policies import route_of
from fusion.routing.relaxations import ScoreFunction
from fusion.routing.router import Router
from sensors.rig import LIDAR_UNIT, UNITS
from tests.fusion.routing_toys import toy_glance, toy_prices
from tests.fusion.small_model import small_batch, small_model

TABLE = RouteTable(toy_prices())
PATHS = nested_paths({"RADAR": "full"}, {"LIDAR": "full"}, {"CAM_FRONT": "lite"}, {"CAM_BACK": "full"})


def configured(**options) -> ConfigurationRouter:
    torch.manual_seed(0)
    return ConfigurationRouter(PATHS, **options)


def test_nested_paths_grow():
    assert PATHS[2] == {"RADAR": "full", "LIDAR": "full", "CAM_FRONT": "lite"}
    with pytest.raises(ValueError, match="RADAR again"):
        nested_paths({"RADAR": "lite"}, {"RADAR": "full"})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("budget", [TABLE.min_budget, 0.3, 0.55, 1.0])
def test_only_configurations_within_the_budget_are_chosen(training, budget):
    router = configured().train(training)
    plan = router(toy_glance(24), TABLE, budget)
    routes = [route_of(path) for path in PATHS]
    assert (TABLE.prices.cost_of(plan.choice) <= budget + 2e-6).all()
    chosen = {tuple(row) for row in plan.choice.tolist()}
    within = {tuple(route) for route in routes if TABLE.prices.cost_of(torch.tensor([route])) <= budget + 1e-6}
    # Not even the first path fits the least budget: it is cut to the radar's lite branch.
    assert chosen <= (within or {tuple(route_of({"RADAR": "lite"}))})
    assert torch.equal(plan.gates.detach(), nn.functional.one_hot(plan.choice, 3).float())
    torch.testing.assert_close(plan.probs.sum(-1), torch.ones(24, len(UNITS)))


def test_a_lost_unit_is_left_out_of_every_configuration():
    available = torch.ones(6, len(UNITS), dtype=torch.bool)
    available[:, LIDAR_UNIT] = False
    plan = configured()(toy_glance(6, available=available), TABLE)
    assert (plan.choice[:, LIDAR_UNIT] == SKIP).all()
    assert (plan.choice != SKIP).any(dim=1).all()
    lost = configured()(toy_glance(2, available=torch.zeros(2, len(UNITS), dtype=torch.bool)), TABLE)
    assert (lost.choice == SKIP).all()
    assert torch.isfinite(lost.probs).all()


def test_gradients_reach_the_configurations_own_logits():
    router = configured()
    plan = router(toy_glance(8), TABLE)
    (plan.gates[:, LIDAR_UNIT, FULL].sum() + plan.expected_cost.sum()).backward()
    assert router.own.weight.grad.abs().sum() > 0
    assert router.bias.grad.abs().sum() > 0


def test_configurations_work_with_reinforce_and_in_a_model():
    router = configured(relaxation=ScoreFunction())
    plan = router(toy_glance(8), TABLE)
    assert torch.isfinite(plan.log_prob).all()
    plan.log_prob.sum().backward()
    assert router.own.bias.grad.abs().sum() > 0
    model, batch = small_model().eval(), small_batch(2)
    model.router = configured().eval()
    sparse, masked = (model(batch, 0.9, execution=name) for name in ("sparse", "masked"))
    torch.testing.assert_close(sparse.head.heatmap, masked.head.heatmap, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("configurations", "options", "message"),
    [
        (PATHS[:1], {}, "at least two"),
        ([PATHS[0], PATHS[0]], {}, "different"),
        ([PATHS[0], {}], {}, "empty"),
        (PATHS, {"floor": ("LIDAR",)}, "floor"),
    ],
)
def test_wrong_configurations_are_one_line(configurations, options, message):
    with pytest.raises(ValueError, match=message):
        ConfigurationRouter(configurations, **options)


@pytest.mark.parametrize("inputs", [("health",), ("thumbnails",), ("speed",), ("health", "previous")])
def test_a_router_sees_its_inputs_and_no_others(inputs):
    torch.manual_seed(0)
    router = Router(inputs=inputs).eval()
    nn.init.normal_(router.score.weight)
    glance = toy_glance(2)
    base = router(glance, TABLE).probs
    changed = {
        "health": {"health": glance.health + 1},
        "thumbnails": {"thumbnails": glance.thumbnails * 0.1},
        "speed": {"ego_speed_mps": glance.ego_speed_mps + 10},
    }
    for name, fields in changed.items():
        other = router(type(glance)(**{**glance.__dict__, **fields}), TABLE).probs
        assert torch.equal(base, other) == (name not in inputs), name
    router.previous = previous_outcome(torch.full((2, 8), FULL), torch.tensor([9.0, 0.0]), torch.tensor([0.5, 0.0]))
    assert torch.equal(base, router(glance, TABLE).probs) == ("previous" not in inputs)
    router.previous = previous_outcome(torch.full((1, 8), FULL), torch.zeros(1), torch.zeros(1))
    with FlopCounterMode(display=False) as counter:
        router(toy_glance(1), TABLE)
    priced = router.gflops() + TABLE.gflops
    assert priced == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-6)


def test_previous_outcome_by_hand_and_unknown_inputs():
    choice = torch.tensor([[0, 1, 2, 0, 0, 0, 2, 0]])
    found = previous_outcome(choice, torch.tensor([99.0]), torch.tensor([0.25]))
    assert found[0, :, 0].tolist() == [0, 0.5, 1, 0, 0, 0, 1, 0]
    assert found[0, 3].tolist() == [0, 1.0, 0.25]
    with pytest.raises(ValueError, match="sonar"):
        Router(inputs=("health", "sonar"))


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor, self.rows = factor, 0

    def forward(self, rows):
        self.rows += len(rows)
        return rows * self.factor


def mixture(num: int = 4, **options) -> TopKMixture:
    torch.manual_seed(0)
    return TopKMixture([Scale(float(e + 1)) for e in range(num)], 6, **options)


def test_a_mixture_equals_its_dense_formula_and_runs_chosen_rows_only():
    mixed, rows = mixture(top_k=2).eval(), torch.randn(50, 6)
    output, assignment = mixed(rows)
    probs = mixed.gate(rows).softmax(-1)
    kept = torch.zeros_like(probs).scatter(1, probs.topk(2).indices, 1.0)
    factor = (probs * kept * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum(-1, keepdim=True)
    torch.testing.assert_close(output, rows * (1 + factor))
    assert sum(expert.rows for expert in mixed.experts) == 100
    output.sum().backward()
    assert mixed.gate.weight.grad.abs().sum() > 0
    assert assignment.kept.all()


def test_capacity_serves_first_choices_first_and_lets_the_rest_pass():
    mixed = mixture(2, top_k=2, capacity_factor=0.5).eval()
    mixed.gate.weight.data.zero_()
    mixed.gate.weight.data[0, 0] = 5.0
    rows = torch.zeros(4, 6)
    rows[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0])  # three want expert 0 first, one expert 1
    _, assignment = mixed(rows)
    assert mixed.capacity(4) == 2
    # Expert 0: the first two rows; expert 1: row 3 (its first choice), then the second choice of row 0.
    assert assignment.kept.tolist() == [[True, True], [True, False], [False, False], [True, False]]
    assert mixed(rows)[0][2].tolist() == rows[2].tolist()


def test_mixture_losses_by_hand():
    mixed, rows = mixture(4).eval(), torch.randn(30, 6)
    mixed.gate.weight.data.zero_()
    _, even = mixed(rows)
    assert importance_loss(even).item() == pytest.approx(0, abs=1e-6)
    assert router_z_loss(even).item() == pytest.approx(torch.tensor(4.0).log().item() ** 2)
    assert switch_loss(even).item() == pytest.approx(1.0)  # P is 1/4 for all, whatever f
    mixed.gate.weight.data[2] = 100.0
    _, one = mixed(rows.abs())
    assert importance_loss(one).item() == pytest.approx(3.0, rel=1e-3)  # all on one of E: E - 1
    assert load_loss(one).item() == pytest.approx(3.0, rel=1e-3)
    assert switch_loss(one).item() == pytest.approx(4.0, rel=1e-3)


def test_the_load_is_the_chance_of_being_chosen():
    """Two experts of equal logits: noise of deviation 1/2 puts each on top half of the time."""
    mixed = mixture(2).eval()
    mixed.gate.weight.data.zero_()
    assert load_loss(mixed(torch.randn(8, 6))[1]).item() == pytest.approx(0, abs=1e-6)


def test_the_bias_evens_out_the_load_and_not_the_weights():
    mixed = mixture(4, balance_rate=0.02).train()
    mixed.gate.weight.data[1] += 2.0
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(1)).abs()
    loads = []
    for step in range(120):
        _, assignment = mixed(rows, torch.Generator().manual_seed(step))
        loads.append(torch.bincount(assignment.experts[:, 0], minlength=4) / 400)
    assert loads[0][1] > 0.6
    assert (torch.stack(loads[-40:]).mean(0) - 0.25).abs().max() < 0.1
    torch.testing.assert_close(assignment.weights, assignment.probs.gather(-1, assignment.experts))
    assert torch.equal(mixed.eval()(rows)[0], mixed(rows, torch.Generator().manual_seed(5))[0])


class Maps(NamedTuple):
    context: torch.Tensor
    depth_logits: torch.Tensor


class PlainEncoder(nn.Module):
    """Compiled for real: the annotation checks of the test run would break the graph of our own encoder."""

    stride, channels, num_depths = 2, 4, 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, stride=2, padding=1)

    def forward(self, images):
        found = self.conv(images).relu()
        return Maps(found[:, :4], found[:, 4:])


@torch.no_grad()
def test_recompilations_are_bounded_by_the_buckets():
    """Every number of rows from 1 to 12, and some again: one graph per bucket, each compiled once."""
    torch._dynamo.reset()
    encoder, counter = PlainEncoder(), CompileCounter()
    compiled = torch.compile(encoder, dynamic=False, backend=counter)
    bucketed = BucketedImages(encoder, (1, 2, 4, 8, 12), compiled)
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    counts = []
    for rows in (*range(1, 13), 3, 7, 11, 1):
        found, expected = bucketed(images[:rows]), encoder(images[:rows])
        torch.testing.assert_close(found.context, expected.context)
        torch.testing.assert_close(found.depth_logits, expected.depth_logits)
        counts.append(counter.frame_count)
    torch._dynamo.reset()
    assert counts == [1, 2, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5]


@torch.no_grad()
def test_a_model_in_buckets_finds_the_same(monkeypatch):
    sizes = []

    def watched(module, dynamic):
        assert dynamic is False
        return lambda images: sizes.append(len(images)) or module(images)

    monkeypatch.setattr(torch, "compile", watched)
    model, plain, batch = compile_units(small_model().eval(), (1, 2, 4, 8)), small_model().eval(), small_batch(2)
    for views in (3, 7, 12):
        choice = torch.where(torch.arange(12) < views, FULL, SKIP).view(2, 6)
        plan = plain.plan_of(torch.cat([choice, torch.full((2, 2), FULL)], dim=1), plain.available(batch))
        found, expected = (m(batch, plan=plan).head.heatmap for m in (model, plain))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert sizes == [4, 8, 8, 4]
    assert model.cameras.gflops() == plain.cameras.gflops()


def test_more_rows_than_the_largest_bucket_run_in_parts():
    encoder = small_model().eval().cameras.encoder
    images = torch.rand(7, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    bucketed = BucketedImages(encoder, (1, 3))
    with torch.no_grad():
        torch.testing.assert_close(bucketed(images).context, encoder(images).context, atol=1e-5, rtol=1e-4)
        assert bucketed(images[:0]).context.shape[0] == 0
    with pytest.raises(ValueError, match="bucket sizes"):
        BucketedImages(encoder, (4, 2))
