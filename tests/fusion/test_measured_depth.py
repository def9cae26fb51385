"""Depths from the LiDAR: against a loop over points, in the lift, and as a part of the route."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.batch import PointBatch
from fusion.encoders.lift import Lift, ViewFeatures, ViewRows
from fusion.encoders.measured_depth import measured_depth, newest_sweep
from fusion.ops.flops import GIGA
from fusion.ops.projection import FLOPS_PER_POINT, MIN_DEPTH_M, PosedViews
from fusion.routing.plan import FULL, SKIP
from fusion.units import ViewBranches
from sensors.rig import CAMERAS, LIDAR_UNIT, NUM_CAMERAS, NUSCENES_RIG
from tests.fusion.small_model import small_batch, small_model
from tests.fusion.test_dispatch import assert_equal_outputs

SIZE_PX, CELLS = (64, 176), (8, 22)


def views(names, samples):
    """Calibrations of the nominal rig, pictures scaled to SIZE_PX."""
    scale = np.diag([SIZE_PX[1] / 1600, SIZE_PX[0] / 900, 1.0])
    specs = [NUSCENES_RIG[name] for name in names]
    intrinsics = torch.from_numpy(np.stack([scale @ spec.intrinsics for spec in specs])).float()
    poses = torch.from_numpy(np.stack([spec.ego_from_sensor.matrix for spec in specs])).float()
    return PosedViews(intrinsics, poses, torch.tensor(samples), SIZE_PX)


def some_points(num_samples=2, per_sample=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xyz_m = (torch.rand(num_samples * per_sample, 3, generator=generator) - 0.5) * torch.tensor([90.0, 90.0, 5.0])
    lag_s = torch.where(torch.rand(len(xyz_m), generator=generator) < 0.5, 0.0, 0.05)
    points = torch.cat([xyz_m, torch.zeros(len(xyz_m), 1), lag_s[:, None]], dim=1)
    return PointBatch(points, torch.arange(num_samples).repeat_interleave(per_sample), torch.ones(num_samples) > 0)


def test_nearest_point_of_each_cell_as_a_loop_finds_it():
    points = some_points()
    posed = views([CAMERAS[0], CAMERAS[3], CAMERAS[0]], [0, 0, 1])
    found = measured_depth(points, posed, CELLS)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in training with precision=bf16-mixed
        assert torch.equal(measured_depth(points, posed, CELLS), found)
    expected = np.zeros((3, *CELLS))
    for row in range(3):
        for xyz_m, which in zip(points.points[:, :3].double().numpy(), points.sample.tolist(), strict=True):
            camera = np.linalg.inv(posed.ego_from_camera[row].double().numpy()) @ np.append(xyz_m, 1.0)
            if which != posed.sample[row] or camera[2] <= MIN_DEPTH_M:
                continue
            u, v, w = posed.image_from_camera[row].double().numpy() @ camera[:3]
            column, line = int(np.floor((u / w + 0.5) / 8)), int(np.floor((v / w + 0.5) / 8))
            if 0 <= column < CELLS[1] and 0 <= line < CELLS[0]:
                old = expected[row, line, column]
                expected[row, line, column] = min(old, camera[2]) if old else camera[2]
    assert (expected > 0).sum() > 60
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_only_the_newest_sweep_of_the_samples_that_are_asked_for():
    points = some_points()
    kept = newest_sweep(points, torch.tensor([False, True]))
    assert len(kept.points)
    assert (kept.sample == 1).all()
    assert (kept.points[:, 4] == 0).all()
    assert len(kept.points) == int(((points.sample == 1) & (points.points[:, 4] == 0)).sum())
    assert len(kept.present) == 2


def test_a_measured_depth_takes_the_place_of_the_prediction_and_nothing_else_changes():
    model = small_model()
    lift: Lift = model.cameras.lift
    generator = torch.Generator().manual_seed(0)
    features = ViewFeatures(
        torch.randn(2, lift.channels, *CELLS, generator=generator),
        torch.randn(2, lift.num_depths, *CELLS, generator=generator),
    )
    measured_m = torch.zeros(2, *CELLS)
    measured_m[0, 5, 3], measured_m[1, 6, 8], measured_m[1, 6, 9] = 12.3, 33.0, 1000.0  # the last is out of range
    rows = ViewRows(**vars(views(CAMERAS[:2], [0, 0])), features=features, weight=torch.ones(2), measured_m=measured_m)
    certain = features.depth_logits.clone()
    for row, line, column in ((0, 5, 3), (1, 6, 8)):
        certain[row, :, line, column] = -1e4
        place = int(torch.searchsorted(lift.edges_m, measured_m[row, line, column])) - 1
        certain[row, place, line, column] = 1e4
    expected = replace(rows, features=ViewFeatures(features.context, certain), measured_m=None)
    torch.testing.assert_close(lift([rows], 1)[0], lift([expected], 1)[0])
    assert not torch.equal(lift([rows], 1)[0], lift([replace(rows, measured_m=None)], 1)[0])


@torch.no_grad()
def test_sparse_and_masked_agree_and_a_skipped_lidar_gives_no_depth():
    plain, guided = small_model().eval(), small_model().eval()
    guided.cameras.depth_from_lidar = True
    batch = small_batch(3, seed=1, lost=((2, "LIDAR_TOP"),))
    for seed in range(4):
        plan = guided.random_plan(batch, 1.0, torch.Generator().manual_seed(seed))
        sparse, masked = (guided(batch, plan=plan, execution=name) for name in ("sparse", "masked"))
        assert_equal_outputs(sparse.head, masked.head)
    choice = torch.full((3, NUM_CAMERAS + 2), FULL)
    choice[0, LIDAR_UNIT] = SKIP
    plan = guided.plan_of(choice, guided.available(batch))
    one, other = guided(batch, plan=plan).head.heatmap, plain(batch, plan=plan).head.heatmap
    torch.testing.assert_close(one[[0, 2]], other[[0, 2]])  # skipped, and lost
    assert (one[1] - other[1]).abs().max() > 1e-3


def test_its_price_is_in_every_view():
    model = small_model()
    arguments = {"encoder": model.cameras.encoder, "lift": model.cameras.lift, "image_size_px": (32, 64)}
    plain, guided = (ViewBranches(**arguments, depth_from_lidar=on, num_points=1000) for on in (False, True))
    for name, gflops in guided.gflops().items():
        assert gflops == pytest.approx(plain.gflops()[name] + 1000 * FLOPS_PER_POINT / GIGA)
