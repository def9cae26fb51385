"""The merges: absence, coverage, weights, gentle start."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.trunk.merge import ChannelWeightedMerge, Merge, SensorBev
from sensors.grid import BevGrid

GRID = BevGrid.square(4.0, 1.0)
CHANNELS = {"camera": 3, "lidar": 4, "radar": 2}


def make_merge(kind=Merge, **options):
    torch.manual_seed(0)
    merge = kind(CHANNELS, 8, GRID, **options)
    # Tokens and norms as after some training, so that nothing is hidden by zeros.
    for parameter in merge.parameters():
        if parameter.ndim == 1 and not parameter.any():
            torch.nn.init.normal_(parameter)
    return merge


def make_parts(num_samples=2, present=None) -> dict[str, SensorBev]:
    generator = torch.Generator().manual_seed(0)
    present = torch.ones(num_samples, dtype=torch.bool) if present is None else present
    return {
        name: SensorBev(
            torch.randn(num_samples, width, *GRID.shape, generator=generator), present, torch.ones(num_samples)
        )
        for name, width in CHANNELS.items()
    }


BOTH = pytest.mark.parametrize("kind", [Merge, ChannelWeightedMerge])
SUBSETS = [subset for size in range(4) for subset in itertools.combinations(CHANNELS, size)]


@BOTH
@pytest.mark.parametrize("subset", SUBSETS)
def test_absent_equals_left_out(kind, subset):
    merge, parts = make_merge(kind), make_parts()
    left_out = merge({name: parts[name] for name in subset}, 2)
    nobody = torch.zeros(2, dtype=torch.bool)
    absent = {
        name: part if name in subset else SensorBev(torch.full_like(part.bev, 1e3), nobody, part.weight)
        for name, part in parts.items()
    }
    assert left_out.isfinite().all()
    assert left_out.shape == (2, 8, *GRID.shape)
    torch.testing.assert_close(merge(absent, 2), left_out)


@BOTH
def test_presence_is_per_sample(kind):
    merge, parts = make_merge(kind), make_parts()
    only_first = torch.tensor([True, False])
    parts["lidar"] = SensorBev(parts["lidar"].bev, only_first, torch.ones(2))
    merged = merge(parts, 2)
    full = merge(make_parts(), 2)
    without = merge({name: part for name, part in make_parts().items() if name != "lidar"}, 2)
    torch.testing.assert_close(merged[0], full[0])
    torch.testing.assert_close(merged[1], without[1])


@BOTH
def test_uncovered_cells_are_missing_cells(kind):
    merge, parts = make_merge(kind), make_parts()
    covered = torch.zeros(2, *GRID.shape, dtype=torch.bool)
    covered[:, :, 4:] = True
    before = merge(
        {**parts, "camera": SensorBev(parts["camera"].bev, parts["camera"].present, torch.ones(2), covered)}, 2
    )
    changed = parts["camera"].bev + torch.randn_like(parts["camera"].bev) * ~covered[:, None]
    projected_alike = merge.projections["camera"][0]
    torch.nn.init.zeros_(projected_alike.weight)  # so that the norm does not carry the change across cells
    after = merge({**parts, "camera": SensorBev(changed, parts["camera"].present, torch.ones(2), covered)}, 2)
    again = merge(
        {**parts, "camera": SensorBev(parts["camera"].bev, parts["camera"].present, torch.ones(2), covered)}, 2
    )
    torch.testing.assert_close(after, again)
    assert before.isfinite().all()


@BOTH
def test_weight_is_a_gate_with_gradient(kind):
    merge, parts = make_merge(kind), make_parts()
    weight = torch.tensor([1.0, 0.0], requires_grad=True)
    merged = merge({**parts, "radar": SensorBev(parts["radar"].bev, parts["radar"].present, weight)}, 2)
    merged.square().sum().backward()
    assert (weight.grad != 0).all()
    without = merge({name: part for name, part in parts.items() if name != "radar"}, 2)
    torch.testing.assert_close(merged[1], without[1])


@BOTH
def test_rows_permute(kind):
    merge, parts = make_merge(kind), make_parts(3)
    order = torch.tensor([2, 0])
    turned = {name: SensorBev(part.bev[order], part.present[order], part.weight[order]) for name, part in parts.items()}
    torch.testing.assert_close(merge(turned, 2), merge(parts, 3)[order])


def test_cameras_join_a_trained_model_without_changing_it():
    merge, parts = make_merge(zero_init=("camera",)), make_parts()
    without = merge({name: part for name, part in parts.items() if name != "camera"}, 2)
    merged = merge(parts, 2)
    torch.testing.assert_close(merged, without)
    merged.square().sum().backward()
    assert merge.fuse[0].weight.grad[:, :64].any(), "the zero weights must learn"


def test_quiet_modality_starts_small():
    merge, parts = make_merge(ChannelWeightedMerge, quiet=("camera",)), make_parts()
    without = merge({name: part for name, part in parts.items() if name != "camera"}, 2)
    assert (merge(parts, 2) - without).abs().mean() < 0.02 * without.abs().mean()


def test_channel_weights_by_hand():
    merge, parts = make_merge(ChannelWeightedMerge), make_parts()
    maps = {name: merge.projections[name](part.bev) for name, part in parts.items()}
    weights = torch.stack([merge.logits[name] for name in CHANNELS]).softmax(0)
    expected = sum(weight[None, :, None, None] * maps[name] for weight, name in zip(weights, CHANNELS, strict=True))
    torch.testing.assert_close(merge(parts, 2), expected)


@BOTH
def test_nothing_there_gives_gradients_to_the_token(kind):
    merge = make_merge(kind)
    merge({}, 1).square().sum().backward()
    tokens = merge.missing.values() if kind is Merge else [merge.missing]
    assert all(token.grad.abs().sum() > 0 for token in tokens)


@BOTH
def test_flops_of_the_convolutions(kind):
    merge = make_merge(kind)
    with FlopCounterMode(display=False) as counter:
        merge(make_parts(1), 1)
    weighted_sum = 0 if kind is Merge else 2 * 3 * 8 * 64
    assert merge.gflops() * 1e9 == pytest.approx(counter.get_total_flops() + weighted_sum)


@BOTH
def test_autocast_and_inference(kind):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert make_merge(kind)({"lidar": make_parts()["lidar"]}, 2).isfinite().all()


@BOTH
def test_unknown_modality(kind):
    with pytest.raises(ValueError, match="sonar"):
        make_merge(kind)({"sonar": make_parts()["lidar"]}, 2)


def test_a_modality_that_starts_at_zero_learns_where_it_is_alone():
    torch.manual_seed(0)
    merge = Merge(CHANNELS, 8, GRID, zero_init=("camera",))  # as built: norms and tokens not yet moved by anything
    alone = {"camera": make_parts()["camera"]}
    target = make_merge()(alone, 2).detach()  # something that a merge can say of this camera
    optimizer = torch.optim.Adam(merge.parameters(), lr=0.03)
    for _ in range(100):
        loss = (merge(alone, 2) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(merge.parameters(), 1.0)
        optimizer.step()
    constant = target.var(dim=(0, 2, 3), correction=0).mean()
    assert loss < 0.5 * constant, "hardly better than a constant per channel: the map does not get through"
