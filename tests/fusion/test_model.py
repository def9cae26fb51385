import copy
from dataclasses import fields, replace

import pytest
import torch

from datamodules.batch import Batch, CameraBatch, PointBatch
from fusion.model import FusionModel
from fusion.routing.budget import budget_loss
from fusion.routing.plan import FULL, LITE, SKIP
from sensors.rig import CAMERAS, CHANNELS, LIDAR, LIDAR_UNIT, NUM_CAMERAS, RADARS, UNITS
from tests.fusion.small_model import small_batch, small_model
from tests.fusion.test_dispatch import assert_equal_outputs, maps_of

MODEL = small_model().eval()
LOST_GROUPS = {"camera": CAMERAS, "lidar": (LIDAR,), "radar": RADARS}


def sample_of(batch: Batch, row: int) -> Batch:
    """One sample of a batch, on its own."""

    def cut(name: str, value):
        if isinstance(value, PointBatch):
            return value.rows(torch.tensor([row]))
        if isinstance(value, CameraBatch):
            return CameraBatch(**{item.name: cut(item.name, getattr(value, item.name)) for item in fields(value)})
        return None if name == "boxes" or value is None else value[row : row + 1]

    return Batch(**{item.name: cut(item.name, getattr(batch, item.name)) for item in fields(batch)})


@torch.no_grad()
def test_a_sample_has_the_same_output_alone_and_in_company():
    batch = small_batch(3, lost=((1, LIDAR), (2, "CAM_FRONT")))
    budget = torch.tensor([1.0, 0.6, 0.45])
    together = MODEL(batch, budget)
    for row in range(3):
        alone = MODEL(sample_of(batch, row), budget[row : row + 1])
        assert torch.equal(alone.plan.choice[0], together.plan.choice[row])
        assert alone.trace.gflops()[0] == pytest.approx(together.trace.gflops()[row])
        assert_equal_outputs(alone.head, together.head.select(slice(row, row + 1)))


@torch.no_grad()
def test_evaluation_is_deterministic():
    batch = small_batch(2)
    first, second = MODEL(batch, 0.6), MODEL(batch, 0.6)
    assert torch.equal(first.plan.choice, second.plan.choice)
    for name, value in maps_of(first.head).items():
        assert torch.equal(value, maps_of(second.head)[name])


@pytest.mark.parametrize("execution", ["sparse", "masked"])
@pytest.mark.parametrize("present", [(), ("camera",), ("lidar",), ("radar",)])
def test_any_sensor_alone_and_none_at_all_give_finite_outputs_and_gradients(execution, present):
    lost = [
        (row, name) for group, names in LOST_GROUPS.items() if group not in present for name in names for row in (0, 1)
    ]
    model = small_model()
    output = model(small_batch(2, lost=tuple(lost)), execution=execution)
    assert output.trace.num_samples == 2
    total = sum(value.square().mean() for value in maps_of(output.head).values())
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if not present:
        assert (output.plan.choice == SKIP).all()
        assert output.depth_loss is None


@torch.no_grad()
def test_what_is_absent_is_not_read():
    """Garbage in the place of an absent view changes nothing."""
    batch = small_batch(2, lost=((0, "CAM_BACK"),))
    images = batch.camera.images.clone()
    images[0, CAMERAS.index("CAM_BACK")] = torch.nan
    dirty = replace(batch, camera=replace(batch.camera, images=images))
    for execution in ("sparse", "masked"):
        assert_equal_outputs(MODEL(batch, execution=execution).head, MODEL(dirty, execution=execution).head)


@torch.no_grad()
def test_a_skipped_sensor_is_the_same_as_an_absent_one():
    batch = small_batch(2)
    nowhere = torch.zeros(2, dtype=torch.bool)
    no_points = PointBatch(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), nowhere)
    present = batch.unit_present.clone()
    present[:, LIDAR_UNIT] = False
    without = replace(batch, lidar=no_points, unit_present=present)
    choice = torch.full((2, len(UNITS)), FULL)
    choice[:, LIDAR_UNIT] = SKIP
    skipped = MODEL(batch, plan=MODEL.plan_of(choice, MODEL.available(batch)))
    assert_equal_outputs(skipped.head, MODEL(without, plan=MODEL.full_plan(without)).head)


@pytest.mark.parametrize("execution", ["sparse", "masked"])
def test_the_router_learns_from_the_task_alone(execution):
    model = small_model().train()
    model(small_batch(2), execution=execution).head.heatmap.square().sum().backward()
    for name, parameter in model.router.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_masked_training_leaves_no_parameter_without_gradient():
    """What DistributedDataParallel asks for, whatever the routes."""
    model = small_model().train()
    output = model(small_batch(2), 0.6, execution="masked")
    sum(value.sum() for value in maps_of(output.head).values()).add(
        output.depth_loss + budget_loss(output.plan)
    ).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("floor", [(), ("LIDAR", "CAM_FRONT")])
@torch.no_grad()
def test_the_cost_of_every_sample_keeps_to_its_budget(training, floor):
    model = small_model(floor=floor).train(training)
    batch = small_batch(6)
    budget = torch.linspace(model.min_budget, 1.0, 6)
    output = model(batch, budget)
    spent = torch.tensor(output.trace.gflops()) / model.prices().full_gflops
    assert (spent <= budget + 1e-3).all()
    for unit in floor:
        assert all(output.trace.ran(unit))


def test_a_budget_below_the_least_or_above_one_is_an_error():
    for budget in (MODEL.min_budget - 0.01, 1.2):
        with pytest.raises(ValueError, match="expected a budget in"):
            MODEL(small_batch(1), budget)


@torch.no_grad()
def test_a_given_plan_needs_no_router():
    batch = small_batch(1)
    names = {e.branch for e in MODEL(batch).trace.executions if e.unit == "always"}
    assert names == {"router", "merge", "trunk", "head"}
    decided = MODEL(batch, plan=MODEL.full_plan(batch))
    assert {e.branch for e in decided.trace.executions if e.unit == "always"} == {"merge", "trunk", "head"}


@torch.no_grad()
def test_random_plans_are_reproducible_varied_and_within_budget():
    batch = small_batch(8, lost=((3, LIDAR),))
    plans = [MODEL.random_plan(batch, 0.6, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(plans[0].choice, plans[1].choice)
    assert not torch.equal(plans[0].choice, plans[2].choice)
    assert (plans[0].expected_cost <= 0.6 + 1e-5).all()
    assert plans[0].choice[3, LIDAR_UNIT] == SKIP
    assert set(plans[0].choice.flatten().tolist()) == {SKIP, LITE, FULL}


@torch.no_grad()
@pytest.mark.parametrize("missing", ["cameras", "lidar", "radar"])
def test_a_model_may_lack_a_sensor(missing):
    model, batch = small_model(**{missing: False}).eval(), small_batch(2)
    column = {"cameras": 0, "lidar": LIDAR_UNIT, "radar": LIDAR_UNIT + 1}[missing]
    output = model(batch)
    assert (output.plan.choice[:, column] == SKIP).all()
    assert torch.isfinite(output.head.heatmap).all()
    part = missing.removesuffix("s")
    assert_equal_outputs(output.head, model(replace(batch, **{part: None})).head)


@torch.no_grad()
def test_a_batch_may_lack_a_sensor_that_the_model_has():
    output = MODEL(replace(small_batch(2), camera=None))
    assert (output.plan.choice[:, :NUM_CAMERAS] == SKIP).all()
    assert torch.isfinite(output.head.heatmap).all()


def test_depth_is_supervised_on_the_views_that_ran():
    batch = small_batch(2)
    choice = torch.full((2, len(UNITS)), SKIP)
    choice[0, 0], choice[1, 2] = FULL, LITE
    model = small_model()
    loss = model(batch, plan=model.plan_of(choice, model.available(batch))).depth_loss
    by_hand = []
    for sample, view, branch in [(0, 0, FULL), (1, 2, LITE)]:
        row = torch.tensor([sample * NUM_CAMERAS + view])
        features = model.cameras.rows(branch, batch.camera, row, torch.ones(1)).features
        by_hand.append(model.cameras.lift.depth_loss(features, batch.camera.depth_m[sample, view][None]))
    torch.testing.assert_close(loss, sum(by_hand) / 2)
    loss.backward()
    no_targets = replace(batch, camera=replace(batch.camera, depth_m=None))
    assert model(no_targets).depth_loss is None


def test_images_of_another_size_are_one_line():
    model = small_model()
    batch = small_batch(1)
    large = replace(batch, camera=replace(batch.camera, images=torch.zeros(1, NUM_CAMERAS, 3, 64, 64)))
    with pytest.raises(ValueError, match=r"expected images of \(32, 64\) px .*, got \(64, 64\)"):
        model(large)


def test_parts_on_different_grids_and_no_sensor_are_errors():
    model = small_model()
    parts = {name: getattr(model, name) for name in ("cameras", "lidar", "radar", "merge", "trunk", "head", "router")}
    coarse = copy.deepcopy(model.merge)
    coarse.grid = model.merge.grid.coarser(2)
    with pytest.raises(ValueError, match="lift"):
        FusionModel(**{**parts, "merge": coarse})
    with pytest.raises(ValueError, match="at least one sensor"):
        FusionModel(**{**parts, "cameras": None, "lidar": None, "radar": None})


@torch.no_grad()
def test_copies_and_checkpoints_hold_the_whole_model():
    batch, other = small_batch(1), small_model().eval()
    twin = copy.deepcopy(MODEL)
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(MODEL.state_dict())
    for model in (twin, other):
        assert_equal_outputs(model(batch, 0.6).head, MODEL(batch, 0.6).head)


def test_the_least_budget_is_always_on_plus_the_cheapest_unit():
    prices = MODEL.prices()
    cheapest = min(min(branches.values()) for branches in prices.units)
    assert MODEL.min_budget == pytest.approx((prices.always_gflops + cheapest) / prices.full_gflops)
    assert len(prices.units) == len(UNITS)
    assert len(CHANNELS) == 12
