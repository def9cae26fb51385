"""Pillar encoders: orientation, absence, independence, which fields matter."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import LIDAR_FIELDS, RADAR_FIELDS, PointBatch
from fusion.encoders.lidar import LidarEncoder
from fusion.encoders.pillars import NUM_DECORATIONS, PillarEncoder
from fusion.encoders.radar import RadarEncoder
from sensors.grid import BevGrid

GRID = BevGrid.square(25.6, 0.8)


@pytest.fixture
def encoder() -> LidarEncoder:
    torch.manual_seed(0)
    return LidarEncoder(GRID, 16, point_channels=(8,), stages=((16, 1, 2),))


def make_points(counts, num_fields=5, seed=0, present=None) -> PointBatch:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(sum(counts), num_fields, generator=generator)
    points[:, :2] *= 12.0
    sample = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    return PointBatch(points, sample, torch.ones(len(counts), dtype=torch.bool) if present is None else present)


def one_point(*fields) -> PointBatch:
    return PointBatch(torch.tensor([fields]), torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool))


def test_a_point_lights_the_cell_that_the_grid_says(encoder):
    with torch.no_grad():
        encoder.points[0][1].bias.fill_(1.0)
    canvas = encoder.canvas(one_point(20.3, 10.0, 0.0, 0.5, 0.0))
    iy, ix, _ = GRID.cell_of(np.array([[20.3, 10.0]], dtype=np.float32))
    assert torch.nonzero(canvas[0].sum(0)).tolist() == [[iy[0], ix[0]]]
    assert iy[0] == 44
    assert ix[0] == 57
    bright = (encoder(one_point(20.3, 10.0, 0.0, 0.5, 0.0)) - encoder(make_points([0]))).abs().sum(1)[0]
    row, column = divmod(int(bright.argmax()), bright.shape[1])
    assert abs(row - iy[0] // 2) <= 2
    assert abs(column - ix[0] // 2) <= 2


def test_canvas_equals_a_loop_over_pillars(encoder):
    points = make_points([40, 25])
    canvas = encoder.canvas(points)
    expected = torch.zeros_like(canvas)
    values = points.points.numpy()
    iy, ix, inside = GRID.cell_of(values[:, :2])
    inside &= (values[:, 2] >= -5) & (values[:, 2] < 10)
    for sample, row, column in {(int(s), y, x) for s, y, x, i in zip(points.sample, iy, ix, inside, strict=True) if i}:
        mine = (points.sample.numpy() == sample) & (iy == row) & (ix == column) & inside
        group = torch.from_numpy(values[mine])
        center = torch.from_numpy(GRID.center_of(np.array([row]), np.array([column]))).float()
        to_center, to_mean = (group[:, :2] - center) / 0.8, (group[:, :3] - group[:, :3].mean(0)) / 0.8
        count = torch.full((len(group), 1), np.log1p(len(group)) / 3.0)
        decorated = torch.cat([group * encoder.scale, to_center, to_mean, count], dim=1).clamp(-8, 8)
        expected[sample, :, row, column] = encoder.points(decorated).amax(0)
    torch.testing.assert_close(canvas, expected, rtol=1e-4, atol=1e-4)


def test_points_outside_are_ignored(encoder):
    inside = make_points([30])
    stray = torch.tensor([[25.6, 0.0, 0, 0, 0], [0, -25.7, 0, 0, 0], [0, 0, 11.0, 0, 0], [1e9, 0, 0, 0, 0]])
    both = PointBatch(torch.cat([inside.points, stray]), torch.zeros(34, dtype=torch.int64), inside.present)
    assert encoder(both).equal(encoder(inside))


@pytest.mark.parametrize("make", [lambda: LidarEncoder(GRID, 16), lambda: RadarEncoder(GRID, 16)])
def test_no_points_and_no_samples(make):
    encoder = make()
    num_fields = encoder.scale.numel()
    empty = encoder(make_points([0, 0], num_fields))
    assert empty.shape == (2, 16, 32, 32)
    assert empty.isfinite().all()
    empty.sum().backward()
    assert encoder(make_points([], num_fields)).shape == (0, 16, 32, 32)


def test_samples_do_not_mix_and_rows_permute(encoder):
    points = make_points([30, 0, 50, 20])
    together = encoder(points)
    order = torch.tensor([2, 1, 0])
    torch.testing.assert_close(encoder(points.rows(order)), together[order], rtol=1e-4, atol=1e-5)


def test_order_of_points_does_not_matter(encoder):
    points = make_points([60])
    shuffled = points.points[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    again = encoder(PointBatch(shuffled, points.sample, points.present))
    torch.testing.assert_close(again, encoder(points), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [LIDAR_FIELDS, RADAR_FIELDS])
def test_every_field_is_used(fields):
    torch.manual_seed(0)
    encoder = (LidarEncoder if fields is LIDAR_FIELDS else RadarEncoder)(GRID, 16)
    points = make_points([50], len(fields))
    for column, name in enumerate(fields):
        changed = points.points.clone()
        changed[:, column] += 0.05
        assert not torch.allclose(encoder(PointBatch(changed, points.sample, points.present)), encoder(points)), name


def test_wild_values_stay_finite(encoder):
    wild = make_points([20])
    wild.points[:, 3:] *= 1e20
    assert encoder(wild).isfinite().all()


def test_every_parameter_learns(encoder):
    # The residual block's last norm starts at zero: perturb it so that what lies before gets a gradient.
    for name, parameter in encoder.named_parameters():
        torch.nn.init.ones_(parameter) if "branch.4.weight" in name else None
    encoder(make_points([80])).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.parameters())


def test_strides_give_the_output_grid():
    encoder = LidarEncoder(BevGrid.square(12.8, 0.2), 24, stages=((16, 0, 2), (32, 0, 2)))
    assert encoder.out_grid.cell_m == pytest.approx(0.8)
    assert encoder(make_points([10])).shape == (1, 24, *encoder.out_grid.shape)


def test_flops_of_points_and_convolutions(encoder):
    with FlopCounterMode(display=False) as counter:
        encoder(make_points([0]))
    assert encoder.gflops(0) * 1e9 == counter.get_total_flops()
    per_point = 2 * (len(LIDAR_FIELDS) + NUM_DECORATIONS) * 8 + 30 + 8
    assert (encoder.gflops(1000) - encoder.gflops(0)) * 1e9 == pytest.approx(1000 * per_point)


def test_bf16_autocast_and_inference(encoder):
    points = make_points([60])
    expected = encoder(points)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        half = encoder(points).float()
    assert (half - expected).abs().mean() < 0.02


def test_field_scales_must_match():
    with pytest.raises(ValueError, match="field_scale"):
        PillarEncoder(5, GRID, 8, field_scale=[1.0] * 4)
