"""Policies: what each decides by hand, and that no policy can break cap, floor or availability."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.routing.budget import RouteTable
from fusion.routing.calibration import OnlinePrice, calibrate, read_thresholds, write_thresholds
from fusion.routing.latency import LatencyTable
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.policies import (
    ArgmaxPolicy,
    ConfigurationPolicy,
    DeadlinePolicy,
    FailSafePolicy,
    Policy,
    Proposal,
    Rule,
    RulePolicy,
    ThresholdPolicy,
    decided,
    route_of,
)
from fusion.routing.router import Router
from fusion.routing.temporal_policies import (
    HysteresisPolicy,
    RandomPolicy,
    StaticPolicy,
    ThrottlePolicy,
    TokenBucketPolicy,
)
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS
from tests.fusion.routing_toys import toy_glance, toy_prices

TABLE = RouteTable(toy_prices())
CAMERAS_ONLY = {"CAMERAS": "full"}
PARTS = {
    "always": {1: 5.0},
    "dispatch": {1: 1.0},
    "CAMERA/lite": {1: 1.0, 6: 4.0},
    "CAMERA/full": {1: 4.0, 6: 20.0},
    "LIDAR/lite": {1: 6.0},
    "LIDAR/full": {1: 15.0},
    "RADAR/lite": {1: 0.5},
    "RADAR/full": {1: 1.0},
}
LATENCY = LatencyTable("toy", "2026-01-01", 1, PARTS)


def proposal(scores, budget=1.0, available=None, table: RouteTable = TABLE, glance=None) -> Proposal:
    num = len(scores)
    glance = toy_glance(num, available=available) if glance is None else glance
    budget = torch.full((num,), budget, dtype=torch.float64) if isinstance(budget, float) else budget
    possible = table.possible(glance.available)
    return Proposal(scores.masked_fill(~possible, -torch.inf), possible, budget, glance)


def drawn_scores(num: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(num, len(UNITS), 3, generator=torch.Generator().manual_seed(seed)) * scale


def every_policy() -> list[Policy]:
    rules = [Rule(CAMERAS_ONLY, {"CAM_FRONT.amount": (0.5, 1.0)}), Rule({"LIDAR": "full"})]
    return [
        ArgmaxPolicy(),
        ThresholdPolicy(0.7, cap=0.8),
        ConfigurationPolicy(0.3, 0.6),
        ConfigurationPolicy(0.0, 0.2, [CAMERAS_ONLY, {"RADAR": "lite"}]),
        DeadlinePolicy(LATENCY, 20.0),
        RulePolicy(rules),
        FailSafePolicy(ArgmaxPolicy()),
        ThrottlePolicy(ArgmaxPolicy(), 0.3),
        HysteresisPolicy(ThresholdPolicy(0.5), 1.0),
        TokenBucketPolicy(ThresholdPolicy(-5.0), rate=0.4, burst=0.3),
        StaticPolicy(route_of(CAMERAS_ONLY)),
        RandomPolicy(0.5),
    ]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.floats(0, 1), floor=st.sampled_from([(), ("LIDAR",), ("RADAR", "CAM_BACK")])
)
def test_no_policy_breaks_cap_floor_or_availability(seed, share, floor):
    table = RouteTable(toy_prices(), floor)
    generator = torch.Generator().manual_seed(seed)
    scores = drawn_scores(4, seed, 10 ** float(torch.rand((), generator=generator) * 6))
    wild = torch.rand(scores.shape, generator=generator)
    scores[wild < 0.05], scores[wild > 0.95] = torch.nan, torch.inf
    available = torch.rand(4, len(UNITS), generator=generator) < 0.7
    budget = table.min_budget + share * (1 - table.min_budget)
    given_proposal = proposal(scores, budget, available, table)
    for policy in every_policy():
        for _ in range(2):  # the second call sees a memory
            choice = decided(policy, given_proposal, table)
            cap = max(budget, policy.cap or 0.0)
            assert not (choice[~available] != SKIP).any(), policy
            assert (table.prices.cost_of(choice) <= cap + 2e-6).all(), policy
            for unit in floor:
                column = UNITS.index(unit)
                assert (choice[available[:, column], column] != SKIP).all(), policy


def test_a_possible_route_within_the_cap_is_left_alone():
    routes = TABLE.routes()[:-1]  # all but the empty one
    possible = TABLE.possible(torch.ones(len(routes), len(UNITS), dtype=torch.bool))
    assert torch.equal(TABLE.capped(routes, possible, TABLE.prices.cost_of(routes)), routes)


def test_a_cap_keeps_as_many_sensors_as_it_can():
    """Of all-full (12.5), 9.5 is the most: the LiDAR at lite (1 instead of 4) leaves every unit running."""
    full = torch.full((1, len(UNITS)), FULL)
    possible = TABLE.possible(torch.ones(1, len(UNITS), dtype=torch.bool))
    found = TABLE.capped(full, possible, torch.tensor([9.5 / 12.5]))
    assert found[0].tolist() == [FULL] * 6 + [LITE, FULL]


def test_a_threshold_by_hand():
    """LiDAR: full is worth 2 at a cost of 4 / 12.5 = .32: worth it up to a price of 6.25; lite 1 at .08: up to 12.5."""
    scores = torch.zeros(1, len(UNITS), 3)
    scores[0, :, 1:] = -9.0
    scores[0, LIDAR_UNIT] = torch.tensor([0.0, 1.0, 2.0])
    # Between lite and full: (2 - 1) / (.32 - .08) = 4.17.
    for price, branch in ((4.0, FULL), (4.3, LITE), (12.0, LITE), (13.0, SKIP)):
        assert ThresholdPolicy(price)(proposal(scores), TABLE)[0, LIDAR_UNIT] == branch


@pytest.mark.parametrize("seed", [0, 1])
def test_calibration_hits_the_budget_on_held_out_samples(seed):
    """Within 3 % or two standard errors of 1500 held-out samples, for five budgets."""
    num = 1500
    difficulty = torch.randn(2 * num, 1, 1, generator=torch.Generator().manual_seed(100 + seed)) * 0.5
    scores = drawn_scores(2 * num, seed) + difficulty * torch.tensor([0.0, 0.5, 1.0])
    available = torch.rand(2 * num, len(UNITS), generator=torch.Generator().manual_seed(seed)) < 0.98
    halves = [proposal(part, 1.0, there) for part, there in zip(scores.split(num), available.split(num), strict=True)]
    budgets = (0.25, 0.4, 0.55, 0.7, 0.85)
    found = calibrate(halves[0].scores, halves[0].possible, TABLE, budgets, data="toy")
    for threshold in found:
        assert threshold.mean_cost <= threshold.budget + 1e-9
        assert threshold.mean_cost == pytest.approx(threshold.budget, rel=0.03)
        assert threshold.num_samples == num
        costs = TABLE.prices.cost_of(decided(threshold.policy(), halves[1], TABLE))
        error = float(costs.std() / num**0.5)
        assert abs(float(costs.mean()) - threshold.budget) <= max(0.03 * threshold.budget, 2 * error)
        assert costs.std() > 0.02  # easy samples cost less than hard ones
    assert [one.price for one in found] == sorted((one.price for one in found), reverse=True)


def test_calibration_respects_the_cap_and_small_sets():
    scores = drawn_scores(3, 5)
    given_proposal = proposal(scores)
    (one,) = calibrate(given_proposal.scores, given_proposal.possible, TABLE, [0.5], data="three", cap=0.6)
    costs = TABLE.prices.cost_of(decided(one.policy(0.6), proposal(scores, 0.2), TABLE))
    assert (costs <= 0.6 + 2e-6).all()
    assert float(costs.mean()) == pytest.approx(one.mean_cost)
    with pytest.raises(ValueError, match="got none from 'empty'"):
        calibrate(scores[:0], given_proposal.possible[:0], TABLE, [0.5], data="empty")
    with pytest.raises(ValueError, match="budgets in"):
        calibrate(given_proposal.scores, given_proposal.possible, TABLE, [0.01], data="three")


def test_thresholds_survive_a_file(tmp_path):
    given_proposal = proposal(drawn_scores(50, 6))
    found = calibrate(given_proposal.scores, given_proposal.possible, TABLE, [0.4, 0.8], data="val")
    write_thresholds(tmp_path / "thresholds.json", found)
    assert read_thresholds(tmp_path / "thresholds.json") == found
    assert json.loads((tmp_path / "thresholds.json").read_text())[0]["data"] == "val"
    with pytest.raises(FileNotFoundError, match="calibrate first"):
        read_thresholds(tmp_path / "nothing.json")


def test_the_online_price_follows_a_shift():
    """Scores that rise by 1 would cost more; the price brings the mean back to the budget."""
    policy = ThresholdPolicy(0.0)
    online = OnlinePrice(policy, budget=0.5, step=0.1)
    costs = []
    for step in range(400):
        scores = drawn_scores(4, step) + torch.tensor([0.0, 0.5, 1.0])
        spent = TABLE.prices.cost_of(decided(policy, proposal(scores), TABLE))
        online.observe(spent)
        costs.append(float(spent.mean()))
    assert sum(costs[200:]) / 200 == pytest.approx(0.5, rel=0.03)
    assert sum(costs[:20]) / 20 > 0.6


def test_configurations_by_hand():
    """Losses 1.0 (cameras, cost .64), 1.05 (LiDAR, .48), 1.5 (radar, .2): margin .1 leaves the first two."""
    scores = torch.full((1, len(UNITS), 3), -5.0)
    scores[..., SKIP] = 0.0
    scores[0, :NUM_CAMERAS, FULL] = -1.0 / 6
    scores[0, LIDAR_UNIT, FULL], scores[0, RADAR_UNIT, FULL] = -1.05, -1.5
    table = [CAMERAS_ONLY, {"LIDAR": "full"}, {"RADAR": "full"}]

    def chosen(margin, energy_weight, budget=1.0):
        found = ConfigurationPolicy(margin, energy_weight, table)(proposal(scores, budget), TABLE)[0].tolist()
        return [route_of(row) for row in table].index(found)

    assert chosen(0.1, 0.0) == 0
    assert chosen(0.1, 0.5) == 1  # .5 * 1.05 + .5 * .48 < .5 * 1 + .5 * .64
    assert chosen(0.0, 0.5) == 0  # no margin: the least loss alone
    assert chosen(9.0, 1.0) == 2
    assert chosen(9.0, 0.0, budget=0.5) == 1


def test_a_deadline_by_hand():
    """5 + 1 ms always; LiDAR full 15, lite 6, radar 1: 22 ms hold LiDAR and radar, 13 ms LiDAR lite and radar lite."""
    scores = torch.zeros(1, len(UNITS), 3)
    scores[0, :, FULL], scores[0, :, LITE] = 1.0, 0.5
    scores[0, LIDAR_UNIT] = torch.tensor([0.0, 50.0, 90.0])
    scores[0, RADAR_UNIT] = torch.tensor([0.0, 20.0, 21.0])

    def chosen(deadline_ms, budget=1.0):
        return DeadlinePolicy(LATENCY, deadline_ms)(proposal(scores, budget), TABLE)[0].tolist()

    assert chosen(1000.0) == [FULL] * len(UNITS)
    assert chosen(22.0) == [SKIP] * 6 + [FULL, FULL]
    assert chosen(13.0) == [SKIP] * 6 + [LITE, FULL]
    assert chosen(0.1) == [SKIP] * 6 + [SKIP, LITE]  # a miss: the fastest there is
    assert LATENCY.route_ms(torch.tensor([chosen(1000.0)])).tolist() == [5 + 1 + 20 + 15 + 1]
    assert LATENCY.batch_ms(torch.tensor([chosen(1000.0)])) == 42.0


def test_the_latency_table_reads_between_sizes_and_never_beyond(tmp_path):
    assert LATENCY.ms("CAMERA/full", 3) == pytest.approx(4 + 16 * 2 / 5)
    assert LATENCY.ms("CAMERA/full", 0) == 0
    with pytest.raises(ValueError, match="at most 6 rows"):
        LATENCY.ms("CAMERA/full", 7)
    (tmp_path / "table.json").write_text(LATENCY.to_json())
    assert LatencyTable.load(tmp_path / "table.json") == LATENCY


def test_rules_by_hand():
    glance = toy_glance(3)
    glance.health[:, 0, 0] = torch.tensor([0.9, 0.1, 0.1])
    glance.ego_speed_mps[:] = torch.tensor([5.0, 5.0, 20.0])
    rules = [
        Rule({"CAMERAS": "full"}, {"CAM_FRONT.amount": (0.3, 1.0)}),
        Rule({"LIDAR": "full", "CAM_BACK": "lite"}, {"ego_speed_mps": (10.0, 99.0)}),
        Rule({"RADAR": "lite"}),
    ]
    choice = RulePolicy(rules)(proposal(torch.zeros(3, 8, 3), glance=glance), TABLE).tolist()
    assert choice == [route_of(rule.route) for rule in (rules[0], rules[2], rules[1])]
    assert choice[2] == [SKIP, SKIP, SKIP, LITE, SKIP, SKIP, FULL, SKIP]
    with pytest.raises(ValueError, match="without 'when'"):
        RulePolicy(rules[:1])
    with pytest.raises(ValueError, match="CHANNEL.FIELD"):
        RulePolicy([Rule({}, {"LIDAR_TOP.colour": (0, 1)}), rules[2]])(proposal(torch.zeros(1, 8, 3)), TABLE)
    with pytest.raises(ValueError, match="SONAR"):
        route_of({"SONAR": "full"})


def test_a_glance_that_cannot_be_trusted_gives_the_richest_route():
    scores = torch.zeros(4, len(UNITS), 3)
    scores[..., SKIP] = 5.0
    glance = toy_glance(4)
    glance.health[..., 5] = 0.1  # ten milliseconds old
    glance.health[1, 6, 5] = 4.0  # a LiDAR sweep of 0.4 s ago
    glance.health[2, 3, 0] = torch.nan
    glance.health[3, 0, 0] = 0.0  # a pitch-black picture that says it is present
    choice = FailSafePolicy(ArgmaxPolicy())(proposal(scores, glance=glance), TABLE)
    assert (choice[0] != SKIP).sum() == 1
    assert (choice[1:] == FULL).all()
    capped = decided(FailSafePolicy(ArgmaxPolicy()), proposal(scores, 0.5, glance=glance), TABLE)
    assert (TABLE.prices.cost_of(capped) <= 0.5 + 2e-6).all()
    assert ((capped[1:] != SKIP).sum(dim=1) >= 5).all()


def test_the_throttle_scales_between_least_and_full():
    scores = torch.zeros(1, len(UNITS), 3)
    scores[..., FULL] = 1.0
    policy = ThrottlePolicy(ArgmaxPolicy())
    costs = []
    for policy.utilisation in (0.0, 0.5, 1.0):
        costs.append(float(TABLE.prices.cost_of(policy(proposal(scores), TABLE))))
    assert costs[0] == pytest.approx(TABLE.min_budget)
    assert costs[1] <= (1 + TABLE.min_budget) / 2 + 1e-6
    assert costs[2] == pytest.approx(1.0)
    policy.utilisation = 1.5
    with pytest.raises(ValueError, match="utilisation"):
        policy(proposal(scores), TABLE)


def test_hysteresis_waits_for_its_margin_and_for_what_is_lost():
    policy = HysteresisPolicy(ThresholdPolicy(0.0), margin=1.0, hold=2)
    scores = torch.full((1, len(UNITS), 3), -9.0)
    scores[..., SKIP] = 0.0

    def lidar_branch(gain: float, available=None) -> int:
        scores[0, LIDAR_UNIT, FULL], scores[0, RADAR_UNIT, FULL] = gain, 5.0
        return int(policy(proposal(scores, available=available), TABLE)[0, LIDAR_UNIT])

    assert lidar_branch(-0.5) == SKIP
    assert lidar_branch(0.9) == SKIP  # better, but not by the margin
    assert lidar_branch(1.1) == FULL
    assert lidar_branch(-9.0) == FULL  # held for two frames
    assert lidar_branch(-0.9) == FULL
    assert lidar_branch(-1.1) == SKIP
    policy.reset()
    assert lidar_branch(0.1) == FULL
    lost = torch.ones(1, len(UNITS), dtype=torch.bool)
    lost[0, LIDAR_UNIT] = False
    assert lidar_branch(9.0, lost) == SKIP


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0.2, 1.0), burst=st.floats(0, 2.0), attack=st.floats(-50, 50))
def test_any_stretch_of_time_costs_at_most_burst_and_rate(seed, rate, burst, attack):
    policy = TokenBucketPolicy(ThresholdPolicy(-20.0), rate, burst)
    costs = []
    for frame in range(12):
        scores = drawn_scores(2, seed + frame) * 3
        scores[..., SKIP] -= attack  # makes every unit look needed (or none)
        costs.append(TABLE.prices.cost_of(decided(policy, proposal(scores, TABLE.min_budget), TABLE)))
    running = torch.stack([torch.zeros(2, dtype=torch.float64), *costs]).cumsum(dim=0)
    for start in range(12):
        for end in range(start + 1, 13):
            assert (running[end] - running[start] <= burst + rate * (end - start) + 1e-5).all()


def test_a_token_bucket_spends_its_savings_and_refuses_a_hopeless_rate():
    policy = TokenBucketPolicy(ArgmaxPolicy(), rate=0.5, burst=0.5)
    wants_all = torch.zeros(1, len(UNITS), 3)
    wants_all[..., FULL] = 1.0
    costs = [float(TABLE.prices.cost_of(policy(proposal(wants_all), TABLE))) for _ in range(4)]
    assert costs[0] == pytest.approx(1.0)
    assert all(cost <= 0.5 + 0.1 for cost in costs[1:])
    with pytest.raises(ValueError, match="least budget"):
        TokenBucketPolicy(ArgmaxPolicy(), rate=0.05)(proposal(wants_all), TABLE)


@pytest.mark.parametrize("mean_cost", [0.3, 0.55, 0.8, 0.95])
def test_the_random_router_costs_what_it_should(mean_cost):
    num = 1500
    choice = RandomPolicy(mean_cost, seed=1)(proposal(torch.zeros(num, 8, 3)), TABLE)
    costs = TABLE.prices.cost_of(choice)
    error = float(costs.std() / num**0.5)
    assert abs(float(costs.mean()) - mean_cost) < 3 * error
    assert len(torch.unique(choice, dim=0)) > (50 if mean_cost < 0.9 else 15)  # near everything on there are not many


def test_the_random_router_with_all_the_money_runs_everything():
    choice = RandomPolicy(1.0, seed=1)(proposal(torch.zeros(5, 8, 3)), TABLE)
    assert TABLE.prices.cost_of(choice).tolist() == pytest.approx([1.0] * 5)


def test_policies_repeat_themselves():
    given_proposal = proposal(drawn_scores(6, 3), 0.6)
    for one, other in zip(every_policy(), every_policy(), strict=True):
        first = [decided(one, given_proposal, TABLE) for _ in range(3)]
        one.reset()
        again = [decided(one, given_proposal, TABLE) for _ in range(3)]
        elsewhere = [decided(other, given_proposal, TABLE) for _ in range(3)]
        for a, b, c in zip(first, again, elsewhere, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)


def test_a_router_asks_its_policy_at_evaluation_alone():
    torch.manual_seed(0)
    router = Router(policy=StaticPolicy(route_of({"RADAR": "full"})))
    assert (router.train()(toy_glance(4), TABLE).choice != SKIP).any(dim=0)[:NUM_CAMERAS].any()
    plan = router.eval()(toy_glance(4), TABLE)
    assert plan.choice.tolist() == [route_of({"RADAR": "full"})] * 4
    assert plan.weight.tolist() == [[1.0] * 8] * 4
    router.policy = None
    assert (router(toy_glance(4), TABLE).choice == FULL).all()
