import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.routing.budget import RouteTable, budget_loss, checked_budget, route_entropy
from fusion.routing.plan import FULL, LITE, SKIP, full_plan
from sensors.rig import LIDAR_UNIT, RADAR_UNIT, UNITS
from tests.fusion.routing_toys import toy_prices

ALL = torch.ones(1, len(UNITS), dtype=torch.bool)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.floats(0, 1), floor=st.sampled_from([(), ("LIDAR",), ("RADAR", "CAM_BACK")])
)
def test_the_cap_holds_and_absent_units_stay_off_for_any_scores(seed, share, floor):
    table = RouteTable(toy_prices(), floor)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, len(UNITS), 3, generator=generator) * 10 ** (torch.rand((), generator=generator) * 8)
    wild = torch.rand(scores.shape, generator=generator)
    scores[wild < 0.03], scores[wild > 0.97], scores[(wild > 0.5) & (wild < 0.53)] = torch.inf, -torch.inf, torch.nan
    available = torch.rand(5, len(UNITS), generator=generator) < 0.7
    budget = torch.full((5,), table.min_budget + share * (1 - table.min_budget), dtype=torch.float64)
    choice = table.best(scores, table.possible(available), budget)
    assert not (choice[~available] != SKIP).any()
    assert (table.prices.cost_of(choice) <= budget + 2e-6).all()
    for unit in floor:
        column = UNITS.index(unit)
        assert (choice[available[:, column], column] != SKIP).all()


def test_at_full_budget_the_route_is_the_argmax():
    table = RouteTable(toy_prices())
    scores = torch.randn(64, len(UNITS), 3, generator=torch.Generator().manual_seed(1))
    choice = table.best(scores, table.possible(ALL.expand(64, -1)), torch.ones(64))
    assert torch.equal(choice, scores.argmax(-1))


def test_a_cap_only_takes_away():
    table = RouteTable(toy_prices())
    scores = torch.randn(64, len(UNITS), 3, generator=torch.Generator().manual_seed(2))
    possible = table.possible(ALL.expand(64, -1))
    shares = table.prices.shares().expand(64, -1, -1)
    free = table.best(scores, possible, torch.ones(64))
    capped = table.best(scores, possible, torch.full((64,), 0.5))
    cost = [shares.gather(-1, choice[..., None])[..., 0] for choice in (free, capped)]
    assert (cost[1] <= cost[0]).all()
    assert (capped != free).any()


def test_what_is_given_up_is_the_least_loss_per_hand():
    """Everything on costs 12.5; 10 / 12.5 leaves room for losing the LiDAR (4 -> 1) or three views, not two."""
    table = RouteTable(toy_prices())
    scores = torch.zeros(1, len(UNITS), 3)
    scores[..., FULL] = 5.0
    scores[0, LIDAR_UNIT] = torch.tensor([0.0, 4.5, 5.0])
    choice = table.best(scores, table.possible(ALL), torch.tensor([10 / 12.5]))
    assert choice[0].tolist() == [FULL] * 6 + [LITE, FULL]


def test_the_empty_route_is_the_last_resort():
    table = RouteTable(toy_prices())
    scores = torch.zeros(3, len(UNITS), 3)
    scores[..., SKIP] = 100.0
    available = ALL.repeat(3, 1)
    available[1] = False
    available[2, RADAR_UNIT] = False
    budget = torch.tensor([1.0, 1.0, table.min_budget])
    choice = table.best(scores, table.possible(available), budget)
    assert (choice[0] != SKIP).sum() == 1
    assert (choice[1:] == SKIP).all()


def test_ties_break_alike_at_every_batch_size():
    table = RouteTable(toy_prices())
    scores = torch.tensor([-1.9, -2.3, -0.29]).expand(7, len(UNITS), 3)
    budget = torch.linspace(table.min_budget, 1, 7)
    possible = table.possible(ALL.expand(7, -1))
    together = table.best(scores, possible, budget)
    for row in range(7):
        alone = table.best(scores[row : row + 1], possible[:1], budget[row : row + 1])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("budget", [0.1, 1.01, float("nan"), torch.tensor([0.5, 0.1]), torch.ones(3), torch.ones(2, 1)])
def test_a_budget_out_of_range_is_one_line(budget):
    with pytest.raises(ValueError, match="expected .*budget") as caught:
        checked_budget(budget, 2, min_budget=0.168)
    assert "\n" not in str(caught.value)


def test_budgets_spread_over_the_batch():
    assert checked_budget(0.5, 3, 0.1).tolist() == [0.5] * 3
    assert checked_budget(torch.tensor([0.25, 1.0]), 2, 0.1).tolist() == [0.25, 1.0]
    assert checked_budget(0.1, 1, 0.1).tolist() == [0.1]


def test_budget_loss_by_hand():
    plan = dataclasses.replace(
        full_plan(ALL.expand(2, -1)), expected_cost=torch.tensor([0.9, 0.2]), budget=torch.tensor([0.5, 0.4])
    )
    assert budget_loss(plan).item() == pytest.approx(0.1**2)
    assert budget_loss(plan, per_sample=True).item() == pytest.approx(0.4**2 / 2)


def test_entropy_counts_open_units_only():
    plan = full_plan(ALL)
    probs = plan.probs.clone()
    probs[0, 0] = torch.tensor([0.5, 0.0, 0.5])
    assert route_entropy(dataclasses.replace(plan, probs=probs)).item() == pytest.approx(0.693147, abs=1e-5)
    assert route_entropy(plan).item() == 0
