"""Every relaxation against arithmetic by hand, its own distribution, and the contract that the router relies on."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.routing.budget import RouteTable
from fusion.routing.nested_gates import GumbelSigmoid, HardConcrete, SemanticHashing
from fusion.routing.plan import FULL, LITE, NUM_BRANCHES, SKIP
from fusion.routing.relaxations import (
    GumbelStraightThrough,
    Relaxation,
    ScoreFunction,
    SoftmaxStraightThrough,
    SoftToHard,
    SoftWeights,
    log_probs_of,
)
from fusion.routing.router import Router
from fusion.routing.supervision import self_critical_loss
from tests.fusion.routing_toys import toy_glance, toy_prices

DIFFERENTIABLE = [
    GumbelStraightThrough,
    SoftmaxStraightThrough,
    SoftToHard,
    SoftWeights,
    GumbelSigmoid,
    SemanticHashing,
    HardConcrete,
]
ALL = [*DIFFERENTIABLE, ScoreFunction]
HARD = [GumbelStraightThrough, SoftmaxStraightThrough, GumbelSigmoid, SoftToHard, SemanticHashing, ScoreFunction]
TABLE = RouteTable(toy_prices())
INF = torch.inf


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("kind", ALL)
def test_a_router_runs_with_it_and_keeps_the_cap(kind):
    torch.manual_seed(0)
    router = Router(relaxation=kind())
    assert isinstance(router.relaxation, Relaxation)
    available = torch.rand(12, 8, generator=torch.Generator().manual_seed(5)) < 0.7
    for training in (True, False):
        plan = router.train(training)(toy_glance(12, available=available), TABLE, 0.5)
        assert (plan.choice[~available] == SKIP).all()
        assert (TABLE.prices.cost_of(plan.choice) <= 0.5 + 2e-6).all()
        assert torch.isfinite(plan.gates).all()
        torch.testing.assert_close(plan.gates.sum(-1), torch.ones(12, 8))
        torch.testing.assert_close(plan.probs.sum(-1), torch.ones(12, 8))
        assert (plan.gates[~available][:, SKIP] == 1).all()
        assert torch.isfinite(plan.log_prob[plan.log_prob > -INF]).all()


@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_gradients_reach_every_parameter_of_the_gate(kind):
    torch.manual_seed(0)
    router = Router(relaxation=kind())
    router.bias.data[:] = torch.tensor([0.1, 0.0, 0.2])  # away from the flat ends of the clipped gates
    weight = torch.randn(8, 8, NUM_BRANCHES, generator=torch.Generator().manual_seed(2))
    (router(toy_glance(8), TABLE).gates * weight).sum().backward()
    for name, parameter in router.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    assert (router.bias.grad.abs().sum(-1) > 0).all()
    assert router.thumbnail[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", HARD)
def test_evaluation_gates_are_exactly_one_hot(kind):
    relaxed = kind().eval()
    logits = torch.randn(6, 8, 3, generator=torch.Generator().manual_seed(1))
    scores = relaxed.scores(logits, None)
    choice = scores.argmax(-1)
    assert torch.equal(relaxed.gates(scores, choice), torch.nn.functional.one_hot(choice, 3).float())
    assert torch.equal(scores, relaxed.scores(logits, None))


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_nothing_is_nan_whatever_is_impossible(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(4, 8, 3, generator=generator) * 5).requires_grad_()
    possible = torch.rand(4, 8, 3, generator=generator) < 0.6
    possible[..., SKIP] |= ~possible.any(-1)
    masked = logits.masked_fill(~possible, -INF)
    relaxed = kind()
    scores = relaxed.scores(masked, generator)
    assert not scores.isnan().any()
    assert (scores[~possible] < -1e3).all() or kind is SoftWeights
    choice = scores.masked_fill(~possible, -INF).argmax(-1)
    assert possible.gather(-1, choice[..., None]).all()
    gates = relaxed.gates(scores, choice)
    log_probs = log_probs_of(relaxed, masked)
    assert (log_probs[~possible] == -INF).all()
    (gates.sum() + log_probs.masked_fill(~possible, 0.0).sum()).backward() if gates.requires_grad else None
    assert logits.grad is None or torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", [GumbelStraightThrough, GumbelSigmoid, HardConcrete, ScoreFunction])
def test_draws_follow_the_probabilities_that_the_plan_reports(kind):
    num = 20_000
    logits = torch.tensor([0.4, -0.3, 0.2])
    relaxed = kind()
    scores = relaxed.scores(logits.expand(num, 1, 3), torch.Generator().manual_seed(3))
    share = torch.bincount(scores.argmax(-1)[:, 0], minlength=3) / num
    expected = log_probs_of(relaxed, logits.view(1, 1, 3))[0, 0].exp()
    assert expected.sum().item() == pytest.approx(1, abs=1e-5)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / num).sqrt()).all()


def test_gumbel_sigmoid_by_hand():
    """One unit with one branch: gate 1 forward, sigmoid'(s / t) / t backward, for both signs of the logit."""
    for skip, temperature in ((0.7, 0.5), (-1.1, 2.0)):
        logits = torch.tensor([[[skip, -INF, 0.3]]], requires_grad=True)
        relaxed = GumbelSigmoid(temperature)
        scores = relaxed.scores(logits, None)
        choice = scores.argmax(-1)
        assert choice.item() == (FULL if skip <= 0.3 else SKIP)
        gates = relaxed.gates(scores, choice)
        gates[0, 0, FULL].backward()
        p = sigmoid((0.3 - skip) / temperature)
        slope = p * (1 - p) / temperature
        torch.testing.assert_close(logits.grad[0, 0], torch.tensor([-slope, 0.0, slope]))


def test_gumbel_sigmoid_chooses_the_branch_by_a_softmax():
    """logit of running: log(e^1 + e^2) - 0; d gate_full = share' where it runs (keep = 1 forward)."""
    logits = torch.tensor([[[0.0, 1.0, 2.0]]], requires_grad=True)
    relaxed = GumbelSigmoid()
    scores = relaxed.scores(logits, None)
    gates = relaxed.gates(scores, scores.argmax(-1))
    gates[0, 0, FULL].backward()
    share = math.exp(2) / (math.exp(1) + math.exp(2))
    keep = math.log(math.exp(1) + math.exp(2))
    slope = sigmoid(keep) * (1 - sigmoid(keep))
    by_hand = [-slope, slope * (1 - share) - share * (1 - share), slope * share + share * (1 - share)]
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor(by_hand))


def test_semantic_hashing_by_hand():
    logits = torch.tensor([[[0.0, -INF, 0.4]], [[0.0, -INF, 3.0]]], requires_grad=True)
    relaxed = SemanticHashing()
    scores = relaxed.scores(logits, None)
    gates = relaxed.gates(scores, scores.argmax(-1))
    assert gates[:, 0, FULL].tolist() == [1.0, 1.0]
    gates[:, 0, FULL].sum().backward()
    slope = 1.2 * sigmoid(0.4) * (1 - sigmoid(0.4))
    # sigmoid(3) = .953: 1.2 * .953 - .1 = 1.04 is clipped, so the second has no gradient.
    torch.testing.assert_close(logits.grad[:, 0], torch.tensor([[-slope, 0.0, slope], [0.0, 0.0, 0.0]]))


def test_semantic_hashing_lets_half_of_the_samples_through_softly():
    relaxed = SemanticHashing()
    logits = torch.zeros(2000, 1, 3)
    scores = relaxed.scores(logits, torch.Generator().manual_seed(0))
    choice = scores.argmax(-1)
    gates = relaxed.gates(scores, choice)
    runs = choice[:, 0] != SKIP
    value = 1 - gates[runs][:, 0, SKIP]
    soft = (value != 1).float()
    assert soft.mean().item() == pytest.approx(0.5, abs=0.1)
    noisy = scores[runs][:, 0, 1:].amax(-1)
    expected = (1.2 * noisy.sigmoid() - 0.1).clamp(0, 1)
    torch.testing.assert_close(value[soft.bool()], expected[soft.bool()])
    assert (gates[~runs][:, 0, SKIP] == 1).all()


def test_hard_concrete_by_hand():
    """sigmoid(0.5 / 0.5) = .731; stretched: .731 * 1.2 - .1 = .777; slope 1.2 * .731 * .269 / 0.5."""
    logits = torch.tensor([[[0.0, -INF, 0.5]]], requires_grad=True)
    relaxed = HardConcrete(temperature=0.5)
    scores = relaxed.scores(logits, None)
    gates = relaxed.gates(scores, scores.argmax(-1))
    assert gates[0, 0, FULL].item() == pytest.approx(1.2 * sigmoid(1.0) - 0.1)
    gates[0, 0, FULL].backward()
    slope = 1.2 * sigmoid(1.0) * (1 - sigmoid(1.0)) / 0.5
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([-slope, 0.0, slope]))
    probs = relaxed.log_probs(logits.detach()).exp()
    assert probs[0, 0, FULL].item() == pytest.approx(sigmoid(0.5 - 0.5 * math.log(0.1 / 1.1)))


def test_soft_to_hard_follows_its_temperature():
    relaxed = SoftToHard(temperature=2.0, hard_below=1.0)
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    choice = torch.tensor([[FULL]])
    torch.testing.assert_close(relaxed.gates(logits, choice), torch.softmax(logits / 2, -1))
    assert relaxed.eval().gates(logits, choice).tolist() == [[[0.0, 0.0, 1.0]]]
    relaxed.train().temperature = 1.0
    assert relaxed.gates(logits, choice).tolist() == [[[0.0, 0.0, 1.0]]]


def test_soft_weights_run_all_and_weigh_it():
    torch.manual_seed(0)
    router = Router(relaxation=SoftWeights()).eval()
    router.bias.data[:] = torch.tensor([2.0, 0.0, 0.0])  # skip is the likeliest, and runs all the same
    plan = router(toy_glance(3), TABLE)
    assert (plan.choice != SKIP).all()
    torch.testing.assert_close(plan.weight, 1 - plan.probs[..., SKIP])
    assert (plan.weight < 0.4).all()


def test_score_function_bounds_like_blockdrop():
    """alpha p + (1 - alpha)(1 - p) with alpha = .8 is bound = .6 of p and the rest uniform."""
    logits = torch.tensor([[[0.0, -INF, 1.7]]])
    p = sigmoid(1.7)
    found = ScoreFunction(bound=0.6).log_probs(logits).exp()
    assert found[0, 0, FULL].item() == pytest.approx(0.8 * p + 0.2 * (1 - p))
    assert found[0, 0, LITE].item() == 0
    assert not ScoreFunction().gates(logits.requires_grad_(), torch.tensor([[FULL]])).requires_grad


def test_reinforce_equals_the_closed_form():
    """Two units of three branches: the nine routes' advantage-weighted score gradients add up to grad E[R]."""
    logits = torch.tensor([[0.3, -0.2, 0.5], [-0.4, 0.1, 0.0]], dtype=torch.float64)
    reward = torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    exact = logits.clone().requires_grad_()
    probs = exact.softmax(-1)
    (probs[0][:, None] * probs[1][None] * reward).sum().backward()
    greedy = reward[logits[0].argmax(), logits[1].argmax()]

    estimated = torch.zeros_like(logits)
    for one, other in product(range(3), repeat=2):
        given = logits.clone().requires_grad_()
        log_probs = given.log_softmax(-1)
        log_prob = (log_probs[0, one] + log_probs[1, other])[None]
        self_critical_loss(log_prob, reward[one, other][None], greedy[None]).backward()
        estimated -= given.grad * log_prob.detach().exp()
    torch.testing.assert_close(estimated, exact.grad)


def test_reinforce_by_draws_agrees_within_its_error():
    num = 4000
    logits = torch.tensor([[[0.3, -0.2, 0.5]]])
    reward = torch.tensor([1.0, -0.5, 0.3])
    exact = logits.clone().requires_grad_()
    (exact.softmax(-1) * reward).sum().backward()
    given = logits.expand(num, 1, 3).clone().requires_grad_()
    relaxed = ScoreFunction(bound=1.0)
    choice = relaxed.scores(given, torch.Generator().manual_seed(9)).argmax(-1)
    log_prob = relaxed.log_probs(given).gather(-1, choice[..., None]).sum((1, 2))
    self_critical_loss(log_prob, reward[choice[:, 0]], reward[2].expand(num)).backward()
    drawn = -given.grad[:, 0] * num
    error = drawn.std(0) / math.sqrt(num)
    assert ((drawn.mean(0) - exact.grad[0, 0]).abs() < 4 * error).all()
