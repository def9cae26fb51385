"""Scatter, pooling, rows, cells and FLOP counting against loops, closed forms and PyTorch's own counter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusion.ops.blocks import ResidualBlock, conv_norm_relu, conv_stage, enlarged
from fusion.ops.cells import cell_centers, flat_cells
from fusion.ops.flops import counted_gflops
from fusion.ops.pooling import weighted_pool
from fusion.ops.rows import gather_rows, scatter_rows
from fusion.ops.scatter import row_counts, scatter_max, scatter_mean, scatter_sum
from sensors.grid import BevGrid


def test_scatter_by_hand():
    values = torch.tensor([[1.0, -5.0], [3.0, -1.0], [2.0, -7.0]])
    rows = torch.tensor([2, 2, 0])
    assert scatter_sum(values, rows, 4).tolist() == [[2, -7], [0, 0], [4, -6], [0, 0]]
    assert scatter_mean(values, rows, 4).tolist() == [[2, -7], [0, 0], [2, -3], [0, 0]]
    assert scatter_max(values, rows, 4).tolist() == [[2, -7], [0, 0], [3, -1], [0, 0]]
    assert row_counts(rows, 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("scatter", [scatter_sum, scatter_mean, scatter_max])
def test_scatter_gradients(scatter):
    values = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 1, 1, 1, 3, 3, 0, 5, 5, 5, 5, 0])
    assert torch.autograd.gradcheck(lambda v: scatter(v, rows, 6), (values,))


def test_scatter_max_shares_the_gradient_of_equal_winners():
    values = torch.tensor([[2.0], [2.0], [1.0]], requires_grad=True)
    scatter_max(values, torch.tensor([0, 0, 0]), 1).sum().backward()
    assert values.grad.flatten().tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("scatter", [scatter_sum, scatter_mean, scatter_max])
def test_scatter_of_nothing_and_of_half_precision(scatter):
    nothing = torch.zeros(0, 3, requires_grad=True)
    result = scatter(nothing, torch.zeros(0, dtype=torch.int64), 2)
    result.sum().backward()
    assert not result.any()
    assert nothing.grad.shape == (0, 3)
    # 300 ones: a bf16 accumulator would stop at 256.
    ones = torch.ones(300, 1, dtype=torch.bfloat16)
    assert scatter_sum(ones, torch.zeros(300, dtype=torch.int64), 1).item() == 300.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 5))
def test_weighted_pool_equals_the_loop(seed, num_points, num_cells):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    weights = torch.rand(num_points, dtype=torch.float64, generator=generator)
    pixels = torch.randint(7, (num_points,), generator=generator)
    cells = torch.randint(num_cells, (num_points,), generator=generator)
    expected = torch.zeros(num_cells, 3, dtype=torch.float64)
    for i in range(num_points):
        expected[cells[i]] += weights[i] * features[pixels[i]]
    torch.testing.assert_close(weighted_pool(features, weights, pixels, cells, num_cells), expected)


def test_weighted_pool_gradients():
    features = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(9, dtype=torch.float64, requires_grad=True)
    pixels, cells = torch.randint(5, (9,)), torch.randint(4, (9,))
    assert torch.autograd.gradcheck(lambda f, w: weighted_pool(f, w, pixels, cells, 6), (features, weights))


def test_the_same_bits_every_time():
    generator = torch.Generator().manual_seed(0)
    rows, pixels = (torch.randint(300, (5000,), generator=generator) for _ in range(2))
    runs = []
    for _ in range(3):
        values = torch.randn(5000, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        pooled = weighted_pool(values, values[:, 0], pixels, rows, 300)
        total = scatter_sum(values, rows, 300) + scatter_mean(values, rows, 300) + scatter_max(values, rows, 300)
        (pooled * total).sum().backward()
        runs.append(torch.cat([pooled.detach(), total.detach(), values.grad]))
    assert runs[0].equal(runs[1])
    assert runs[0].equal(runs[2])


def test_rows_go_back_where_they_came_from():
    values = torch.arange(12.0).view(4, 3)
    rows = torch.tensor([3, 1])
    restored = scatter_rows(gather_rows(values, rows), rows, 4)
    assert restored[rows].equal(values[rows])
    assert not restored[[0, 2]].any()
    assert scatter_rows(values[:0], rows[:0], 2).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_flat_cells_agree_with_the_numpy_grid():
    grid = BevGrid((-4.0, 4.0), (-2.0, 3.0), 0.5)
    xy_m = np.random.default_rng(0).uniform(-6, 6, (500, 2)).astype(np.float32)
    xy_m[:4] = [[-4.0, -2.0], [4.0, 0.0], [-4.0001, 0.0], [np.nan, 0.0]]
    cells, inside = flat_cells(torch.from_numpy(xy_m), grid)
    with np.errstate(invalid="ignore"):
        iy, ix, expected = grid.cell_of(xy_m)
    expected[3] = False
    assert inside.numpy().tolist() == expected.tolist()
    assert (cells.numpy() == iy * grid.shape[1] + ix)[expected].all()
    flat, on_grid = flat_cells(cell_centers(grid, torch.device("cpu")), grid)
    assert on_grid.all()
    assert flat.flatten().tolist() == list(range(flat.numel()))


class _Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            conv_norm_relu(3, 8, 3, 2),
            conv_stage(8, 12, 1, 1),
            nn.ConvTranspose2d(12, 6, 2, 2),
            nn.Conv2d(6, 6, 3, groups=3),
        )
        self.linear = nn.Linear(6, 4)

    def forward(self, x):
        return self.linear(self.convolutions(x).mean(dim=(2, 3)))


def test_flops_agree_with_pytorch():
    module = _Mixed()
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(2, 3, 17, 24))
    assert counted_gflops(module, (2, 3, 17, 24)) * 1e9 == counter.get_total_flops()


def test_flops_of_a_convolution_by_hand():
    # 2 FLOPs x 4x4 outputs x 5 out x 3 in x 9
    assert counted_gflops(nn.Conv2d(3, 5, 3, padding=1), (1, 3, 4, 4)) * 1e9 == pytest.approx(2 * 16 * 5 * 3 * 9)


def test_residual_block_starts_as_the_identity_of_positive_maps():
    x = torch.rand(1, 8, 4, 4)
    assert ResidualBlock(8)(x).equal(x)


def test_enlarging_cuts_to_the_finer_map():
    coarse, fine = torch.arange(3.0).view(1, 1, 1, 3), torch.zeros(1, 1, 2, 5)
    assert enlarged(coarse, fine, 2)[0, 0].tolist() == [[0, 0, 1, 1, 2]] * 2
