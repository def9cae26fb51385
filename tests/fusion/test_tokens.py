"""BEV tokens that take part or not: dense equality, gathered against masked, gradients by hand, FLOPs."""

import copy
import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fusion.heads.center import CenterHead
from fusion.model import FusionModel
from fusion.trunk.exits import EarlyExits, ExitHead
from fusion.trunk.tokens import KeepTokens, TokenUse
from fusion.trunk.tokens_blocks import (
    block_gflops,
    gathered,
    kept_block,
    masked_block,
    ragged_block,
    scattered,
    straight_through,
)
from fusion.trunk.tokens_windows import KeepWindows, joined_windows, split_windows
from fusion.trunk.trunk import BevTrunk
from tests.fusion.small_model import small_batch, small_model


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    block = Block(16, 4, qkv_bias=True, init_values=0.5).eval()
    for parameter in block.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return block


def stage(**options) -> KeepTokens:
    torch.manual_seed(0)
    made = KeepTokens(16, depth=2, **options).eval()
    for selector in made.selectors:  # about half of the cells
        nn.init.normal_(selector.layers[-1].weight)
        nn.init.zeros_(selector.layers[-1].bias)
    return made


BEV = torch.rand(3, 16, 6, 5, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_gathered_is_masked_is_alone(block):
    tokens = torch.randn(3, 9, 16)
    keep = torch.rand(3, 9) < 0.5
    keep[2] = False  # nobody of this sample
    worked = kept_block(block, tokens, keep)
    assert torch.equal(worked[~keep], tokens[~keep])  # what is skipped keeps its content
    masked = masked_block(block, tokens, keep.float())
    torch.testing.assert_close(worked[keep], masked[keep], rtol=1e-4, atol=1e-5)
    for row in range(2):
        alone = block(tokens[row : row + 1, keep[row]])[0]
        torch.testing.assert_close(worked[row, keep[row]], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_all_kept_is_the_dense_block(block):
    tokens = torch.randn(2, 7, 16)
    assert torch.equal(kept_block(block, tokens, torch.ones(2, 7, dtype=torch.bool)), block(tokens))
    torch.testing.assert_close(masked_block(block, tokens, torch.ones(2, 7)), block(tokens), rtol=1e-4, atol=1e-5)
    assert torch.equal(kept_block(block, tokens, torch.zeros(2, 7, dtype=torch.bool)), tokens)
    torch.testing.assert_close(ragged_block(block, tokens.flatten(0, 1), [7, 7]), block(tokens).flatten(0, 1))


def test_gather_and_scatter_undo_each_other():
    tokens, index = torch.randn(2, 5, 3), torch.tensor([[4, 0], [2, 3]])
    assert torch.equal(gathered(tokens, index)[0, 0], tokens[0, 4])
    assert torch.equal(scattered(tokens, index, gathered(tokens, index)), tokens)


@torch.no_grad()
def test_keep_one_is_dense():
    sparse, dense = stage(keep=1), stage(keep=1.0)
    tokens = BEV.flatten(2).transpose(1, 2)
    for block in dense.blocks:
        tokens = block(tokens)
    assert torch.equal(sparse(BEV), tokens.transpose(1, 2).unflatten(2, (6, 5)))
    eager = stage()  # keep by logits, all of them open
    for selector in eager.selectors:
        nn.init.zeros_(selector.layers[-1].weight)
        selector.layers[-1].bias.copy_(torch.tensor([0.0, 1.0]))
    assert torch.equal(eager(BEV), sparse(BEV))


@torch.no_grad()
@pytest.mark.parametrize("keep", [None, 0.3, 0.5])
def test_sparse_is_masked(keep):
    made = stage(keep=keep)
    torch.testing.assert_close(made(BEV), made(BEV, "masked"), rtol=1e-4, atol=1e-5)
    shares = made.last_use.shares
    if keep is None:
        assert len(set(shares[0].tolist())) > 1  # the rate depends on the frame
    else:
        torch.testing.assert_close(shares, torch.full((2, 3), round(30 * keep) / 30))


@torch.no_grad()
def test_a_skipped_cell_may_come_back():
    """Kept by the second block alone: it enters that block with the content it had before the first."""
    made = stage()
    only = [torch.zeros(1, 30, dtype=torch.bool) for _ in range(2)]
    only[0][0, :10], only[1][0, 5:20] = True, True
    masks = iter(only)
    made.kept = lambda logits: next(masks)
    tokens = BEV[:1].flatten(2).transpose(1, 2)
    expected = kept_block(made.blocks[1], kept_block(made.blocks[0], tokens, only[0]), only[1])
    found = made(BEV[:1]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0, 20:], tokens[0, 20:])


def test_the_gradient_of_a_choice_by_hand():
    """out = before + z (after - before), z = hard with dz/dlogit = s (1 - s)."""
    logits = torch.tensor([[0.3, 0.8]], requires_grad=True)
    z = straight_through(logits, temperature=0.5, noisy=False)
    before, after = torch.tensor([2.0]), torch.tensor([5.0])
    out = before + z * (after - before)
    assert float(out) == 5.0
    out.sum().backward()
    s = 1 / (1 + math.exp(-(0.8 - 0.3) / 0.5))
    slope = 3.0 * s * (1 - s) / 0.5
    assert logits.grad.tolist() == [[pytest.approx(-slope), pytest.approx(slope)]]


def test_a_masked_key_has_the_gradient_of_its_weight():
    """One query, two keys of equal logits: out = (v1 g1 + v2 g2) / (g1 + g2), so d out / d g2 = (v2 - v1) / 4."""
    block = Block(2, 1, qkv_bias=True).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.attn.qkv.weight[4:] = torch.eye(2)
        block.attn.proj.weight.copy_(torch.eye(2))
        block.norm1.weight.fill_(1.0)
    tokens = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    keep = torch.ones(1, 2, requires_grad=True)
    masked_block(block, tokens, keep)[0, 0, 0].backward()
    assert keep.grad.tolist() == [[0.0, pytest.approx((-1.0 - 1.0) / 4, rel=1e-3)]]


def test_a_masked_key_far_above_all_others_neither_divides_by_zero_nor_drowns_the_rest():
    """As above, the second key's logit 4 * 100 / sqrt(2) over one's own: out = v1, d out / d g2 held to v2 - v1."""
    block = Block(2, 1, qkv_bias=True).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.attn.qkv.weight.copy_(torch.cat([100 * torch.eye(2), -torch.eye(2), torch.eye(2)]))
        block.attn.proj.weight.copy_(torch.eye(2))
        block.norm1.weight.fill_(1.0)
    tokens = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    keep = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = masked_block(block, tokens, keep)
    out[0, 0, 0].backward()
    assert out[0, 0].tolist() == [pytest.approx(2.0, rel=1e-4), pytest.approx(-2.0, rel=1e-4)]  # residual + v1
    assert keep.grad.tolist() == [[0.0, pytest.approx(-2.0, rel=1e-3)]]


@torch.no_grad()
def test_sharp_attention_is_the_same_masked_and_gathered(block):
    sharp = copy.deepcopy(block)
    sharp.attn.qkv.weight[:32] *= 12  # logits of hundreds
    tokens, keep = torch.randn(3, 9, 16), torch.rand(3, 9) < 0.5
    masked = masked_block(sharp, tokens, keep.float())
    assert masked.isfinite().all()
    torch.testing.assert_close(masked[keep], kept_block(sharp, tokens, keep)[keep], rtol=1e-3, atol=1e-4)


def test_training_teaches_blocks_and_selectors():
    torch.manual_seed(0)
    made = KeepTokens(16, depth=2).train()
    out = made(BEV)
    (out.square().sum() + made.last_use.ratio_loss(0.5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    assert made.selectors[0].layers[-1].weight.grad.abs().sum() > 0


def test_the_ratio_loss_is_over_the_batch():
    shares = torch.tensor([[0.2, 0.8], [0.5, 0.7]])
    assert float(TokenUse(shares, 30).ratio_loss(0.5)) == pytest.approx((0.0 + 0.1**2) / 2)


def test_block_flops_agree_with_pytorch():
    block = Block(16, 4)
    with FlopCounterMode(display=False) as counter:
        block(torch.rand(1, 12, 16))
    assert block_gflops(16, 12) * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-9)
    made = stage(keep=0.5)
    assert made.gflops(30, [0.5, 0.5]) < 0.6 * made.gflops(30)


@torch.no_grad()
@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 1])
def test_a_fixed_share_is_priced_at_what_it_costs(keep):
    made = stage(keep=keep)
    with FlopCounterMode(display=False) as counter:
        made(BEV[:1])
    assert made.price((6, 5)) * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-9)
    made(BEV)
    assert made.saved_gflops() == pytest.approx([0.0] * 3, abs=1e-12)
    assert stage().price((6, 5)) == stage(keep=None).gflops(30)  # a free rate may take them all


@torch.no_grad()
def test_a_fixed_share_in_windows_is_priced_at_the_most_that_it_may_cost():
    """10 of 24 cells in windows of four: most where they fill two windows and half of a third."""
    made, bev = stage(keep=0.4, window=2), BEV[:1, :, :, :4]
    with FlopCounterMode(display=False) as counter:
        made(bev)
    (saved,) = made.saved_gflops()
    assert saved > 0
    assert (made.price((6, 4)) - saved) * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-6)
    made.kept = lambda logits: torch.arange(24)[None] < 10
    with FlopCounterMode(display=False) as counter:
        made(bev)
    assert made.price((6, 4)) * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-9)
    assert made.saved_gflops() == pytest.approx([0.0], abs=1e-10)


@torch.no_grad()
def test_windows_split_and_join():
    bev = torch.randn(2, 16, 4, 6)
    assert torch.equal(joined_windows(split_windows(bev, 2), (4, 6)), bev)
    first = split_windows(bev, 2)[0, 1]  # the second window: rows 0-1, columns 2-3
    assert torch.equal(first, bev[0, :, :2, 2:4].flatten(1).T)


@torch.no_grad()
def test_windows_with_nothing_keep_their_content():
    torch.manual_seed(0)
    dense, half = (KeepWindows(16, window=2, keep=keep, depth=2).eval() for keep in (1, 0.5))
    half.load_state_dict(dense.state_dict())
    bev = torch.randn(2, 16, 4, 4) * 0.01
    bev[0, :, :2] += 1.0  # windows 0 and 1
    bev[1, :, 2:] += 1.0  # windows 2 and 3
    full, found = dense(bev), half(bev)
    torch.testing.assert_close(found[0, :, :2], full[0, :, :2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1, :, 2:], full[1, :, 2:], rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0, :, 2:], bev[0, :, 2:])
    assert half.price((4, 4)) == pytest.approx(dense.price((4, 4)) / 2)


def test_windows_see_fewer_in_training():
    made = KeepWindows(16, window=2, keep=1, train_keep=0.25).train()
    torch.manual_seed(0)
    bev = torch.randn(1, 16, 4, 4)
    changed = [(made(bev) != bev).any(dim=1).sum().item() // 4 for _ in range(12)]
    assert min(changed) >= 1
    assert len(set(changed)) > 1


@torch.no_grad()
def test_a_trunk_with_tokens_prices_and_records_what_ran():
    torch.manual_seed(0)
    tokens = KeepTokens(16, depth=2, num_heads=2)
    for selector in tokens.selectors:
        nn.init.normal_(selector.layers[-1].weight)
        nn.init.zeros_(selector.layers[-1].bias)
    plain, trunk = (
        BevTrunk(12, (12, 16), (1, 0), (1, 2), out_channels=8, upsample=2, tokens=one) for one in (None, tokens)
    )
    assert trunk.gflops((16, 16)) == pytest.approx(plain.gflops((16, 16)) + tokens.gflops(64))
    assert plain.saved_gflops() is None
    base = small_model()
    parts = (base.cameras, base.lidar, base.radar, base.merge)
    model = FusionModel(*parts, trunk, base.head, base.router).eval()
    batch = small_batch(3)
    output = model(batch, plan=model.full_plan(batch))
    spent = [e.gflops_per_row for e in output.trace.executions if e.branch == "trunk"]
    shares = tokens.last_use.shares
    assert shares.min() < 0.9
    for row in range(3):
        expected = plain.gflops((16, 16)) + tokens.gflops(64, shares[:, row].tolist())
        assert spent[row] == pytest.approx(expected)
    # With everybody leaving at an early exit, or some: the same bookkeeping inside the exits.
    head = ExitHead(0, 12, 8, CenterHead(8, base.head.grid, channels=8))
    model = FusionModel(*parts, trunk, base.head, base.router, EarlyExits([head])).eval()
    again = model(batch, plan=model.full_plan(batch))
    assert again.trace.gflops() == pytest.approx(output.trace.gflops())


@torch.no_grad()
def test_a_budget_of_one_is_spent_with_a_fixed_share():
    torch.manual_seed(0)
    trunk = BevTrunk(12, (12, 16), (1, 0), (1, 2), out_channels=8, upsample=2, tokens=KeepTokens(16, 2, keep=0.5))
    base = small_model()
    model = FusionModel(base.cameras, base.lidar, base.radar, base.merge, trunk, base.head, base.router).eval()
    batch = small_batch(3)
    for training in (False, True):  # with the same share of cells
        trace = model.train(training)(batch, plan=model.full_plan(batch)).trace
        spent = [e.gflops_per_row for e in trace.executions if e.branch == "trunk"]
        assert spent == pytest.approx([model.prices().always["trunk"]] * 3, rel=1e-6)
        assert max(spent) <= model.prices().always["trunk"]


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.5}, {"num_heads": 3}])
def test_user_mistakes(options):
    with pytest.raises(ValueError, match="expected"):
        KeepTokens(16, **options)
    with pytest.raises(ValueError, match="expected"):
        KeepWindows(16, **options)


def test_windows_that_do_not_fit():
    with pytest.raises(ValueError, match="multiples of the window"):
        KeepWindows(16, window=4)(torch.rand(1, 16, 6, 8))
