"""Scores over peaks, and the policies on hand-made peaks."""

import math

import numpy as np
import pytest
import torch

from fusion.trunk.exits_fitted import ClassWise, ConformalSets, class_thresholds
from fusion.trunk.exits_peaks import (
    NOTHING,
    certainty,
    confidence,
    energy,
    find_peaks,
    joined,
    margin,
    match_to_boxes,
    matched_shift_m,
    sharpened_entropy,
)
from fusion.trunk.exits_policies import (
    AccumulatedConfidence,
    Energy,
    Entropy,
    ExitPolicy,
    LearnedGate,
    Margin,
    MaxProb,
    Patience,
    Window,
)
from tests.fusion.exit_toys import GRID, maps_with, peaks_at


def found(boxes, **options):
    return find_peaks(maps_with(boxes, num_samples=max(box[0] for box in boxes) + 1), GRID, **options)


def test_peaks_are_the_local_maxima_where_their_boxes_are():
    peaks = found([(0, 3, 4, 10, 2.0), (0, 3, 4, 11, 1.0), (0, 7, 12, 1, 3.0)], num_peaks=5)
    assert peaks.label[0, :2].tolist() == [7, 3]  # the neighbour of a higher cell is none
    assert peaks.logits[0, 1, 3] == 2.0
    # Cell (iy 4, ix 10) of a grid from -8 m: x = 10.5 - 8, y = 4.5 - 8.
    assert peaks.xy_m[0, 1].tolist() == [2.5, -3.5]
    assert peaks.prob[0, 2] < 0.01


def test_cells_without_a_box_do_not_count():
    """A mean over cells would call both frames sure; over peaks the undecided one is not."""
    sure, unsure = found([(0, 0, 5, 5, 5.0)]), found([(0, 0, 5, 5, 0.0)])
    for policy in (MaxProb(), Entropy(), Margin()):
        assert policy([sure]) > policy([unsure]) + 0.2
    cells = maps_with([(0, 0, 5, 5, 0.0)]).heatmap.sigmoid()
    assert torch.maximum(cells, 1 - cells).mean() > 0.99


def test_an_empty_frame_is_as_sure_as_its_strongest_peaks_are_weak():
    empty = find_peaks(maps_with([]), GRID)
    doubtful = find_peaks(maps_with([], background=-1.0), GRID)
    assert MaxProb()([empty]) > 0.95
    assert MaxProb()([doubtful]) < 0.5


def test_scores_of_one_peak_by_hand():
    """One class at p, the others at q each: the twelve lines of arithmetic written out."""
    peaks = peaks_at([(0.0, 0.0)], label=2, logit=1.0)
    p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(6.0))
    raw = np.array([p] + [q] * 9 + [1 - p])
    h = raw / raw.sum()
    assert float(confidence(peaks)) == pytest.approx(h[0], rel=1e-5)
    assert float(margin(peaks)) == pytest.approx(h[0] - h[-1], rel=1e-5)
    assert float(certainty(peaks)) == pytest.approx(1 + (h * np.log(h)).sum() / np.log(11), rel=1e-5)
    assert float(energy(peaks)) == pytest.approx(math.log1p(math.e) + 9 * math.log1p(math.exp(-6)), rel=1e-5)
    s = h**2 / (h**2).sum()
    assert float(sharpened_entropy(peaks)) == pytest.approx(-(s * np.log(s)).sum(), rel=1e-5)


def test_temperature_divides_the_logits_and_leaves_the_peaks():
    boxes = [(0, 3, 4, 10, 2.0), (0, 7, 12, 1, 3.0)]
    plain, cool = found(boxes, num_peaks=2), found(boxes, num_peaks=2, temperature=2.0)
    torch.testing.assert_close(cool.logits * 2, plain.logits)
    assert torch.equal(cool.label, plain.label)


def test_nan_maps_give_nan_scores():
    broken = maps_with([(0, 0, 5, 5, 3.0)])
    broken.heatmap[0, 0, 2, 2] = torch.nan
    assert MaxProb()([find_peaks(broken, GRID)]).isnan().all()


def test_matched_shift_by_hand():
    before, now = peaks_at([(0, 0), (10, 0)]), peaks_at([(0.3, 0.4), (10, 0)])
    assert float(matched_shift_m(before, now)) == pytest.approx(0.25)  # half of the weight moved 0.5 m
    assert float(matched_shift_m(now, now)) == 0
    # One box fewer: 2 m for it going, nothing for it coming.
    assert float(matched_shift_m(before, peaks_at([(0, 0)]))) == pytest.approx((1.0 + 0.0) / 2)
    # Another class never matches.
    assert float(matched_shift_m(before, peaks_at([(0, 0), (10, 0)], label=1))) == 2.0


def test_patience_counts_agreements_in_a_row():
    still, moved = peaks_at([(0, 0)]), peaks_at([(5, 0)])
    history = [still, still, still, moved, moved]
    assert [float(Patience()(history[: k + 1])) for k in range(5)] == [0, 1, 2, 0, 1]


def test_accumulated_confidence_starts_again_where_boxes_move():
    still, moved = peaks_at([(0, 0)]), peaks_at([(5, 0)])
    own = float(still.mean(confidence(still)))
    policy = AccumulatedConfidence([1.0, 2.0, 4.0])
    assert float(policy([still, still])) == pytest.approx(3 * own)
    assert float(policy([still, still, moved])) == pytest.approx(4 * own)


def test_class_wise_thresholds():
    easy, hard = peaks_at([(0, 0)], label=0, logit=4.0), peaks_at([(0, 0)], label=1, logit=0.5)
    table = class_thresholds([joined([easy, hard])], low=0.5, high=0.9)
    assert table[0][:3] == pytest.approx([0.5, 0.9, 0.9])
    policy = ClassWise(table)
    assert float(policy([easy])) > 0 > float(policy([hard]))
    with pytest.raises(ValueError, match="exit 2"):
        policy([easy, easy])


def test_a_window_sends_deeper_what_lies_inside():
    peaks = peaks_at([(0, 0)], logit=1.0)
    score = float(MaxProb()([peaks]))
    for low, high, leaves in ((score - 0.1, score + 0.1, False), (0.0, score - 0.1, True), (score + 0.1, 2.0, True)):
        assert (float(Window(MaxProb(), low, high)([peaks])) >= 0) == leaves
    with pytest.raises(ValueError, match="low < high"):
        Window(MaxProb(), 1.0, 0.5)


def test_conformal_sets_count_hypotheses():
    peaks = peaks_at([(0, 0)], logit=0.0)  # the class and nothing, one half each (nearly)
    assert float(ConformalSets([0.6])([peaks])) == -1
    assert float(ConformalSets([0.4])([peaks])) == 1
    assert float(ConformalSets([0.6], set_size=2.0)([peaks])) == 0


def test_the_gate_is_told_nothing_that_trains_the_exit():
    peaks = peaks_at([(0, 0)])
    peaks.logits.requires_grad_()
    gate = LearnedGate(1)
    gate([peaks]).sum().backward()
    assert peaks.logits.grad is None
    assert gate.layers[0].bias.grad is not None
    assert gate([peaks]).tolist() == [0.5]


def test_boxes_are_matched_once_in_order_of_score():
    peaks = found([(0, 2, 4, 4, 3.0), (0, 2, 4, 6, 2.0), (0, 5, 10, 10, 1.0)], num_peaks=3)
    xy_m = torch.tensor([[-3.0, -3.5], [2.6, 2.4]])  # near the first two, and at the third but of another class
    truth = match_to_boxes(peaks, torch.tensor([0, 0]), torch.tensor([2, 4]), xy_m)
    assert truth.tolist() == [[2, NOTHING, NOTHING]]


@pytest.mark.parametrize("policy", [MaxProb(), Energy(), Patience(), LearnedGate(2), Window(Margin(), 0.1, 0.2)])
def test_one_protocol(policy):
    assert isinstance(policy, ExitPolicy)
    both = joined([peaks_at([(0, 0)]), peaks_at([(3, 0)], logit=0.3)])
    together = policy([both, both])
    assert together.shape == (2,)
    alone = policy([both.select(torch.tensor([1])), both.select(torch.tensor([1]))])
    torch.testing.assert_close(together[1:], alone)


def test_runs_from_before_still_find_the_policies_that_are_fitted():
    from fusion.trunk import exits_fitted, exits_policies

    assert exits_policies.ClassWise is exits_fitted.ClassWise
    assert exits_policies.ConformalSets is exits_fitted.ConformalSets
