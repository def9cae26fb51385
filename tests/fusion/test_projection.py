"""Cells that look at a point, by hand. Camera at the origin, along x: u = 32 - 32 y / x, v = 16 - 32 z / x; 32x64."""

import pytest
import torch

from fusion.ops.projection import MIN_DEPTH_M, PosedViews, seen_points

EGO_FROM_CAMERA = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
IMAGE_FROM_CAMERA = torch.tensor([[32.0, 0, 32], [0, 32, 16], [0, 0, 1]])


def cells_of(*xyz_m: tuple[float, float, float]) -> list[int | None]:
    """Of a map of 4 x 8 cells of 8 px; None where the point is not seen."""
    view = PosedViews(IMAGE_FROM_CAMERA[None], EGO_FROM_CAMERA[None], torch.tensor([0]), (32, 64))
    seen = seen_points(torch.tensor(xyz_m), view, (4, 8))
    assert seen.view.eq(0).all()
    found = dict(zip(seen.point.tolist(), seen.cell.tolist(), strict=True))
    return [found.get(point) for point in range(len(xyz_m))]


@pytest.mark.parametrize(
    ("u", "column"), [(-0.6, None), (-0.4, 0), (7.4, 0), (7.6, 1), (32.0, 4), (63.4, 7), (63.6, None)]
)
def test_a_pixel_reaches_half_a_pixel_to_each_side_of_its_centre(u, column):
    y_m = 10 * (32 - u) / 32
    assert cells_of((10.0, y_m, 0.0)) == [None if column is None else 2 * 8 + column]


@pytest.mark.parametrize(("v", "line"), [(-0.6, None), (-0.4, 0), (15.4, 1), (15.6, 2), (31.4, 3), (31.6, None)])
def test_lines_likewise(v, line):
    z_m = 10 * (16 - v) / 32
    assert cells_of((10.0, 0.0, z_m)) == [None if line is None else line * 8 + 4]


def test_what_lies_behind_or_at_the_lens_is_not_seen():
    assert cells_of((-10.0, 0, 0), (MIN_DEPTH_M - 0.01, 0, 0), (MIN_DEPTH_M + 0.01, 0, 0)) == [None, None, 20]
    assert cells_of((0.0, 0, 0)) == [None]  # division by nothing


def test_each_view_has_its_own_rows_and_distances():
    """The second camera looks backwards: the first point is behind it."""
    back = EGO_FROM_CAMERA.clone()
    back[:2, :3] *= -1  # turned by 180 degrees about z
    poses, samples = torch.stack([EGO_FROM_CAMERA, back]), torch.tensor([3, 3])
    views = PosedViews(IMAGE_FROM_CAMERA.repeat(2, 1, 1), poses, samples, (32, 64))
    seen = seen_points(torch.tensor([[10.0, 0, 0], [-7.0, 0, 0]]), views, (4, 8))
    assert seen.view.tolist() == [0, 1]
    assert seen.point.tolist() == [0, 1]
    assert seen.cell.tolist() == [20, 20]
    assert seen.depth_m.tolist() == pytest.approx([10.0, 7.0])
