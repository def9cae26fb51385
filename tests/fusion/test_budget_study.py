"""Controls on tables with a known answer; a study of a small run against the plain evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusion.cli import main
from fusion.commands.runs import open_run
from fusion.efficiency.budget_routes import (
    candidate_routes,
    oracle_columns,
    random_choice,
    shuffled_choice,
    static_columns,
    two_folds,
)
from fusion.efficiency.budget_run import study_budgets
from fusion.efficiency.budget_study import StudySettings
from fusion.efficiency.budget_table import BudgetRow, as_markdown, merged, read_rows
from fusion.routing.budget import RouteTable
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.scoring.evaluate import evaluate_model
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, budget_of, write_routed_run
from tests.fusion.routing_toys import toy_prices

SHARES = (0.2, 0.7)


def test_candidates_are_possible_different_and_hold_the_cheapest():
    for prices, floor in (
        (toy_prices(), ()),
        (toy_prices(lite_lidar=False), ("LIDAR",)),
        (toy_prices(cameras=False), ()),
    ):
        routes = RouteTable(prices, floor)
        table = candidate_routes(routes)
        assert len(torch.unique(table, dim=0)) == len(table) > 3
        assert prices.exists().expand(len(table), -1, -1).gather(-1, table[..., None]).all()
        assert (table != SKIP).any(dim=1).all()
        assert float(prices.cost_of(table).min()) == pytest.approx(routes.min_budget)
        if floor:
            assert (table[:, 6] != SKIP).all()
    assert [FULL] * 8 in candidate_routes(RouteTable(toy_prices())).tolist()


def test_folds_share_no_scene():
    assert two_folds(["a", "a", "b", "c", "c", "d"]).tolist() == [False, False, True, False, False, True]
    assert two_folds(["a"] * 4).tolist() == [False, False, True, True]


def test_the_static_route_of_a_sample_is_never_chosen_on_its_own_fold():
    """By hand: fold 0 loves column 0, fold 1 loves column 1; each gets what the other loves."""
    losses = np.array([[0.0, 5.0, 9.0], [0.0, 5.0, 9.0], [5.0, 0.0, 9.0]])
    second = np.array([False, False, True])
    gflops, runs = np.ones((3, 3)), np.ones((3, 3), bool)
    assert static_columns(losses, gflops, np.ones(3), second, runs).tolist() == [1, 1, 0]
    # What it loves is too dear there: the next best.
    gflops[2, 1] = 3.0
    assert static_columns(losses, gflops, np.ones(3), second, runs).tolist() == [0, 0, 0]
    # Nothing of it is present in the second sample: the next best there, and only there.
    runs[1, 0] = False
    assert static_columns(losses, gflops, np.ones(3), second, runs).tolist() == [0, 2, 0]
    runs[1] = True
    # Nothing is cheap enough: the cheapest.
    gflops[2] = [3.0, 3.0, 2.0]
    assert static_columns(losses, gflops, np.ones(3), second, runs)[0] == 2


def test_the_oracle_with_costs_of_each_sample_by_hand():
    losses = np.array([[0.0, 1.0], [0.0, 4.0]])
    gflops = np.array([[3.0, 1.0], [3.0, 1.0]])
    # 2 on average: one of the two may be dear, and the second sample gains more by it.
    assert oracle_columns(losses, gflops, 2.0).tolist() == [1, 0]
    # The first sample's dear route has become cheap, so both fit.
    gflops[0, 0] = 1.0
    assert oracle_columns(losses, gflops, 2.0).tolist() == [0, 0]
    assert oracle_columns(losses, gflops, 0.1).tolist() == [0, 1]  # less than anything costs: the cheapest


def test_random_routes_cost_what_the_learned_ones_cost_sample_by_sample():
    routes, generator = RouteTable(toy_prices()), np.random.default_rng(0)
    num = 60
    available = torch.ones(num, 8, dtype=torch.bool)
    available[::5, 6] = False
    unit_gflops = routes.shares(torch.device("cpu")) * routes.prices.full_gflops
    unit_gflops = unit_gflops.expand(num, -1, -1) * available[..., None]
    wanted = generator.uniform(0.5, 6.0, num)
    choice = random_choice(routes, available, unit_gflops, wanted, generator)
    spent = unit_gflops.gather(-1, choice[..., None]).sum(dim=(1, 2)).numpy()
    assert np.abs(spent - wanted).max() < 0.03 * routes.prices.full_gflops
    assert abs(spent.mean() - wanted.mean()) < 0.002 * routes.prices.full_gflops
    assert not (choice[::5, 6] != SKIP).any()
    assert len(torch.unique(choice, dim=0)) > num / 2


def test_random_routes_spend_no_less_where_everything_is_on_nor_more_where_least_is():
    """At the ends of the range chance has no choice: a cheaper or dearer control would be no control."""
    routes, generator = RouteTable(toy_prices()), np.random.default_rng(0)
    available = torch.ones(20, 8, dtype=torch.bool)
    unit_gflops = (routes.shares(torch.device("cpu")) * routes.prices.full_gflops).expand(20, -1, -1)
    for gflops in (10.5, 0.1):  # 6 views of 1, LiDAR 4, radar 0.5; the lite radar alone
        choice = random_choice(routes, available, unit_gflops, np.full(20, gflops), generator)
        spent = unit_gflops.gather(-1, choice[..., None]).sum(dim=(1, 2)).numpy()
        np.testing.assert_allclose(spent, gflops, atol=1e-6)


def test_shuffled_routes_are_the_learned_ones_dealt_anew():
    learned = torch.arange(3)[torch.randint(0, 3, (20, 8), generator=torch.Generator().manual_seed(0))]
    dealt = shuffled_choice(learned, torch.ones(20, 8, dtype=torch.bool), np.random.default_rng(1))
    assert sorted(dealt.tolist()) == sorted(learned.tolist())
    assert (dealt != learned).any()
    absent = torch.ones(20, 8, dtype=torch.bool)
    absent[:, 2] = False
    assert (shuffled_choice(learned, absent, np.random.default_rng(1))[:, 2] == SKIP).all()


@pytest.fixture(scope="module")
def routed_run(tmp_path_factory):
    root = tmp_path_factory.mktemp("budgets")
    scorable_small_set(root / "set")
    return write_routed_run(root / "run", root / "set", *SMALL_SET)


@pytest.fixture(scope="module")
def study(routed_run):
    opened = open_run(routed_run, [], [])
    loader = opened.data.evaluation_loader("small_train", batch_size=1)
    budgets = [budget_of(opened.model, share) for share in SHARES]
    return opened, study_budgets(opened.model, lambda: loader, StudySettings(budgets, draws=2, num_timed=1))


def test_the_learned_rows_are_those_of_a_plain_evaluation(study):
    opened, found = study
    for place, budget in enumerate(found.settings.budgets):
        plain = evaluate_model(opened.model, opened.data.evaluation_loader("small_train"), budget=budget)
        outcome = found.outcomes["learned", place, 0]
        np.testing.assert_array_equal(outcome.choice.numpy(), plain.branch)
        np.testing.assert_allclose(outcome.gflops, plain.gflops, rtol=1e-6)
        for token, boxes in plain.detections.items():
            np.testing.assert_allclose(outcome.detections[token].score, boxes.score, atol=1e-4)
            assert len(outcome.detections[token]) == len(boxes)


def test_controls_cost_no_more_and_the_oracle_loses_least(study):
    opened, found = study
    full = opened.model.prices().full_gflops
    for place in range(len(SHARES)):
        learned = found.outcomes["learned", place, 0]
        oracle = found.outcomes["oracle", place, 0]
        assert np.mean(oracle.gflops) <= np.mean(learned.gflops) + 1e-9
        assert sum(oracle.losses) <= sum(learned.losses) + 1e-6
        for draw in range(2):
            random = found.outcomes["random", place, draw]
            assert abs(np.mean(random.gflops) - np.mean(learned.gflops)) < 0.01 * full
    assert len(found.outcomes["learned", 0, 0].ms) == 1
    assert found.outcomes["random", 0, 1].ms == []


def test_exits_and_tokens_are_at_rest(routed_run, tmp_path):
    """The study of a model that has both is its plain evaluation, as trained: nobody leaves, tokens at their rate."""
    town = open_run(routed_run, [], []).config.data.root
    run = write_routed_run(tmp_path / "adaptive", town, *SMALL_SET, "model=tiny_adaptive")
    opened = open_run(run, [], [])
    assert opened.model.exits is not None
    assert opened.model.trunk.has_tokens
    loader = list(opened.data.evaluation_loader("small_train", batch_size=1))[:3]
    budget = budget_of(opened.model, 0.5)
    found = study_budgets(opened.model, lambda: loader, StudySettings([budget], num_timed=1))
    plain = evaluate_model(opened.model, loader, budget=budget)
    learned, random = found.outcomes["learned", 0, 0], found.outcomes["random", 0, 0]
    np.testing.assert_array_equal(learned.choice.numpy(), plain.branch)
    np.testing.assert_allclose(learned.gflops, plain.gflops, rtol=1e-4)
    assert (
        learned.gflops[0] < float(opened.model.prices().cost_of(learned.choice)[0]) * opened.model.prices().full_gflops
    )
    for token, boxes in plain.detections.items():
        np.testing.assert_allclose(learned.detections[token].score, boxes.score, atol=1e-3)
    assert abs(np.mean(random.gflops) - np.mean(learned.gflops)) < 0.02 * opened.model.prices().full_gflops


def test_the_losses_of_the_first_pass_are_those_of_the_second(study):
    _, found = study
    for place in range(len(SHARES)):
        column = len(found.measured.candidates) + place
        first = [losses[column] for losses in found.measured.losses]
        np.testing.assert_allclose(found.outcomes["learned", place, 0].losses, first, rtol=1e-5)


def test_the_command_writes_rows_and_merges_runs(routed_run, tmp_path, capsys):
    tight = budget_of(open_run(routed_run, [], []).model, 0.3)
    arguments = ["budgets", f"run={routed_run}", f"budgets=[{tight},1.0]", "timed=0", "policy=threshold"]
    assert main(arguments) == 0
    rows = read_rows(routed_run / "budgets.jsonl")
    assert {(row.budget, row.policy) for row in rows} == {
        (budget, policy) for budget in (tight, 1.0) for policy in ("learned", "random", "shuffled", "static", "oracle")
    }
    assert all(row.num_samples == 7 and row.ms is None and row.router_policy == "threshold" for row in rows)
    assert main(["budgets", f"runs=[{routed_run},{routed_run}]", f"out={tmp_path / 'table.md'}"]) == 0
    assert "2 runs" in (tmp_path / "table.md").read_text()
    assert main(["budgets"]) == 2
    assert main(["budgets", f"run={routed_run}", "budgets=[0.0001]"]) == 2
    assert main(["budgets", f"run={routed_run}", "faults=true"]) == 2
    assert "trained with faults" in capsys.readouterr().err


def row_of(policy: str, nds: float, budget: float = 0.5, **fields) -> BudgetRow:
    plain = {
        "run": "a", "checkpoint": "c", "data": "d", "router_policy": "argmax", "mean_ap": nds, "loss": 1.0,
        "gflops": 2.0, "full_gflops": 4.0, "ms": None, "num_timed": 0, "device": "cpu", "clock": "wall", "date": "d",
        "num_routes": 3, "condition_information": 0.1, "fault_information": None, "routes": {}, "num_samples": 3,
        "draws": 1,
    }  # fmt: skip
    return BudgetRow(budget=budget, policy=policy, nds=nds, **(plain | fields))


def seed_rows(learned: float, random: float) -> list[BudgetRow]:
    others = [row_of(policy, 0.3) for policy in ("shuffled", "static", "oracle")]
    return [row_of("learned", learned), row_of("random", random), *others]


def test_beating_random_by_more_than_the_seeds_differ_by_hand():
    """Gains .1, .1, .1 beat a spread of .01; gains of .01 do not beat a spread of .1 of the learned scores."""
    clear = merged([seed_rows(0.50, 0.40), seed_rows(0.51, 0.41), seed_rows(0.49, 0.39)])[0]
    assert clear.gain.mean == pytest.approx(0.1)
    assert clear.nds["learned"].deviation == pytest.approx(0.01)
    assert clear.beats
    noisy = merged([seed_rows(0.4, 0.39), seed_rows(0.6, 0.59)])[0]
    assert not noisy.beats
    assert merged([seed_rows(0.5, 0.4)])[0].beats is None
    assert "| yes |" in as_markdown([clear], 3)
    assert "beaten by more at 1 of 2 budgets" in as_markdown([clear, noisy], 3)
    with pytest.raises(ValueError, match="run them alike"):
        merged([seed_rows(0.5, 0.4), [replace(row, budget=0.6) for row in seed_rows(0.5, 0.4)]])


def test_lite_and_skip_are_named(study):
    from fusion.efficiency.budget_table import route_name

    assert route_name([LITE, 0, 0, 0, 0, 0, FULL, 0]) == "CAM_FRONT lite, LIDAR full"
    assert route_name([SKIP] * 8) == "nothing"
