"""Budget terms, supervision and distillation against arithmetic by hand."""

import dataclasses
import math

import pytest
import torch

from fusion.routing.budget import RouteTable, budget_loss
from fusion.routing.distillation import distillation_loss, sandwich_routes
from fusion.routing.objectives import (
    BudgetTerm,
    CorridorBudget,
    HingeBudget,
    LagrangianBudget,
    LinearBudget,
    SquaredBudget,
    UnitRateBudget,
    least_usage,
    mean_over_process_group,
    shared_mean,
)
from fusion.routing.plan import FULL, LITE, SKIP, fixed_plan
from fusion.routing.router import Router
from fusion.routing.supervision import (
    MedianLossRule,
    block_drop_reward,
    broken_units,
    configuration_loss,
    fault_label_loss,
    loss_reward,
    oracle_labels,
    oracle_loss,
    paired_regression_loss,
)
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS
from tests.fusion.routing_toys import toy_glance, toy_prices
from tests.fusion.small_model import small_batch, small_model

TABLE = RouteTable(toy_prices())
PRESENT = torch.ones(2, len(UNITS), dtype=torch.bool)
TERMS = [LinearBudget(), HingeBudget(), HingeBudget(1), SquaredBudget(), CorridorBudget(), UnitRateBudget(0.5)]


def plan_with(costs, budgets, keep=None):
    plan = fixed_plan(torch.full((len(costs), len(UNITS)), FULL), PRESENT[:1].expand(len(costs), -1))
    probs = plan.probs.clone()
    if keep is not None:
        probs[..., SKIP], probs[..., FULL] = 1 - keep, keep
    costs = torch.tensor(costs) if not isinstance(costs, torch.Tensor) else costs
    return dataclasses.replace(plan, probs=probs, expected_cost=costs, budget=torch.tensor(budgets))


def test_terms_by_hand():
    plan = plan_with([0.9, 0.2], [0.5, 0.4])  # mean excess .1; single excesses .4 and -.2
    assert LinearBudget()(plan).item() == pytest.approx(0.55)
    assert HingeBudget(1)(plan).item() == pytest.approx(0.1)
    assert HingeBudget(2)(plan).item() == pytest.approx(0.01)
    assert HingeBudget(2, per_sample=True)(plan).item() == pytest.approx(0.16 / 2)
    assert SquaredBudget()(plan).item() == pytest.approx(0.01)
    below = plan_with([0.2, 0.2], [0.5, 0.4])
    assert HingeBudget(1)(below).item() == 0
    assert SquaredBudget()(below).item() == pytest.approx(0.25**2)
    assert all(isinstance(term, BudgetTerm) for term in [*TERMS, LagrangianBudget()])


def test_the_default_hinge_is_the_budget_loss_of_training():
    plan = plan_with([0.9, 0.2, 0.7], [0.5, 0.4, 0.1])
    for per_sample in (False, True):
        assert HingeBudget(2, per_sample)(plan).item() == pytest.approx(budget_loss(plan, per_sample).item())


def test_unit_rates_by_hand():
    keep = torch.full((2, len(UNITS)), 0.5)
    keep[:, 0] = torch.tensor([0.9, 0.7])
    plan = plan_with([0.5, 0.5], [0.5, 0.5], keep)
    assert UnitRateBudget(0.5)(plan).item() == pytest.approx(0.3**2 / 8)
    assert UnitRateBudget([0.8, *[0.4] * 7])(plan).item() == pytest.approx(7 * 0.1**2 / 8)
    assert least_usage(plan, 0.6).item() == pytest.approx(7 * 0.1 / 8, abs=1e-6)


def test_the_corridor_opens():
    """Tight at first: |rate - target| counts in full. At a sixth of 1/3.. half way, p = cos^2(pi / 4) = 1/2."""
    keep = torch.full((2, len(UNITS)), 0.5)
    keep[:, 0], keep[:, 1] = 0.9, 0.1
    plan = plan_with([0.5, 0.5], [0.5, 0.5], keep)
    corridor = CorridorBudget(opens_at=0.4)
    assert corridor(plan, 0.0).item() == pytest.approx(2 * 0.4**2 / 8)
    assert corridor(plan, 0.2).item() == pytest.approx(2 * 0.15**2 / 8)  # [.25, .75]
    for progress in (0.4, 1.0):
        assert corridor(plan, progress).item() == pytest.approx(0, abs=1e-7)
    assert CorridorBudget(target=0.3)(plan_with([0.8, 0.8], [0.5, 0.5], keep), 1.0).item() == pytest.approx(0.09)


@pytest.mark.parametrize("term", [*TERMS, LagrangianBudget()], ids=lambda term: type(term).__name__)
def test_two_ranks_together_have_the_gradient_of_one_big_batch(term):
    """Mean of the ranks' gradients, as DDP takes it, equals the gradient of the same term over both batches."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(4, len(UNITS), 3, generator=generator)
    if isinstance(term, LagrangianBudget):
        term.eval().price.fill_(0.7)

    def gradient(rows, mean_over_ranks) -> torch.Tensor:
        given = logits.clone().requires_grad_()
        probs = given[rows].softmax(-1)
        plan = plan_with(TABLE.expected_cost(probs), [0.3] * len(rows))
        term(dataclasses.replace(plan, probs=probs), 0.1, mean_over_ranks).backward()
        return given.grad

    values = []

    def collected(value: torch.Tensor) -> torch.Tensor:
        values.append(value)
        return value

    for rows in ([0, 1], [2, 3]):
        gradient(rows, collected)
    half = len(values) // 2
    means = [(one + other) / 2 for one, other in zip(values[:half], values[half:], strict=True)]
    ranks = []
    for rows in ([0, 1], [2, 3]):
        answers = iter(means)
        ranks.append(gradient(rows, lambda _, answers=answers: next(answers)))
    torch.testing.assert_close((ranks[0] + ranks[1]) / 2, gradient([0, 1, 2, 3], None))
    assert (ranks[0] + ranks[1]).abs().sum() > 0


def test_without_other_ranks_the_mean_is_ones_own():
    value = torch.tensor([1.0, 3.0])
    assert mean_over_process_group(value) is value
    assert shared_mean(value, mean_over_process_group).item() == 2


def test_the_price_rises_until_the_budget_holds():
    """Dual ascent on one logit with a task that wants everything on: the cost ends at the budget."""
    logit = torch.zeros((), requires_grad=True)
    controller = LagrangianBudget(rate=0.2, damping=2.0)
    optimizer = torch.optim.SGD([logit], lr=0.5)
    for _ in range(500):
        cost = torch.sigmoid(logit)[None]
        optimizer.zero_grad()
        (-cost.mean() * 2.0 + controller(plan_with(cost, [0.4]))).backward()
        optimizer.step()
    assert torch.sigmoid(logit).item() == pytest.approx(0.4, abs=0.01)
    assert controller.price.item() == pytest.approx(2.0, abs=0.1)  # the marginal gain of the task
    price = controller.price.clone()
    controller.eval()(plan_with([0.9], [0.1]))
    assert torch.equal(controller.price, price)
    restored = LagrangianBudget()
    restored.load_state_dict(controller.state_dict())
    assert torch.equal(restored.price, price)


def test_paired_regression_by_hand():
    scores = torch.zeros(1, len(UNITS), 3)
    scores[0, LIDAR_UNIT] = torch.tensor([0.0, 0.25, 1.0])
    one, other = (torch.full((1, len(UNITS)), SKIP) for _ in range(2))
    one[0, LIDAR_UNIT], other[0, LIDAR_UNIT] = FULL, LITE
    # S(one) - S(other) = .75; L(other) - L(one) = .25: Huber of .5 is .125.
    loss = paired_regression_loss(scores, (one, other), (torch.tensor([2.0]), torch.tensor([2.25])))
    assert loss.item() == pytest.approx(0.125)


def test_paired_regression_teaches_the_router_what_the_routes_cost_in_quality():
    """Toy detector: a dark camera helps nobody, the LiDAR helps always. The capped search then finds the best route."""
    torch.manual_seed(0)
    router = Router(hidden=16)
    generator = torch.Generator().manual_seed(1)
    worth = torch.tensor([0.0, 0.15, 0.3])

    def loss_of(choice, glance):
        bright = glance.thumbnails.mean(dim=(2, 3, 4)) > 0.5
        seen = (worth[choice[:, :NUM_CAMERAS]] * bright).sum(1)
        return 5.0 + glance.ego_speed_mps - seen - 2 * worth[choice[:, LIDAR_UNIT]]

    def glance_with(seed):
        glance = toy_glance(32, seed)
        level = (torch.rand(32, NUM_CAMERAS, 1, 1, 1, generator=generator) < 0.5).float()
        return dataclasses.replace(glance, thumbnails=0.8 * level * torch.ones_like(glance.thumbnails))

    optimizer = torch.optim.Adam(router.parameters(), lr=0.015)
    for step in range(80):
        glance = glance_with(step)
        pair = tuple(TABLE.random(glance.available, 1.0, generator) for _ in range(2))
        scores = router.logits(glance, TABLE, torch.ones(32))
        loss = paired_regression_loss(scores, pair, tuple(loss_of(choice, glance) for choice in pair))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    glance = glance_with(10_000)
    learned = router.eval()(glance, TABLE, 0.65).choice
    random = TABLE.random(glance.available, 0.65, generator)
    oracle = torch.stack([loss_of(TABLE.routes()[None, n].expand(32, -1), glance) for n in range(0, 6561, 1)], 1)
    best = oracle.masked_fill(TABLE.costs() > 0.65 + 1e-6, math.inf).amin(1)
    regret = (loss_of(learned, glance) - best).mean().item()
    assert regret < 0.25 * (loss_of(random, glance) - best).mean().item()


def test_configuration_regression_counts_what_was_run():
    predicted = torch.tensor([[1.0, 2.0], [0.0, 9.0]], requires_grad=True)
    observed = torch.tensor([[1.5, 0.0], [0.0, 8.0]])
    known = torch.tensor([[True, False], [False, True]])
    loss = configuration_loss(predicted, observed, known)
    assert loss.item() == pytest.approx((0.125 + 0.5) / 2)
    loss.backward()
    assert predicted.grad[0, 1] == predicted.grad[1, 0] == 0


def test_oracle_labels_by_hand():
    losses = torch.tensor([[1.0, 1.1, 3.0], [1.0, 2.0, 1.2]])
    costs = torch.tensor([1.0, 0.5, 0.2])
    assert oracle_labels(losses, costs, 0.0).tolist() == [0, 0]
    assert oracle_labels(losses, costs, 1.0).tolist() == [1, 2]
    assert oracle_labels(losses, costs, 0.0, torch.tensor([0.6, 0.1])).tolist() == [1, 2]
    assert oracle_loss(torch.zeros(2, 3), torch.tensor([1, 2])).item() == pytest.approx(math.log(3))


def test_fault_labels_by_hand():
    broken = broken_units(
        [("lidar_beam_drop@0.40", "fog@0.9"), ("camera_dark",), ("lidar_beam_drop@0.05",)],
        {"lidar_beam_drop": "lidar", "camera_dark": "camera"},
        least_level=0.1,
    )
    assert broken[0].tolist() == [False] * 6 + [True, False]
    assert broken[1].tolist() == [True] * 6 + [False, False]
    assert not broken[2].any()
    probs = torch.zeros(1, len(UNITS), 3)
    probs[..., SKIP], probs[..., FULL] = 0.2, 0.8
    available = torch.ones(1, len(UNITS), dtype=torch.bool)
    available[0, RADAR_UNIT] = False
    # Broken: -log .2; sound: -log .8; both classes weigh the same.
    loss = fault_label_loss(probs, broken[:1], available)
    assert loss.item() == pytest.approx((-math.log(0.2) - math.log(0.8)) / 2)


def test_the_median_rule_by_hand():
    rule = MedianLossRule(window=4)
    cheap, dear = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 1.0])
    share = torch.tensor([0.5, 0.5, 0.5], requires_grad=True)
    loss = rule(share, cheap, dear)
    # Differences 0, 1, 3: median 1, so .5 (L1 - .5) + .5 (L2 + .5) = .5 (L1 + L2).
    assert loss.item() == pytest.approx((2 + 3 + 5) / 2 / 3)
    loss.backward()
    # d/ds = (L1 - D/2) - (L2 + D/2) = difference - D: negative below the median (go cheap), positive above.
    torch.testing.assert_close(share.grad * 3, torch.tensor([-1.0, 0.0, 2.0]))
    rule(share.detach(), cheap, dear)
    assert rule.differences.tolist() == [3.0, 0.0, 1.0, 3.0]
    restored = MedianLossRule()
    restored.load_state_dict(rule.state_dict())
    assert torch.equal(restored.differences, rule.differences)


def test_rewards_by_hand():
    cost, right = torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    assert block_drop_reward(cost, right, 2.0).tolist() == [0.75, -2.0]
    assert loss_reward(torch.tensor([1.0]), torch.tensor([0.5]), 0.2).tolist() == pytest.approx([-1.1])


def test_a_sandwich_holds_the_full_and_the_cheapest_route():
    available = PRESENT.repeat(2, 1)
    available[1, RADAR_UNIT] = False
    full, cheapest, *drawn = sandwich_routes(TABLE, available, torch.Generator().manual_seed(0), 3)
    assert (full[available] == FULL).all()
    costs = TABLE.prices.cost_of(cheapest)
    assert costs[0].item() == pytest.approx(TABLE.min_budget)
    assert costs[1].item() == pytest.approx(2.25 / 12.5)  # the radar is lost: one lite view
    assert len(drawn) == 3
    assert not torch.equal(drawn[0], drawn[1])
    assert all((choice[~available] == SKIP).all() for choice in drawn)


def test_distillation_is_nothing_between_equals_and_teaches_the_sub_route_alone():
    model, batch = small_model(), small_batch(2)
    available = model.available(batch)
    full, cheapest = sandwich_routes(model.routes, available, torch.Generator().manual_seed(0), 0)
    teacher = model(batch, plan=model.plan_of(full, available)).head
    student = model(batch, plan=model.plan_of(cheapest, available)).head
    assert distillation_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    for temperature in (1.0, 2.0):
        loss = distillation_loss(student, teacher, temperature)
        assert loss.item() > 1e-4
    loss.backward()
    # The cheapest route runs the radar's lite branch: nothing reaches the teacher's LiDAR.
    assert all(parameter.grad is None for parameter in model.lidar.full.parameters())
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.radar.lite.parameters())
