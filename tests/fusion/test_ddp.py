"""Two processes on the CPU: ranks that take different routes agree on every weight, also after a kill and a restart."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def train_in_two_processes(folder: Path, *settings: str) -> subprocess.CompletedProcess:
    common = ["devices=2", "strategy=ddp_find_unused_parameters_true", "max_epochs=1", "limit_val_batches=1"]
    command = [sys.executable, "-m", "tests.fusion.train_toy", str(folder), *common, *settings]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def weights_of(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"rank-{rank}.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two-processes")
    done = train_in_two_processes(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_agree_on_every_weight(whole):
    one, two = weights_of(whole, 0), weights_of(whole, 1)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with open(whole / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["points", "points", "random", "learned", "learned", "learned"]
    assert len((whole / "validation.csv").read_text().splitlines()) == 2


def test_two_processes_killed_in_mid_epoch_go_on_exactly(whole, tmp_path):
    killed = train_in_two_processes(tmp_path, "kill_at=5")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "train.csv").read_text().splitlines()[-1].startswith("4,")
    resumed = train_in_two_processes(tmp_path, "resume=1")
    assert resumed.returncode == 0, resumed.stderr
    for name in ("train.csv", "validation.csv"):
        assert (tmp_path / name).read_text() == (whole / name).read_text()
    expected = weights_of(whole, 0)
    for rank in (0, 1):
        found = weights_of(tmp_path, rank)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_all_ranks_stop_where_the_loss_of_one_is_not_finite(tmp_path):
    # The last step before a checkpoint: the first rank's own loss is still finite when the rows are written.
    stopped = train_in_two_processes(tmp_path, "diverge_at=3")
    assert stopped.returncode not in (0, -signal.SIGKILL)
    assert stopped.stderr.count("training diverged") >= 2, stopped.stderr
    assert "got nan at step 4" in stopped.stderr
    assert "none on another rank at step 4" in stopped.stderr
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
