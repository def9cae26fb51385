import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batch import BoxBatch
from fusion.heads.targets import center_targets, gaussian_radius
from sensors.grid import BevGrid

GRID = BevGrid((-16.0, 16.0), (-8.0, 8.0), 0.5)  # 32 rows, 64 columns
NONE = -1


def boxes_of(
    center_m, size_lwh_m=(4.0, 2.0, 1.5), label=0, num_points=5, sample=0, velocity_mps=(1.0, 2.0)
) -> BoxBatch:
    """Boxes that differ in their centres; every other argument may be one for all or a list."""
    center_m = torch.tensor(center_m, dtype=torch.float32).reshape(-1, 3)
    m = len(center_m)

    def each(value, dtype):
        return torch.tensor(value, dtype=dtype).expand(m).clone()

    return BoxBatch(
        center_m=center_m,
        size_lwh_m=torch.tensor(size_lwh_m).expand(m, 3).clone(),
        yaw_rad=torch.linspace(-3, 3, m),
        velocity_mps=torch.tensor(velocity_mps).expand(m, 2).clone(),
        label=each(label, torch.int64),
        attribute=each(NONE, torch.int64),
        num_points=each(num_points, torch.int64),
        sample=each(sample, torch.int64),
    )


def naive_heatmap(boxes: BoxBatch, num_samples: int, min_points: int = 1) -> torch.Tensor:
    """Pixel by pixel, from the formulas."""
    num_y, num_x = GRID.shape
    heatmap = torch.zeros(num_samples, 10, num_y, num_x)
    for i in range(len(boxes.label)):
        if boxes.num_points[i] < min_points:
            continue
        ix = math.floor((float(boxes.center_m[i, 0]) + 16) / 0.5)
        iy = math.floor((float(boxes.center_m[i, 1]) + 8) / 0.5)
        if not (0 <= ix < num_x and 0 <= iy < num_y):
            continue
        length, width = (float(v) / 0.5 for v in boxes.size_lwh_m[i, :2])
        radius = max(math.floor(smallest_of_three_cases(length, width, 0.1)), 2)
        sigma = (2 * radius + 1) / 6
        plane = heatmap[boxes.sample[i], boxes.label[i]]
        for y in range(max(0, iy - radius), min(num_y, iy + radius + 1)):
            for x in range(max(0, ix - radius), min(num_x, ix + radius + 1)):
                value = math.exp(-((x - ix) ** 2 + (y - iy) ** 2) / (2 * sigma**2))
                plane[y, x] = max(float(plane[y, x]), value)
    return heatmap


def smallest_of_three_cases(length: float, width: float, overlap: float) -> float:
    """CornerNet's three quadratics: one corner in and one out, both in, both out."""
    area, around = length * width, length + width

    def root(a, b, c, sign):
        return (-b + sign * math.sqrt(b * b - 4 * a * c)) / (2 * a)

    return min(
        root(1, -around, area * (1 - overlap) / (1 + overlap), -1),
        root(4, -2 * around, area * (1 - overlap), -1),
        root(4 * overlap, 2 * overlap * around, (overlap - 1) * area, +1),
    )


@given(st.floats(0.3, 60), st.floats(0.3, 60), st.floats(0.05, 0.95))
def test_radius_is_the_smallest_of_cornernets_three(length, width, overlap):
    radius = float(gaussian_radius(torch.tensor([[length, width]], dtype=torch.float64), overlap)[0])
    assert radius == pytest.approx(smallest_of_three_cases(length, width, overlap), rel=1e-6, abs=1e-6)


def test_radius_keeps_the_overlap():
    """8 x 4 cells, all sides in by 1: 6 x 2 of 8 x 4 is 0.375."""
    torch.testing.assert_close(gaussian_radius(torch.tensor([[8.0, 4.0]]), 0.375), torch.tensor([1.0]))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 12), st.integers(0, 10_000))
def test_heatmap_equals_the_loop_over_pixels(num_boxes, seed):
    generator = torch.Generator().manual_seed(seed)
    center_m = (torch.rand(num_boxes, 3, generator=generator) - 0.5) * torch.tensor([36.0, 18.0, 4.0])
    labels = torch.randint(0, 3, (num_boxes,), generator=generator).tolist()
    samples = torch.randint(0, 3, (num_boxes,), generator=generator).sort().values.tolist()
    points = torch.randint(0, 3, (num_boxes,), generator=generator).tolist()
    boxes = boxes_of(center_m.tolist(), (14.0, 6.0, 3.0), labels, points, samples)
    targets = center_targets(boxes, 3, GRID)
    torch.testing.assert_close(targets.heatmap, naive_heatmap(boxes, 3))
    unseen = boxes_of(center_m.tolist(), (14.0, 6.0, 3.0), labels, [int(p == 0) for p in points], samples)
    assert torch.equal(targets.spared, naive_heatmap(unseen, 3) > 0)


def test_numbers_by_hand():
    """x = 0.1: cell (0.1 + 16) / 0.5 = 32.2; y = -7.9: cell 0.2."""
    targets = center_targets(boxes_of([0.1, -7.9, 0.7]), 1, GRID)
    assert targets.cell.tolist() == [0 * 64 + 32]
    torch.testing.assert_close(targets.offset, torch.tensor([[0.2, 0.2]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.height, torch.tensor([[0.7]]))
    torch.testing.assert_close(targets.log_size, torch.tensor([[math.log(4), math.log(2), math.log(1.5)]]))
    torch.testing.assert_close(targets.heading, torch.tensor([[math.sin(-3), math.cos(-3)]]))
    torch.testing.assert_close(targets.velocity, torch.tensor([[1.0, 2.0]]))
    assert targets.heatmap.max() == 1.0
    assert targets.heatmap[0, 0, 0, 32] == 1.0
    torch.testing.assert_close(targets.heatmap[0, 0, 1, 32], torch.tensor(math.exp(-1 / (2 * (5 / 6) ** 2))))


def test_boxes_off_the_grid_are_no_targets_not_even_just_below_the_edge():
    targets = center_targets(
        boxes_of([[-16.01, 0, 0], [16.0, 0, 0], [0, 8.0, 0], [0, -8.01, 0], [-16.0, -8.0, 0]]), 1, GRID
    )
    assert targets.cell.tolist() == [0]
    assert int((targets.heatmap == 1).sum()) == 1


def test_boxes_without_points_are_spared_or_plain_negatives():
    boxes = boxes_of([[0.1, 0.1, 0], [5.1, 0.1, 0]], num_points=[0, 3])
    targets = center_targets(boxes, 1, GRID)
    assert len(targets.cell) == 1
    assert targets.heatmap[0, 0, 16, 32] == 0
    assert targets.spared[0, 0, 16, 32]
    assert not targets.spared[0, 1:].any()
    assert not center_targets(boxes, 1, GRID, spare_unseen=False).spared.any()
    assert len(center_targets(boxes, 1, GRID, min_points=0).cell) == 2


def test_a_batch_without_boxes():
    targets = center_targets(boxes_of([]), 2, GRID)
    assert targets.heatmap.shape == (2, 10, 32, 64)
    assert not targets.heatmap.any()
    assert targets.num_boxes.tolist() == [0, 0]


def test_boxes_of_each_sample_are_counted():
    targets = center_targets(boxes_of([[0, 0, 0], [1, 1, 0], [2, 2, 0]], sample=[0, 2, 2]), 4, GRID)
    assert targets.num_boxes.tolist() == [1, 0, 2, 0]
