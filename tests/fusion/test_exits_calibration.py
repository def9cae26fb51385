"""Temperatures, conformal quantiles, thresholds that keep a cost: against torchmetrics, brute force and arithmetic."""

import itertools
import math

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from fusion.routing.plan import FULL, SKIP
from fusion.trunk.exits_calibration import (
    CalibratedExits,
    budgeted_thresholds,
    exits_of,
    geometric_shares,
    leaving_gflops,
    read_calibration,
    solved_thresholds,
    thresholds_for_cost,
    write_calibration,
)
from fusion.trunk.exits_peaks import NOTHING, Peaks
from fusion.trunk.exits_policies import MaxProb
from fusion.trunk.exits_reliability import conformal_quantile, fit_temperature, labelled_logits, reliability
from tests.fusion.exit_toys import exit_model
from tests.fusion.small_model import small_batch


def drawn(n, num_early, seed):
    """Scores that tell something about losses; costs that differ a little between samples."""
    generator = torch.Generator().manual_seed(seed)
    hardness = torch.rand(n, 1, generator=generator)
    scores = 1 - hardness + 0.3 * torch.rand(n, num_early, generator=generator)
    losses = hardness * torch.linspace(1, 0.2, num_early + 1) + 0.05 * torch.rand(n, num_early + 1, generator=generator)
    costs = torch.linspace(1, 3, num_early + 1) + 0.2 * torch.rand(n, 1, generator=generator)
    return scores, losses, costs


def test_reliability_against_torchmetrics_and_arithmetic():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, generator=generator) * 2
    correct = torch.rand(500, generator=generator) < (logits / 2).sigmoid()
    found = reliability(logits, correct)
    expected = binary_calibration_error(logits.sigmoid(), correct.long(), n_bins=15, norm="l1")
    assert found.ece == pytest.approx(float(expected), abs=1e-6)
    by_hand = reliability(torch.tensor([0.0, math.log(3)]), torch.tensor([True, False]))
    assert by_hand.brier == pytest.approx((0.5**2 + 0.75**2) / 2)
    assert by_hand.nll == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2)


def test_a_known_temperature_is_found_and_helps():
    generator = torch.Generator().manual_seed(1)
    true_logits = torch.randn(20_000, generator=generator) * 1.5
    correct = torch.rand(20_000, generator=generator) < true_logits.sigmoid()
    temperature = fit_temperature(2.5 * true_logits, correct)
    assert temperature == pytest.approx(2.5, rel=0.05)
    assert reliability(2.5 * true_logits / temperature, correct).ece < reliability(2.5 * true_logits, correct).ece / 4
    with pytest.raises(ValueError, match="0 of 3"):
        fit_temperature(torch.ones(3), torch.zeros(3, dtype=torch.bool))


def random_peaks(n, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 1, 10, generator=generator) * 2 - 3
    peaks = Peaks(logits, logits.argmax(dim=-1), torch.zeros(n, 1, 2), torch.ones(n, 1, dtype=torch.bool))
    truth = torch.multinomial(peaks.hypotheses[:, 0], 1, generator=generator)
    return peaks, truth


def test_conformal_sets_cover_what_they_promise():
    peaks, truth = random_peaks(2000, 0)
    quantile = conformal_quantile(peaks, truth, 0.1)
    misfits = sorted((1 - peaks.hypotheses[:, 0].gather(1, truth)[:, 0]).tolist())
    assert quantile == pytest.approx(misfits[math.ceil(2001 * 0.9) - 1])
    fresh, fresh_truth = random_peaks(4000, 1)
    covered = fresh.hypotheses[:, 0].gather(1, fresh_truth)[:, 0] >= 1 - quantile
    assert float(covered.float().mean()) == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / 2000))
    assert conformal_quantile(*random_peaks(5, 0), 0.1) == 1.0  # too few to promise anything: every hypothesis


def test_labelled_logits_leave_out_what_is_no_peak():
    peaks, _ = random_peaks(3, 0)
    truth = torch.tensor([[2], [NOTHING], [-1]])
    peaks = Peaks(peaks.logits, peaks.label, peaks.xy_m, torch.tensor([[True], [True], [False]]))
    logits, correct = labelled_logits(peaks, truth)
    assert correct.tolist() == [True, False]
    assert logits[0] == peaks.logits[0, 0].max()


def test_budgeted_thresholds_take_the_asked_shares():
    scores, _, _ = drawn(1000, 3, 0)
    shares = geometric_shares(0.5, 4)
    assert shares == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    left = exits_of(scores, budgeted_thresholds(scores, shares))
    assert torch.bincount(left, minlength=4).tolist() == pytest.approx([1000 * share for share in shares], abs=1)


@pytest.mark.parametrize("num_early", [1, 3])
@pytest.mark.parametrize("asked", [1.4, 2.0, 2.7])
def test_calibrated_thresholds_hit_the_asked_cost_on_other_samples(num_early, asked):
    scores, _, costs = drawn(2000, num_early, 0)
    thresholds, spent = thresholds_for_cost(scores, costs, asked)
    assert asked * 0.99 < float(spent.mean()) <= asked * (1 + 1e-6)
    scores, _, costs = drawn(2000, num_early, 1)
    fresh = costs.gather(1, exits_of(scores, thresholds)[:, None])
    error = float(fresh.std()) / math.sqrt(len(fresh))
    assert abs(float(fresh.mean()) - asked) < max(0.03 * asked, 2 * error)


def test_what_no_threshold_can_keep():
    scores, losses, costs = drawn(50, 2, 0)
    assert thresholds_for_cost(scores, costs, 99.0)[0] == [math.inf, math.inf]
    with pytest.raises(ValueError, match="first exit"):
        thresholds_for_cost(scores, costs, 0.5)
    with pytest.raises(ValueError, match="expected samples"):
        thresholds_for_cost(scores[:0], costs[:0], 2.0)
    with pytest.raises(ValueError, match="worst"):
        solved_thresholds(scores, losses, costs, 9.0, worst_cost=0.5)


def test_nan_scores_never_leave():
    scores = torch.tensor([[math.nan], [0.1], [0.9]])
    thresholds = budgeted_thresholds(scores, [1.0, 0.0])
    assert exits_of(scores, thresholds).tolist() == [1, 0, 0]


def test_the_solver_is_as_good_as_trying_every_order():
    """One early exit: every threshold that makes a difference is tried by hand."""
    scores, losses, costs = drawn(12, 1, 3)
    solved = solved_thresholds(scores, losses, costs, 2.0, num_levels=200)
    best = math.inf
    for threshold in [-math.inf, *scores[:, 0].tolist(), math.inf]:
        left = exits_of(scores, [threshold])[:, None]
        if float(costs.gather(1, left).mean()) <= 2.0:
            best = min(best, float(losses.gather(1, left).mean()))
    assert float(losses.gather(1, exits_of(scores, solved)[:, None]).mean()) == pytest.approx(best)


def test_the_worst_cost_forbids_depth():
    scores, losses, costs = drawn(200, 2, 0)
    solved = solved_thresholds(scores, losses, costs, 9.0, worst_cost=2.3)
    left = exits_of(scores, solved)
    assert int(left.max()) == 1
    assert float(costs.gather(1, left[:, None]).max()) <= 2.3
    # More to spend is never worse.
    means = []
    for mean in (1.5, 2.0, 2.5, 4.0):
        left = exits_of(scores, solved_thresholds(scores, losses, costs, mean))[:, None]
        assert float(costs.gather(1, left).mean()) <= mean
        means.append(float(losses.gather(1, left).mean()))
    assert all(later <= earlier for earlier, later in itertools.pairwise(means))


@torch.no_grad()
def test_leaving_costs_are_what_the_trace_says():
    """Cameras alone, so that prices do not depend on points."""
    model = exit_model((-1, 0), first_group=["radar"])
    batch = small_batch(2)
    choice = torch.full((2, 8), FULL)
    choice[:, 6:] = SKIP
    choice[1, :3] = SKIP
    plan = model.plan_of(choice, model.available(batch))
    costs = leaving_gflops(model.prices(), model.exits, plan.choice, with_router=False)
    for number, thresholds in enumerate(([-math.inf, math.inf], [2.0, -math.inf], [2.0, 2.0])):
        model.exits.set_thresholds(thresholds)
        output = model(batch, plan=plan)
        if number:  # at the first nobody may leave: no sensor of the first group has run
            assert output.exits.exit_of.tolist() == [number] * 2
            assert output.trace.gflops() == pytest.approx(costs[:, number].tolist(), rel=1e-5)
    full = model.prices().always_gflops - model.prices().always["router"]
    units = [6 * model.prices().units[0]["full"], 3 * model.prices().units[0]["full"]]
    assert costs[:, -1].tolist() == pytest.approx([full + unit for unit in units], rel=1e-5)


def test_thresholds_belong_to_a_checkpoint(tmp_path):
    exits = exit_model((0,)).exits
    calibrated = CalibratedExits(0.7, (0.8,), (1.5,), 0.69, 0.01, 100, "val", "abc", "MaxProb")
    write_calibration(tmp_path / "exits.json", calibrated)
    again = read_calibration(tmp_path / "exits.json")
    assert again == calibrated
    again.apply(exits, "abc")
    assert (exits.thresholds, exits.temperatures) == ((0.8,), (1.5,))
    with pytest.raises(ValueError, match="this checkpoint"):
        again.apply(exits, "other")
    with pytest.raises(ValueError, match="policy"):
        CalibratedExits(0.7, (0.8,), (1.5,), 0.69, 0.01, 100, "val", "abc", "Margin").apply(exits, "abc")
    with pytest.raises(FileNotFoundError, match="calibrate"):
        read_calibration(tmp_path / "none.json")
    assert isinstance(exits.policy, MaxProb)


def test_many_combinations_of_thresholds_leave_as_each_of_them():
    scores = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    combinations = [(0.5, 0.5), (float("inf"), 0.2), (0.0, 1.0), (float("inf"), float("inf"))]
    together = exits_of(scores, torch.tensor(combinations, dtype=torch.float64)[:, None])
    assert together.tolist() == [exits_of(scores, one).tolist() for one in combinations]
    assert exits_of(scores[:, :0], ()).tolist() == [0] * 7, "without early exits everybody is answered by the last"
