"""Collapse measures with a known answer, and letting rest what nobody used."""

import math

import pytest
import torch

from fusion.routing.diversity import mutual_information, route_diversity
from fusion.routing.plan import FULL, SKIP
from fusion.routing.unit_parameters import parameters_by_owner, rest_unused, rows_by_branch
from sensors.rig import LIDAR_UNIT, RADAR_UNIT, UNITS
from tests.fusion.small_model import small_batch, small_model

DAY, NIGHT = frozenset({"day"}), frozenset({"night"})


def routes(num: int, differing: bool) -> torch.Tensor:
    choice = torch.full((num, len(UNITS)), FULL)
    if differing:
        choice[num // 2 :, LIDAR_UNIT] = SKIP
    return choice


def one_hot(choice: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(choice, 3).float()


def test_a_router_that_follows_the_condition():
    choice = routes(1000, differing=True)
    found = route_diversity(choice, one_hot(choice), [DAY] * 500 + [NIGHT] * 500)
    assert found.num_routes == 2
    assert found.entropy == pytest.approx(math.log(2))
    assert found.condition_information == pytest.approx(math.log(2), abs=1e-3)
    assert found.gate_information == pytest.approx(math.log(2), abs=1e-6)
    assert found.usage[LIDAR_UNIT] == 0.5
    assert found.alarms() == []


def test_routes_that_have_nothing_to_do_with_the_condition():
    generator = torch.Generator().manual_seed(0)
    choice = torch.randint(0, 3, (3000, len(UNITS)), generator=generator)
    choice[:, 2:] = FULL
    words = [DAY if bit else NIGHT for bit in torch.randint(0, 2, (3000,), generator=generator).tolist()]
    found = route_diversity(choice, torch.full((3000, len(UNITS), 3), 1 / 3), words)
    assert found.num_routes == 9
    assert found.condition_information < 0.004
    assert found.gate_information == pytest.approx(0, abs=1e-6)
    assert any("do not depend" in alarm for alarm in found.alarms())


def test_a_collapsed_router_raises_every_alarm():
    choice = routes(50, differing=False)
    choice[:, RADAR_UNIT] = SKIP
    found = route_diversity(choice, one_hot(choice), [DAY] * 50)
    assert (found.num_routes, found.entropy, found.condition_information) == (1, 0.0, None)
    assert len(found.alarms()) == 3
    assert "RADAR" in found.alarms()[2]


def test_mutual_information_of_equal_labels_is_their_entropy():
    labels = torch.arange(4).repeat(2500)
    assert mutual_information(labels, labels) == pytest.approx(math.log(4), abs=1e-3)


def test_what_nobody_chose_is_not_moved_by_the_optimiser():
    model, batch = small_model(), small_batch(2)
    choice = torch.full((2, len(UNITS)), FULL)
    choice[:, LIDAR_UNIT] = SKIP
    plan = model.plan_of(choice, model.available(batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    # Masked execution gives everything a gradient, of zeros where it was not chosen.
    output = model(batch, plan=plan, execution="masked")
    output.head.heatmap.sum().backward()
    assert all(parameter.grad is not None for parameter in parameters_by_owner(model)["lidar.full"])
    used = rest_unused(model, rows_by_branch(plan))
    assert used == {"cameras": 12, "lidar.full": 0, "lidar.lite": 0, "radar.full": 2, "radar.lite": 0}
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert not any(name.startswith(("lidar", "radar.lite")) for name in moved)
    assert any(name.startswith("radar.full") for name in moved)
    assert any(name.startswith("cameras") for name in moved)


def test_a_unit_that_another_rank_chose_keeps_its_gradient():
    model = small_model()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    elsewhere = torch.zeros(len(UNITS), 3, dtype=torch.int64)
    elsewhere[LIDAR_UNIT, FULL] = 3
    used = rest_unused(model, torch.zeros_like(elsewhere), lambda rows: rows + elsewhere)
    assert used["lidar.full"] == 3
    assert all(parameter.grad is not None for parameter in model.lidar.full.parameters())
    assert all(parameter.grad is None for parameter in model.lidar.lite.parameters())
    assert all(parameter.grad is not None for parameter in model.router.parameters())
