"""Cells shared out over processes: the same numbers as one; what comes from outside is refused unless allowed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.commands.robustness import Options, as_list
from fusion.commands.suite_jobs import check_launcher, has_plugin, own_words, share_named
from fusion.commands.suite_target import foreign
from fusion.robustness.axes import planned_cells
from fusion.robustness.cells import read_cells
from fusion.robustness.results import collected
from fusion.robustness.run_word import changed_parts, run_word
from fusion.robustness.suite import run_scenarios
from fusion.scoring.scorer import Scorer
from tests.fusion.remembering_model import RememberingModel, scorable_small_set
from tests.fusion.suite_ranks import BUDGETS, SCENARIOS, set_in

ROOT = Path(__file__).parents[2]


def test_two_processes_give_the_numbers_of_one(tmp_path):
    scorable_small_set(tmp_path / "data")
    data = set_in(tmp_path / "data")
    scorer = Scorer(data.root, data.version, "small_train")
    command = [sys.executable, "-m", "tests.fusion.suite_ranks", str(tmp_path / "data"), str(tmp_path / "two")]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "two").glob("rank-*")} == {"rank-0", "rank-1"}
    model = RememberingModel()
    whole = run_scenarios(model, data, scorer, SCENARIOS, BUDGETS, tmp_path / "one")
    (word,) = {cell.run for cell in read_cells(tmp_path / "two" / "robustness.jsonl")}
    # Sources may be edited while tests run; everything else must be the same in all processes.
    assert set(changed_parts(word, run_word(model, data, scorer, tmp_path / "one"))) <= {"code"}
    joined = collected(tmp_path / "two", word, planned_cells(SCENARIOS, BUDGETS))
    assert [cell.title for cell in joined.cells] == [cell.title for cell in whole.cells]
    for one, two in zip(whole.cells, joined.cells, strict=True):
        assert one.error is None
        assert (one.metrics, one.gflops, one.inputs) == (two.metrics, two.gflops, two.inputs)


def test_settings_travel_to_jobs():
    assert as_list("budgets=1.0,0.5") == "budgets=[1.0,0.5]"
    assert as_list("budgets=[1.0]") == "budgets=[1.0]"
    assert as_list("suite=quick") == "suite=quick"
    options = Options(run=["a", "b"], suite="quick", budgets=[1.0, 0.5], launcher="joblib", jobs=3, devices=2)
    words = own_words(options, "a")
    assert words[0] == f"run={Path('a').resolve()}"
    assert "budgets=1.0,0.5" in words
    assert not any(word.startswith(("launcher=", "jobs=", "devices=", "share=")) for word in words)
    assert (share_named("2/4").index, share_named("2/4").count) == (1, 4)
    for text in ("0/4", "5/4", "2", "a/b"):
        with pytest.raises(ValueError, match="expected share=K/N"):
            share_named(text)


def test_a_strangers_code_runs_only_by_name():
    name = "tests.fusion.foreign_detector.NearestPoint"
    with pytest.raises(ValueError, match=f"add allow={name}"):
        foreign(name, [])
    assert foreign(name, [name]).detector.version == "1"
    for wrong in ("tests.fusion.foreign_detector.Nobody", "no_such_package.Detector", "Detector"):
        with pytest.raises(ValueError, match="expected a class that can be imported"):
            foreign(wrong, [wrong])


def test_launchers_are_named_and_installed():
    with pytest.raises(ValueError, match="expected launcher to be one of joblib"):
        check_launcher("cron", 2)
    with pytest.raises(ValueError, match="expected jobs of at least 1, got 0"):
        check_launcher("joblib", 0)
    if not has_plugin("ray"):
        with pytest.raises(ValueError, match="pip install hydra-ray-launcher"):
            check_launcher("ray", 2)
