"""Losses of exits: closed forms, and gradients against hand computations on toys."""

import math

import pytest
import torch
from torch.func import functional_call

from fusion.heads.losses import center_loss, weighted_sum
from fusion.heads.targets import center_targets
from fusion.trunk.exits_losses import (
    DistillationLoss,
    JointLoss,
    SampleWeights,
    distance_to_teacher,
    exit_losses,
    exit_probabilities,
    falling_weights,
    gate_loss,
    gate_targets,
    gradient_agreement,
    owned_loss,
    owners,
    virtual_step,
)
from fusion.trunk.exits_peaks import joined
from fusion.trunk.exits_policies import LearnedGate
from tests.fusion.exit_toys import GRID, maps_with, peaks_at
from tests.fusion.random_batch import random_batch

BOXES = random_batch(2, image_size_px=(32, 64), depth_stride=8, half_m=7.0).boxes
TARGETS = center_targets(BOXES, 2, GRID)


def outputs(*logits):
    return [maps_with([(0, 0, 5, 5, logit), (1, 3, 2, 2, logit)], num_samples=2) for logit in logits]


def test_joint_loss_adds_up():
    parts = outputs(1.0, 2.0, 3.0)
    alone = torch.stack([weighted_sum(center_loss(one, TARGETS)) for one in parts])
    torch.testing.assert_close(exit_losses(parts, TARGETS).sum(dim=0), alone)
    torch.testing.assert_close(JointLoss()(parts, TARGETS), alone.sum())
    torch.testing.assert_close(JointLoss(with_last=False)(parts, TARGETS), alone[:2].sum())
    weights = falling_weights(3)
    assert weights == [3.0, 2.0, 1.0]
    torch.testing.assert_close(JointLoss(weights)(parts, TARGETS), (alone * torch.tensor(weights)).sum())
    with pytest.raises(ValueError, match="each of 3"):
        JointLoss([1.0])(parts, TARGETS)


def test_a_student_that_repeats_the_teacher_is_at_no_distance():
    student, teacher = outputs(1.0, 2.0)
    assert float(distance_to_teacher(student, student, TARGETS)) == pytest.approx(0, abs=1e-4)
    student.heatmap.requires_grad_()
    teacher.heatmap.requires_grad_()
    for temperature in (1.0, 2.0):
        student.heatmap.grad = None
        distance = distance_to_teacher(student, teacher, TARGETS, temperature)
        distance.backward()
        assert teacher.heatmap.grad is None
        # d/ds T^2 KL(p_T || p_s) = T (sigmoid(s/T) - sigmoid(t/T)).
        gap = (student.heatmap / temperature).sigmoid() - (teacher.heatmap / temperature).sigmoid()
        torch.testing.assert_close(student.heatmap.grad, temperature * gap.detach() / len(TARGETS.sample))
    # Two cells differ: KL of Bernoulli variables by hand.
    p, q = 1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-1.0))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(distance_to_teacher(student, teacher, TARGETS)) == pytest.approx(
        2 * kl / len(TARGETS.sample), rel=1e-3
    )


@pytest.mark.parametrize("teachers", ["last", "later"])
def test_distillation_by_its_formula(teachers):
    parts = outputs(0.0, 1.0, 2.0)
    own = exit_losses(parts, TARGETS).sum(dim=0)
    to = {(k, j): distance_to_teacher(parts[k], parts[j], TARGETS) for k in range(3) for j in range(3)}
    first = to[0, 2] if teachers == "last" else (to[0, 1] + to[0, 2]) / 2
    expected = own[2] + 0.7 * (own[0] + own[1]) + 0.3 * (first + to[1, 2])
    torch.testing.assert_close(DistillationLoss(teachers, share=0.3)(parts, TARGETS), expected)
    without = DistillationLoss(teachers, share=0.3, with_last=False)(parts, TARGETS)
    torch.testing.assert_close(without, expected - own[2])
    with pytest.raises(ValueError, match="teachers"):
        DistillationLoss("first")


def test_sample_weights_keep_the_sum_of_each_exit():
    torch.manual_seed(0)
    weigher = SampleWeights(3)
    losses = torch.rand(8, 3, requires_grad=True)
    weights = weigher(losses)
    torch.testing.assert_close(weights.sum(dim=0), torch.full((3,), 8.0))
    assert float(weights.std()) > 0
    (weights * losses).sum().backward()
    torch.testing.assert_close(losses.grad, weights.detach())  # through the losses alone, not through their weights


def test_a_virtual_step_by_hand():
    """theta' = theta - lr w d/dtheta (theta - a)^2; meta loss (theta' - b)^2 in w."""
    theta, w = torch.tensor(3.0, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    stepped = virtual_step({"theta": theta}, w * (theta - 1.0) ** 2, 0.1)["theta"]
    assert float(stepped) == pytest.approx(3.0 - 0.1 * 0.5 * 2 * 2.0)
    ((stepped - 2.0) ** 2).backward()
    assert float(w.grad) == pytest.approx(2 * (2.8 - 2.0) * (-0.1 * 2 * 2.0))


def test_a_virtual_step_runs_through_a_module():
    layer = torch.nn.Linear(2, 1, bias=False)
    own = dict(layer.named_parameters())
    stepped = virtual_step(own, layer(torch.ones(1, 2)).sum(), 1.0)
    torch.testing.assert_close(functional_call(layer, stepped, torch.ones(1, 2)), layer(torch.ones(1, 2)) - 2.0)


def test_owners_are_the_surest_of_those_still_there():
    scores = torch.tensor([[0.9, 0.0], [0.1, 0.8], [0.8, 0.1], [0.2, 0.3]])
    left = owners(scores, [0.5, 0.25, 0.25])
    assert left.tolist() == [0, 1, 0, 2]
    losses = torch.arange(12.0).view(4, 3)
    assert float(owned_loss(losses, left)) == (0 + 4 + 6 + 11) / 4


def test_gate_targets_price_depth():
    losses = torch.tensor([[1.0, 0.9, 0.2], [0.3, 0.4, 0.5], [5.0, 1.0, 0.9]])
    costs = torch.tensor([1.0, 2.0, 3.0])
    assert gate_targets(losses, costs, 0.0).tolist() == [[0, 0], [1, 1], [0, 0]]
    assert gate_targets(losses, costs, 0.5).tolist() == [[1, 1], [1, 1], [0, 1]]


def test_a_gate_learns_to_tell_sure_from_unsure():
    exits = [joined([peaks_at([(0, 0)], logit=logit) for logit in (5.0, 4.0, 0.2, 0.0, 4.5, 0.1)])]
    wanted = torch.tensor([1.0, 1, 0, 0, 1, 0])[:, None]
    gate = LearnedGate(1)
    assert float(gate_loss(gate, exits, wanted)) == pytest.approx(math.log(2))
    optimizer = torch.optim.Adam(gate.parameters(), 0.2)
    for _ in range(60):
        optimizer.zero_grad()
        gate_loss(gate, exits, wanted).backward()
        optimizer.step()
    assert ((gate(exits) > 0.5).float() == wanted[:, 0]).all()


def test_exit_probabilities_fill_up_to_one():
    found = exit_probabilities(torch.tensor([[0.3, 0.5], [0.8, 0.9], [0.0, 0.0], [1.0, 0.4]]))
    expected = [[0.3, 0.5, 0.2], [0.8, 0.2, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gradients_that_agree_and_that_do_not():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    unused = torch.zeros(1, requires_grad=True)
    agreement = gradient_agreement([x.sum(), 2 * x.sum(), -x[0], x[0] - x[1]], [x, unused])
    root = 1 / math.sqrt(2)
    torch.testing.assert_close(agreement[0], torch.tensor([1.0, 1.0, -root, 0.0]))
