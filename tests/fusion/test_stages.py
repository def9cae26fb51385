"""Stages of training: what they accept, and that their draws are pure functions of a key."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.commands.compose import compose
from fusion.commands.runs import trained_route
from fusion.draws import keyed_generator, keyed_randomness
from fusion.routing.nested_gates import HardConcrete
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.relaxations import GumbelStraightThrough, SoftmaxStraightThrough
from fusion.stage_entry import StageEntry, give_faults, require_steps
from fusion.stages import Curriculum, Stage
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS
from tests.fusion.toy_data import ToyData
from tests.fusion.toy_model import ToyModel

PRESENT = torch.ones(4, len(UNITS), dtype=torch.bool)


def drawn(stage: Stage, present=PRESENT, key: int = 0, branches=None) -> torch.Tensor:
    return stage.choice_of(present, keyed_generator(key), branches)


def test_progress_finds_its_stage():
    curriculum = Curriculum([Stage("first", 0.25), Stage("second", 1.0)])
    assert [curriculum.at(p).name for p in (0.0, 0.2499, 0.25, 0.9, 1.0)] == ["first", "first", *["second"] * 3]


def test_temperature_falls_exponentially_within_its_stage():
    curriculum = Curriculum([Stage("first", 0.5, temperature=3.0), Stage("second", 1.0, temperature=(2.0, 0.5))])
    assert curriculum.temperature(0.3) == pytest.approx(3.0)
    for progress, expected in ((0.5, 2.0), (0.75, 1.0), (1.0, 0.5)):  # sqrt(2 * 0.5) = 1 in the middle
        assert curriculum.temperature(progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": 0.0}, "until"),
        ({"route": "detour"}, "route"),
        ({"execution": "dense"}, "sparse or masked"),
        ({"budget": (0.9, 0.4)}, "budget"),
        ({"budget": 1.2}, "budget"),
        ({"budget": "all"}, "pair of numbers"),
        ({"budget": (0.1, 0.2, 0.3)}, "pair of numbers"),
        ({"temperature": 0.0}, "temperature"),
        ({"units": ("LIDAR_TOP",)}, "units"),
        ({"units": ()}, "units"),
        ({"keep": {"sonar": 1.0}}, "keep"),
        ({"keep": {"lidar": 1.5}}, "keep"),
        ({"lite_share": -0.1}, "lite_share"),
        ({"route": "paired", "relaxation": SoftmaxStraightThrough()}, "a relaxation for route learned alone"),
        ({"trainable": "router"}, r"expected trainable to be all or a list, such as \[router\]; got 'router'"),
        ({"units": "LIDAR"}, r"expected units to be a list, such as \[LIDAR\]; got 'LIDAR'"),
        ({"faults": "some"}, "faults to be all or none"),
        ({"faults": {"severity": 2.0}}, "severity of its faults"),
    ],
)
def test_a_wrong_stage_is_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        Stage(**{"name": "wrong", "until": 1.0, **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [Stage("a", 0.5)],
        [Stage("a", 0.7), Stage("b", 0.3), Stage("c", 1.0)],
        [Stage("a", 0.5), Stage("a", 1.0)],
    ],
)
def test_a_wrong_list_of_stages_is_refused(stages):
    with pytest.raises(ValueError, match="expected"):
        Curriculum(stages)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": ("lidar", "sonar")}, "sonar"),
        ({"trainable": ("lid",)}, "lid"),
        ({"trainable": ()}, "something to train"),
        ({"losses": {"depht": 1.0}}, "depht"),
        ({"route": "learned", "budget": (0.05, 1.0)}, "least"),
    ],
)
def test_a_stage_that_does_not_fit_the_model_is_refused(settings, message):
    curriculum = Curriculum([Stage("wrong", 1.0, **settings)])
    with pytest.raises(ValueError, match=message):
        curriculum.check(ToyModel(), ("depth", "budget"), min_budget=0.25)


def test_prefixes_end_at_a_dot():
    stage = Stage("a", 1.0, trainable=("lidar", "head.shared"))
    assert stage.trains("lidar.full.weight")
    assert stage.trains("head.shared.0.weight")
    assert not stage.trains("lidar_other.weight")
    assert not stage.trains("head.regressions.0.weight")


def test_fixed_runs_the_named_units_where_present():
    present = PRESENT.clone()
    present[1, LIDAR_UNIT] = False
    choice = drawn(Stage("a", 1.0, route="fixed", units=("LIDAR", "RADAR")), present)
    assert (choice[:, :NUM_CAMERAS] == SKIP).all()
    assert choice[:, LIDAR_UNIT].tolist() == [FULL, SKIP, FULL, FULL]
    assert (choice[:, RADAR_UNIT] == FULL).all()
    assert (drawn(Stage("a", 1.0, route="fixed", units=("CAMERAS",)))[:, :NUM_CAMERAS] == FULL).all()
    assert (drawn(Stage("a", 1.0)) == FULL).all()


def test_branches_that_do_not_exist_are_never_drawn():
    branches = torch.ones(len(UNITS), 3, dtype=torch.bool)
    branches[LIDAR_UNIT, LITE] = False
    branches[RADAR_UNIT, FULL] = False
    choice = drawn(Stage("a", 1.0, lite_share=0.5), PRESENT.repeat(50, 1), branches=branches)
    assert (choice[:, LIDAR_UNIT] == FULL).all()
    assert (choice[:, RADAR_UNIT] == LITE).all()
    assert 0.4 < (choice[:, 0] == LITE).float().mean() < 0.6


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**16), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_random_routes_choose_present_units_and_at_least_one(key, camera, lidar, view):
    present = torch.rand(16, len(UNITS), generator=keyed_generator("present", key)) < 0.5
    stage = Stage("a", 1.0, route="random", keep={"camera": camera, "lidar": lidar, "radar": 0.0, "view": view})
    runs = drawn(stage, present, key) != SKIP
    assert not (runs & ~present).any()
    assert torch.equal(runs.any(dim=1), present.any(dim=1))


def test_random_routes_keep_sensors_as_often_as_asked():
    stage = Stage("a", 1.0, route="random", keep={"camera": 0.8, "lidar": 0.6, "view": 0.5}, lite_share=0.25)
    choice = drawn(stage, PRESENT.repeat(1000, 1))
    shares = (choice != SKIP).float().mean(dim=0)
    tolerance = 4 * 0.5 / math.sqrt(len(choice))
    assert shares[LIDAR_UNIT] == pytest.approx(0.6, abs=tolerance)
    assert shares[0] == pytest.approx(0.4, abs=tolerance)
    assert shares[RADAR_UNIT] == 1.0
    assert (choice[:, RADAR_UNIT] == LITE).float().mean() == pytest.approx(0.25, abs=tolerance)


def test_budgets_lie_in_their_range_and_depend_on_the_key_alone():
    stage = Stage("a", 1.0, route="learned", budget=("least", 0.9))
    budgets = stage.budget_of(500, 0.3, keyed_generator(7, "stage", 3, 0))
    torch.manual_seed(123)
    torch.rand(10)
    assert torch.equal(budgets, stage.budget_of(500, 0.3, keyed_generator(7, "stage", 3, 0)))
    assert not torch.equal(budgets, stage.budget_of(500, 0.3, keyed_generator(7, "stage", 4, 0)))
    assert not torch.equal(budgets, stage.budget_of(500, 0.3, keyed_generator(7, "stage", 3, 1)))
    assert budgets.min() >= 0.3
    assert budgets.max() <= 0.9
    assert budgets.mean() == pytest.approx(0.6, abs=0.05)


def test_keyed_randomness_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with keyed_randomness(torch.device("cpu"), 1, 2):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with keyed_randomness(torch.device("cpu"), 1, 2):
        assert torch.equal(torch.rand(3), inside)


def test_a_stage_puts_its_relaxation_into_the_router_and_the_next_one_puts_the_own_one_back():
    model, soft, hard = ToyModel(), SoftmaxStraightThrough(), HardConcrete()
    own = model.router.relaxation
    stages = [
        Stage("own", 0.25, route="learned", temperature=3.0),
        Stage("soft", 0.5, route="learned", relaxation=soft, temperature=(2.0, 0.5)),
        Stage("random", 0.75, route="random"),
        Stage("hard", 1.0, route="learned", relaxation=hard, temperature=0.4),
    ]
    entry = StageEntry(model, Curriculum(stages))
    before = set(model.state_dict())
    for progress, relaxation, temperature in ((0.0, own, 3.0), (0.375, soft, 1.0), (0.5, own, 1.0), (0.9, hard, 0.4)):
        model.router.eval()
        entry.enter(progress)
        assert model.router.relaxation is relaxation
        assert relaxation.temperature == pytest.approx(temperature)
        assert relaxation.training, "a relaxation may ask whether it is in training"
        assert set(model.state_dict()) == before
    evaluated = StageEntry(ToyModel(), Curriculum(stages))
    evaluated.settle()
    assert evaluated.model.router.relaxation is hard, "decides at evaluation as at the end of training"


def test_a_run_is_evaluated_by_the_relaxation_and_temperature_of_its_last_stage():
    config = compose(["stages=joint", "+stages.stages.1.relaxation._target_=fusion.routing.nested_gates.HardConcrete"])
    model = ToyModel()
    assert trained_route(config, model) is None, "the router decides"
    assert isinstance(model.router.relaxation, HardConcrete)
    assert model.router.relaxation.temperature == pytest.approx(0.5)
    assert not any("relaxation" in name for name in model.state_dict())


def test_relaxations_that_do_not_fit_are_one_line():
    class Learning(SoftmaxStraightThrough):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

    learned = {"until": 1.0, "route": "learned"}
    with pytest.raises(ValueError, match="stage 'a': expected relaxations that learn nothing.*got Learning"):
        StageEntry(ToyModel(), Curriculum([Stage("a", relaxation=Learning(), **learned)]))
    model = ToyModel()
    model.router.relaxation = Learning()
    with pytest.raises(ValueError, match="got Learning"):
        StageEntry(model, Curriculum([Stage("a", relaxation=GumbelStraightThrough(), **learned)]))
    assert StageEntry(model, Curriculum([Stage("a", 1.0)])).enter(0.0).name == "a"  # a route that needs none
    StageEntry(model, Curriculum([Stage("a", **learned)]))
    del model.router.relaxation
    with pytest.raises(ValueError, match="stage 'a': expected a router with a relaxation.*got Router without"):
        StageEntry(model, Curriculum([Stage("a", relaxation=GumbelStraightThrough(), **learned)]))


def test_faults_of_stages_reach_the_data_or_are_refused():
    stages = [Stage("a", 0.5, faults="none"), Stage("b", 1.0, faults={"share": 0.5, "severity": [0.2, 1.0]})]
    data = ToyData()
    give_faults(Curriculum(stages), data)
    assert [(stage.until, stage.share, stage.severity) for stage in data.fault_stages] == [
        (0.5, (0.0, 0.0), (1.0, 1.0)),
        (1.0, (0.5, 0.5), (0.2, 1.0)),
    ]
    give_faults(Curriculum([Stage("a", 1.0)]), None)
    with pytest.raises(ValueError, match="stage 'a': expected a data module with set_fault_stages.*got NoneType"):
        give_faults(Curriculum(stages), None)


def test_stages_without_a_step_are_one_line():
    """The demo's stages in few steps: 1 / 8 = .125 and 7 / 8 = .875 are below .88, 15 / 16 = .9375 is below .94."""
    demo = Curriculum([Stage("points", 0.88), Stage("cameras", 0.94), Stage("router", 1.0)])
    for num_steps, idle in ((8, "cameras, router"), (16, "router")):
        with pytest.raises(ValueError, match=f"got none for {idle}: the {num_steps} optimiser steps") as error:
            require_steps(demo, num_steps)
        assert "until points: 0.88, cameras: 0.94, router: 1;" in str(error.value)
        assert "\n" not in str(error.value)
    require_steps(demo, 17)  # 15 / 17 = .882, 16 / 17 = .941


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.lists(st.floats(0.001, 0.999), max_size=4, unique=True))
def test_stages_without_a_step_are_those_that_no_step_is_in(num_steps, ends):
    curriculum = Curriculum([Stage(str(number), end) for number, end in enumerate([*sorted(ends), 1.0])])
    entered = {curriculum.at(step / num_steps).name for step in range(num_steps)}
    idle = [stage.name for stage in curriculum.stages if stage.name not in entered]
    if not idle:
        require_steps(curriculum, num_steps)
    else:
        with pytest.raises(ValueError, match=f"got none for {', '.join(idle)}: "):
            require_steps(curriculum, num_steps)
