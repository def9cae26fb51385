"""``dynfusion robustness`` with what should not be: one clear line, the right exit code, nothing lost."""

import json

import pytest

from fusion.cli import main
from fusion.robustness.lock import only_writer
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run without radar, scored under two scenarios, of which one harms radars alone."""
    root = scorable_small_set(tmp_path_factory.mktemp("small")).root
    folder = tmp_path_factory.mktemp("runs") / "blind"
    overrides = ("model.radar=null", "data.radar_sweeps=0", "data.lidar_sweeps=1")
    return write_routed_run(folder, root, *SMALL_SET, *overrides)


def suite(run, *more: str) -> int:
    return main(["robustness", f"run={run}", "suite=quick", "device=cpu", *more])


def test_without_a_radar_its_faults_fail_and_the_rest_is_scored(run, capsys):
    assert suite(run, "scenarios=radar-ghosts,night") == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed: radar ghosts, budget 1: ValueError: " in printed
    lines = [json.loads(line) for line in (run / "robustness.jsonl").read_text().splitlines()]
    assert [(line["scenario"], line["metrics"] is None) for line in lines] == [
        ("clean", False),
        ("night", False),
        ("radar-ghosts", True),
    ]
    assert "radar" in lines[-1]["error"]


def test_a_cut_line_costs_its_cell_and_no_other(run, capsys):
    path = run / "robustness.jsonl"
    whole = path.read_text().splitlines()
    path.write_text("\n".join([whole[0], whole[1][:300]]))
    assert suite(run, "scenarios=night") == 0
    assert "1 of 2 cells were there already" in capsys.readouterr().out
    written = path.read_text().splitlines()
    assert written[0] == whole[0]
    assert json.loads(written[1])["metrics"] == json.loads(whole[1])["metrics"]


def refused(run, capsys, *more: str) -> str:
    """The one line of a refusal that leaves the folder's cells as they were."""
    before = (run / "robustness.jsonl").read_bytes()
    assert suite(run, "scenarios=night", *more) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (run / "robustness.jsonl").read_bytes() == before
    return error


def test_what_is_refused_leaves_everything_as_it_was(run, capsys):
    path, config = run / "robustness.jsonl", run / "config.yaml"
    whole, text = path.read_text(), config.read_text()
    with only_writer(run):
        assert "expected to be the only suite that writes" in refused(run, capsys)
    try:
        config.write_text(text.replace("fusion.heads.center.CenterHead", "os.system"))
        assert "wants to call os.system from outside dynfusion" in refused(run, capsys)
        config.write_text("model: [")
        assert "expected YAML" in refused(run, capsys)
    finally:
        config.write_text(text)
    try:
        path.write_text(whole[:200] + "\n" + whole)
        assert f"a robustness cell in line 1 of {path}" in refused(run, capsys)
    finally:
        path.write_text(whole)
    assert "expected budgets from" in refused(run, capsys, "budgets=0.0001")
    assert suite(run, "scenarios=night") == 0
