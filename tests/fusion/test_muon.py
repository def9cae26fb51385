"""Muon against the singular value decomposition, its AdamW part against torch's own, its memory across a restart."""

import copy
import math

import pytest
import torch
from torch import nn

from fusion.muon import MuonAdamW, orthogonalized
from fusion.optim import LAST_LAYERS, OptimizerSettings
from tests.fusion.small_model import small_model
from tests.fusion.toy_model import ToyModel


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 9)])
def test_orthogonalized_has_singular_values_near_one_and_keeps_its_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ orthogonalized(matrix) @ right.T
    values = torch.linalg.svdvals(matrix)
    strong = values > 0.1 * values.max()  # five steps do not lift a nearly vanishing direction all the way
    assert ((core.diagonal() > 0.6) & (core.diagonal() < 1.3))[strong].all()
    assert (core - core.diagonal().diag()).abs().max() < 1e-4


def test_zeros_stay_zeros():
    assert torch.equal(orthogonalized(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_step_follows_the_nesterov_momentum_by_hand():
    weight = nn.Parameter(torch.ones(4, 2, 3, 3))
    optimizer = MuonAdamW([{"params": [weight], "lr": 0.1, "weight_decay": 0.5, "muon": True}], momentum=0.9)
    gradient = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    mean = torch.zeros_like(gradient)
    expected = weight.detach().clone()
    for _ in range(2):
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient
        matrix = (0.1 * gradient + 0.9 * mean).reshape(4, 18)
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * 0.2 * math.sqrt(18) * orthogonalized(matrix).reshape(4, 2, 3, 3)
        assert torch.equal(weight.grad, gradient)
        torch.testing.assert_close(weight.detach(), expected)


def test_the_other_groups_are_adamw_to_the_last_bit():
    def trained(optimizer_of):
        layer = nn.Linear(5, 3)
        with torch.no_grad():
            layer.weight.fill_(0.3), layer.bias.zero_()
        optimizer = optimizer_of(layer)
        for step in range(5):
            optimizer.zero_grad()
            layer(torch.full((2, 5), 0.1 * step)).square().sum().backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in layer.parameters()])

    def group(layer):
        return {"params": list(layer.parameters()), "lr": 0.01, "weight_decay": 0.1}

    ours = trained(lambda layer: MuonAdamW([{**group(layer), "muon": False}], betas=(0.9, 0.99)))
    assert torch.equal(ours, trained(lambda layer: torch.optim.AdamW([group(layer)], betas=(0.9, 0.99))))


def test_a_restarted_optimizer_goes_on_exactly():
    settings = OptimizerSettings(1e-2, 1e-2, method="muon")

    def steps(model, optimizer, first, last):
        for step in range(first, last):
            optimizer.zero_grad()
            for index, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(100 * step + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    whole = ToyModel()
    stopped = copy.deepcopy(whole)
    optimizer, _ = settings.build(whole, lambda *_: 1.0)
    steps(whole, optimizer, 0, 6)
    first, _ = settings.build(stopped, lambda *_: 1.0)
    steps(stopped, first, 0, 3)
    second, _ = settings.build(stopped, lambda *_: 1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(stopped, second, 3, 6)
    for ours, theirs in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_parameter_has_one_group_and_the_ends_of_the_network_stay_with_adamw():
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer, _ = OptimizerSettings(method="muon", muon_learning_rate=0.03).build(model, lambda *_: 1.0)
    by_method = {True: set(), False: set()}
    for group in optimizer.param_groups:
        by_method[group["muon"]] |= {names[id(parameter)] for parameter in group["params"]}
    assert not by_method[True] & by_method[False]
    assert by_method[True] | by_method[False] == set(names.values())
    rates = {group["muon"]: group["lr"] for group in optimizer.param_groups if group["name"] != "router"}
    assert rates == {True: 0.03, False: 1e-3}
    assert any(name.startswith("trunk.") for name in by_method[True])
    assert all(name.endswith(".weight") and not name.startswith(("router", *LAST_LAYERS)) for name in by_method[True])
    assert any(name.startswith(LAST_LAYERS) and name.endswith("weight") for name in by_method[False])


def test_a_vector_in_a_muon_group_and_an_unknown_method_are_refused():
    with pytest.raises(ValueError, match="expected matrices"):
        MuonAdamW([{"params": [nn.Parameter(torch.ones(3))], "muon": True}])
    with pytest.raises(ValueError, match="expected method to be one of adamw, muon, got 'sgd'"):
        OptimizerSettings(method="sgd")
