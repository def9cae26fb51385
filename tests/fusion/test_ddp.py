"""Two processes on the CPU: ranks that take different routes still agree on every weight."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_two_processes_agree_on_every_weight(tmp_path):
    settings = ["devices=2", "strategy=ddp_find_unused_parameters_true", "max_epochs=1", "limit_val_batches=1"]
    command = [sys.executable, "-m", "tests.fusion.train_toy", str(tmp_path), *settings]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with open(tmp_path / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == ["points", "points", "random", "learned", "learned", "learned"]
    assert len((tmp_path / "validation.csv").read_text().splitlines()) == 2
