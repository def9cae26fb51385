"""Energy readers on made-up counters, controls on tables with a known answer, reports by hand, latency on a small
model.
"""

import ctypes
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.efficiency.controls import best_static, compare_router, oracle_routes, random_loss
from fusion.efficiency.cost_report import cost_report, cost_shares
from fusion.efficiency.energy import EnergyModel, NvmlReader, RaplReader
from fusion.efficiency.latency import measure_latency
from fusion.routing.plan import BRANCHES, FULL, SKIP, ExecutionTrace
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS
from tests.fusion.small_model import small_batch, small_model


def counters(folder, **microjoules):
    for name, value in microjoules.items():
        zone = folder / name.replace("_", ":").replace("intel:rapl", "intel-rapl")
        zone.mkdir(exist_ok=True)
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text("999999\n")


def test_rapl_adds_packages_and_wraps_around(tmp_path):
    counters(tmp_path, intel_rapl_0=900_000, intel_rapl_1=10, intel_rapl_0_0=5)  # the last is a part of package 0
    reader = RaplReader(tmp_path)
    assert reader.joules() == 0
    counters(tmp_path, intel_rapl_0=950_000, intel_rapl_1=30, intel_rapl_0_0=77_777)
    assert reader.joules() == pytest.approx(0.05002)
    counters(tmp_path, intel_rapl_0=50_000, intel_rapl_1=30)  # 50000 left of the million, then 50000 more
    assert reader.joules() == pytest.approx(0.05002 + 0.1)


def test_without_counters_the_reader_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="found none"):
        RaplReader(tmp_path)
    (tmp_path / "intel-rapl:0").mkdir()
    with pytest.raises(FileNotFoundError, match="readable"):
        RaplReader(tmp_path)


class FakeNvml:
    def __init__(self, code: int = 0):
        self.millijoules, self.code = 5000, code

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle) -> int:
        return 0 if index == 0 else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle, value) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return self.code


def test_nvml_counts_from_the_first_reading():
    library = FakeNvml()
    reader = NvmlReader(library=library)
    library.millijoules = 7500
    assert reader.joules() == 2.5
    with pytest.raises(FileNotFoundError, match="board 1"):
        NvmlReader(1, library)
    with pytest.raises(FileNotFoundError, match="counter"):
        NvmlReader(library=FakeNvml(code=3))


def test_the_energy_model_by_hand():
    """Six cameras of 3 W, a LiDAR of 12 W, five radars of 6.6 W, half a second."""
    model = EnergyModel(joules_per_gflop=0.1, idle_w=4.0)
    only_lidar = [unit == LIDAR_UNIT for unit in range(len(UNITS))]
    assert model.computing_j(10.0) == pytest.approx(1.0 + 2.0)
    assert model.sensing_j(only_lidar) == pytest.approx(0.5 * (18 + 12 + 33))
    assert EnergyModel(sensors_switch_off=True).sensing_j(only_lidar) == pytest.approx(6.0)
    radars = [unit == RADAR_UNIT for unit in range(len(UNITS))]
    assert EnergyModel(sensors_switch_off=True).sensing_j(radars) == pytest.approx(16.5)
    assert model.sample_j(10.0, only_lidar) == pytest.approx(3.0 + 31.5)


def table_of_losses(num: int = 6, seed: int = 0):
    costs = np.array([1.0, 0.6, 0.3])
    return np.random.default_rng(seed).random((num, 3)), costs


@pytest.mark.parametrize("budget", [0.35, 0.5, 0.7, 1.0])
def test_the_oracle_is_the_best_assignment_up_to_one_sample(budget):
    losses, costs = table_of_losses()
    found = oracle_routes(losses, costs, budget)
    assert costs[found].mean() <= budget + 1e-9
    rows = np.arange(len(losses))
    every = [np.array(choice) for choice in product(range(3), repeat=len(losses))]
    best = min(losses[rows, choice].mean() for choice in every if costs[choice].mean() <= budget + 1e-9)
    assert best - 1e-12 <= losses[rows, found].mean() <= best + 1 / len(losses)
    # The same mean cost cannot be spent better: a property of the price.
    at_cost = min(losses[rows, c].mean() for c in every if costs[c].mean() <= costs[found].mean() + 1e-9)
    assert losses[rows, found].mean() == pytest.approx(at_cost)


def test_controls_by_hand():
    losses = np.array([[0.0, 1.0, 2.0], [0.0, 0.2, 4.0]])
    costs = np.array([1.0, 0.6, 0.2])
    assert best_static(losses, costs, 0.7) == 1
    with pytest.raises(ValueError, match="cheapest"):
        best_static(losses, costs, 0.1)
    # Symmetric costs: a mean of .6 is the uniform distribution.
    assert random_loss(losses, costs, 0.6) == pytest.approx((0 + 0.6 + 3) / 3, abs=1e-6)
    assert random_loss(losses, costs, 1.0) == pytest.approx(0, abs=1e-2)
    report = compare_router(losses, costs, np.array([2, 0]), 0.6)
    assert (report.learned, report.learned_cost) == (1.0, 0.6)
    assert report.static == pytest.approx(0.6)
    # 0.2 may be spent on one sample: the second wants it more (4 - .2 against 2 - 1 is bought by .4 each).
    assert report.oracle == pytest.approx(0.6)
    assert report.regret == pytest.approx(0.4)


def test_a_cost_report_by_hand():
    gflops = np.array([1.0, 3.0, 2.0, 2.0])
    conditions = [frozenset({"day"}), frozenset({"night", "rain"}), frozenset({"night"}), frozenset({"day"})]
    report = cost_report(gflops, conditions, [(), ("fog@0.5",), ("fog@0.9", "lidar_drop"), ()], num_bins=2)
    assert (report.mean, report.quartiles[0], report.quartiles[-1]) == (2.0, 1.0, 3.0)
    assert report.counts == (1, 3)
    assert {group.name: group.mean for group in report.by_condition} == {"day": 1.5, "night": 2.5, "rain": 3.0}
    assert {group.name: group.num_samples for group in report.by_fault} == {"clean": 2, "fog": 2, "lidar_drop": 1}
    assert "| night | 2 | 2.500 | 0.500 |" in report.as_markdown()


def test_shares_of_the_cost_add_up_and_name_the_always_on_parts():
    trace = ExecutionTrace(2)
    trace.add("LIDAR", "full", (0,), 3.0)
    trace.add("CAM_FRONT", "lite", (0, 1), 1.0)
    trace.add("always", "trunk", (0, 1), 2.5)
    assert cost_shares(trace) == {"LIDAR": 0.3, "CAM_FRONT": 0.2, "always/trunk": 0.5}
    assert cost_shares(ExecutionTrace(1)) == {}


@torch.no_grad()
def test_the_trace_agrees_with_the_counter_where_it_counts():
    """Convolutions and products are torch's to count; our own formulas (lift, pillars) add to those."""
    model, batch = small_model().eval(), small_batch(2)
    choice = torch.full((2, len(UNITS)), SKIP)
    choice[0, :NUM_CAMERAS], choice[1, 0] = FULL, 1
    empty = torch.full((2, len(UNITS)), SKIP)
    counted, traced = [], []
    for route in (choice, empty):
        plan = model.plan_of(route, model.available(batch))
        with FlopCounterMode(display=False) as counter:
            trace = model(batch, plan=plan).trace
        counted.append(counter.get_total_flops() / 1e9)
        traced.append(sum(trace.gflops()))
    views = model.cameras
    height, width = 32, 64
    stride = views.encoder.stride
    lifted = 6 * views.lift.gflops((height // stride, width // stride))
    lifted += views.lift.gflops((height // 2 // stride, width // 2 // stride))
    difference = counted[0] - counted[1]
    merge = model.merge.projections["camera"]
    projection = 2 * 2e-9 * merge[0].in_channels * merge[0].out_channels * np.prod(model.merge.grid.shape)
    # What is left for the counter alone: the small matrix products of the geometry.
    ours = traced[0] - traced[1] - lifted
    assert ours <= difference - projection <= 1.02 * ours


def test_a_latency_table_of_every_part():
    model, batch = small_model().eval(), small_batch(1)
    table = measure_latency(model, batch, view_rows=(1, 6), repeats=1)
    expected = {f"{part}/{branch}" for part in ("CAMERA", "LIDAR", "RADAR") for branch in BRANCHES[1:]}
    assert set(table.parts) == expected | {"always", "dispatch"}
    assert all(ms > 0 for sizes in table.parts.values() for ms in sizes.values())
    full = torch.full((1, len(UNITS)), FULL)
    by_hand = sum(table.parts[part][1] for part in ("always", "dispatch", "LIDAR/full", "RADAR/full"))
    assert table.route_ms(full).item() == pytest.approx(by_hand + table.parts["CAMERA/full"][6])
    assert len(table.device) > 0
    assert len(table.date) == 10
