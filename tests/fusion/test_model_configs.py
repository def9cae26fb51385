"""The shipped models build, have the sizes they promise, and run one training step."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fusion.commands.compose import compose, instantiate
from fusion.efficiency.summary import summarize
from fusion.model import FusionModel
from tests.fusion.random_batch import random_batch

FOLDER = Path(__file__).parents[2] / "configs" / "model"


def build(name: str) -> FusionModel:
    torch.manual_seed(0)
    return instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))


def one_step(model: FusionModel, num_samples: int) -> None:
    stride, size = model.cameras.encoder.stride, model.cameras.sizes_px[2]
    batch = random_batch(num_samples, image_size_px=size, depth_stride=stride, num_points=2000)
    output = model(batch, plan=model.full_plan(batch))
    (output.head.heatmap.square().mean() + output.head.velocity.square().mean() + output.depth_loss).backward()
    gradients = [p.grad for name, p in model.named_parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_tiny_fits_two_cores():
    model = build("tiny")
    summary = summarize(model)
    assert 1e6 < summary.num_parameters < 3e6
    assert summary.full_gflops < 6
    assert summary.min_budget < 0.4
    one_step(model, 1)


def test_base_is_of_honest_size():
    summary = summarize(build("base"))
    assert 25e6 < summary.num_parameters < 60e6
    assert 200 < summary.full_gflops < 500
    assert summary.min_budget < 0.3


@pytest.mark.slow
def test_base_runs_a_step():
    one_step(build("base"), 1)


def test_the_summary_adds_up():
    model = build("tiny")
    summary = summarize(model)
    shares = {(row.unit, row.part): row.share for row in summary.rows}
    always = sum(share for (unit, _), share in shares.items() if unit == "always")
    full = always + 6 * shares["CAMERA", "full"] + shares["LIDAR", "full"] + shares["RADAR", "full"]
    assert full == pytest.approx(1)
    assert always + min(share for (_, part), share in shares.items() if part == "lite") == pytest.approx(
        model.min_budget
    )
    by_part = {row.part: row.num_parameters for row in summary.rows if row.unit == "always"}
    units = sum(p.numel() for part in (model.cameras, model.lidar, model.radar) for p in part.parameters())
    assert sum(by_part.values()) + units == summary.num_parameters
    assert summary.as_markdown().count("\n") == len(summary.rows) + 2


@pytest.mark.parametrize("name", ["tiny", "base"])
@pytest.mark.parametrize("data", ["town", "nuscenes"])
def test_data_are_read_at_the_size_of_the_model(data, name):
    config = compose([f"data={data}", f"model={name}", "data.root=/somewhere"])
    preparation = instantiate(config.data).preparation
    assert preparation.image_size_px == tuple(config.model.cameras.image_size_px)
    assert preparation.depth_stride == config.model.cameras.encoder.stride
