"""Skipped blocks: open gates change nothing, closed ones run nothing, each row for itself, and the trace knows."""

import pytest
import torch
from torch import nn

from fusion.adaptive.token_terms import forget_tokens
from fusion.encoders.block_skip import GatedBlock, SkippingViewEncoder
from fusion.encoders.views import ViewEncoder
from fusion.ops.flops import counted_gflops
from fusion.routing.plan import FULL, SKIP
from tests.fusion.small_model import small_batch, small_model

OPTIONS = {"neck_channels": 8, "backbone_options": {"channels": [8, 8, 16, 16]}}


def skipping(**options) -> SkippingViewEncoder:
    torch.manual_seed(0)
    return SkippingViewEncoder("resnet18", 8, 10, **OPTIONS, **options).eval()


def set_gates(encoder, bias: float) -> None:
    for block in encoder.gated:
        nn.init.constant_(block.gate[2].bias, bias)


@torch.no_grad()
def test_with_open_gates_it_is_the_plain_encoder():
    encoder, images = skipping(), torch.rand(3, 3, 32, 64)
    plain = ViewEncoder("resnet18", 8, 10, **OPTIONS).eval()
    weights = {
        name.replace(".block.", "."): value for name, value in encoder.state_dict().items() if ".gate." not in name
    }
    plain.load_state_dict(weights)
    assert len(encoder.gated) == 4
    torch.testing.assert_close(encoder(images).context, plain(images).context)
    assert encoder.saved_gflops().tolist() == [0.0] * 3
    gates = sum(
        2e-9 * (layer.in_features * layer.out_features) for b in encoder.gated for layer in (b.gate[0], b.gate[2])
    )
    assert encoder.gflops((32, 64)) == pytest.approx(plain.gflops((32, 64)) + gates)


@torch.no_grad()
def test_rows_skip_for_themselves_and_closed_blocks_are_not_called():
    class Tripled(nn.Module):
        rows = 0

        def forward(self, x):
            Tripled.rows += 0 if x.is_meta else len(x)  # not where it is priced
            return 3 * x

    block = GatedBlock(Tripled(), 2, None).eval()
    nn.init.zeros_(block.gate[2].bias)
    block.gate[0].weight.fill_(0.0)
    block.gate[0].weight[0] = 1.0
    block.gate[0].bias.zero_()
    block.gate[2].weight.zero_()
    block.gate[2].weight[0, 0] = 1.0
    nn.init.constant_(block.gate[2].bias, -1.0)  # open where both channels add up to at least 1
    x = torch.stack([torch.full((2, 3, 3), value) for value in (1.0, 0.1, 0.7)])
    found = block(x)
    assert found[:, 0, 0, 0].tolist() == pytest.approx([3.0, 0.1, 2.1])
    assert Tripled.rows == 2
    nn.init.constant_(block.gate[2].bias, -9.0)
    assert torch.equal(block(x), x)
    assert Tripled.rows == 2


@torch.no_grad()
def test_the_trace_takes_off_what_was_skipped():
    model, batch = small_model().eval(), small_batch(2)
    model.cameras.encoder = encoder = skipping()
    choice = torch.full((2, 8), SKIP)
    choice[0, :3], choice[1, 4] = FULL, FULL
    plan = model.plan_of(choice, model.available(batch))
    gflops = {}
    for bias in (5.0, -5.0):
        set_gates(encoder, bias)
        gflops[bias] = model(batch, plan=plan).trace.gflops()
    sizes = [(1, 8, 8, 16), (1, 8, 4, 8), (1, 16, 2, 4), (1, 16, 1, 2)]
    used = {block.gate[0].in_features: block for block in encoder.gated}
    saved = sum(counted_gflops(block.block, size) for block, size in zip(encoder.gated, sizes, strict=True))
    assert len(used) == 2
    assert gflops[5.0][0] - gflops[-5.0][0] == pytest.approx(3 * saved)
    assert gflops[5.0][1] - gflops[-5.0][1] == pytest.approx(saved)


def test_gates_learn_and_the_rate_is_that_of_the_batch():
    encoder = skipping(block_target=0.3).train()
    found = encoder(torch.rand(8, 3, 32, 64))
    assert encoder.saved_gflops() is None
    for block in encoder.gated:
        use = block.last_use.item()
        assert use * 8 == pytest.approx(round(use * 8))  # hard decisions
        assert block.token_loss().item() == pytest.approx((use - 0.3) ** 2)
    (found.context.square().mean() + sum(block.token_loss() for block in encoder.gated)).backward()
    assert all(block.gate[2].bias.grad.abs() > 0 for block in encoder.gated)
    encoder(torch.rand(8, 3, 32, 64))
    block = encoder.gated[0]
    assert block.last_rows == 16
    forget_tokens(encoder)
    with torch.no_grad():
        block.gate[2].weight += 0.1  # at first a gate looks at nothing
    images = torch.rand(6, 3, 32, 64, requires_grad=True)
    encoder(images)
    encoder(torch.rand(2, 3, 16, 32))  # views at half the size, in the same step
    assert block.last_use.item() * 8 == pytest.approx(round(block.last_use.item() * 8))
    (grad,) = torch.autograd.grad(block.token_loss(), images)
    assert grad.abs().sum() > 0
    assert skipping(block_target=None).gated[0].token_loss() is None


def test_backbones_without_such_blocks_are_refused():
    with pytest.raises(ValueError, match="ResNet"):
        SkippingViewEncoder("mobilenetv3_small_050", 8, 10, neck_channels=8)
    with pytest.raises(ValueError, match="block_target"):
        skipping(block_target=1.5)
