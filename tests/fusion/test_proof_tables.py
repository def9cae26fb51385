"""The tables of the first proof from made-up runs: means and deviations by hand, nothing missing is passed over."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fusion.robustness.cells import append_cell
from tests.fusion.test_report import cell_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "proof.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return runpy.run_path(str(SCRIPT))
    finally:
        sys.path.pop(0)


def step(fault: str, family: str) -> tuple[dict, ...]:
    return ({"fault": fault, "level": 1.0, "unit": "-", "family": family, "channels": None},)


def write_run(folder: Path, scores: dict[str, float], budget: float = 1.0, broken: str = "") -> None:
    marks = {"camera-noise": "fault", "fog": "neither", "snow": "neither", "ghosts": "family"}
    families = {"camera-noise": "noise", "fog": "weather", "snow": "weather", "ghosts": "false points"}
    cells = [cell_of("clean", budget=budget, nds=scores["clean"])]
    for name, nds in scores.items():
        if name != "clean":
            steps = step(name, families.get(name, "lost"))
            cell = cell_of(name, budget=budget, steps=steps, nds=nds, seen_in_training=marks.get(name, "fault"))
            cells.append(replace(cell, metrics=None, error="ValueError: no") if name == broken else cell)
    for cell in cells:
        append_cell(folder / "robustness.jsonl", cell)


SUBSETS = dict.fromkeys(("camera+lidar", "camera+radar", "lidar+radar", "camera", "lidar", "radar"), 0.2)


@pytest.fixture
def runs(tmp_path):
    for seed, shift in ((0, 0.0), (1, 0.02)):
        base = {"clean": 0.5 + shift, "camera-noise": 0.3, "fog": 0.2 + shift, "snow": 0.1, "ghosts": 0.9, **SUBSETS}
        write_run(tmp_path / f"clean-{seed}", base)
        write_run(tmp_path / f"ramped-{seed}", {**base, "camera-noise": 0.4, "fog": 0.3 + shift, "snow": 0.3})
        write_run(tmp_path / f"routed-{seed}", base, budget=0.6)
        write_run(tmp_path / f"leave-out-weather-{seed}", {**base, "fog": 0.22, "snow": 0.22})
        write_run(tmp_path / f"mixture-{seed}", {**base, "fog": 0.4, "snow": 0.2}, broken="snow" if seed else "")
    return tmp_path


def test_means_and_deviations_by_hand(script, runs):
    page, rows = script["page_of"](script["read_runs"](runs), "nds", "python benchmarks/proof.py")
    lines = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in page.splitlines() if "|" in line}
    # 0.5 and 0.52: mean 0.51, sample deviation 0.0141. Unseen: fog and snow; of a seen family is neither one nor other.
    assert lines["no faults"][:4] == ["2", "0.510 ± 0.014", "0.300 ± 0.000", "0.155 ± 0.007"]
    assert lines["ramped noise and dropout"][:4] == ["2", "0.510 ± 0.014", "0.400 ± 0.000", "0.305 ± 0.007"]
    assert lines["no faults"][4] == "0.200 ± 0.000"
    assert lines["weather"][:3] == ["fog, snow", "0.155 ± 0.007", "0.220 ± 0.000"]
    assert lines["weather"][3].startswith("failed"), "a cell that could not run is never averaged away"
    assert lines["routed, budget 0.6"][:2] == ["12.00", "0.510 ± 0.014"]
    assert "Missing: constant-dropout, published-recipe." in page
    by_name = {row["name"]: row for row in rows}
    unseen = by_name["ramped noise and dropout, unseen faults: gain over no faults"]
    assert (unseen["ratio"], unseen["bar"], unseen["holds"]) == (0.15, pytest.approx(0.0071, abs=1e-4), True)
    clean = by_name["ramped noise and dropout, clean: gain over no faults"]
    assert (clean["ratio"], clean["holds"]) == (0.0, False)


def test_the_script_writes_its_files(script, runs, tmp_path):
    script["main"]([f"runs={runs}", f"out={tmp_path / 'proof.json'}", f"page={tmp_path / 'proof.md'}"])
    assert (tmp_path / "proof.md").read_text().startswith("# Does failing in training help?")
    assert '"holds": true' in (tmp_path / "proof.json").read_text()
    with pytest.raises(SystemExit, match="expected runs named RECIPE-SEED"):
        script["read_runs"](tmp_path / "nothing")
