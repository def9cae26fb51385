"""Every exit policy and combination is one line of a configuration: from that line to samples that leave by it."""

import copy
import inspect
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from fusion.adaptive.allocation import Allocation, SharedBudget
from fusion.adaptive.files import read_shared_budget
from fusion.adaptive.observe import observe
from fusion.adaptive.settings import TokenLevel
from fusion.commands.adaptive import Options, calibrate_run
from fusion.commands.compose import compose, instantiate
from fusion.robustness.fingerprint import model_word
from fusion.trunk import exits_combine, exits_fitted, exits_policies
from fusion.trunk.exits_calibration import exits_of
from fusion.trunk.exits_fitted import fitted_part, table_of
from fusion.trunk.exits_policies import ExitPolicy, LearnedGate
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import small_batch

PAGE = Path(__file__).parents[2] / "docs" / "adaptive.md"
MODEL = adaptive_model()
BATCHES = [replace(small_batch(1, seed=seed), scenes=(f"scene-{seed // 2}",)) for seed in range(3)]


def lines_of(setting: str) -> list[str]:
    """Nodes that the page gives in its tables for ``policy`` or ``combine``."""
    return re.findall(rf"^\| `{setting}: (\{{_target_: .*\}})` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def toy(**parts):
    """The model with another policy or combination; building one anew takes seconds."""
    model = copy.copy(MODEL)
    model._modules = {**MODEL._modules, "exits": copy.deepcopy(MODEL.exits)}
    for name, part in parts.items():
        setattr(model.exits, name, None)
        setattr(model.exits, name, part)
    return model


def built(line: str):
    return instantiate(OmegaConf.create(f"node: {line}").node)


def test_the_page_names_every_policy_and_every_combination():
    for modules, setting in (((exits_policies, exits_fitted), "policy"), ((exits_combine,), "combine")):
        own = {
            name
            for module in modules
            for name, kind in inspect.getmembers(module, inspect.isclass)
            if kind.__module__ == module.__name__
            and "__call__" in dir(kind)
            and not name.startswith("_")
            and not getattr(kind, "_is_protocol", False)
        }
        assert own == {re.search(r"(\w+)[,}]", line).group(1) for line in lines_of(setting)}


@pytest.mark.parametrize("line", lines_of("combine"))
def test_a_combination_from_its_line_is_calibrated_and_runs(line, tmp_path, monkeypatch):
    from_line_to_leaving(tmp_path, monkeypatch, combine=line)


@pytest.mark.parametrize("line", lines_of("policy"))
def test_a_policy_from_its_line_is_calibrated_and_runs(line, tmp_path, monkeypatch):
    assert isinstance(built(line), ExitPolicy)
    from_line_to_leaving(tmp_path, monkeypatch, policy=line)


def from_line_to_leaving(folder: Path, monkeypatch, **lines: str) -> None:
    """dynfusion adaptive on the toy; then a model built anew, with the file: samples leave where the table says."""

    def model_of_lines():
        model = toy(**{name: built(line) for name, line in lines.items()})
        if isinstance(model.exits.policy, LearnedGate):  # noise alone opens it nowhere near a threshold
            for layer in model.exits.policy.layers:
                torch.nn.init.constant_(layer.weight, 2.0)
        return model.eval()

    calibrated, kept = model_of_lines(), []
    opened = SimpleNamespace(
        model=calibrated,
        config=SimpleNamespace(data=SimpleNamespace(val_split="val")),
        directory=SimpleNamespace(path=folder),
        plan_source=None,
        data=SimpleNamespace(evaluation_loader=lambda split, batch_size: BATCHES),
    )

    def observed(model, batches, say):
        kept[:] = observe(model, batches, [None, 0.8], [TokenLevel()])
        return kept

    monkeypatch.setattr("fusion.adaptive.search._MOST_COMBINATIONS", 30)
    monkeypatch.setattr("fusion.commands.runs.open_run", lambda *_, **__: opened)
    monkeypatch.setattr("fusion.commands.adaptive.observed", observed)
    budgets = [0.5 * (calibrated.min_budget + 1), 1.0]
    calibrate_run(Options(run="run", budgets=budgets), [], Console(width=200, file=io.StringIO()))

    shared, model = read_shared_budget(folder / "adaptive.json"), model_of_lines()
    shared.check(model, model_word(model))
    for one, bound in zip(shared.allocations, budgets, strict=True):
        assert one.mean_cost <= bound + 1e-9
    scores = kept[0].scores
    assert bool(scores.isfinite().all())
    middle = [float(column.sort().values[1]) for column in scores.T]
    told = (middle[0] - 1e-6 * abs(middle[0]), middle[1] - 1e-6 * abs(middle[1]))
    by_hand = Allocation(0.1, None, told, cap=1.0)
    table = shared.policy_table
    model.shared_budget = SharedBudget([by_hand], shared.temperatures, "", shared.policy, table)
    with torch.inference_mode():
        left = [int(model(batch, budget=1.0).exits.exit_of[0]) for batch in BATCHES]
    assert left == exits_of(scores, told).tolist()
    assert min(left) < 2, "somebody leaves"
    assert table == table_of(model.exits.policy) == table_of(calibrated.exits.policy)
    assert (table is not None) == (fitted_part(model.exits.policy) is not None)


def test_numbers_of_a_policy_are_found_at_the_temperatures_and_kept_where_given(tmp_path):
    """By hand: the quantile of three peaks; and numbers that the configuration gives stay as they are."""
    from fusion.adaptive.fit_policy import fit_policy
    from fusion.adaptive.reliable import centers_m
    from fusion.heads.targets import center_targets
    from fusion.trunk.exits_peaks import find_peaks, match_to_boxes

    model = toy(policy=exits_fitted.ConformalSets(miscoverage=0.2))
    model.exits.set_thresholds([math.inf] * 2, (0.5, 3.0))
    assert fit_policy(model, BATCHES[:2])
    misfits = []
    with torch.inference_mode():
        for batch in BATCHES[:2]:
            answer = model(batch, plan=model.full_plan(batch), execution="masked").exits.outputs[1]
            peaks = find_peaks(answer, model.head.grid, 32, 3.0)
            targets = center_targets(batch.boxes, 1, model.head.grid)
            truth = match_to_boxes(peaks, targets.sample, targets.label, centers_m(targets, model.head.grid))
            misfits += [1 - float(peaks.hypotheses[0, k, true]) for k, true in enumerate(truth[0].tolist())]
    rank = math.ceil((len(misfits) + 1) * 0.8)
    assert model.exits.policy.table[1][0] == pytest.approx(sorted(misfits)[rank - 1], rel=1e-5)
    given = toy(policy=exits_fitted.ConformalSets([0.3, 0.4]))
    assert not fit_policy(given, BATCHES[:1])
    assert given.exits.policy.table == ((0.3,), (0.4,))
    assert not fit_policy(MODEL, BATCHES[:1])


def test_without_its_numbers_a_policy_lets_nobody_go_and_says_so(tmp_path):
    model = toy(policy=exits_fitted.ClassWise())
    with torch.inference_mode():
        run = model(BATCHES[0], plan=model.full_plan(BATCHES[0]), execution="masked").exits
    assert run.scores.isnan().all()
    with pytest.raises(ValueError, match="expected numbers of the policy ClassWise before") as error:
        toy(policy=exits_policies.Window(exits_fitted.ClassWise(), 0.1, 0.2)).exits.set_thresholds([0.0, 0.0])
    assert "\n" not in str(error.value)
    word, table = model_word(model), ((0.5,) * 10,) * 2
    for changed, message in (
        (SharedBudget([], (), word, "ClassWise"), "numbers of 2 exits for the policy ClassWise, got 0"),
        (SharedBudget([], (), word, "ClassWise", table[:1]), "got 1"),
        (SharedBudget([], (), "other", "ClassWise", table), "this checkpoint"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            changed.check(model, word)
        assert "\n" not in str(error.value)
    SharedBudget([], (), word, "ClassWise", table).check(model, word)
    plain = toy()
    with pytest.raises(ValueError, match="for the policy MaxProb, got 2"):
        SharedBudget([], (), model_word(plain), "MaxProb", table).check(plain, model_word(plain))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: exits_fitted.ClassWise([[0.5] * 9]), "10 thresholds for each exit"),
        (lambda: exits_fitted.ClassWise(low=0.9, high=0.5), "low < high"),
        (lambda: exits_fitted.ConformalSets(miscoverage=1.0), "miscoverage in"),
        (lambda: exits_fitted.ConformalSets([]), "one quantile for each exit"),
    ],
)
def test_numbers_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_line_on_the_command_line():
    """As the page says it."""
    line = "{_target_: fusion.trunk.exits_policies.Patience, shift_m: 0.25}"
    assert f"'+model.exits.policy={line}'" in PAGE.read_text(encoding="utf-8")
    node = compose(["model=tiny_exits", f"+model.exits.policy={line}"]).model.exits.policy
    assert instantiate(node).shift_m == 0.25
    json.dumps(OmegaConf.to_container(node))
