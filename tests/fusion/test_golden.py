"""The first losses of the tiny model, as they were when somebody last looked.

A refactor keeps them. A change that is meant to change numbers writes new ones, and says so in its commit:
``python -m tests.fusion.test_golden``.
"""

import json
from pathlib import Path

import pytest
import torch

from fusion.commands.compose import compose, instantiate
from fusion.optim import OptimizerSettings
from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from tests.fusion.random_batch import random_batch

FILE = Path(__file__).with_name("golden_losses.json")
STAGES = (
    Stage("full", 0.3),
    Stage("random", 0.6, route="random", keep={"lidar": 0.5, "view": 0.5}, lite_share=0.5),
    Stage("learned", 1.0, route="learned", budget=("least", 1.0)),
)


def first_losses(folder: Path) -> list[dict[str, float]]:
    """Three steps on random batches: all units, a random route, a learned route."""
    torch.manual_seed(0)
    model = instantiate(compose(["model=tiny"]).model)
    task = FusionTask(model, STAGES, OptimizerSettings(2e-3, 2e-3, warm_up_steps=0), seed=3)
    batches = [random_batch(2, seed, depth_stride=8, num_points=800) for seed in range(3)]
    trainer = build_trainer(folder, max_epochs=1, accelerator="cpu", limit_val_batches=0, gradient_clip_val=10.0)
    trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
    header, *rows = [line.split(",") for line in (folder / "train.csv").read_text().splitlines()]
    names = header[header.index("loss") : header.index("gflops") + 1]
    return [{name: float(row[header.index(name)]) for name in names} for row in rows]


def test_the_first_losses_are_the_golden_ones(tmp_path):
    golden = json.loads(FILE.read_text())
    found = first_losses(tmp_path)
    assert len(found) == len(golden) == 3
    for step, (row, expected) in enumerate(zip(found, golden, strict=True)):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4), f"step {step + 1}"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(first_losses(Path(folder)), indent=1) + "\n")
