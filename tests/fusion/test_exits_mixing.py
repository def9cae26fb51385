"""A share of the samples may spend more, so that a budget between two bounds is made use of."""

import math
from dataclasses import replace

import pytest
import torch

from fusion.adaptive.ablation import fold_candidates
from fusion.adaptive.allocation import Allocation, SharedBudget, draws_of
from fusion.adaptive.held_out import held_out
from fusion.adaptive.mixing import as_run, taken
from fusion.adaptive.observe import Observation, observe
from fusion.adaptive.reliable import PeakTable
from fusion.adaptive.search import allocated, candidates
from fusion.adaptive.settings import Setting, TokenLevel
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import small_batch


def observed(bound: float | None, costs, losses, draws=None) -> Observation:
    """Without exits."""
    costs, losses = (torch.as_tensor(values, dtype=torch.float64)[:, None] for values in (costs, losses))
    n, none = len(costs), torch.zeros(len(costs), 1, 1)
    parts = (torch.zeros(n, 0, dtype=torch.float64), losses, costs, (), torch.zeros(n, dtype=torch.float64))
    draws = None if draws is None else torch.as_tensor(draws, dtype=torch.float64)
    return Observation(Setting(bound), *parts, PeakTable(none, none.long()), draws)


def test_what_is_left_of_a_budget_goes_to_the_first_samples_by_hand():
    """Four samples at 0.4; each that gets the bound 0.8 costs 0.4 more: 0.5 pays for one, that of the least draw."""
    draws = [0.6, 0.1, 0.9, 0.3]
    cheap = observed(0.4, [0.4] * 4, [2.0, 2.0, 2.0, 2.0], draws)
    rich = observed(0.8, [0.8] * 4, [1.0, 1.2, 1.0, 1.0], draws)
    one = allocated(candidates([cheap, rich]), 0.5)
    assert (one.route_budget, one.rich_route_budget, one.cap) == (0.4, 0.8, 0.8)
    assert one.rich_share == pytest.approx(0.2)  # between the draws 0.1 and 0.3
    assert one.mean_cost == pytest.approx(0.5)
    assert one.loss == pytest.approx((3 * 2.0 + 1.2) / 4)
    assert taken(as_run([cheap, rich], one), one)[0].tolist() == pytest.approx([0.4, 0.8, 0.4, 0.4])
    assert allocated(candidates([cheap, rich]), 0.8).rich_share == 0
    # Not above what a single sample may cost, not where nothing is gained, not without draws.
    worse = observed(0.8, [0.8] * 4, [3.0] * 4, draws)
    plain = [replace(each, draws=None) for each in (cheap, rich)]
    for observations, cap in (([cheap, rich], 0.7), ([cheap, worse], 1.0), (plain, 1.0)):
        same = allocated(candidates(observations), 0.5, cap=cap)
        assert (same.rich_share, same.mean_cost, same.cap) == (0.0, pytest.approx(0.4), 0.4)


@pytest.mark.parametrize("asked", [0.45, 0.55, 0.62, 0.75])
def test_budgets_between_two_bounds_are_hit_on_samples_that_were_not_calibrated_on(asked):
    """Bounds of 0.4 and 0.8 alone: without mixing everything between them costs 0.4."""
    n = 400
    draws = draws_of([f"sample {number}" for number in range(n)])
    noise = 1 + 0.02 * torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cheap, rich = (observed(bound, bound * 0.98 * noise, 2 - bound * noise, draws) for bound in (0.4, 0.8))
    folds = [0] * (n // 2) + [1] * (n // 2)
    row = held_out([cheap, rich], fold_candidates([cheap, rich], folds), folds, asked)
    assert row.verdict == "within"
    assert 0.99 * asked < row.expected <= asked + 1e-9
    plain = [replace(one, draws=None) for one in (cheap, rich)]
    assert held_out(plain, fold_candidates(plain, folds), folds, asked).verdict == "below"


def test_a_token_is_drawn_the_same_everywhere():
    """SHA-256 of "abc" begins with BA7816BF 8F01 (FIPS 180-2, appendix B.1)."""
    assert float(draws_of(["abc"])[0]) == 0xBA7816BF8F01 / 2**48
    many = draws_of([f"token-{number}" for number in range(4000)])
    assert torch.histc(many, 10, 0, 1).tolist() == pytest.approx([400] * 10, rel=0.15)


def test_what_was_mixed_is_what_runs():
    """In a batch of five, and one by one: each sample costs what the table says of its bound, and none more than it."""
    model, batch = adaptive_model(), small_batch(5, seed=2)
    model.router.bias.data += torch.tensor([0.0, 1e3, 2e3])  # wants all it may
    batch = replace(batch, tokens=tuple(f"t{number}" for number in range(5)))
    bounds = (0.5, 0.8)
    cheap, rich = observations = observe(model, [batch], bounds, [TokenLevel()])
    share = float(draws_of(batch.tokens).sort().values[1:3].mean())
    one = Allocation(0.6, bounds[0], (math.inf, math.inf), rich_route_budget=bounds[1], rich_share=share)
    expected = taken(as_run(observations, one), one)[0]
    is_rich = draws_of(batch.tokens) < share
    assert is_rich.sum() == 2
    for chosen, own in ((is_rich, rich), (~is_rich, cheap)):
        assert torch.equal(expected[chosen], taken(own, one)[0][chosen])
    model.shared_budget = SharedBudget([one], (), "")
    with torch.inference_mode():
        spent = [gflops / model.prices().full_gflops for gflops in model(batch, budget=0.6).trace.gflops()]
    assert spent == pytest.approx(expected.tolist(), rel=1e-6)
    for cost, rich_one in zip(spent, is_rich.tolist(), strict=True):
        assert cost <= bounds[rich_one] + 1e-6
    assert min(cost for cost, rich_one in zip(spent, is_rich.tolist(), strict=True) if rich_one) > bounds[0]
