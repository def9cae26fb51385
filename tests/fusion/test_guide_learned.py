"""A learned guide: what LiDAR or radar saw chooses camera patches, where the route runs it; gradients by hand."""

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch

from fusion.efficiency.replay import require_replayable
from fusion.encoders.guide_learned import GuideBev, GuideScore
from fusion.encoders.lift import Lift
from fusion.encoders.vit import VitViewEncoder
from fusion.encoders.vit_tokens import GuidedKeep
from fusion.heads.center import CenterHead
from fusion.model import FusionModel
from fusion.ops.projection import PosedViews
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.trunk.exits import EarlyExits
from fusion.trunk.exits_head import ExitHead
from fusion.units import ViewBranches
from sensors.grid import BevGrid
from sensors.rig import LIDAR_UNIT
from tests.fusion.small_model import BEV, PILLARS, small_batch, small_model
from tests.fusion.test_token_gradients import meaning_block

# A camera at the origin that looks along x: x_cam = -y, y_cam = -z, z_cam = x; f 32 px, centre (32, 16), patches of 8.
EGO_FROM_CAMERA = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])[None]
IMAGE_FROM_CAMERA = torch.tensor([[32.0, 0, 32], [0, 32, 16], [0, 0, 1]])[None]
VIEW = PosedViews(IMAGE_FROM_CAMERA, EGO_FROM_CAMERA, torch.tensor([0]), (32, 64))
GRID = BevGrid.square(20.0, 10.0)  # centres at -15, -5, 5, 15
LOW = torch.arange(4).repeat_interleave(8).expand(6, 32) / 8
"""Scores of the views of a sample without points: patches in a line are alike, the lower lines come first."""
VIT = {"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


def plain_score(heights_m=(0.0,), reach: int = 0, **options) -> GuideScore:
    """The score of a patch is the largest value that falls into it."""
    made = GuideScore(1, GRID, 1, heights_m, reach, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        made.reduce.weight.fill_(1.0)
        made.score.weight[0, 0] = 1.0
    return made


def bev_with(*cells: tuple[float, float, float], channels: int = 1) -> torch.Tensor:
    """(x, y, value) of cells of GRID, by their centres."""
    bev = torch.zeros(1, channels, 4, 4)
    for x, y, value in cells:
        bev[0, 0, int((y + 15) / 10), int((x + 15) / 10)] = value
    return bev


def test_a_strong_feature_keeps_the_patch_that_looks_at_it():
    """(15, 5): u = 32 - 32 * 5 / 15 = 21.3, v = 16: line 2, column 2. (15, -5): u = 42.7: column 5. At 2.5 m: v = 10.7.

    (5, 5) lies at u = 0, column 0; (-15, 5) behind. Of two cells in a patch the larger counts: both heights are in line
    1 and 2; nothing else scores.
    """
    bev = bev_with((15, 5, 7.0), (15, -5, 3.0), (5, 5, 2.0), (-15, 5, 9.0))
    scores = plain_score((0.0, 2.5)).learned(bev, VIEW, (4, 8)).view(4, 8)
    expected = torch.zeros(4, 8)
    expected[2, 2] = expected[1, 2] = 7
    expected[2, 5] = expected[1, 5] = 3
    expected[2, 0] = expected[0, 0] = 2  # 2.5 m at a distance of 5: v = 0
    assert scores.tolist() == expected.tolist()
    assert scores.requires_grad
    assert not plain_score().eval().learned(bev, VIEW, (4, 8)).requires_grad
    near = plain_score(reach=1).learned(bev, VIEW, (4, 8)).view(4, 8)
    assert near[1:, 1:4].eq(7).all()
    assert near[0].eq(0).all()
    small = plain_score().learned(bev, VIEW, (2, 4)).view(2, 4)  # the picture of half the size
    assert small.tolist() == [[0] * 4, [2, 7, 3, 0]]
    method = GuidedKeep(1 / 32)
    method.scores = plain_score().eval().learned(bev, VIEW, (4, 8))
    tokens = torch.rand(1, 32, 1)
    changed = (method([meaning_block()], tokens, 0) != tokens)[0, :, 0]
    assert torch.nonzero(changed).flatten().tolist() == [2 * 8 + 2]


def test_the_gradient_of_a_score_by_hand():
    """Loss sum of c_n score_n. Weights 1: d / d score.weight = sum c_n found_n; d / d reduce.weight = sum c_n bev_n.

    A cell that is not positive gives nothing and learns nothing; the BEV itself only where it is not left alone.
    """
    for detach in (True, False):
        made = plain_score(detach=detach).train()
        bev = bev_with((15, 5, 7.0), (15, -5, -3.0), (5, 5, 2.0)).requires_grad_()
        c = torch.zeros(32)
        c[18], c[21], c[16] = 1.0, 10.0, 100.0
        (made.learned(bev, VIEW, (4, 8))[0] * c).sum().backward()
        assert made.score.weight.grad[0, 0].item() == pytest.approx(7 + 200)
        assert made.reduce.weight.grad.item() == pytest.approx(7 + 200)
        assert made.score.bias.grad.item() == pytest.approx(111)
        if detach:
            assert bev.grad is None
        else:
            assert bev.grad[0, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 100, 1], [0, 0, 0, 0]]


def test_the_gradient_of_keeping_by_hand():
    """Patches 5, 1, 3 of scores 0, 2, 1: the last two stay, m = 2, m_1 = (5 + 1 + 3) / 3 = 3; c = 1, 2, 4.

    dL/dz = 1 * 3 + (2 + 4) (5 - 2) / 2, 2 * 2 + 4 (1 - 2) / 2, 4 * 2 + 2 (3 - 2) / 2 = 12, 2, 9 (as in KeepTokens);
    dz/dscore = s (1 - s) at the score over that of the last that stays: -1, 1, 0. Content: c, and (2 + 4) / 2 on top.
    """
    method = GuidedKeep(2 / 3)
    method.scores = torch.tensor([[0.0, 2.0, 1.0]], requires_grad=True)
    x = torch.tensor([[[5.0], [1.0], [3.0]]], requires_grad=True)
    out = method([meaning_block()], x, 0)
    assert out.flatten().tolist() == [5.0, pytest.approx(3.0), pytest.approx(5.0)]
    (out.flatten() * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    s = 1 / (1 + math.exp(-1))
    expected = [12 * s * (1 - s), 2 * s * (1 - s), 9 / 4]
    assert method.scores.grad[0].tolist() == [pytest.approx(value, rel=1e-4) for value in expected]
    assert x.grad.flatten().tolist() == [pytest.approx(value, rel=1e-4) for value in (1, 2 + 3, 4 + 3)]


def learned_model(guide: str = "lidar", exits: EarlyExits | None = None, **options) -> FusionModel:
    base = small_model(cameras=False)
    torch.manual_seed(4)
    encoder = VitViewEncoder("vit_tiny_patch16_224", 8, 10, (32, 64), GuidedKeep(0.5), False, 8, VIT)
    scorer = GuideScore({"lidar": 12, "radar": 4}[guide], BEV, **options)
    torch.nn.init.normal_(scorer.score.weight)
    cameras = ViewBranches(encoder, Lift(BEV, 8, (1.0, 61.0), 10), (32, 64), scorer=scorer)
    parts = (base.lidar, base.radar, base.merge, base.trunk, base.head, base.router)
    return FusionModel(cameras, *parts, exits, camera_guide=guide).eval()


@functools.cache
def at_rest() -> FusionModel:
    """For tests that change nothing in it."""
    return learned_model()


def exits(*first_group: str) -> EarlyExits:
    """One over the sensors that run first; nobody leaves."""
    torch.manual_seed(5)
    head = CenterHead(8, PILLARS, channels=8, num_convs=0)
    return EarlyExits([ExitHead(-1, 12, 8, head)], first_group=list(first_group), thresholds=[math.inf])


def calls_of(model: FusionModel) -> list[str]:
    calls = []
    for name, module in (("camera", model.cameras.encoder), ("lidar", model.lidar.full), ("lidar", model.lidar.lite)):
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@torch.no_grad()
def test_the_guide_runs_first_where_the_route_runs_it_and_is_never_run_for_the_cameras():
    model, batch = at_rest(), small_batch(2)
    calls = calls_of(model)
    full = model.full_plan(batch).choice
    output = model(batch, plan=model.plan_of(full, model.available(batch)))
    assert calls == ["lidar", "camera"]
    assert output.unguided.tolist() == [False, False]
    guided = model.cameras.encoder.method.scores
    calls.clear()
    choice = full.clone()
    choice[1, LIDAR_UNIT] = SKIP
    output = model(batch, plan=model.plan_of(choice, model.available(batch)))
    assert output.trace.ran("LIDAR") == [True, False]
    assert output.unguided.tolist() == [False, True]
    scores = model.cameras.encoder.method.scores
    torch.testing.assert_close(scores[:6], guided[:6])
    assert torch.equal(scores[6:], LOW)  # its points are there, but the route does not look at them
    assert not torch.allclose(guided[6:], LOW)
    calls.clear()
    choice[:, LIDAR_UNIT] = SKIP
    output = model(batch, plan=model.plan_of(choice, model.available(batch)))
    assert calls == ["camera"]
    assert output.unguided.tolist() == [True, True]
    choice[:, :6] = SKIP  # no camera either: nothing to guide
    choice[:, LIDAR_UNIT] = LITE
    assert model(batch, plan=model.plan_of(choice, model.available(batch))).unguided.tolist() == [False, False]


@torch.no_grad()
def test_what_the_route_skips_is_not_looked_at():
    """Lost, skipped or not even read (as in a stream) are the same: the lower patches."""
    model, batch = at_rest(), small_batch(2, lost=((0, "LIDAR_TOP"),))
    choice = model.full_plan(batch).choice
    choice[1, LIDAR_UNIT] = SKIP
    plan = model.plan_of(choice, model.available(batch))
    for read in (batch, replace(batch, lidar=batch.lidar.where(torch.zeros(len(batch.lidar.points)) > 0))):
        assert model(read, plan=plan).unguided.tolist() == [True, True]
        assert torch.equal(model.cameras.encoder.method.scores, torch.cat([LOW, LOW]))


@torch.no_grad()
def test_sparse_is_masked():
    model, batch = at_rest(), small_batch(2)
    choice = model.full_plan(batch).choice
    choice[1, LIDAR_UNIT], choice[0, :3] = SKIP, LITE
    plan = model.plan_of(choice, model.available(batch))
    sparse, masked = model(batch, plan=plan), model(batch, plan=plan, execution="masked")
    torch.testing.assert_close(masked.head.heatmap, sparse.head.heatmap, rtol=1e-3, atol=1e-4)
    assert masked.unguided.tolist() == sparse.unguided.tolist()


@pytest.mark.parametrize("detach", [True, False])
def test_training_teaches_the_score(detach):
    model, batch = learned_model(detach=detach).train(), small_batch(1)
    seen = []
    model.cameras.scorer.register_forward_hook(lambda _, given, out: seen.append(out))
    output = model(batch, plan=model.full_plan(batch))
    assert seen[0].requires_grad
    output.head.heatmap.square().sum().backward()
    for name, parameter in model.cameras.scorer.named_parameters():
        assert parameter.grad.isfinite().all(), name
    assert model.cameras.scorer.score.weight.grad.abs().sum() > 0
    assert model.cameras.scorer.reduce.weight.grad.abs().sum() > 0
    copy.deepcopy(model)  # nothing of the pass is left
    assert model.cameras.guide_bev is None


@torch.no_grad()
def test_a_guide_in_the_first_group_of_exits_is_used_by_the_cameras_after_it():
    model = learned_model(exits=exits("lidar", "radar"))
    batch = small_batch(1)
    model.exits.observing = True  # so that the exit does run
    output = model(batch, plan=model.full_plan(batch))
    assert output.unguided.tolist() == [False]
    plain = at_rest()
    plain(batch, plan=plain.full_plan(batch))
    torch.testing.assert_close(model.cameras.encoder.method.scores, plain.cameras.encoder.method.scores)


@torch.no_grad()
@pytest.mark.parametrize("group", [("radar",), ("camera", "lidar")])
def test_samples_that_left_before_the_cameras_were_not_unguided(group):
    """The first of two leaves at the exit over the first group; the route of both skips the guide."""
    model, batch = learned_model(exits=exits(*group)), small_batch(2)
    choice = model.full_plan(batch).choice
    choice[:, LIDAR_UNIT] = SKIP
    model.exits.set_thresholds([0.5])
    model.exits.policy = lambda history: torch.tensor([1.0, 0.0])
    model.exits.policy.looks_back = False
    output = model(batch, plan=model.plan_of(choice, model.available(batch)))
    assert output.exits.exit_of.tolist() == [0, 1]
    assert output.trace.ran("CAM_FRONT") == [group != ("radar",), True]
    assert output.unguided.tolist() == output.trace.ran("CAM_FRONT")


def test_prices_count_the_score():
    """BEV of 16 x 16 cells and 12 channels to 8 features; three places per cell in each view."""
    model = at_rest()
    assert model.cameras.scorer.gflops() == pytest.approx((2 * 256 * 12 * 8 + 3 * 256 * (36 + 8)) / 1e9)
    without = VitViewEncoder("vit_tiny_patch16_224", 8, 10, (32, 64), GuidedKeep(0.5), False, 8, VIT)
    plain = ViewBranches(without, Lift(BEV, 8, (1.0, 61.0), 10), (32, 64))
    for branch in (FULL, LITE):
        extra = model.cameras.gflops_of[branch] - plain.gflops_of[branch]
        assert extra == pytest.approx(model.cameras.scorer.gflops())


def test_user_mistakes():
    for message, options in {
        "reach from 0": {"reach": -1},
        "some heights_m": {"heights_m": ()},
    }.items():
        with pytest.raises(ValueError, match=message):
            GuideScore(12, BEV, **options)
    model = at_rest()
    parts = (model.lidar, model.radar, model.merge, model.trunk, model.head, model.router)
    with pytest.raises(ValueError, match="expected camera_guide: lidar or radar and cameras with GuidedKeep"):
        FusionModel(model.cameras, *parts)
    with pytest.raises(ValueError, match="expected a scorer for the radar's 4 channels"):
        FusionModel(model.cameras, *parts, camera_guide="radar")
    moved = BevGrid((BEV.x_range_m[0] + BEV.cell_m, BEV.x_range_m[1] + BEV.cell_m), BEV.y_range_m, BEV.cell_m)
    shifted = copy.copy(model.cameras)
    shifted._modules = {**model.cameras._modules, "scorer": GuideScore(12, moved)}
    with pytest.raises(ValueError, match="expected a scorer for the lidar's 12 channels"):
        FusionModel(shifted, *parts, camera_guide="lidar")
    with pytest.raises(ValueError, match="expected a model with lidar"):
        FusionModel(model.cameras, None, *parts[1:], camera_guide="lidar")
    with pytest.raises(ValueError, match="among the sensors that run with them"):
        FusionModel(model.cameras, *parts, exits("camera", "radar"), camera_guide="lidar")
    with pytest.raises(ValueError, match="no other sensor changes"):
        require_replayable(model)


def test_the_lower_patches_come_first_where_the_guide_has_not_run():
    """Of two samples the second has; and of none."""
    made, bev = plain_score().eval(), bev_with((15, 5, 7.0)).repeat(2, 1, 1, 1)
    poses = (IMAGE_FROM_CAMERA.repeat(2, 1, 1), EGO_FROM_CAMERA.repeat(2, 1, 1))
    views = (PosedViews(*poses, torch.arange(2), (32, 64)), (4, 8))
    scores = made(GuideBev(bev, torch.tensor([False, True])), *views)
    assert torch.equal(scores[0], LOW[0])
    assert torch.equal(scores[1], made.learned(bev[:1], VIEW, (4, 8))[0])
    assert torch.equal(made(GuideBev(bev, torch.zeros(2) > 0), *views), LOW[:2])
    assert torch.equal(made(None, *views), LOW[:2])
