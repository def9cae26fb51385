"""Temperatures, conformal quantiles, thresholds that keep a cost: against torchmetrics, brute force and arithmetic."""

import math

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from fusion.adaptive.observe import Observation
from fusion.adaptive.reliable import PeakTable
from fusion.adaptive.search import allocated, candidates
from fusion.adaptive.settings import Setting
from fusion.trunk.exits_calibration import exits_of, geometric_shares
from fusion.trunk.exits_peaks import NOTHING, Peaks
from fusion.trunk.exits_reliability import conformal_quantile, fit_temperature, labelled_logits, reliability


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


def family_of(scores, losses, costs, asked) -> float:
    """MSDNet's budgeted batches: q_k ~ p^k leave at exit k, the surest first; mean loss at the p that spends most."""
    best = (0.0, math.inf)
    for power in torch.linspace(-12, 12, 200).tolist():
        still, left = torch.ones(len(scores), dtype=torch.bool), torch.full((len(scores),), scores.shape[1])
        for number, share in enumerate(geometric_shares(math.exp(power), costs.shape[1])[:-1]):
            column = scores[:, number].masked_fill(~still, -math.inf)
            goes = column.argsort(descending=True)[: min(round(share * len(scores)), int(still.sum()))]
            left[goes], still[goes] = number, False
        cost, loss = (float(table.gather(1, left[:, None]).mean()) for table in (costs, losses))
        best = max(best, (cost, loss)) if cost <= asked else best
    return best[1]


@pytest.mark.parametrize("num_early", [1, 3])
@pytest.mark.parametrize("asked", [1.4, 2.0, 2.7])
def test_exits_alone_keep_the_asked_cost_on_other_samples_and_lose_hardly_more_than_budgeted_batches(num_early, asked):
    scores, losses, costs = drawn(2000, num_early, 0)
    none = PeakTable(torch.zeros(2000, 1, 1), torch.zeros(2000, 1, 1, dtype=torch.int64))
    tables = (table.double() for table in (scores, losses, costs))
    zeros = torch.zeros(2000, dtype=torch.float64)
    observed = Observation(Setting(None), *tables, (0.0,) * num_early, zeros, none)
    one = allocated(candidates([observed]), asked, ("exits",))
    assert one.route_budget is None
    assert asked * 0.97 < one.mean_cost <= asked + 1e-9
    worth = float((losses[:, 0] - losses[:, -1]).max()) / (199 if num_early == 1 else 39)  # a step, in loss
    assert one.loss <= family_of(scores, losses, costs, asked) + worth
    scores, _, costs = drawn(2000, num_early, 1)
    fresh = costs.gather(1, exits_of(scores, one.thresholds)[:, None])
    error = float(fresh.std()) / math.sqrt(len(fresh))
    assert abs(float(fresh.mean()) - asked) < max(0.03 * asked, 2 * error)


def test_exits_alone_cannot_cost_less_than_the_first():
    scores, losses, costs = (table.double() for table in drawn(50, 2, 0))
    none = PeakTable(torch.zeros(50, 1, 1), torch.zeros(50, 1, 1, dtype=torch.int64))
    observed = Observation(Setting(None), scores, losses, costs, (0.0, 0.0), torch.zeros_like(costs[:, 0]), none)
    found = candidates([observed])
    assert allocated(found, float(costs[:, 0].mean()) - 0.01, ("exits",)) is None
    everyone = allocated(found, float(costs[:, 0].mean()) + 1e-6, ("exits",))
    assert exits_of(scores, everyone.thresholds).tolist() == [0] * 50


def test_nan_scores_never_leave():
    scores = torch.tensor([[math.nan], [0.1], [0.9]])
    assert exits_of(scores, [-math.inf]).tolist() == [1, 0, 0]


def test_shares_are_geometric():
    assert geometric_shares(0.5, 4) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_many_combinations_of_thresholds_leave_as_each_of_them():
    scores = torch.rand(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    combinations = [(0.5, 0.5), (float("inf"), 0.2), (0.0, 1.0), (float("inf"), float("inf"))]
    together = exits_of(scores, torch.tensor(combinations, dtype=torch.float64)[:, None])
    assert together.tolist() == [exits_of(scores, one).tolist() for one in combinations]
    assert exits_of(scores[:, :0], ()).tolist() == [0] * 7, "without early exits everybody is answered by the last"
