"""What a calibration says of itself: probabilities against frequencies, budgets on samples that it has not seen."""

import io
import json
import math
import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from datamodules.batch import BoxBatch
from fusion.adaptive.ablation import fold_candidates
from fusion.adaptive.allocation import Allocation, SharedBudget
from fusion.adaptive.controls import CONTROLS
from fusion.adaptive.files import read_shared_budget
from fusion.adaptive.held_out import HeldOut, executed, held_out
from fusion.adaptive.observe import Observation, observe
from fusion.adaptive.reliable import PeakTable, calibrate_answers, calibrate_exits, peak_table, set_temperatures
from fusion.adaptive.search import allocated
from fusion.adaptive.settings import Setting, TokenLevel
from fusion.commands.adaptive import Options, calibrate_run
from fusion.commands.adaptive_ablation import control_run
from fusion.heads.targets import center_targets
from fusion.trunk.exits_peaks import find_peaks
from fusion.trunk.exits_reliability import reliability
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.exit_toys import GRID, maps_with
from tests.fusion.small_model import small_batch

BATCHES = [replace(small_batch(1, seed=seed), scenes=(f"scene-{seed // 2}",)) for seed in range(4)]


def boxes(*places) -> BoxBatch:
    """One sample's boxes at (x, y, label)."""
    count = len(places)
    return BoxBatch(
        center_m=torch.tensor([[x, y, 0.0] for x, y, _ in places]),
        size_lwh_m=torch.ones(count, 3),
        yaw_rad=torch.zeros(count),
        velocity_mps=torch.zeros(count, 2),
        label=torch.tensor([label for _, _, label in places]),
        attribute=torch.zeros(count, dtype=torch.int64),
        num_points=torch.ones(count, dtype=torch.int64),
        sample=torch.zeros(count, dtype=torch.int64),
    )


def test_peaks_are_right_where_a_box_of_their_class_is():
    """Cells are 1 m, the grid begins at -8 m: cell (y 8, x 8) has its middle at (0.5, 0.5)."""
    answer = maps_with([(0, 3, 8, 8, 2.0), (0, 3, 2, 2, 1.0), (0, 5, 8, 12, 0.5)])
    targets = center_targets(boxes((0.5, 0.5, 3), (4.5, 0.5, 4)), 1, GRID)
    table = peak_table([answer, answer], targets, GRID, num_peaks=3)
    assert table.logits[0, 0].tolist() == pytest.approx([2.0, 1.0, 0.5])
    assert table.truth[0].tolist() == [[1, 0, 0]] * 2  # no box; then a box of another class


def known_table(temperatures, n=4000) -> PeakTable:
    """One peak per sample and exit whose logits are too large by a factor: one for each half of the samples."""
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(n, 1, 1, generator=generator)
    truth = (torch.rand(n, 1, 1, generator=generator) < true.sigmoid()).long()
    factor = torch.tensor(temperatures).repeat_interleave(n // 2)[:, None, None]
    return PeakTable(true * factor, truth)


def test_a_known_temperature_is_found_and_measured_on_the_other_half():
    folds = [0] * 2000 + [1] * 2000
    (one,) = calibrate_exits(known_table((2.5, 2.5)), folds)
    assert one.temperature == pytest.approx(2.5, rel=0.1)
    assert one.is_fitted
    assert one.after.ece < one.before.ece / 3
    assert one.after.nll < one.before.nll
    # Halves that differ: each is measured with the temperature of the other, and is none the better for its own.
    table = known_table((1.0, 4.0))
    (crossed,) = calibrate_exits(table, folds)
    first = table.select(torch.arange(2000)).of_exit(0)
    second = table.select(torch.arange(2000, 4000)).of_exit(0)
    wrong = reliability(torch.cat([first[0] / 4.0, second[0]]), torch.cat([first[1], second[1]]))
    assert crossed.after.nll == pytest.approx(wrong.nll, rel=0.05)
    assert 1 < crossed.temperature < 4


def test_peaks_that_are_all_wrong_have_no_temperature():
    table = known_table((2.0, 2.0))
    (one,) = calibrate_exits(PeakTable(table.logits, torch.zeros_like(table.truth)), None)
    assert (one.temperature, one.is_fitted) == (1.0, False)
    assert one.before == one.after
    assert one.before.count == 4000
    (none,) = calibrate_exits(PeakTable(table.logits, torch.full_like(table.truth, -1)), [0, 1] * 2000)
    assert none.before.count == 0


def test_answers_are_those_of_the_samples_that_left():
    scores = torch.tensor([[0.9], [0.1], [0.8], [0.2]], dtype=torch.float64)
    logits = torch.tensor([[[4.0], [1.0]], [[4.0], [2.0]], [[0.0], [9.0]], [[7.0], [3.0]]])
    truth = torch.tensor([[[1], [0]], [[0], [1]], [[0], [0]], [[0], [0]]])
    table = PeakTable(logits, truth)
    first, last = calibrate_answers({"a": (scores, table)}, [("a", Allocation(0.5, None, (0.5,)))], (2.0, 1.0))
    assert (first.exit, first.num_samples, last.exit, last.num_samples) == (0, 2, 1, 2)
    assert first.before.brier == pytest.approx(((1 / (1 + math.exp(-4)) - 1) ** 2 + 0.5**2) / 2)
    assert first.after.brier == pytest.approx(((1 / (1 + math.exp(-2)) - 1) ** 2 + 0.5**2) / 2)
    assert last.before == last.after == reliability(torch.tensor([2.0, 3.0]), torch.tensor([True, False]))
    assert calibrate_answers({}, [(None, Allocation(0.5, 0.5))], (2.0, 1.0)) == []


def test_scores_are_taken_with_the_temperatures_that_are_stored():
    model = adaptive_model()
    (plain,) = observe(model, BATCHES[:2], [None], [TokenLevel()])
    found = calibrate_exits(plain.peaks, None)
    told = [replace(one, temperature=value) for one, value in zip(found, (0.5, 3.0, 7.0), strict=True)]
    set_temperatures(model, told)
    assert model.exits.temperatures == (0.5, 3.0)
    (cooled,) = observe(model, BATCHES[:2], [None], [TokenLevel()])
    with torch.inference_mode():
        answers = model(BATCHES[0], plan=model.full_plan(BATCHES[0]), execution="masked").exits.outputs
    for number, temperature in enumerate((0.5, 3.0)):
        peaks = find_peaks(answers[number], model.head.grid, 32, temperature)
        assert float(cooled.scores[0, number]) == pytest.approx(float(model.exits.policy([peaks])[0]), rel=1e-5)
    assert not torch.allclose(plain.scores, cooled.scores)
    assert torch.equal(plain.peaks.logits, cooled.peaks.logits)  # always at temperature 1


def world(n: int, seed: int, dearer: float = 1.0) -> list[Observation]:
    """Bounds on the route, token rates and two exits on ``n`` samples; whatever spends more loses less.

    A sample has a hardness; exits are less sure of hard ones, and cheap settings lose more on them.
    """
    generator = torch.Generator().manual_seed(seed)
    hardness = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    points = 1 + 0.1 * torch.rand(n, 1, generator=generator, dtype=torch.float64)
    noise = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    found = []
    for bound in (None, 0.5, 0.65, 0.8):
        for lead, rate in ((-math.inf, 1.0), (0.0, 0.9)):
            share = torch.tensor([0.5, 0.75, rate], dtype=torch.float64)
            costs = dearer * 0.9 * (bound or 1.0) * share * points
            losses = 1 + 2 * hardness * (1.2 - costs)
            scores = 1 - hardness + 0.4 * noise
            peaks = PeakTable(torch.zeros(n, 3, 1), torch.zeros(n, 3, 1, dtype=torch.int64))
            rest = ((0.02, 0.02), torch.zeros(n, dtype=torch.float64), peaks)
            found.append(Observation(Setting(bound, lead), scores, losses, costs, *rest))
    return found


def joined(one: list[Observation], other: list[Observation]) -> list[Observation]:
    names = ("scores", "losses", "costs")
    return [
        Observation(
            a.setting,
            *(torch.cat([getattr(a, name), getattr(b, name)]) for name in names),
            a.head_costs,
            torch.cat([a.merge_cost, b.merge_cost]),
            PeakTable(torch.cat([a.peaks.logits, b.peaks.logits]), torch.cat([a.peaks.truth, b.peaks.truth])),
        )
        for a, b in zip(one, other, strict=True)
    ]


def by_hand(observations: list[Observation], allocation: Allocation) -> list[float]:
    """Sample by sample: the first exit that is sure leaves; heads that are off cost nothing."""
    setting = Setting(allocation.route_budget, allocation.token_threshold)
    own, found = next(one for one in observations if one.setting == setting), []
    for scores, costs in zip(own.scores.tolist(), own.costs.tolist(), strict=True):
        sure = [k for k, limit in enumerate(allocation.thresholds) if limit < math.inf and scores[k] >= limit]
        place = min(sure, default=2)
        off = [k for k, limit in enumerate(allocation.thresholds) if limit == math.inf and k <= place]
        found.append(costs[place] - sum(own.head_costs[k] for k in off))
    return found


@pytest.fixture(scope="module")
def halves():
    observations = joined(world(1000, 0), world(1000, 1))
    folds = [0] * 1000 + [1] * 1000
    return observations, folds, fold_candidates(observations, folds)


@pytest.mark.parametrize("asked", [0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_budgets_are_hit_on_samples_that_were_not_calibrated_on(halves, asked):
    """Router bound, exits and token rate together; and again on many fresh samples, counted one by one."""
    observations, folds, found = halves
    row = held_out(observations, found, folds, asked)
    assert row.verdict == "within"
    assert row.num_samples == 2000
    assert row.expected <= asked + 1e-9
    assert abs(row.mean - asked) <= max(0.03 * asked, 2 * row.standard_error)
    fresh = world(2000, 2)
    for fold in (0, 1):
        allocation = allocated(found[fold], asked)
        assert 0.98 * asked <= allocation.mean_cost <= asked + 1e-9  # made use of, not only kept
        costs = by_hand(fresh, allocation)
        assert executed(fresh, allocation).tolist() == pytest.approx(costs)
        error = math.hypot(allocation.standard_error, statistics.stdev(costs) / math.sqrt(len(costs)))
        assert statistics.fmean(costs) == pytest.approx(allocation.mean_cost, abs=3 * error)


def test_halves_that_cost_something_else_are_not_within():
    observations = joined(world(300, 0), world(300, 1, dearer=1.3))
    folds = [0] * 300 + [1] * 300
    found = fold_candidates(observations, folds)
    found = {0: found[1], 1: found[1]}  # both from the cheap half
    assert held_out(observations, found, folds, 0.6).verdict == "above"
    assert HeldOut(0.6, 0.4, 0.4, 0.01, 0.5, 100).verdict == "below"
    assert held_out(observations, {fold: [] for fold in (0, 1)}, folds, 0.123) is None


def test_the_command_prints_and_keeps_what_it_found(tmp_path, monkeypatch):
    """On a small model: the file holds the report, is read back, and what was held out is what really runs."""
    model = adaptive_model()
    opened = SimpleNamespace(
        model=model,
        config=SimpleNamespace(data=SimpleNamespace(val_split="val")),
        directory=SimpleNamespace(path=tmp_path),
        plan_source=None,
        data=SimpleNamespace(evaluation_loader=lambda split, batch_size: BATCHES),
    )
    monkeypatch.setattr("fusion.commands.runs.open_run", lambda *_, **__: opened)
    console = Console(width=200, record=True, file=io.StringIO())
    budgets = [(1 + model.min_budget) / 2, 1.0]
    calibrate_run(Options(run="run", budgets=budgets), [], console)
    text = console.export_text()
    for heading in ("settings by budget", "calibration of the exits", "were not found on", "done in"):
        assert heading in text
    content = json.loads((tmp_path / "adaptive.json").read_text())
    assert [row["exit"] for row in content["exits"]] == [0, 1, 2]
    assert content["temperatures"] == [row["temperature"] for row in content["exits"][:2]]
    assert [row["asked"] for row in content["held_out"]] == budgets
    assert sum(row["num_samples"] for row in content["answers"] if row["budget"] == 1.0) == 4
    shared = read_shared_budget(tmp_path / "adaptive.json")
    assert shared.temperatures == tuple(content["temperatures"])
    model.shared_budget = SharedBudget(shared.allocations, shared.temperatures, shared.weights, shared.policy)
    with torch.inference_mode():
        spent = [model(batch, budget=budgets[0]).trace.gflops()[0] / model.prices().full_gflops for batch in BATCHES]
    assert sum(spent) / 4 == pytest.approx(shared.allocations[0].mean_cost, rel=1e-6)
    assert model.exits.temperatures == shared.temperatures


def test_controls_join_the_ablation_that_they_belong_to(tmp_path, monkeypatch):
    """On another split than the run's own they are scored there; controls are replaced when run again."""
    model, splits = adaptive_model(), []
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "sample.json").write_text("[]")

    def scorer(root, version, split):
        splits.append(split)
        return SimpleNamespace(score=lambda detections: SimpleNamespace(mean_ap=0.25, nds=0.5))

    opened = SimpleNamespace(
        model=model,
        config=SimpleNamespace(data=SimpleNamespace(val_split="val", root=str(tmp_path), version="v1")),
        directory=SimpleNamespace(path=tmp_path),
        plan_source=None,
        data=SimpleNamespace(evaluation_loader=lambda split, batch_size: BATCHES),
    )
    monkeypatch.setattr("fusion.commands.runs.open_run", lambda *_, **__: opened)
    monkeypatch.setattr("fusion.scoring.scorer.Scorer", scorer)
    console = Console(width=200, record=True, file=io.StringIO())
    options = Options(run=str(tmp_path), budgets=[1.0], split="other", ablation=True)
    calibrate_run(options, [], console)
    first = json.loads((tmp_path / "ablation.json").read_text())
    options = Options(run=str(tmp_path), split="other", controls=True)
    control_run(options, [], console)
    control_run(options, [], console)
    assert set(splits) == {"other"}
    second = json.loads((tmp_path / "ablation.json").read_text())
    assert second["cells"][: len(first["cells"])] == first["cells"]
    assert [cell["mix"] for cell in second["cells"][len(first["cells"]) :]] == list(CONTROLS)
    assert "| 1.00 | random routes | 0.500 |" in console.export_text()
    with pytest.raises(ValueError, match="expected an ablation of these weights and of the 4 samples of val"):
        control_run(replace(options, split=""), [], console)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="of these weights"):
        control_run(options, [], console)
    with pytest.raises(ValueError, match="leave them out"):
        control_run(replace(options, budgets=[0.5]), [], console)
    assert json.loads((tmp_path / "ablation.json").read_text()) == second
