"""The lift against a naive loop, hand-placed points and invariances."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fusion.encoders.lift import Lift, ViewRows
from fusion.encoders.views import ViewFeatures
from sensors.grid import BevGrid
from sensors.rig import CAMERAS, NUSCENES_RIG

GRID = BevGrid.square(32.0, 2.0)
NUM_DEPTHS = 15
SIZE_PX = (32, 88)


def make_lift(**changes) -> Lift:
    return Lift(**{"grid": GRID, "channels": 5, "depth_range_m": (1.0, 31.0), "num_depths": NUM_DEPTHS, **changes})


def make_rows(views, samples, feature_size=(4, 11), seed=0) -> ViewRows:
    """Rows of the nominal rig's cameras, their 1600x900 pictures scaled to SIZE_PX."""
    generator = torch.Generator().manual_seed(seed)
    scale = np.diag([SIZE_PX[1] / 1600, SIZE_PX[0] / 900, 1.0])
    specs = [NUSCENES_RIG[CAMERAS[view]] for view in views]
    poses = np.stack([spec.ego_from_sensor.matrix for spec in specs])
    features = ViewFeatures(
        torch.randn(len(views), 5, *feature_size, generator=generator),
        torch.randn(len(views), NUM_DEPTHS, *feature_size, generator=generator),
    )
    return ViewRows(
        features=features,
        image_from_camera=torch.from_numpy(np.stack([scale @ spec.intrinsics for spec in specs])).float(),
        ego_from_camera=torch.from_numpy(poses).float(),
        sample=torch.tensor(samples),
        image_size_px=SIZE_PX,
        weight=torch.ones(len(views)),
    )


def naive(lift: Lift, rows: ViewRows, num_samples: int) -> torch.Tensor:
    """Pixel by pixel, bin by bin, in numpy with the grid's own cell_of."""
    bev = np.zeros((num_samples, 5, *GRID.shape))
    probability = rows.features.depth_logits.softmax(dim=1).numpy()
    for r in range(len(rows.sample)):
        intrinsics, pose = rows.image_from_camera[r].double().numpy(), rows.ego_from_camera[r].double().numpy()
        height, width = rows.features.context.shape[2:]
        for i, j, d in np.ndindex(height, width, NUM_DEPTHS):
            pixel = [(j + 0.5) * SIZE_PX[1] / width - 0.5, (i + 0.5) * SIZE_PX[0] / height - 0.5, 1.0]
            xyz = pose[:3, :3] @ (np.linalg.inv(intrinsics) @ pixel * float(lift.depths_m[d])) + pose[:3, 3]
            iy, ix, inside = GRID.cell_of(xyz[None, :2])
            if inside[0] and -5 <= xyz[2] < 5:
                bev[rows.sample[r], :, iy[0], ix[0]] += (
                    probability[r, d, i, j] * rows.features.context[r, :, i, j].numpy()
                )
    return torch.from_numpy(bev).float()


def test_equals_the_naive_loop():
    lift, rows = make_lift(), make_rows(views=[0, 3, 4], samples=[1, 0, 1])
    bev, _ = lift([rows], 2)
    torch.testing.assert_close(bev, naive(lift, rows, 2), rtol=1e-4, atol=1e-4)


def test_one_depth_lands_in_the_right_cell():
    lift = make_lift(num_depths=30)
    rows = make_rows(views=[0], samples=[0], feature_size=(1, 1))
    logits = torch.full((1, 30, 1, 1), -1e4)
    logits[0, 19] = 1e4
    # Forward camera, bin 19 of 1 m bins: middle at 20.5 m; nearly along x from the mounting at x = 1.70 m.
    context = torch.arange(1.0, 6.0).view(1, 5, 1, 1)
    bev, covered = lift([replace(rows, features=ViewFeatures(context, logits))], 1)
    iy, ix, _ = GRID.cell_of(np.array([[1.70 + 20.5, 0.1]]))
    assert bev[0, :, iy[0], ix[0]].tolist() == [1, 2, 3, 4, 5]
    assert bev.sum() == 15
    assert covered[0, iy[0], ix[0]]


def test_order_of_rows_and_branches_does_not_matter():
    lift, rows = make_lift(), make_rows(views=range(6), samples=[0, 0, 0, 1, 1, 1])
    expected, covered = lift([rows], 2)
    parts = [rows.chosen(torch.tensor(part, dtype=torch.int64)) for part in ([4, 2], [], [5, 0, 3, 1])]
    bev, covered_again = lift(parts, 2)
    torch.testing.assert_close(bev, expected, rtol=1e-4, atol=1e-5)
    assert covered.equal(covered_again)


def test_branches_with_features_of_other_sizes_meet_in_one_bev():
    lift = make_lift()
    full, lite = make_rows([0], [0]), make_rows([3], [0], feature_size=(2, 5), seed=1)
    both, covered = lift([full, lite], 1)
    torch.testing.assert_close(both, lift([full], 1)[0] + lift([lite], 1)[0], rtol=1e-4, atol=1e-5)
    assert covered.equal(lift([full], 1)[1] | lift([lite], 1)[1])


def test_no_views_give_zeros_without_coverage():
    bev, covered = make_lift()([], 3)
    assert bev.shape == (3, 5, *GRID.shape)
    assert not bev.any()
    assert not covered.any()


def test_coverage_is_where_the_camera_looks():
    _, covered = make_lift()([make_rows(views=[0], samples=[1])], 2)
    assert not covered[0].any()
    for xy_m, expected in [((20, 0), True), ((20, 10), True), ((20, 16), False), ((-20, 0), False), ((1, 0), False)]:
        iy, ix, _ = GRID.cell_of(np.array([xy_m], dtype=float))
        assert covered[1, iy[0], ix[0]].item() is expected, xy_m


def test_splatted_points_of_level_rays_lie_in_covered_cells():
    lift, rows = make_lift(), make_rows(views=range(6), samples=[0] * 6)
    bev, covered = lift([rows], 1)
    lit = bev[0].abs().sum(0) > 0
    # Only cells that the edge of a view cuts may be lit and have their centre outside.
    grown = functional.max_pool2d(covered.float(), 3, 1, 1)[0] > 0
    assert (lit & ~grown).sum() == 0
    assert (lit & covered[0]).sum() > 0.9 * lit.sum()


def test_weight_carries_gradient_and_gates_the_row():
    lift, rows = make_lift(), make_rows([0, 1], [0, 0])
    weight = torch.tensor([1.0, 0.0], requires_grad=True)
    bev, _ = lift([replace(rows, weight=weight)], 1)
    bev.square().sum().backward()
    assert weight.grad[0] != 0
    only = make_rows([0], [0])
    only = replace(only, features=ViewFeatures(rows.features.context[:1], rows.features.depth_logits[:1]))
    torch.testing.assert_close(bev, lift([only], 1)[0], rtol=1e-4, atol=1e-5)


def test_gradients_of_context_and_depth():
    lift, rows = make_lift(), make_rows([0], [0], feature_size=(2, 3))
    context = rows.features.context.clone().requires_grad_()
    logits = rows.features.depth_logits.clone().requires_grad_()
    target = torch.randn(1, 5, *GRID.shape)

    def loss(context, logits):
        return (lift([replace(rows, features=ViewFeatures(context, logits))], 1)[0] * target).sum()

    loss(context, logits).backward()
    for value in (context, logits):
        direction = torch.randn_like(value)
        step = 1e-2
        with torch.no_grad():
            pair = [
                loss(*(v + sign * step * direction if v is value else v for v in (context, logits))) for sign in (1, -1)
            ]
        numeric = (pair[0] - pair[1]) / (2 * step)
        torch.testing.assert_close((value.grad * direction).sum(), numeric, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("spacing", ["uniform", "growing"])
def test_bins_fill_the_range(spacing):
    lift = make_lift(spacing=spacing)
    widths = lift.edges_m.diff()
    assert lift.edges_m[0] == 1.0
    assert lift.edges_m[-1] == 31.0
    if spacing == "uniform":
        torch.testing.assert_close(widths, torch.full((15,), 2.0))
    else:
        # Widths 1 : 2 : 3 : ... and their sum is the range.
        torch.testing.assert_close(widths, torch.arange(1.0, 16.0) * 30 / 120)


def test_depth_loss_by_hand():
    lift = make_lift()
    logits = torch.zeros(1, NUM_DEPTHS, 1, 3)
    logits[0, 4, 0, 0] = 2.0
    # 10 m is in bin 4 (9..11); 40 m is out of range, 0 unknown.
    loss = lift.depth_loss(ViewFeatures(torch.zeros(1, 5, 1, 3), logits), torch.tensor([[[10.0, 40.0, 0.0]]]))
    assert loss.item() == pytest.approx(np.log(np.exp(2) + 14) - 2, rel=1e-5)


def test_depth_loss_without_targets_keeps_the_graph():
    for num_rows in (0, 2):
        logits = torch.randn(num_rows, NUM_DEPTHS, 2, 3, requires_grad=True)
        loss = make_lift().depth_loss(ViewFeatures(torch.zeros(num_rows, 5, 2, 3), logits), torch.zeros(num_rows, 2, 3))
        loss.backward()
        assert loss == 0
        assert logits.grad is not None


def test_finer_depth_targets_take_the_nearest():
    lift = make_lift()
    features = ViewFeatures(torch.zeros(1, 5, 1, 1), torch.randn(1, NUM_DEPTHS, 1, 1))
    finer = torch.tensor([[[0.0, 20.0], [12.0, 0.0]]])
    assert lift.depth_loss(features, finer) == lift.depth_loss(features, torch.tensor([[[12.0]]]))
    with pytest.raises(ValueError, match="depth_stride"):
        lift.depth_loss(features, torch.zeros(1, 3, 2))


def test_bf16_autocast_and_inference():
    lift, rows = make_lift(), make_rows([0, 2], [0, 1])
    expected, _ = lift([rows], 2)
    half = ViewFeatures(rows.features.context.bfloat16(), rows.features.depth_logits.bfloat16())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        bev, _ = lift([replace(rows, features=half)], 2)
    assert bev.dtype == torch.float32
    torch.testing.assert_close(bev, expected, rtol=0.05, atol=0.05)


def test_bev_augmentation_turns_the_bev_with_it():
    # A quarter turn of the ego frame turns the map: cells (iy, ix) -> (ix, -iy).
    lift, rows = make_lift(), make_rows([0, 4], [0, 0])
    quarter = torch.eye(4)
    quarter[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    turned, covered_turned = lift([replace(rows, ego_from_camera=quarter @ rows.ego_from_camera)], 1)
    bev, covered = lift([rows], 1)
    expected = torch.rot90(bev, -1, dims=(2, 3))
    agree = torch.isclose(turned, expected, rtol=1e-3, atol=1e-3).all(dim=1).float().mean()
    assert agree > 0.99  # points on a cell's very edge may fall to the other side
    assert (covered_turned == torch.rot90(covered, -1, dims=(1, 2))).float().mean() > 0.99


@pytest.mark.parametrize("changes", [{"spacing": "log"}, {"depth_range_m": (5.0, 2.0)}])
def test_user_mistakes(changes):
    with pytest.raises(ValueError, match="expected"):
        make_lift(**changes)


def test_gflops_by_hand():
    # 44 cells x 15 bins x (2 x 5 + 6 + 5) FLOPs
    assert make_lift().gflops((4, 11)) * 1e9 == pytest.approx(44 * 15 * 21)
