"""Parts of a user's own, by `_target_`, from outside the packages."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.inject import FaultInjector, FaultRule
from fusion.cli import main
from fusion.commands.compose import compose, foreign_targets, instantiate
from fusion.encoders.lidar import LidarEncoder
from fusion.ops.flops import GIGA
from sensors.faults.suites import Scenario
from sensors.frame import NoHistory
from tests.fusion.random_batch import random_batch
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run
from tests.sensors.toy_frames import toy_frame


class PointCount(nn.Module):
    """A LiDAR encoder that only knows whether anything was there: one learned vector per sample."""

    def __init__(self, grid, channels, **_):
        super().__init__()
        self.out_grid, self.channels = grid.coarser(2), channels
        self.vector = nn.Parameter(torch.ones(channels))
        self.rows_seen = 0

    def forward(self, points):
        self.rows_seen += len(points.present)
        counts = torch.bincount(points.sample, minlength=len(points.present)).float().log1p()
        return (counts[:, None] * self.vector)[:, :, None, None].expand(-1, -1, *self.out_grid.shape)

    def gflops(self, num_points):
        return num_points / GIGA


@dataclasses.dataclass(frozen=True)
class LidarLifted:
    """A fault of one's own: the LiDAR hangs too high."""

    name: str = "lidar_lifted"
    family: str = "mounting"
    modality: str = "lidar"
    unit: str = "m"
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    clean: float = 0.0
    worst: float = 0.5
    channels: tuple[str, ...] | None = None

    def __call__(self, frame, history, level, draws):
        lift = np.array([0.0, 0.0, level], np.float32)
        return dataclasses.replace(
            frame, lidar=tuple(dataclasses.replace(sweep, xyz_m=sweep.xyz_m - lift) for sweep in frame.lidar)
        )


def test_an_encoder_from_outside_runs_on_the_rows_that_chose_it():
    config = compose(["model=tiny", f"model.lidar.full._target_={__name__}.PointCount"])
    assert foreign_targets(config) == [f"{__name__}.PointCount"]
    model = instantiate(config.model).eval()
    assert not isinstance(model.lidar.full, LidarEncoder)
    batch = random_batch(3, 0, depth_stride=8)
    with torch.no_grad():
        output = model(batch, plan=model.full_plan(batch))
    present = int(batch.lidar.present.sum())
    assert model.lidar.full.rows_seen == present
    assert output.head.heatmap.isfinite().all()


def test_a_run_with_an_encoder_from_outside_is_opened_only_where_it_is_allowed(tmp_path, monkeypatch, capsys):
    name = f"{__name__}.PointCount"
    root = scorable_small_set(tmp_path / "small").root
    few = ("data.lidar_sweeps=1", "data.radar_sweeps=1")
    run = write_routed_run(tmp_path / "run", root, *SMALL_SET, *few, f"model.lidar.full._target_={name}")
    built, make = [], PointCount.__init__

    def counted(self, *args, **rest):
        built.append(self)
        make(self, *args, **rest)

    monkeypatch.setattr(PointCount, "__init__", counted)
    words = ["evaluate", f"run={run}", "device=cpu", "draws=0"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"wants to call {name} from outside dynfusion; if you trust it, add allow=[{name}]" in error
    assert main([*words, "allow=[os.system]"]) == 2  # leave for another one is none
    assert built == []
    assert not (run / "metrics.json").exists()
    assert main([*words, f"allow=[{name}]"]) == 0
    assert len(built) > 0
    assert (run / "metrics.json").is_file()


@pytest.mark.parametrize("level", LidarLifted.levels)
def test_a_fault_from_outside_is_injected_and_scored(level):
    frame = toy_frame()
    fault = LidarLifted()
    for harm in (Scenario("lifted", ((fault, level),)), FaultInjector([FaultRule(fault, 1.0, level)])):
        harmed, names = harm.apply(frame, NoHistory(), 0, 0.5)
        assert names == (f"lidar_lifted@{level:.2f}",)
        assert np.allclose(frame.lidar[0].xyz_m[:, 2] - harmed.lidar[0].xyz_m[:, 2], level, atol=1e-5)
