"""Pillars left out by score: the dense encoder at keep 1, choices and gradients by hand, what is gone costs nothing."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import PointBatch
from fusion.adaptive.token_terms import token_loss
from fusion.efficiency.replay import EncodedSample
from fusion.encoders.contract import PointEncoder
from fusion.encoders.lidar import LidarEncoder
from fusion.encoders.pillar_drop import DroppingLidarEncoder, PillarDrop
from fusion.model import FusionModel
from fusion.units import PointBranches
from sensors.grid import BevGrid
from tests.fusion.small_model import PILLARS, small_batch, small_model
from tests.fusion.test_pillars import make_points

GRID = BevGrid.square(25.6, 0.8)
OPTIONS = {"point_channels": (8,), "stages": ((16, 1, 2),)}
POINTS = make_points([300, 0, 200])


def encoder(drop: PillarDrop) -> DroppingLidarEncoder:
    torch.manual_seed(0)
    made = DroppingLidarEncoder(GRID, 16, drop, **OPTIONS).eval()
    torch.manual_seed(0)
    made.load_state_dict(LidarEncoder(GRID, 16, **OPTIONS).state_dict(), strict=False)
    return made


def dense() -> LidarEncoder:
    torch.manual_seed(0)
    return LidarEncoder(GRID, 16, **OPTIONS).eval()


def rows(*points: tuple[float, float, float], sample: list[int] | None = None, num_samples: int = 1) -> PointBatch:
    fields = torch.tensor([[*xyz, 0.5, 0.0] for xyz in points])
    sample = torch.zeros(len(points), dtype=torch.int64) if sample is None else torch.tensor(sample)
    return PointBatch(fields, sample, torch.ones(num_samples, dtype=torch.bool))


@pytest.mark.parametrize("score", ["height", "points", "learned"])
def test_keep_one_is_the_dense_encoder(score):
    made, plain = encoder(PillarDrop(1.0, score)), dense()
    assert isinstance(made, PointEncoder)
    assert made.gflops(500) == plain.gflops(500)
    for mode in (True, False):
        assert torch.equal(made.train(mode)(POINTS), plain.train(mode)(POINTS))
    assert made.saved_gflops() is None
    with pytest.raises(ValueError, match="keep below 1 or a threshold, got 0.5 of keep 1"):
        made.set_rate(0.5)


def test_the_best_pillars_whose_points_fit():
    """Three pillars: 2 points 3 m high, 4 points flat, 2 points 1 m high. Half of 8 points: the first and the third.

    0.4 of 8 is 3.2: the first alone, as the third would make 4. By number of points the flat one fills the half.
    """
    tall, flat, low = [(1.0, 1.0, 0.0), (1.1, 1.0, 3.0)], [(5.0, 5.0, 0.2)] * 4, [(-9.0, 3.0, 0.0), (-9.0, 3.1, 1.0)]
    points = rows(*flat, *tall, *low)
    for keep, score, wanted in (
        (0.5, "height", {(1.0, 1.0), (-9.0, 3.0)}),
        (0.4, "height", {(1.0, 1.0)}),
        (0.1, "height", {(1.0, 1.0)}),  # one at least
        (0.5, "points", {(5.0, 5.0)}),
    ):
        canvas = encoder(PillarDrop(keep, score)).canvas(points)
        plain = dense().canvas(points)
        expected = torch.zeros_like(plain)
        for xy in wanted:
            column, row = (int((value + 25.6) // 0.8) for value in xy)
            expected[0, :, row, column] = plain[0, :, row, column]
        assert torch.equal(canvas, expected)
    above = encoder(PillarDrop(1, "height", threshold=0.5)).canvas(points)
    assert torch.equal(above, encoder(PillarDrop(0.5, "height")).canvas(points))


@torch.no_grad()
def test_what_is_left_out_is_not_worked_on_and_each_sample_chooses_for_itself():
    made, seen = encoder(PillarDrop(0.4, "learned")), []
    made.points.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    together = made(POINTS)
    kept = seen.pop()
    assert 0.25 * 500 < kept <= 0.4 * 500
    for row in range(3):
        alone = made(POINTS.rows(torch.tensor([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)
    assert sum(seen[:3]) == kept
    assert made(PointBatch(POINTS.points[:0], POINTS.sample[:0], torch.ones(2, dtype=torch.bool))).shape[0] == 2


def test_gated_in_training_is_gathered_at_evaluation():
    made = encoder(PillarDrop(0.4, "learned"))
    gathered = made.canvas(POINTS).detach()
    masked = made.train().canvas(POINTS)
    torch.testing.assert_close(masked.detach(), gathered, rtol=1e-4, atol=1e-6)
    assert made.saved_gflops() is None
    assert gathered.abs().sum() < dense().canvas(POINTS).abs().sum()


def test_the_gradient_of_a_choice_by_hand():
    """Three pillars of one point with features f = 2, 3, 5 and scores 1, 0.5, -1: two thirds of the points, two stay.

    canvas_k = z_k f_k; dz_k / dscore_k = s (1 - s) at the score over that of the last that stays, 0.5, 0, -1.5.
    With c = 1, 10, 100: dL/dscore_k = c_k f_k s' and dL/df_k = c_k z_k: what is left out teaches the score alone.
    """
    drop = PillarDrop(2 / 3, "learned").train()
    made = DroppingLidarEncoder(BevGrid.square(2.0, 1.0), 4, drop, point_channels=(1,), stages=((4, 0, 1),)).train()
    scores = torch.tensor([1.0, 0.5, -1.0], requires_grad=True)
    features = torch.tensor([[2.0], [3.0], [5.0]], requires_grad=True)
    drop.scores = lambda *given: scores
    made.points = nn.Identity()
    made._decorated = lambda *given: features
    canvas = made.canvas(rows((-1.5, -1.5, 0), (-0.5, -1.5, 0), (0.5, -1.5, 0)))
    assert canvas[0, 0, 0].tolist() == [2.0, 3.0, 0.0, 0.0]
    (canvas[0, 0, 0, :3] * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    slopes = [float(torch.sigmoid(torch.tensor(x)) * torch.sigmoid(torch.tensor(-x))) for x in (0.5, 0.0, -1.5)]
    by_hand = [c * f * s for c, f, s in zip((1, 10, 100), (2, 3, 5), slopes, strict=True)]
    assert scores.grad.tolist() == [pytest.approx(value, rel=1e-5) for value in by_hand]
    assert features.grad.flatten().tolist() == [1.0, 10.0, 0.0]


def test_the_learned_score_learns_a_threshold_and_its_share():
    drop = PillarDrop(1.0, "learned", threshold=0.0, target=0.25)
    made = encoder(drop).train()
    torch.manual_seed(0)
    (made(POINTS).square().mean() + 0 * drop.token_loss()).backward()
    assert drop.layers[0].weight.grad.abs().sum() > 0
    share = drop.last_share.item()
    assert 0.5 < share < 1  # most go on at first
    assert token_loss(made).item() == pytest.approx((share - 0.25) ** 2)
    made.eval()
    made(POINTS)
    assert made.saved_gflops().shape == (3,)
    assert PillarDrop(0.5, "learned").token_loss() is None


def test_a_training_batch_without_points_has_no_share():
    """As where the LiDAR of every sample is lost, or all points lie off the grid."""
    drop = PillarDrop(1.0, "learned", threshold=0.0, target=0.25)
    made = encoder(drop).train()
    made(POINTS)
    bev = made(PointBatch(POINTS.points[:0], POINTS.sample[:0], torch.ones(2, dtype=torch.bool)))
    assert drop.token_loss() is None
    assert token_loss(made) is None
    bev.square().mean().backward()
    assert all(layer.weight.grad.isfinite().all() for layer in (drop.layers[0], drop.layers[2]))


@torch.no_grad()
def test_flops_agree_with_pytorch():
    """The linear layer's share, which PyTorch counts; 20 more of each point for mean and offsets, one per channel."""
    made, points = encoder(PillarDrop(0.8, "height")), make_points([400])
    points = points.where((points.points[:, :2].abs().amax(dim=1) < 25.6) & (points.points[:, 2].abs() < 5))
    with FlopCounterMode(display=False) as every:
        dense()(points)
    with FlopCounterMode(display=False) as fewer:
        made(points)
    gone = (every.get_total_flops() - fewer.get_total_flops()) / (2 * 11 * 8)
    assert gone == int(gone) > 0
    (saved,) = made.saved_gflops().tolist()
    assert saved * 1e9 == pytest.approx(gone * (2 * 11 * 8 + 20 + 8))
    price = made.gflops(len(points.points))
    assert price == pytest.approx(dense().gflops(len(points.points)) + 12e-9 * len(points.points))
    assert price - saved < dense().gflops(len(points.points))
    made.set_rate(0.5)
    made(points)
    (more,) = made.saved_gflops().tolist()
    assert more > saved
    assert made.gflops(len(points.points)) == price  # what routes are priced at stays
    with pytest.raises(ValueError, match="expected a rate"):
        made.set_rate(1.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep of the pillars in"),
        ({"score": "best"}, "height, learned|points, height, learned"),
        ({"target": 0.5}, "score: learned and a threshold"),
        ({"score": "learned", "threshold": 0.0, "target": 2.0}, "target of the pillars in"),
    ],
)
def test_user_mistakes(options, message):
    with pytest.raises(ValueError, match=message) as error:
        PillarDrop(**options)
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_the_trace_and_replayed_routes_know_what_was_left_out():
    model, batch = small_model().eval(), small_batch(1)
    plain = model(batch, plan=model.full_plan(batch))
    full = DroppingLidarEncoder(PILLARS, 12, PillarDrop(0.5), point_channels=(8,), stages=((12, 1, 2),)).eval()
    full.load_state_dict(model.lidar.full.state_dict())
    lidar = PointBranches(full, model.lidar.lite, 400, 200, newest_s=0.3)
    parts = (model.cameras, lidar, model.radar, model.merge, model.trunk, model.head, model.router)
    dropping = FusionModel(*parts).eval()
    found = dropping(batch, plan=dropping.full_plan(batch))
    (saved,) = full.saved_gflops().tolist()
    assert saved > 12e-9 * 400, "more than what choosing costs"
    choosing = full.drop.gflops(400, 400)
    assert found.trace.gflops()[0] == pytest.approx(plain.trace.gflops()[0] + choosing - saved)
    assert found.trace.gflops()[0] <= dropping.prices().full_gflops
    assert not torch.allclose(found.head.heatmap, plain.head.heatmap)
    replayed = EncodedSample.of(dropping, batch).run(dropping.full_plan(batch).choice)
    assert float(replayed.gflops[0]) == pytest.approx(found.trace.gflops()[0])
