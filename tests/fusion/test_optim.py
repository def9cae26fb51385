"""Parameter groups and schedules against closed forms."""

import math

import pytest
from torch import nn

from fusion.optim import OptimizerSettings, learning_rate_factor, parameter_groups
from tests.fusion.toy_model import ToyModel


def test_every_parameter_is_in_one_group_and_only_weights_decay():
    model = ToyModel()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["name"]: group for group in parameter_groups(model, 0.1, 0.3, 0.05)}
    found = [names[id(parameter)] for group in groups.values() for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())
    router = [names[id(parameter)] for parameter in groups["router"]["params"]]
    assert router
    assert all(name.startswith("router.") for name in router)
    assert groups["router"]["lr"] == 0.3
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "weights": 0.05,
        "biases": 0.0,
        "router": 0.0,
    }
    assert all(parameter.ndim > 1 for parameter in groups["weights"]["params"])
    decayed = {names[id(parameter)] for parameter in groups["weights"]["params"]}
    assert "trunk.0.weight" in decayed
    assert not decayed & {"trunk.0.bias", "trunk.1.weight", "trunk.1.bias"}


def test_a_model_without_router_has_no_empty_group():
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2), 0.1, 0.3, 0.05)] == ["weights", "biases"]


def test_one_cycle_rises_and_falls_by_half_cosines():
    factor = learning_rate_factor("onecycle", num_steps=101, warm_up_steps=10)
    assert factor(0) == pytest.approx(1 / 25)
    assert factor(5) == pytest.approx((1 / 25 + 1) / 2)
    assert factor(10) == pytest.approx(1.0)
    assert factor(55) == pytest.approx((1 + 1e-4) / 2)
    assert factor(100) == pytest.approx(1e-4)
    assert factor(102) == pytest.approx(1e-4)
    assert all(math.isfinite(learning_rate_factor("onecycle", 1, 10)(step)) for step in range(3))


def test_constant_rises_linearly_and_stays():
    factor = learning_rate_factor("constant", num_steps=100, warm_up_steps=3)
    assert [factor(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    "settings",
    [{"schedule": "cosine"}, {"warm_up_steps": -1}, {"learning_rate": 0.0}, {"weight_decay": -1.0}],
)
def test_wrong_settings_are_one_line(settings):
    with pytest.raises(ValueError, match="expected") as error:
        OptimizerSettings(**settings)
    assert "\n" not in str(error.value)
