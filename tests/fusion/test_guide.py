"""Points choose the cameras' patches, and regions of points are left out, by the model itself."""

import pytest
import torch

from fusion.encoders.guide import guide_scores, point_scores
from fusion.encoders.lidar import LidarEncoder
from fusion.encoders.lift import Lift
from fusion.encoders.vit import VitViewEncoder
from fusion.encoders.vit_tokens import GuidedKeep
from fusion.model import FusionModel
from fusion.ops.projection import PosedViews
from fusion.routing.plan import FULL, LITE
from fusion.units import PointBranches, ViewBranches
from sensors.grid import BevGrid
from tests.fusion.small_model import BEV, PILLARS, small_batch, small_model


def guided_model(guide: str | None) -> FusionModel:
    base = small_model()
    options = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
    encoder = VitViewEncoder(
        "vit_tiny_patch16_224", 8, 10, (32, 64), GuidedKeep(0.5), neck_channels=8, backbone_options=options
    )
    cameras = ViewBranches(encoder, Lift(BEV, 8, (1.0, 61.0), 10), (32, 64))
    parts = (base.lidar, base.radar, base.merge, base.trunk, base.head, base.router)
    return FusionModel(cameras, *parts, camera_guide=guide).eval()


@torch.no_grad()
@pytest.mark.parametrize("branch", [FULL, LITE])
def test_the_model_aims_its_cameras(branch):
    model, batch = guided_model("lidar"), small_batch(2)
    plan = model.plan_of(torch.full((2, 8), branch), model.available(batch))
    model(batch, plan=plan)
    size = model.cameras.sizes_px[branch]
    rows = torch.arange(12) // 6
    camera = batch.camera
    views = PosedViews(camera.image_from_camera.flatten(0, 1), camera.ego_from_camera.flatten(0, 1), rows, (32, 64))
    expected = point_scores(batch.lidar, views, (size[0] // 8, size[1] // 8))
    scores = model.cameras.encoder.method.scores
    assert scores.shape == (12, (size[0] // 8) * (size[1] // 8))
    assert torch.equal(scores.floor(), expected)  # below a whole point, the lower patch comes first
    assert expected.any()


def test_equal_patches_are_taken_from_below():
    batch = small_batch(1)
    camera = batch.camera
    pose = (camera.image_from_camera[0, :1], camera.ego_from_camera[0, :1], torch.zeros(1, dtype=torch.int64))
    view = PosedViews(*pose, (32, 64))
    nothing = batch.lidar.where(torch.zeros(len(batch.lidar.points), dtype=torch.bool))
    scores = guide_scores(nothing, view, (4, 8))
    assert scores[0].view(4, 8)[:, 0].tolist() == [0.0, 0.125, 0.25, 0.375]


def test_a_guide_is_asked_for():
    with pytest.raises(ValueError, match="camera_guide"):
        guided_model(None)


@torch.no_grad()
def test_regions_are_dropped_before_the_encoder():
    encoder = LidarEncoder(PILLARS, 12, point_channels=(8,), stages=((12, 1, 2),))
    regions = BevGrid.square(48.0, 12.0)
    whole, half = (PointBranches(encoder, regions=regions, keep_regions=keep) for keep in (1.0, 0.5))
    points = small_batch(2).lidar
    assert whole.given(FULL, points) is points
    assert 0 < len(half.given(FULL, points).points) < len(points.points)
