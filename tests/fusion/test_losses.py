import math

import pytest
import torch

from datamodules.batch import BoxBatch
from fusion.heads.center import CENTERPOINT_GROUPS, ONE_GROUP, CenterHead
from fusion.heads.losses import LOSS_WEIGHTS, center_loss, focal_loss, weighted_sum
from fusion.heads.targets import center_targets
from sensors.grid import BevGrid

GRID = BevGrid((-8.0, 8.0), (-4.0, 4.0), 1.0)  # 8 rows, 16 columns


def random_boxes(num_boxes: int, num_samples: int, seed: int = 0) -> BoxBatch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    def whole(low, high):
        return torch.randint(low, high, (num_boxes,), generator=generator)

    velocity = torch.where(uniform(num_boxes, 1) < 0.4, math.nan, uniform(num_boxes, 2))
    return BoxBatch(
        center_m=(uniform(num_boxes, 3) - 0.5) * torch.tensor([16.0, 8.0, 2.0]),
        size_lwh_m=uniform(num_boxes, 3) * 4 + 0.5,
        yaw_rad=uniform(num_boxes) * 6 - 3,
        velocity_mps=velocity,
        label=whole(0, 10),
        attribute=whole(-1, 8),
        num_points=whole(0, 4),
        sample=whole(0, num_samples).sort().values,
    )


def setting(num_boxes=9, num_samples=3, groups=ONE_GROUP):
    torch.manual_seed(1)
    head = CenterHead(6, GRID, channels=8, class_groups=groups)
    bev = torch.randn(num_samples, 6, 8, 16, requires_grad=True)
    boxes = random_boxes(num_boxes, num_samples)
    return head, bev, boxes, center_targets(boxes, num_samples, GRID)


def test_focal_loss_by_hand():
    """One box, logit 0 everywhere (p = 1/2): 0.25 ln 2 (1 + sum over the other cells of (1 - y)^4)."""
    boxes = random_boxes(1, 1)
    boxes.num_points[:], boxes.center_m[:] = 1, torch.tensor([0.5, 0.5, 0.0])
    boxes.size_lwh_m[:] = 1.0  # radius 2: sigma 5/6
    targets = center_targets(boxes, 1, GRID)
    weights = (
        10 * 8 * 16
        - 25
        + sum((1 - math.exp(-(x * x + y * y) / (2 * (5 / 6) ** 2))) ** 4 for x in range(-2, 3) for y in range(-2, 3))
    )
    loss = focal_loss(torch.zeros(1, 10, 8, 16), targets)
    assert float(loss) == pytest.approx(0.25 * math.log(2) * (1 + weights), rel=1e-5)


@pytest.mark.parametrize("groups", [ONE_GROUP, CENTERPOINT_GROUPS])
def test_every_term_equals_a_naive_loop(groups):
    head, bev, _, targets = setting(groups=groups)
    with torch.no_grad():
        output = head(bev)
    losses = center_loss(output, targets)
    num_boxes, num_y, num_x = len(targets.cell), *GRID.shape
    expected = dict.fromkeys(LOSS_WEIGHTS, 0.0)
    centers = set()
    for i in range(num_boxes):
        b, c, cell = (int(t[i]) for t in (targets.sample, targets.label, targets.cell))
        iy, ix = divmod(cell, num_x)
        centers.add((b, c, iy, ix))
        p = 1 / (1 + math.exp(-float(output.heatmap[b, c, iy, ix])))
        expected["heatmap"] -= (1 - p) ** 2 * math.log(p)
        group = output.group_of_class[c]
        for name, width in (("height", 1), ("offset", 2), ("log_size", 3), ("heading", 2), ("velocity", 2)):
            for k in range(width):
                wanted = float(getattr(targets, name)[i, k])
                if not math.isnan(wanted):
                    expected[name] += abs(float(getattr(output, name)[b, group * width + k, iy, ix]) - wanted)
        if (wanted := int(targets.attribute[i])) >= 0:
            logits = [float(v) for v in output.attribute[b, group * 8 : group * 8 + 8, iy, ix]]
            expected["attribute"] += math.log(sum(math.exp(v) for v in logits)) - logits[wanted]
    for b in range(len(output)):
        for c in range(10):
            for iy in range(num_y):
                for ix in range(num_x):
                    if (b, c, iy, ix) in centers or targets.spared[b, c, iy, ix]:
                        continue
                    p = 1 / (1 + math.exp(-float(output.heatmap[b, c, iy, ix])))
                    y = float(targets.heatmap[b, c, iy, ix])
                    expected["heatmap"] -= (1 - y) ** 4 * p**2 * math.log(1 - p)
    assert targets.spared.any()
    assert targets.velocity.isnan().any()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value / num_boxes, rel=1e-4), name


@pytest.mark.parametrize("num_boxes", [0, 9])
def test_gradients_are_finite_and_reach_every_parameter(num_boxes):
    head, bev, _, targets = setting(num_boxes)
    weighted_sum(center_loss(head(bev), targets)).backward()
    for parameter in [bev, *head.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert bev.grad.any()


def test_extreme_logits_stay_finite():
    _, _, _, targets = setting()
    for value in (-1e4, 1e4):
        logits = torch.full((3, 10, 8, 16), value, requires_grad=True)
        focal_loss(logits, targets).sum().backward()
        assert logits.grad.isfinite().all()


def test_samples_add_up_to_the_batch():
    head, bev, _, targets = setting()
    output = head(bev)
    shares, sums = center_loss(output, targets, per_sample=True), center_loss(output, targets)
    for name in LOSS_WEIGHTS:
        assert shares[name].shape == (3,)
        torch.testing.assert_close(shares[name].sum(), sums[name])
    assert weighted_sum(shares).shape == (3,)


def test_permuted_samples_permute_the_shares():
    head, bev, boxes, targets = setting()
    order = torch.tensor([2, 0, 1])
    new_row = torch.argsort(order)
    moved = BoxBatch(**{**vars(boxes), "sample": new_row[boxes.sample]})
    shares = center_loss(head(bev), targets, per_sample=True)
    permuted = center_loss(head(bev[order]), center_targets(moved, 3, GRID), per_sample=True)
    for name in LOSS_WEIGHTS:
        torch.testing.assert_close(permuted[name], shares[name][order])


def test_bf16_maps_give_a_float32_loss_close_to_that_of_float32():
    head, bev, _, targets = setting()
    exact = weighted_sum(center_loss(head(bev), targets))
    with torch.autocast("cpu", torch.bfloat16):
        rough = weighted_sum(center_loss(head(bev), targets))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


def test_weights_by_name():
    losses = {name: torch.tensor(1.0) for name in LOSS_WEIGHTS}
    assert float(weighted_sum(losses)) == pytest.approx(sum(LOSS_WEIGHTS.values()))
    assert float(weighted_sum(losses, {"heatmap": 3.0})) == pytest.approx(sum(LOSS_WEIGHTS.values()) + 2)
    with pytest.raises(ValueError, match="yaw"):
        weighted_sum(losses, {"yaw": 1.0})
