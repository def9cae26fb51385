"""Gradients through each selection, worked out by hand.

The blocks here are timm's with weights of 0 and 1, set so that a block is simple: queries are 0 unless said otherwise,
so that a token looks at all it sees alike; values are the tokens themselves; norms and MLP do nothing. A token x then
becomes x + m with m the mean of what it sees. The loss is the sum of c_i out_i.
"""

import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from fusion.encoders.vit_learned import DynamicVit
from fusion.encoders.vit_tokens import EVit, GuidedKeep, ToMe
from fusion.trunk.tokens import KeepTokens
from fusion.trunk.tokens_windows import KeepWindows


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slope(x: float) -> float:
    return sigmoid(x) * (1 - sigmoid(x))


def meaning_block(dim: int = 1, value: float = 1.0) -> Block:
    """x -> x + value * mean of what x sees."""
    block = Block(dim, 1, qkv_bias=True)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.attn.qkv.weight[2 * dim :] = value * torch.eye(dim)
        block.attn.proj.weight.copy_(torch.eye(dim))
    block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    return block


class Lead(nn.Module):
    """Logits of skip and keep: 0 and weight times the token's first channel."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, tokens: Tensor) -> Tensor:
        lead = self.weight * tokens[..., 0]
        return torch.stack([torch.zeros_like(lead), lead], dim=-1)


def line(values: list[float]) -> Tensor:
    """A map of one channel and one row."""
    return torch.tensor(values).view(1, 1, 1, -1).requires_grad_()


def keep_tokens(weight: float, **options) -> KeepTokens:
    made = KeepTokens(1, num_heads=1, **options).train()
    made.blocks[0], made.selectors[0] = meaning_block(), Lead(weight)
    return made


def approx(values: list[float]):
    return [pytest.approx(value, rel=1e-4, abs=1e-6) for value in values]


def test_keep_tokens_at_a_fixed_share():
    """Of 1, -2, 3, 0.5 the first and the third stay (a half), m = (1 + 3) / 2 = 2; s_i = sigmoid(w x_i), w = 0.5.

    Own gate: d out_i / d z_i = m_i, where a cell that is skipped sees itself too: m_2 = (1 - 2 + 3) / 3 = 2/3 and
    m_4 = (1 + 0.5 + 3) / 3 = 1.5. Another's: d out_i / d z_j = (x_j - m_i) / 2 for each i that stays.
    With c = 1, 2, 3, 4:
      dL/dz_1 = 1 * 2 + 3 * (1 - 2) / 2 = 0.5           dL/dz_2 = 2 * 2/3 + (1 + 3) * (-2 - 2) / 2 = -20/3
      dL/dz_3 = 3 * 2 + 1 * (3 - 2) / 2 = 6.5           dL/dz_4 = 4 * 1.5 + (1 + 3) * (0.5 - 2) / 2 = 3
    Content: each cell c_i; those that stay also (c_1 + c_3) / 2 = 2 as values. The skipped pass nothing else.
    """
    x, c, w = [1.0, -2.0, 3.0, 0.5], [1.0, 2.0, 3.0, 4.0], 0.5
    made, bev = keep_tokens(w, keep=0.5), line(x)
    out = made(bev)
    assert out.flatten().tolist() == approx([1 + 2, -2, 3 + 2, 0.5])
    (out.flatten() * torch.tensor(c)).sum().backward()
    by_gate = [0.5, -20 / 3, 6.5, 3.0]
    slopes = [slope(w * value) for value in x]
    assert made.selectors[0].weight.grad.item() == pytest.approx(
        sum(g * s * value for g, s, value in zip(by_gate, slopes, x, strict=True)), rel=1e-5
    )
    content = [1 + 2, 2, 3 + 2, 4]
    expected = [own + g * s * w for own, g, s in zip(content, by_gate, slopes, strict=True)]
    assert bev.grad.flatten().tolist() == approx(expected)


def test_keep_tokens_that_stand_still_teach_no_selector():
    """At keep 1 the selector is not asked; where the block adds nothing, its choice does not matter: gradient 0."""
    made, bev = keep_tokens(0.5, keep=1.0), line([1.0, 2.0])
    made(bev).sum().backward()
    assert made.selectors[0].weight.grad is None
    made = keep_tokens(0.5, keep=0.5)
    made.blocks[0] = meaning_block(value=0.0)
    made(line([1.0, 2.0])).sum().backward()
    assert made.selectors[0].weight.grad.item() == 0.0


def test_keep_tokens_with_spread(monkeypatch):
    """A drawn lead of spread * (2 * 0.75 - 1) = 1 cuts 0.5, 2, 3: the last two stay, m = 2.5; equal noise cancels.

    s_i = sigmoid(x_i - 1), w = 1, m_1 = (0.5 + 2 + 3) / 3 = 11/6, all c = 1:
      dL/dz_1 = 11/6 + 2 * (0.5 - 2.5) / 2 = -1/6,  dL/dz_2 = 2.5 + (2 - 2.5) / 2 = 2.25,  dL/dz_3 = 2.5 + 0.25 = 2.75.
    The ratio loss looks at p_i = sigmoid(x_i), whatever was drawn: d (mean p - t)^2 = 2 (mean p - t) mean(p (1 - p) x).
    """
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.75))
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 0.5))
    x = [0.5, 2.0, 3.0]
    made = keep_tokens(1.0, spread=2.0, target=0.25)
    out = made(line(x))
    assert out.flatten().tolist() == approx([0.5, 4.5, 5.5])
    out.sum().backward()
    by_gate = [-1 / 6, 2.25, 2.75]
    weight = made.selectors[0].weight
    assert weight.grad.item() == pytest.approx(
        sum(g * slope(v - 1) * v for g, v in zip(by_gate, x, strict=True)), rel=1e-5
    )
    weight.grad = None
    made(line(x))
    made.token_loss().backward()
    mean = sum(map(sigmoid, x)) / 3
    expected = 2 * (mean - 0.25) * sum(slope(v) * v for v in x) / 3
    assert weight.grad.item() == pytest.approx(expected, rel=1e-5)


def test_keep_windows():
    """Windows 1 1 1 1 and 3 3 3 7 of a map of 2 x 4: the second stays. out = x + mean of its window there, x elsewhere.

    So dL/dx = c where skipped, c + sum(c) / 4 where it stays; the norm that chose has no gradient.
    """
    made = KeepWindows(1, window=2, num_heads=1, keep=0.5)
    made.blocks[0] = meaning_block()
    bev = torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 7]]).view(1, 1, 2, 4).requires_grad_()
    c = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    out = made(bev)
    assert out[0, 0].tolist() == [[1, 1, 7, 7], [1, 1, 7, 11]]
    (out[0, 0] * c).sum().backward()
    shared = (3 + 4 + 7 + 8) / 4
    assert bev.grad[0, 0].tolist() == [[1, 2, 3 + shared, 4 + shared], [5, 6, 7 + shared, 8 + shared]]


@torch.no_grad()
@pytest.mark.parametrize("train_keep", [None, 1.0])
def test_keep_all_windows_is_the_dense_stage(train_keep):
    """Windows cut out by hand, one by one through the blocks; equal in training too."""
    torch.manual_seed(0)
    made = KeepWindows(8, window=2, depth=2, num_heads=2, keep=1, train_keep=train_keep)
    bev = torch.randn(2, 8, 4, 6)
    dense = bev.clone()
    for sample in range(2):
        for top in (0, 2):
            for left in (0, 2, 4):
                tokens = bev[sample, :, top : top + 2, left : left + 2].flatten(1).T[None]
                for block in made.blocks:
                    tokens = block(tokens)
                dense[sample, :, top : top + 2, left : left + 2] = tokens[0].T.view(8, 2, 2)
    for mode in (False, True):
        torch.testing.assert_close(made.train(mode)(bev), dense, rtol=1e-4, atol=1e-5)
    halves = KeepWindows(8, window=2, depth=2, num_heads=2, keep=0.5).eval()
    halves.load_state_dict(made.state_dict())
    assert not torch.allclose(halves(bev), dense)


def dynamic_vit(weights: list[float]) -> DynamicVit:
    """Two channels: the first is a patch's own, of the second the predictor takes the mean over the kept."""
    made = DynamicVit(2, at=tuple(range(len(weights))), keep=0.5).train()
    for number, weight in enumerate(weights):
        made.local[number], made.score[number] = nn.Identity(), Lead(weight)
    return made


def test_dynamic_vit_drops_in_turn(monkeypatch):
    """Gates of two predictors multiply: g = z1 z2; the first block does nothing, the second adds the mean.

    Patches 2, 1, -1 (and 0 in the other channel), no prefix, w1 = 1, w2 = -0.5 after which 2 and 1 would go:
    first z1 = 1, 1, 0. Then z2 = (lead > 0) = 0, 0, 1. g = 0, 0, 0: nothing is left, out = x.
    A patch sees the kept ones and itself: m_i = x_i, and no patch that is not kept carries another's gradient:
      dL/dg_i = c_i x_i. dL/dw1 = sum dL/dg_i z2_i s1_i' x_i, dL/dw2 = sum dL/dg_i z1_i s2_i' x_i.
    So what the first has dropped does not teach the second (patch 3), nor what the second drops the first (1 and 2).
    """
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 0.5))
    x, c, w1, w2 = [2.0, 1.0, -1.0], [1.0, 2.0, 3.0], 1.0, -0.5
    made = dynamic_vit([w1, w2])
    tokens = torch.tensor([[[value, 0.0] for value in x]], requires_grad=True)
    out = made([meaning_block(2, 0.0), meaning_block(2)], tokens, 0)
    assert torch.equal(out, tokens)
    (out[0, :, 0] * torch.tensor(c)).sum().backward()
    first = 3 * -1.0 * 1 * slope(w1 * -1) * -1.0
    second = 1 * 2.0 * slope(w2 * 2) * 2.0 + 2 * 1.0 * slope(w2 * 1) * 1.0
    assert made.score[0].weight.grad.item() == pytest.approx(first, rel=1e-5)
    assert made.score[1].weight.grad.item() == pytest.approx(second, rel=1e-5)
    # Content: the patch itself, and the gate's lead where the other gate is open.
    own = [
        1 + 1 * 2.0 * slope(w2 * 2) * w2,
        2 + 2 * 1.0 * slope(w2 * 1) * w2,
        3 + 3 * -1.0 * slope(w1 * -1) * w1,
    ]
    assert tokens.grad[0, :, 0].tolist() == approx(own)


def test_dynamic_vit_with_a_class_token_and_its_ratio(monkeypatch):
    """Class token 6 (always kept, c = 0), patches 2, 4, -1 of which the last goes: all that is kept sees m = 4.

    m_3 = (6 + 2 + 4 - 1) / 4 = 11/4. With c = 1 on patches: dL/dg_1 = 4 + (2 - 4) / 3 (from patch 2; its own look
    is of weight 1 whatever its gate) = 10/3, dL/dg_2 = 4 + (4 - 4) / 3 = 4, dL/dg_3 = 11/4 + 2 (-1 - 4) / 3 = -7/12.
    Ratio: (2/3 - 1/2)^2, with a slope of 2 (1/6) / 3 on each gate.
    """
    monkeypatch.setattr(torch, "rand_like", lambda like: torch.full_like(like, 0.5))
    x = [2.0, 4.0, -1.0]
    made = dynamic_vit([1.0])
    tokens = torch.tensor([[[6.0, 0.0]] + [[value, 0.0] for value in x]], requires_grad=True)
    out = made([meaning_block(2)], tokens, 1)
    assert out[0, :, 0].tolist() == approx([2 + 4, 4 + 4, -1])
    out[0, :, 0].sum().backward(retain_graph=True)
    weight = made.score[0].weight
    by_gate = [10 / 3, 4.0, -7 / 12]
    expected = [g * slope(v) * v for g, v in zip(by_gate, x, strict=True)]
    assert weight.grad.item() == pytest.approx(sum(expected), rel=1e-5)
    # A class token that two patches see as a value: 1/3 of each.
    assert tokens.grad[0, 0, 0].item() == pytest.approx(2 / 3, rel=1e-4)
    weight.grad = None
    made.ratio_loss().backward()
    assert weight.grad.item() == pytest.approx(2 * (1 / 6) / 3 * sum(slope(v) * v for v in x), rel=1e-5)


def test_evit_fuses_what_it_drops():
    """Class token q = 0.5, keys and queries the tokens themselves, values 0: patch j is looked at by exp(q x_j).

    Of 2, 1, -1 (keep a third) the first stays; f = softmax over the other two of 0.5 and -0.5 times (1, -1). The MLP
    doubles. A second block adds the mean over class, fused, kept = (2q + 2f + 2 * 2) / 3. c = 1, 10, 100:
    only the kept patch sees that mean, so dL/d(mean) = 1 and dL/df = 2/3;
      a dropped patch: its own c, and (2/3) p_j (1 + q (x_j - f)): content, and the look that weighs it;
      the kept one: 2 + 2/3, and its look moves nothing; the class token: 2/3 + (2/3) Var_p(x).
    """
    q, x, c = 0.5, [2.0, 1.0, -1.0], [1.0, 10.0, 100.0]
    first, second = meaning_block(value=0.0), meaning_block()
    with torch.no_grad():
        first.attn.qkv.weight[:2] = 1.0
    first.mlp = nn.Identity()
    tokens = torch.tensor([[[q], *([value] for value in x)]], requires_grad=True)
    out = EVit(at=(0,), keep=1 / 3)([first, second], tokens, 1)
    p = [sigmoid(q * 2), 1 - sigmoid(q * 2)]
    f = p[0] - p[1]
    assert out.flatten().tolist() == approx([4 + (2 * q + 2 * f + 4) / 3, 1.0, -1.0])
    (out.flatten() * torch.tensor(c)).sum().backward()
    dropped = [own + 2 / 3 * w * (1 + q * (value - f)) for own, w, value in zip(c[1:], p, x[1:], strict=True)]
    variance = p[0] * (1 - f) ** 2 + p[1] * (-1 - f) ** 2
    assert tokens.grad.flatten().tolist() == approx([2 / 3 + 2 / 3 * variance, 2 + 2 / 3, *dropped])


def test_tome_shares_a_gradient_by_size():
    """Patches in two directions; 0 goes into 1, then 2 into both: sizes 1, 2, 3 of 4.

    t = x + M with M the mean of all four. The second block looks by size, so its mean is that of all four again, 2M:
    patches 0, 1, 2 all end as (x_0 + x_1 + x_2) / 3 + 3M and patch 3 as x_3 + 3M (a mean of means that forgot sizes
    would give x_2 a half). So each of the three gets a third of their c, and all get 3/4 of the whole; the matching
    itself has no gradient.
    """
    made = ToMe([1, 1])
    blocks = [meaning_block(2), meaning_block(2)]
    with torch.no_grad():
        for block in blocks:
            block.attn.qkv.weight[2:4] = torch.eye(2)
    x = torch.tensor([[[4.0, 1.0], [8.0, 2.0], [4.0, 2.0], [-9.0, 1.0]]], requires_grad=True)
    c = torch.tensor([1.0, 2.0, 6.0, 10.0])
    out = made(blocks, x, 0)
    total = x.detach()[0].mean(dim=0)
    group = x.detach()[0, :3].mean(dim=0) + 3 * total
    torch.testing.assert_close(out[0].detach(), torch.stack([group, group, group, x.detach()[0, 3] + 3 * total]))
    (out[0, :, 0] * c).sum().backward()
    everybody = 3 * 19 / 4
    assert x.grad[0, :, 0].tolist() == approx([3 + everybody] * 3 + [10 + everybody])
    assert x.grad[0, :, 1].tolist() == [0.0] * 4


def test_guided_patches():
    """Scores keep patches 2 and 3 of 5, 1, 3: out = x + 2 there, 5 stays. dL/dx = c, and (c_2 + c_3) / 2 on top."""
    method = GuidedKeep(2 / 3)
    method.scores = torch.tensor([[0.0, 2.0, 1.0]])
    x = torch.tensor([[[5.0], [1.0], [3.0]]], requires_grad=True)
    out = method([meaning_block()], x, 0)
    assert out.flatten().tolist() == [5.0, 3.0, 5.0]
    (out.flatten() * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert x.grad.flatten().tolist() == [1.0, 2 + 3, 4 + 3]
