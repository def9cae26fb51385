"""Class channels and their loss in the picture, against hand arithmetic."""

import math

import pytest
import torch

from fusion.encoders.perspective import CLASS_SCALE, center_map_loss, with_class_channels
from fusion.encoders.views import ViewEncoder

NARROW = {"channels": [16, 24, 32, 48]}


def context_of(scores: dict[tuple[int, int, int], float], elsewhere: float, size=(1, 2)) -> torch.Tensor:
    context = torch.full((1, 12, *size), CLASS_SCALE * elsewhere)
    for where, score in scores.items():
        context[(0, *where)] = CLASS_SCALE * score
    return context


def test_loss_by_hand():
    target = torch.zeros(1, 10, 1, 2)
    target[0, 3, 0, 0], target[0, 3, 0, 1] = 1.0, 0.5
    loss = center_map_loss(context_of({(3, 0, 0): 0.7, (3, 0, 1): 0.2}, elsewhere=0.1), target)
    centre = 0.3**2 * -math.log(0.7)
    beside = 0.5**4 * 0.2**2 * -math.log(0.8)
    others = 18 * 0.1**2 * -math.log(0.9)
    assert loss.item() == pytest.approx(centre + beside + others, rel=1e-5)


def test_a_coarser_map_takes_the_highest_of_its_parts():
    fine = torch.zeros(1, 10, 2, 4)
    fine[0, 3, 1, 1], fine[0, 3, 0, 2] = 1.0, 0.5
    coarse = torch.zeros(1, 10, 1, 2)
    coarse[0, 3, 0, 0], coarse[0, 3, 0, 1] = 1.0, 0.5
    context = context_of({(3, 0, 0): 0.7}, elsewhere=0.1)
    assert center_map_loss(context, fine).item() == center_map_loss(context, coarse).item()
    with pytest.raises(ValueError, match=r"whole multiple of the features' \(1, 2\), got \(3, 4\)"):
        center_map_loss(context, torch.zeros(1, 10, 3, 4))


def test_without_any_centre_the_loss_is_finite_and_pushes_down():
    context = context_of({}, elsewhere=0.1).requires_grad_()
    center_map_loss(context, torch.zeros(1, 10, 1, 2)).backward()
    assert (context.grad[:, :10] > 0).all()
    assert not context.grad[:, 10:].any()


def test_channels_are_scores_and_start_at_a_tenth():
    context = torch.randn(2, 12, 3, 4)
    context[:, :10] = 0.0
    turned = with_class_channels(context)
    torch.testing.assert_close(turned[:, :10], torch.full((2, 10, 3, 4), CLASS_SCALE * 0.1), rtol=2e-2, atol=0)
    assert torch.equal(turned[:, 10:], context[:, 10:])


def test_the_encoder_learns_a_class_from_the_picture_alone():
    torch.manual_seed(0)
    encoder = ViewEncoder("resnet18", 12, 4, neck_channels=16, backbone_options=NARROW, class_channels=True)
    images, target = torch.zeros(2, 3, 32, 64), torch.zeros(2, 10, 4, 8)
    images[0, :, 8:16, 16:24], target[0, 5, 1, 2] = 1.0, 1.0
    images[1, :, 16:24, 40:48], target[1, 5, 2, 5] = 1.0, 1.0
    optimizer = torch.optim.Adam(encoder.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = center_map_loss(encoder(images).context, target)
        loss.backward()
        optimizer.step()
    scores = encoder(images).context[:, :10]
    assert scores[0].argmax() == target[0].argmax()
    assert scores[1].argmax() == target[1].argmax()


def test_too_few_channels_are_refused():
    with pytest.raises(ValueError, match="at least 10 channels for class_channels, got 8"):
        ViewEncoder("resnet18", 8, 4, backbone_options=NARROW, class_channels=True)
