"""Sparse and masked execution: equal outputs, exact rows, honest traces."""

from collections import defaultdict
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from datamodules.batch import PointBatch
from fusion.heads.center import HeadOutput
from fusion.routing.plan import BRANCHES, FULL, LITE, SKIP
from fusion.units import newest
from sensors.rig import CHANNELS, LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS
from tests.fusion.small_model import IMAGE_SIZE_PX, small_batch, small_model

MODEL = small_model().eval()
NO_LITE = small_model(lite_lidar=False, weighted=True).eval()


def maps_of(head: HeadOutput) -> dict[str, torch.Tensor]:
    found = {field.name: getattr(head, field.name) for field in fields(head)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def assert_equal_outputs(one: HeadOutput, other: HeadOutput) -> None:
    """Equal but for rounding: on the whole to 2e-5, and in every cell as far as a norm over a nearly empty map allows.

    Such a norm divides by as little as its epsilon's root and so enlarges the rounding of single cells 300 times.
    """
    for name, value in maps_of(one).items():
        expected = maps_of(other)[name]
        torch.testing.assert_close(value, expected, atol=5e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
        assert (value - expected).abs().mean() <= 2e-5 * expected.abs().mean(), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), model=st.sampled_from([MODEL, NO_LITE]))
@torch.no_grad()
def test_sparse_and_masked_agree_for_every_route(seed, model):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(3, len(CHANNELS), generator=generator) < 0.25
    lost = tuple((row, CHANNELS[column]) for row, column in torch.nonzero(drawn).tolist())
    batch = small_batch(3, seed=seed % 7, lost=lost)
    plan = model.random_plan(batch, 1.0, generator)
    sparse, masked = (model(batch, plan=plan, execution=name) for name in ("sparse", "masked"))
    assert_equal_outputs(sparse.head, masked.head)
    # What was masked away has still been paid for.
    everything = sum(model.prices().units[unit].get(name, 0) for unit in range(len(UNITS)) for name in BRANCHES)
    for row in range(3):
        assert masked.trace.gflops()[row] >= sparse.trace.gflops()[row] - 1e-12
        if not drawn[row].any():
            paid = masked.trace.gflops()[row] - sum(model.prices().always.values()) + model.router.gflops()
            assert paid == pytest.approx(everything, rel=0.2)


def four_routes() -> torch.Tensor:
    choice = torch.full((4, len(UNITS)), SKIP)
    choice[0] = FULL
    choice[1, LIDAR_UNIT] = LITE
    choice[2, [0, 3]], choice[2, 1], choice[2, RADAR_UNIT] = FULL, LITE, LITE
    choice[3, 0], choice[3, LIDAR_UNIT] = LITE, FULL
    return choice


class Spy:
    """Counts the rows that enter every encoder, per call."""

    def __init__(self, model):
        self.rows = defaultdict(list)
        watched = {"views": model.cameras.encoder, "lidar_full": model.lidar.full, "lidar_lite": model.lidar.lite}
        watched |= {"radar_full": model.radar.full, "radar_lite": model.radar.lite}
        self.handles = [
            module.register_forward_pre_hook(lambda _, given, name=name: self.rows[name].append(self.count(given[0])))
            for name, module in watched.items()
        ]

    @staticmethod
    def count(given):
        return len(given.present) if isinstance(given, PointBatch) else (len(given), *given.shape[2:])

    def __enter__(self):
        return self.rows

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def test_exactly_the_chosen_rows_enter_every_encoder():
    batch = small_batch(4)
    plan = MODEL.plan_of(four_routes(), MODEL.available(batch))
    with Spy(MODEL) as rows:
        trace = MODEL(batch, plan=plan).trace
    full_size, lite_size = IMAGE_SIZE_PX, (IMAGE_SIZE_PX[0] // 2, IMAGE_SIZE_PX[1] // 2)
    assert sorted(rows.pop("views")) == sorted([(6 + 2, *full_size), (2, *lite_size)])
    assert rows == {"lidar_full": [2], "lidar_lite": [1], "radar_full": [1], "radar_lite": [1]}
    ran = {(e.unit, e.branch, row) for e in trace.executions for row in e.rows if e.unit in UNITS}
    chosen = {
        (UNITS[u], BRANCHES[b], row)
        for row, route in enumerate(four_routes().tolist())
        for u, b in enumerate(route)
        if b
    }
    assert ran == chosen


@torch.no_grad()
def test_what_nobody_chose_is_not_called():
    batch = small_batch(2)
    choice = torch.full((2, len(UNITS)), SKIP)
    choice[:, RADAR_UNIT] = FULL
    with Spy(MODEL) as rows:
        trace = MODEL(batch, plan=MODEL.plan_of(choice, MODEL.available(batch))).trace
    assert rows == {"radar_full": [2]}
    assert trace.ran("CAM_FRONT") == [False, False]
    assert trace.ran("RADAR") == [True, True]


@torch.no_grad()
def test_masked_calls_everything_present_and_says_so():
    batch = small_batch(2, lost=((1, "LIDAR_TOP"), (0, "CAM_BACK")))
    plan = MODEL.plan_of(torch.full((2, len(UNITS)), SKIP), MODEL.available(batch))
    with Spy(MODEL) as rows:
        trace = MODEL(batch, plan=plan, execution="masked").trace
    assert [count[0] for count in rows.pop("views")] == [11, 11]
    assert rows == {"lidar_full": [1], "lidar_lite": [1], "radar_full": [2], "radar_lite": [2]}
    assert trace.ran("LIDAR") == [True, False]
    assert trace.ran("CAM_BACK") == [False, True]


@torch.no_grad()
@pytest.mark.parametrize("route", range(4))
def test_the_trace_agrees_with_the_flop_counter_where_it_counts(route):
    """The counter sees convolutions and matrix products; norms, lift and scatter have formulas of their own."""
    batch = small_batch(1)
    batch = replace(batch, lidar=replace(batch.lidar, points=inside_the_grid(batch.lidar.points)))
    batch = replace(batch, radar=replace(batch.radar, points=inside_the_grid(batch.radar.points)))
    plan = MODEL.plan_of(four_routes()[route : route + 1], MODEL.available(batch))
    with FlopCounterMode(display=False) as counter:
        trace = MODEL(batch, plan=plan).trace
    points = {"LIDAR": MODEL.lidar, "RADAR": MODEL.radar}
    unseen = norms_of(MODEL.head)
    for execution in trace.executions:
        if execution.unit in UNITS[:NUM_CAMERAS]:
            size = MODEL.cameras.sizes_px[BRANCHES.index(execution.branch)]
            unseen += MODEL.cameras.lift.gflops((size[0] // 8, size[1] // 8))
        elif execution.unit in points:
            branches, branch = points[execution.unit], BRANCHES.index(execution.branch)
            encoder = branches.encoders()[branch]
            given = branches.given(branch, getattr(batch, execution.unit.lower()))
            unseen += len(given.points) * (30 + encoder.pillar_channels) / 1e9
    modalities = {"camera": plan.choice[0, :NUM_CAMERAS].any(), "lidar": plan.choice[0, LIDAR_UNIT] > 0}
    modalities["radar"] = plan.choice[0, RADAR_UNIT] > 0
    for name, ran in modalities.items():
        if not ran:  # The merge is priced with all its projections.
            unseen += 2e-9 * MODEL.merge.projections[name][0].weight.numel() * 256
    assert trace.gflops()[0] - unseen == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)


def inside_the_grid(points: torch.Tensor) -> torch.Tensor:
    return torch.cat([points[:, :2].clamp(-40, 40), points[:, 2:3].clamp(-1, 1), points[:, 3:]], dim=1)


def norms_of(head: torch.nn.Module) -> float:
    cells = head.grid.shape[0] * head.grid.shape[1]
    return sum(2 * m.num_channels * cells for m in head.modules() if isinstance(m, torch.nn.GroupNorm)) / 1e9


@torch.no_grad()
def test_real_points_are_paid_for():
    """Twice the points cost twice the points' share, whatever the price says."""
    batch = small_batch(1)
    double = PointBatch(batch.lidar.points.repeat(2, 1), batch.lidar.sample.repeat(2), batch.lidar.present)
    choice = torch.full((1, len(UNITS)), SKIP)
    choice[0, LIDAR_UNIT] = FULL
    plan = MODEL.plan_of(choice, MODEL.available(batch))
    costs = [MODEL(replace(batch, lidar=lidar), plan=plan).trace.gflops()[0] for lidar in (batch.lidar, double)]
    num_points = len(batch.lidar.points)
    per_point = MODEL.lidar.full.gflops(1) - MODEL.lidar.full.gflops(0)
    assert costs[1] - costs[0] == pytest.approx(num_points * per_point, rel=1e-6)


@torch.no_grad()
def test_a_plan_for_what_is_absent_is_an_error():
    batch = small_batch(2, lost=((1, "LIDAR_TOP"),))
    plan = MODEL.full_plan(small_batch(2))
    with pytest.raises(ValueError, match="LIDAR at full for sample 1"):
        MODEL(batch, plan=plan)
    without_radar, all_lite = small_model(radar=False), torch.full((2, len(UNITS)), LITE)
    with pytest.raises(ValueError, match="RADAR at lite"):
        without_radar(batch, plan=MODEL.plan_of(all_lite, batch.unit_present))
    with pytest.raises(ValueError, match="samples and units"):
        MODEL(small_batch(1), plan=plan)
    with pytest.raises(ValueError, match="execution"):
        MODEL(small_batch(2), plan=plan, execution="dense")


def test_the_newest_sweep_is_per_sample():
    lag_s = torch.tensor([0.0, 0.01, 0.05, 0.30, 0.31, 0.40])
    points = torch.zeros(6, 5)
    points[:, 4] = lag_s
    batch = PointBatch(points, torch.tensor([0, 0, 0, 2, 2, 2]), torch.ones(3, dtype=torch.bool))
    kept = newest(batch, 0.02)
    torch.testing.assert_close(kept.points[:, 4], lag_s[[0, 1, 3, 4]])
    assert kept.sample.tolist() == [0, 0, 2, 2]
    assert len(kept.present) == 3


@pytest.mark.parametrize("execution", ["sparse", "masked"])
def test_gates_get_the_gradient_of_what_they_let_through(execution):
    """Masked execution tells a skipped LiDAR what it would have given; sparse cannot."""
    batch = small_batch(2)
    choice = torch.full((2, len(UNITS)), FULL)
    choice[1, LIDAR_UNIT] = SKIP
    plan = MODEL.plan_of(choice, MODEL.available(batch))
    gates = plan.gates.clone().requires_grad_()
    output = MODEL(batch, plan=replace(plan, gates=gates), execution=execution)
    output.head.heatmap.square().sum().backward()
    assert gates.grad[0, LIDAR_UNIT].abs().sum() > 0
    assert (gates.grad[:, :NUM_CAMERAS, FULL] != 0).any()
    assert bool(gates.grad[1, LIDAR_UNIT].abs().sum() > 0) == (execution == "masked")


def test_the_masked_gradient_is_the_derivative_along_the_gate():
    """Opening a closed LiDAR gate by a little changes the output by gradient times a little."""
    model, batch = small_model(lite_lidar=False), replace(small_batch(1), camera=None)
    choice = torch.full((1, len(UNITS)), SKIP)
    choice[0, RADAR_UNIT] = FULL
    plan = model.plan_of(choice, model.available(batch))
    towards_full = torch.tensor([-1.0, 0.0, 1.0])

    def loss(gates: torch.Tensor) -> torch.Tensor:
        return model(batch, plan=replace(plan, gates=gates), execution="masked").head.heatmap.double().square().mean()

    def opened(by: float) -> torch.Tensor:
        gates = plan.gates.clone()
        gates[0, LIDAR_UNIT] += by * towards_full
        return gates

    gates = opened(0).requires_grad_()
    loss(gates).backward()
    gradient = (gates.grad[0, LIDAR_UNIT] * towards_full).sum().item()
    with torch.no_grad():
        measured = (loss(opened(1e-3)) - loss(opened(-1e-3))).item() / 2e-3
    assert gradient == pytest.approx(measured, rel=0.1)
    assert abs(gradient) > 1e-4
