"""``dynfusion robustness`` with every setting that chooses cells: the right cells, and one line for a mistake."""

import json

import pytest

from fusion.cli import main
from fusion.robustness.cells import Cell, read_cells
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run

NEAREST = "tests.fusion.foreign_detector.NearestPoint"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return scorable_small_set(tmp_path_factory.mktemp("small")).root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, root):
    """Two runs of other weights."""
    folder = tmp_path_factory.mktemp("runs")
    sweeps = ("data.radar_sweeps=1", "data.lidar_sweeps=1")
    return [write_routed_run(folder / name, root, *SMALL_SET, *sweeps, seed=row) for row, name in enumerate("ab")]


def cells_of(folder) -> list[tuple[str, float, str]]:
    return [(cell.scenario, cell.budget, cell.policy) for cell in read_cells(folder / "robustness.jsonl")]


def test_two_runs_side_by_side_under_filters_and_policies(runs, capsys):
    words = ("suite=quick", "faults=lidar", "severities=3", "policy=router,full", "device=cpu")
    assert main(["robustness", f"run={runs[0]},{runs[1]}", *words]) == 0
    printed = capsys.readouterr().out
    wanted = [(name, 1.0, policy) for name in ("clean", "lidar-beams-lost") for policy in ("router", "full")]
    for run in runs:
        assert cells_of(run) == wanted
        assert run.name in printed
    first, second = (json.loads((run / "robustness.json").read_text())["at"][0]["nds"] for run in runs)
    # The first is the baseline of the second and of nobody else.
    assert "mCE" not in first
    (clean, lost), (base_clean, base_lost) = (
        [cell.metrics.nds for cell in read_cells(run / "robustness.jsonl") if cell.policy == "router"]
        for run in (runs[1], runs[0])
    )
    assert second["mCE"] == pytest.approx(100 * (1 - lost) / (1 - base_lost))
    assert second["mRA"] == pytest.approx(lost / clean)
    assert (clean, lost) != (base_clean, base_lost)
    assert main(["robustness", f"run={runs[0]}", *words, "budgets=1.0,0.8", "policy=router"]) == 0
    assert cells_of(runs[0])[4:] == [(name, 0.8, "router") for name in ("clean", "lidar-beams-lost")]
    assert "2 of 4 cells were there already" in capsys.readouterr().out


def test_a_strangers_detector_by_the_command(root, tmp_path, capsys):
    data = [f"data.root={root}", *SMALL_SET]
    words = ["robustness", f"run={tmp_path / 'mine'}", f"detector={NEAREST}", *data, "suite=quick", "scenarios=night"]
    assert main(words) == 2
    assert f"add allow={NEAREST}" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert main([*words, f"allow={NEAREST}"]) == 0
    cells: list[Cell] = read_cells(tmp_path / "mine" / "robustness.jsonl")
    assert [cell.scenario for cell in cells] == ["clean", "night"]
    # It looks at the LiDAR alone: a dark picture is another input, the same answer.
    assert cells[0].metrics == cells[1].metrics
    assert cells[0].inputs != cells[1].inputs


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("suite=frog", "frog"),
        ("scenarios=frog", "expected scenarios among"),
        ("faults=frog", "expected faults, families or modalities that suite quick has, got frog"),
        ("severities=9", "expected filters that let scenarios of quick through, got 9"),
        ("severities=mild", "settings are"),
        ("budgets=0.0001", "expected budgets from"),
        ("budgets=1.01", "expected budgets from"),
        ("budgets=all", "settings are"),
        ("policy=oracle", "expected policies among router, full, random, static, got oracle"),
        ("split=frog", "frog"),
        ("device=tpu", "expected device=cpu or device=cuda"),
        ("devices=0", "expected devices of at least 1"),
        ("launcher=cron", "expected launcher to be one of joblib"),
        ("share=3/2", "expected share=K/N"),
        ("colour=red", "colour"),
        ("quick", "expected settings key=value"),
    ],
)
def test_a_wrong_value_ends_in_one_line(runs, capsys, wrong, told):
    path = runs[0] / "robustness.jsonl"
    before = path.read_bytes() if path.exists() else b""
    words = {word.partition("=")[0]: word for word in ("suite=quick", "device=cpu", wrong)}
    assert main(["robustness", f"run={runs[0]}", *words.values()]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert told in error
    assert (path.read_bytes() if path.exists() else b"") == before


def test_several_wrong_things_beside_a_launcher(runs, capsys):
    """Jobs are not started for what this process can refuse."""
    for words, told in (
        (("launcher=joblib", "jobs=0"), "expected jobs of at least 1"),
        (("launcher=joblib", "devices=2"), "expected devices of at least 1, and launcher= without it"),
        (("launcher=joblib", "budgets=0.001"), "expected budgets from"),
    ):
        assert main(["robustness", f"run={runs[0]}", "suite=quick", "device=cpu", *words]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert told in error
    assert main(["robustness", "suite=quick"]) == 2
    assert "expected run=RUN" in capsys.readouterr().err
    assert main(["robustness", f"run={runs[0].parent / 'nowhere'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
