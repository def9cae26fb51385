"""A suite in two real joblib workers or two processes of Fabric's, by the commands of the documentation: the same cells
as one process."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fusion.cli import main
from fusion.robustness.cells import Cell, newest_cells, read_cells
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run

ROOT = Path(__file__).parents[2]
SUITE = ("suite=missing-sensors", "scenarios=lidar", "device=cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The same weights three times."""
    root = scorable_small_set(tmp_path_factory.mktemp("small")).root
    folder = tmp_path_factory.mktemp("runs")
    sweeps = ("data.radar_sweeps=1", "data.lidar_sweeps=1")
    return {name: write_routed_run(folder / name, root, *SMALL_SET, *sweeps) for name in ("one", "two", "ranks")}


def comparable(run: Path) -> list[Cell]:
    """What must not depend on who ran a cell: everything but times, and the sources, which may have been edited."""
    cells = newest_cells(read_cells(run / "robustness.jsonl"))
    cells = [replace(cell, ms=0.0, seconds=0.0, run=cell.run.rpartition("-")[0]) for cell in cells]
    return sorted(cells, key=lambda cell: cell.key)


@pytest.fixture
def sources(tmp_path) -> Path:
    """A copy of the packages: jobs refuse each other's cells where somebody edits sources between their starts."""
    for name in ("configs", "sensors", "datamodules", "fusion"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_two_joblib_workers_give_the_cells_of_one_process(runs, sources):
    words = ["robustness", f"run={runs['two']}", *SUITE, "launcher=joblib", "jobs=2"]
    command, environment = [sys.executable, "-m", "fusion.cli", *words], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Joblib.Parallel(n_jobs=2,backend=loky" in done.stdout
    assert {path.name for path in (runs["two"] / "jobs").iterdir() if path.is_dir()} == {"0", "1"}
    assert (runs["two"] / "robustness.json").is_file()
    assert main(["robustness", f"run={runs['one']}", *SUITE]) == 0
    one, two = comparable(runs["one"]), comparable(runs["two"])
    assert [cell.scenario for cell in one] == ["clean", "lidar"]
    assert one == two


@pytest.mark.slow
def test_two_devices_give_the_cells_of_one_process(runs, sources):
    words = ["robustness", f"run={runs['ranks']}", *SUITE, "devices=2"]
    command = [sys.executable, "-m", "fusion.cli", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=sources, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in done.stderr + done.stdout
    assert (runs["ranks"] / "robustness.json").is_file()
    assert len(read_cells(runs["ranks"] / "robustness.jsonl")) == 2  # each cell by one of the two
    assert main(["robustness", f"run={runs['one']}", *SUITE]) == 0
    assert [cell.scenario for cell in comparable(runs["ranks"])] == ["clean", "lidar"]
    assert comparable(runs["ranks"]) == comparable(runs["one"])


def test_jobs_whose_cells_are_all_there_are_not_started(runs, capsys):
    """One process and jobs skip each other's cells: no launcher is asked for what is done."""
    assert main(["robustness", f"run={runs['one']}", *SUITE]) == 0
    before = (runs["one"] / "robustness.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["robustness", f"run={runs['one']}", *SUITE, "launcher=joblib", "jobs=2"]) == 0
    assert "2 of 2 cells were there already" in capsys.readouterr().out
    assert (runs["one"] / "robustness.jsonl").read_bytes() == before
    assert not (runs["one"] / "jobs").exists()
