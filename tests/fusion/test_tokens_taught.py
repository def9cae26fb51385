"""What learned token methods are taught by: a dense teacher, a prior over depth; and that evaluation drops for good."""

import copy
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.adaptive.token_terms import forget_tokens, has_token_loss, token_loss
from fusion.encoders.vit import VitViewEncoder
from fusion.encoders.vit_learned import AVit, DynamicVit
from fusion.encoders.vit_teacher import TokenTeacher
from fusion.encoders.vit_tokens import Dense, EVit
from fusion.routing.plan import FULL, LITE
from tests.fusion.small_model import small_batch
from tests.fusion.test_adaptive_views import view_model
from tests.fusion.test_token_gradients import meaning_block
from tests.fusion.test_tokens_vit import DIM, IMAGES, NUM_PATCHES, PLAIN, SIZE, encoder, with_method


def taught(keep: float | int = 0.5, **options) -> VitViewEncoder:
    """The weights of PLAIN, half of the patches dropped twice, and a teacher."""
    made = encoder(DynamicVit(DIM, (1, 2), keep), teacher=TokenTeacher(**options))
    made.load_state_dict(PLAIN.state_dict(), strict=False)
    torch.manual_seed(5)
    return made.train()


def test_the_terms_by_hand():
    """Two patches with two depths each, one feature; the second patch is dropped.

    Student's depths 1/2 and 1/2 in both, teacher's 3/4 and 1/4 in the first, 1/2 and 1/2 in the second:
    KL = (3/4 log 3/2 + 1/4 log 1/2) / 2, its slope on the student's logits (1/2 - 3/4) / 2 and (1/2 - 1/4) / 2.
    Features 3 against 1, kept, and 9 against 1, dropped: (3 - 1)^2, its slope 2 (3 - 1) on the kept one alone.
    """
    teacher = TokenTeacher(divergence_weight=1, feature_weight=10)
    targets, nothing = torch.ones(1, 2, 1), torch.nn.Identity()
    logits = torch.tensor([[[[math.log(3), 0.0]], [[0.0, 0.0]]]])  # 1 picture, 2 depths, 1 x 2 patches
    teacher._dense = lambda *given: (targets, logits)
    student, depths = torch.tensor([[[3.0], [9.0]]], requires_grad=True), torch.zeros(1, 2, 1, 2, requires_grad=True)
    assert teacher.token_loss() is None
    teacher.compare(nothing, nothing, torch.zeros(1, 3, 8, 16), student, depths, torch.tensor([[1.0, 0.0]]))
    divergence = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert teacher.last_terms.tolist() == [pytest.approx(divergence), pytest.approx(4.0)]
    loss = teacher.token_loss()
    assert loss.item() == pytest.approx(divergence + 40)
    loss.backward()
    assert depths.grad[0, :, 0].tolist() == [[pytest.approx(-1 / 8), 0.0], [pytest.approx(1 / 8), 0.0]]
    assert student.grad.flatten().tolist() == [40.0, 0.0]
    teacher.last_terms = None
    teacher.compare(nothing, nothing, torch.zeros(1, 3, 8, 16), student, depths)  # a method that does not say: both
    assert teacher.last_terms[1].item() == pytest.approx((4 + 64) / 2)


@pytest.mark.parametrize("weights", ["own", "start"])
def test_the_targets_are_those_of_the_dense_encoder(weights):
    made = taught(weights=weights)
    features = made(IMAGES)
    dense = PLAIN(IMAGES)
    p, q = (one.depth_logits.detach().softmax(dim=1) for one in (dense, features))
    divergence = (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(made.teacher.last_terms[0].detach(), divergence, rtol=1e-3, atol=1e-6)
    tokens = PLAIN.tokens((IMAGES - PLAIN.mean) / PLAIN.std)
    expected = PLAIN.vit.norm(Dense()(PLAIN.vit.blocks, tokens, 1))
    kept = made.method.last_kept.bool()
    assert 0 < kept.sum() < kept.numel()
    seen = []
    made.neck[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(2).transpose(1, 2)))
    torch.manual_seed(6)
    forget_tokens(made)
    made(IMAGES)
    kept = made.method.last_kept.bool()
    distance = (seen[0] - expected)[kept].square().mean()
    torch.testing.assert_close(made.teacher.last_terms[1].detach(), distance.detach(), rtol=1e-3, atol=1e-6)
    made.teacher.token_loss().backward()
    assert made.method.score[0][-1].weight.grad.abs().sum() > 0  # which patches stay is taught, too


def test_a_student_with_all_tokens_has_nothing_to_learn():
    made = taught(keep=1)
    made(IMAGES)
    assert made.teacher.last_terms.tolist() == [pytest.approx(0.0, abs=1e-6)] * 2


def test_the_start_stays_and_is_kept_with_the_model():
    made = taught(weights="start")
    names = {name for name, _ in made.named_parameters()}
    assert not any("teacher" in name for name in names), "a teacher is no parameter: nothing trains it"
    made(IMAGES)
    with torch.no_grad():
        for parameter in made.vit.parameters():
            parameter += 0.1
    made(IMAGES)
    first = made.vit.blocks[0].attn.qkv.weight
    assert torch.equal(made.teacher.start_blocks_0_attn_qkv_weight, PLAIN.vit.blocks[0].attn.qkv.weight)
    resumed = taught(weights="start")
    resumed.load_state_dict(made.state_dict())
    resumed(IMAGES)
    assert torch.equal(resumed.vit.blocks[0].attn.qkv.weight, first)
    assert torch.equal(resumed.teacher.start_blocks_0_attn_qkv_weight, PLAIN.vit.blocks[0].attn.qkv.weight)
    # Weights that were loaded before training first runs are the start.
    loaded = taught(weights="start")
    loaded.vit.load_state_dict(made.vit.state_dict())
    loaded(IMAGES)
    assert torch.equal(loaded.teacher.start_blocks_0_attn_qkv_weight, first)


def test_a_teacher_is_heard_in_training_alone():
    made = taught()
    calls = []
    made.vit.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    made(IMAGES)
    assert len(calls) == 1  # the student's blocks are run in parts: this is the teacher's
    assert made.training
    assert made.vit.blocks[0].training
    assert has_token_loss(made)
    loss = token_loss(made)
    assert loss.item() == pytest.approx((made.method.ratio_loss() + made.teacher.token_loss()).item())
    forget_tokens(made)
    assert made.method.last_kept is None
    assert token_loss(made) is None
    made.eval()
    calls.clear()
    with torch.no_grad():
        found, alone = made(IMAGES), with_method(copy.deepcopy(made.method))(IMAGES)
    assert len(calls) == 1  # the student's own first block
    assert torch.equal(found.context, alone.context)
    assert made.teacher.last_terms is None
    copy.deepcopy(taught())(IMAGES)


def test_the_terms_are_those_of_all_calls_of_a_step():
    """Two pictures at full size, then one at half: means over three rows, and the first two learn as well."""
    large, small = IMAGES[:2].clone().requires_grad_(), IMAGES[2:, :, ::2, ::2].clone().requires_grad_()
    for method in (DynamicVit(DIM, (1, 2), 0.5), AVit(target_depth=2)):
        made = encoder(method, teacher=TokenTeacher())
        made.load_state_dict(PLAIN.state_dict(), strict=False)
        parts, names = {}, [name for name in ("last_shares", "last_ponder", "last_halting") if hasattr(method, name)]
        for calls in ((large,), (small,), (large, small)):
            forget_tokens(made.train())
            for images in calls:
                torch.manual_seed(len(images))  # the same noise alone and together
                made(images)
            parts[len(calls), len(calls[0])] = [made.teacher.last_terms, *(getattr(method, name) for name in names)]
        assert (method.last_rows, made.teacher.last_rows) == (3, 3)
        for two, one, both in zip(parts[1, 2], parts[1, 1], parts[2, 2], strict=True):
            torch.testing.assert_close(both, (2 * two + one) / 3)
            grads = torch.autograd.grad(both.square().sum(), (large, small), retain_graph=True)
            assert all(grad.abs().sum() > 0 for grad in grads)
        copy.deepcopy(made)
        assert made.eval()(IMAGES).context.shape[0] == 3


def test_full_views_are_taught_where_lite_ones_run_after_them():
    model = view_model(DynamicVit(16, (1,), 0.5))
    model.cameras.encoder.teacher = TokenTeacher()
    batch = small_batch(1)
    batch.camera.images.requires_grad_()
    choice = model.full_plan(batch).choice
    choice[0, :6] = torch.tensor([FULL, LITE] * 3)
    for _ in range(2):  # each step begins anew
        output = model.train()(batch, plan=model.plan_of(choice, model.available(batch)))
        (grad,) = torch.autograd.grad(output.token_loss, batch.camera.images)
        assert (grad[0].abs().sum(dim=(1, 2, 3)) > 0).all()
        assert model.cameras.encoder.method.last_rows == 6


def test_a_model_passes_the_terms_on():
    model = view_model(DynamicVit(16, (1,), 0.5))
    model.cameras.encoder.teacher = TokenTeacher()
    batch = small_batch(1)
    model.train()
    torch.manual_seed(0)
    output = model(batch, plan=model.full_plan(batch))
    parts = [model.cameras.encoder.method, model.cameras.encoder.teacher, model.trunk.stages[-1][1]]
    assert output.token_loss.item() == pytest.approx(sum(part.token_loss().item() for part in parts))
    assert model.cameras.encoder.teacher.last_terms.min() > 0


def test_a_teacher_needs_something_to_teach():
    with pytest.raises(ValueError, match="expected a token method for a teacher, got none"):
        encoder(teacher=TokenTeacher())
    with pytest.raises(ValueError, match="expected weights of the teacher among own, start, got 'best'"):
        TokenTeacher("best")
    encoder(EVit((1,), 0.5), teacher=TokenTeacher()).train()(IMAGES)  # any method


@pytest.mark.parametrize("rate", [1.0, 0.6])
@torch.no_grad()
def test_dynamicvit_gathered_is_masked_and_what_is_dropped_is_gone(rate):
    made = with_method(DynamicVit(DIM, (1, 2), 0.5))
    made.set_rate(rate)
    shapes = []
    for block in made.vit.blocks:
        block.mlp.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape)))
    made(IMAGES)
    counts = [NUM_PATCHES]
    for _ in range(2):
        counts.append(round(0.5 * rate * counts[-1]))
    assert shapes == [(3, 1 + count, DIM) for count in (*counts, counts[-1])]
    tokens = made.tokens((IMAGES - made.mean) / made.std)
    gathered = made.method(made.vit.blocks, tokens, 1)
    masked = made.method.masked(made.vit.blocks, tokens, 1)
    torch.testing.assert_close(masked, gathered, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gathered, Dense()(made.vit.blocks, tokens, 1), atol=1e-3)
    with FlopCounterMode(display=False) as fewer:
        made.method(made.vit.blocks, tokens, 1)
    with FlopCounterMode(display=False) as every:
        made.method.masked(made.vit.blocks, tokens, 1)
    assert fewer.get_total_flops() < 0.65 * every.get_total_flops()
    assert made.gflops(SIZE) < PLAIN.gflops(SIZE)


class Plus(torch.nn.Module):
    """Halts by a given value; the second feature counts blocks."""

    def __init__(self, halting: float):
        super().__init__()
        self.first = math.log(halting / (1 - halting))

    def forward(self, tokens):
        return torch.stack([torch.full_like(tokens[..., 0], self.first), tokens[..., 1] + 1], dim=-1)


def test_the_prior_over_depth_by_hand():
    """Halting values 0.5 and 0.4, then the rest: p = 0.5, 0.4, 0.1; q ~ e^-1/2, 1, e^-1/2 around the second block.

    d p / d beta = 0.25, 0.24, -0.49 (h (1 - h), and what is missing to 1); d KL = sum d p_l (log p_l - log q_l + 1),
    of which the ones cancel.
    """
    method = AVit(gamma=1.0, beta=0.0, ponder_weight=0.0, target_depth=2, prior_weight=3.0).eval()
    method([Plus(value) for value in (0.5, 0.4, 0.3)], torch.zeros(1, 2, 2), 0)
    p, side = [0.5, 0.4, 0.1], math.exp(-0.5)
    q = [side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)]
    assert method.last_halting.tolist() == [pytest.approx(value, rel=1e-5) for value in p]
    divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    loss = method.token_loss()
    assert loss.item() == pytest.approx(3 * divergence, rel=1e-5)
    loss.backward()
    change = [0.25, 0.24, -0.49]
    slope = sum(d * math.log(a / b) for d, a, b in zip(change, p, q, strict=True))
    assert method.beta.grad.item() == pytest.approx(3 * slope, rel=1e-4)


def test_the_prior_is_asked_for_and_pulls_the_depth():
    """Without a target depth the loss is the ponder alone; with one, steps on beta move the mean depth towards it."""
    plain = AVit(gamma=0.0, beta=-1.0)
    blocks, tokens = [meaning_block(2, 0.0)] * 4, torch.zeros(1, 1, 2)
    plain(blocks, tokens, 0)
    assert plain.token_loss().item() == pytest.approx(5e-4 * plain.last_ponder.item())
    depths = {}
    for target in (1, 4):
        method = AVit(gamma=0.0, beta=-1.0, target_depth=target)
        for _ in range(8):
            method.beta.grad = method.last_ponder = method.last_halting = None
            method(blocks, tokens, 0)
            method.token_loss().backward()
            with torch.no_grad():
                method.beta -= 0.4 * method.beta.grad.sign()
        depths[target] = float((method.last_halting.detach() * torch.arange(1, 5)).sum())
    start = float((plain.last_halting.detach() * torch.arange(1, 5)).sum())
    assert depths[1] < start - 0.5
    assert depths[4] > start + 0.3


@torch.no_grad()
def test_where_all_patches_have_halted_nothing_runs():
    """Without a class token nothing goes on: all halt after the first of three blocks that add what they see."""
    method = AVit(gamma=0.0, beta=10.0).eval()
    out = method([meaning_block(2)] * 3, torch.ones(2, 3, 2), 0)
    assert out.tolist() == torch.full((2, 3, 2), 2.0).tolist()
    assert method.last_depths.tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("options", [{"target_depth": 0.5}, {"target_depth": 3, "prior_spread": 0}])
def test_a_prior_that_cannot_be(options):
    with pytest.raises(ValueError, match="expected target_depth from 1 and prior_spread above 0"):
        AVit(**options)
