import torch

from fusion.routing.plan import FULL, LITE, SKIP, ExecutionTrace, fixed_plan, full_plan
from sensors.rig import LIDAR_UNIT, RADAR_UNIT, UNITS


def test_a_fixed_plan_skips_absent_units_and_has_one_hot_gates():
    present = torch.ones(2, len(UNITS), dtype=torch.bool)
    present[1, LIDAR_UNIT] = False
    choice = torch.full((2, len(UNITS)), LITE)
    plan = fixed_plan(choice, present)
    assert plan.choice[0, LIDAR_UNIT] == LITE
    assert plan.choice[1, LIDAR_UNIT] == SKIP
    assert torch.equal(plan.gates.argmax(-1), plan.choice)
    assert torch.equal(plan.weight, torch.ones(2, len(UNITS)))
    assert plan.rows(LIDAR_UNIT, LITE).tolist() == [0]


def test_view_rows_are_sample_major():
    choice = torch.full((2, len(UNITS)), SKIP)
    choice[0, 4] = choice[1, 1] = choice[1, 5] = FULL
    plan = fixed_plan(choice, torch.ones(2, len(UNITS), dtype=torch.bool))
    samples, views = plan.view_rows(FULL)
    assert samples.tolist() == [0, 1, 1]
    assert views.tolist() == [4, 1, 5]


def test_the_full_plan_runs_everything_present():
    present = torch.rand(3, len(UNITS), generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(full_plan(present).choice == FULL, present)


def test_the_trace_adds_up_what_ran_per_sample():
    trace = ExecutionTrace(3)
    trace.add("always", "trunk", (0, 1, 2), 1.0)
    trace.add("CAM_FRONT", "full", (0, 2), 2.0)
    trace.add("RADAR", "lite", (2,), 0.5)
    assert trace.gflops() == [3.0, 1.0, 3.5]
    assert trace.ran("CAM_FRONT") == [True, False, True]
    assert trace.ran(UNITS[RADAR_UNIT]) == [False, False, True]
