import pytest
import torch

from fusion.routing.relaxations import GumbelStraightThrough, SoftmaxStraightThrough, gumbel_noise

LOGITS = torch.tensor([[[0.2, -1.0, 0.7], [2.0, -torch.inf, 0.1]]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("relaxation", [GumbelStraightThrough, SoftmaxStraightThrough])
def test_forward_is_one_hot_and_backward_is_the_softmax(relaxation, temperature):
    relaxed = relaxation(temperature)
    logits = LOGITS.clone().requires_grad_()
    choice = torch.tensor([[2, 0]])
    gates = relaxed.gates(relaxed.scores(logits, None), choice)
    assert torch.equal(gates.detach(), torch.nn.functional.one_hot(choice, 3).float())
    gates[0, 0, 2].backward()
    soft = torch.softmax(LOGITS[0, 0] / temperature, dim=-1)
    # d softmax_i / d logit_j = softmax_i (delta_ij - softmax_j) / temperature
    by_hand = soft[2] * (torch.tensor([0.0, 0.0, 1.0]) - soft) / temperature
    torch.testing.assert_close(logits.grad[0, 0], by_hand)
    assert torch.equal(logits.grad[0, 1], torch.zeros(3))


def test_an_impossible_branch_gets_no_gradient_and_no_nan():
    logits = LOGITS.clone().requires_grad_()
    relaxed = GumbelStraightThrough()
    relaxed.gates(
        relaxed.scores(logits, torch.Generator().manual_seed(0)), torch.tensor([[0, 0]])
    ).square().sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1, 1] == 0


def test_without_a_generator_there_is_no_noise():
    assert torch.equal(GumbelStraightThrough().scores(LOGITS, None), LOGITS)


def test_gumbel_argmax_draws_from_the_softmax():
    num = 20_000
    noise = gumbel_noise((num, 3), torch.Generator().manual_seed(3))
    counts = torch.bincount((LOGITS[0, 0] + noise).argmax(-1), minlength=3) / num
    expected = torch.softmax(LOGITS[0, 0], dim=-1)
    four_errors = 4 * (expected * (1 - expected) / num).sqrt()
    assert ((counts - expected).abs() < four_errors).all()


def test_a_temperature_of_zero_is_an_error():
    with pytest.raises(ValueError, match="above 0"):
        GumbelStraightThrough(0.0)
