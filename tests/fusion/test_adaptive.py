"""One budget for router, exits and tokens: tables that tell what runs, caps that hold, checked files."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fusion.adaptive.ablation import (
    MIXES,
    AblationCell,
    ablation_table,
    allocations_of,
    fold_candidates,
    folds_by_scene,
    run_cell,
)
from fusion.adaptive.allocation import Allocation, SharedBudget, policy_name
from fusion.adaptive.controls import CONTROLS, ORACLE, RANDOM, STATIC, run_controls
from fusion.adaptive.files import read_shared_budget, write_shared_budget
from fusion.adaptive.observe import observe
from fusion.adaptive.search import Candidate, allocated, candidates
from fusion.adaptive.settings import TokenLevel, token_thresholds
from fusion.robustness.fingerprint import model_word
from tests.fusion.adaptive_toys import adaptive_model, restored
from tests.fusion.small_model import small_batch

MODEL = adaptive_model()
BATCHES = [small_batch(1, seed=seed) for seed in range(4)]
BOUNDS = (None, MODEL.min_budget, 0.75)


@pytest.fixture(scope="module")
def found() -> list[Candidate]:
    thresholds = token_thresholds(MODEL, BATCHES, (1.0, 0.5, 0.0))
    assert thresholds[0] == -math.inf
    assert thresholds[2] == math.inf
    return candidates(observe(MODEL, BATCHES, BOUNDS, [TokenLevel(one) for one in thresholds]), num_levels=4)


def really(allocation: Allocation, batches=BATCHES) -> list[float]:
    """Executed shares of samples that run one by one, as deployed."""
    MODEL.shared_budget = SharedBudget([Allocation(**{**vars(allocation), "budget": 0.5})], (), "")
    try:
        with torch.inference_mode():
            outputs = [MODEL(batch, budget=1.0) for batch in batches]
    finally:
        MODEL.shared_budget = None
    return [output.trace.gflops()[0] / MODEL.prices().full_gflops for output in outputs]


def test_what_was_observed_is_what_runs(found):
    """The mean cost of a candidate, computed from a table, is what samples cost that really leave and really skip."""
    assert {name for one in found for name in one.uses} == {"router", "exits", "tokens"}
    for one in found[:: max(len(found) // 10, 1)]:
        costs = really(one.allocation)
        assert sum(costs) / len(costs) == pytest.approx(one.allocation.mean_cost, rel=1e-6), one
        assert max(costs) <= one.allocation.cap + 1e-6


def test_all_open_is_the_plain_model(found):
    """The full route, nobody leaving, all tokens: what a model without a shared budget gives at its full plan."""
    MODEL.shared_budget = SharedBudget([Allocation(0.5, None, (math.inf, math.inf))], (), "")
    with torch.inference_mode():
        shared = MODEL(BATCHES[0], budget=1.0)
        MODEL.shared_budget = None
        plain = MODEL(BATCHES[0], plan=MODEL.full_plan(BATCHES[0]))
    assert torch.equal(shared.head.heatmap, plain.head.heatmap)
    assert shared.trace.gflops() == plain.trace.gflops()


@pytest.fixture
def router_bias():
    """The shared model's, to be overwritten: other tests find it as it was."""
    yield from restored(MODEL.router.bias)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("score", [-math.inf, 0.0, math.inf])
def test_the_cap_holds_whatever_a_sample_shows(share, score, monkeypatch, router_bias):
    """Router scores, exit scores and token leads at their worst: no sample costs more than the route's bound."""
    monkeypatch.setattr(type(MODEL.exits.policy), "__call__", lambda _, history: torch.full((len(history[-1]),), score))
    generator = torch.Generator().manual_seed(int(share * 100))
    with torch.no_grad():
        for bound in (MODEL.min_budget, 0.7, 1.0):
            router_bias.copy_(100 * torch.randn(router_bias.shape, generator=generator))
            allocation = Allocation(0.5, bound, (0.5, 0.5), token_threshold=-math.inf, token_most=share)
            assert max(really(allocation, BATCHES[:1])) <= bound + 1e-6


def test_fewer_tokens_at_most_cost_less():
    every, half, none = (
        really(Allocation(0.5, None, (math.inf, math.inf), token_most=share), BATCHES[:2]) for share in (1.0, 0.5, 0.0)
    )
    tokens = MODEL.trunk.stages[-1][1]
    most, full = tokens.gflops(64), MODEL.prices().full_gflops
    for high, middle, low in zip(every, half, none, strict=True):
        assert low < middle < high
        assert high - low == pytest.approx((most - tokens.gflops(64, [0.0])) / full, rel=1e-6)


def test_the_least_loss_within_the_budget_is_chosen():
    def candidate(cost, loss, uses, cap=1.0):
        return Candidate(Allocation(cost, cap, mean_cost=cost, loss=loss, cap=cap), frozenset(uses))

    some = [
        candidate(0.4, 3.0, {"exits"}),
        candidate(0.5, 2.0, {"router"}, cap=0.9),
        candidate(0.5, 1.5, {"router", "exits"}),
        candidate(0.9, 1.0, set()),
    ]
    assert allocated(some, 0.5).loss == 1.5
    assert allocated(some, 0.5, ("router",)).loss == 2.0
    assert allocated(some, 0.5, cap=0.9).loss == 2.0
    assert allocated(some, 0.45, ("exits",)).loss == 3.0
    assert allocated(some, 0.95, ("tokens",)).loss == 1.0
    assert allocated(some, 0.45, ("tokens",)) is None
    assert allocated(some, 0.3, ("router",)).route_budget == 0.3


def test_a_budget_gets_the_allocation_below_it():
    shared = SharedBudget([Allocation(0.8, 0.9), Allocation(0.6, 0.7)], (), "")
    assert [shared.at(budget).route_budget for budget in (0.5, 0.6, 0.79, 0.8, 1.0)] == [0.5, 0.7, 0.7, 0.9, 0.9]


@pytest.mark.parametrize(
    ("budget", "message"),
    [(0.01, "expected a budget in"), (1.2, "expected a budget in"), (torch.tensor([0.7, 0.9]), "one budget")],
)
def test_budgets_that_cannot_be_are_one_line(budget, message):
    shared = SharedBudget([Allocation(0.8, 0.9)], (), "")
    with pytest.raises(ValueError, match=message) as error:
        shared.set(MODEL, budget)
    assert "\n" not in str(error.value)


def test_a_given_route_opens_exits_and_tokens():
    SharedBudget([Allocation(0.8, 0.9, (0.1, 0.1), token_threshold=math.inf)], (), "").set(MODEL, 0.9)
    assert MODEL.exits.thresholds == (0.1, 0.1)
    SharedBudget([], (), "").set(MODEL, None)
    assert MODEL.exits.thresholds == (math.inf, math.inf)
    assert MODEL.trunk.stages[-1][1].threshold == -math.inf


def test_settings_of_another_checkpoint_are_refused(tmp_path):
    word, policy = model_word(MODEL), policy_name(MODEL.exits.policy)
    shared = SharedBudget([Allocation(0.8, None, (0.5, math.inf), -math.inf)], (1.0, 1.0), word, policy)
    write_shared_budget(tmp_path / "adaptive.json", shared, "val", 4)
    again = read_shared_budget(tmp_path / "adaptive.json")
    again.check(MODEL, word)
    assert vars(again)["temperatures"] == (1.0, 1.0)
    assert again.allocations[0].thresholds == (0.5, math.inf)
    assert again.allocations[0].token_threshold == -math.inf
    for changed, message in (
        (SharedBudget(again.allocations, (), "other", policy), "this checkpoint"),
        (SharedBudget(again.allocations, (), word, "Margin"), "policy MaxProb"),
        (SharedBudget([Allocation(0.8, None, (0.5,))], (), word, policy), "2 exits"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            changed.check(MODEL, word)
        assert "\n" not in str(error.value)
    (tmp_path / "adaptive.json").write_text("{}")
    with pytest.raises(ValueError, match="calibrate again"):
        read_shared_budget(tmp_path / "adaptive.json")
    with pytest.raises(FileNotFoundError, match="dynfusion adaptive"):
        read_shared_budget(tmp_path / "absent.json")


def test_each_half_is_scored_with_the_settings_of_the_other(found):
    observations = observe(MODEL, BATCHES, (None, 0.75), (TokenLevel(),))
    folds = [0, 1, 0, 1]
    of = fold_candidates(observations, folds)
    by_hand = observations[0].costs[[1, 3], -1].mean() - sum(observations[0].head_costs)
    by_hand = by_hand - observations[0].merge_cost[[1, 3]].mean()
    alone = allocations_of(of, 1.0, (), 1.0)
    assert alone[0].mean_cost == pytest.approx(float(by_hand))
    assert allocations_of(of, 0.3, ("tokens",), 1.0) is None
    scored = []

    def score(detections):
        scored.append(set(detections))
        return SimpleNamespace(mean_ap=0.25, nds=0.5)

    cell = run_cell(MODEL, BATCHES, folds, alone, score, ("router", "exits"), 1.0)
    assert scored == [{batch.tokens[0] for batch in BATCHES}]
    assert (cell.nds, cell.left, cell.mix) == (0.5, (0.0, 0.0, 1.0), "router+exits")
    table = ablation_table([[cell], [type(cell)(**{**vars(cell), "nds": 0.6})]])
    assert "| 1.00 | router + exits | 0.550 ± 0.050 |" in table
    assert len(MIXES) == 7
    with pytest.raises(ValueError, match="two scenes"):
        folds_by_scene(BATCHES[:1])


def test_controls_cost_what_all_three_cost():
    batches = [replace(batch, scenes=(f"scene-{number // 2}",)) for number, batch in enumerate(BATCHES)]
    full = MODEL.prices().full_gflops
    together = AblationCell("router+exits+tokens", 0.8, 0.7, 0.7 * full, 0.8, 1.0, 0.5, 0.4, (0.0, 0.5, 0.5), 0.9, 3.0)
    # Nothing but the cheapest unit, without the router, the early heads and the second merge of exits that are at rest.
    always = MODEL.prices().always
    at_rest = sum(always.values()) - always["router"] - always["exits"] - always["merge"]
    min_gflops = at_rest + min(min(unit.values()) for unit in MODEL.prices().units) - 1e-6
    before = (MODEL.exits.thresholds, MODEL.exits.temperatures, MODEL.shared_budget)
    found = {}

    def score(detections):
        found[len(found)] = detections
        return SimpleNamespace(mean_ap=0.25, nds=0.5)

    cells = {cell.mix: cell for cell in run_controls(MODEL, batches, [together], score)}
    assert tuple(cells) == CONTROLS
    assert all(set(detections) == {batch.tokens[0] for batch in batches} for detections in found.values())
    for cell in cells.values():
        assert (cell.budget, cell.ms, cell.left) == (0.8, None, (0.0, 0.0, 1.0))
        assert min_gflops <= cell.gflops <= full
    # Chance spends the same on average, up to what the last samples cannot pay back.
    assert cells[RANDOM].share == pytest.approx(0.7, abs=0.025)
    # What a static route costs where it was chosen is within the cost; on the other half points may be a few more.
    assert cells[STATIC].share <= 0.7 * 1.05
    assert cells[ORACLE].share <= 0.7 + 1e-9
    assert "| 0.80 | random routes | 0.500 | 0.250 |" in ablation_table([[together, *cells.values()]])
    assert (MODEL.exits.thresholds, MODEL.exits.temperatures, MODEL.shared_budget) == before, "settings come back"
    with pytest.raises(ValueError, match="run ablation=true again"):
        run_controls(MODEL, batches, [replace(together, mix="router")], score)
