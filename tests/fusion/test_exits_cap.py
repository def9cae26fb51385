"""The hard cap over router, exits and tokens: no sample costs more than was allowed, whatever it shows."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.batch import LIDAR_FIELDS, RADAR_FIELDS, Batch, PointBatch
from fusion.adaptive.allocation import Allocation, SharedBudget
from fusion.model import FusionOutput
from fusion.ops.thinning import num_points_of, thinned
from fusion.routing.plan import BRANCHES, FULL, LITE, SKIP
from sensors.rig import CAMERAS, LIDAR, LIDAR_UNIT, RADARS, UNITS
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import small_batch
from tests.fusion.test_dispatch import assert_equal_outputs

MODEL = adaptive_model()
ASKED = 0.99
"""The largest budgets hold points, too; a budget of 1 asks for no bound."""
ALL_ON = Allocation(ASKED, None, (math.inf, math.inf), cap=1.0)
"""The full route of a budget below 1."""
LIMITS = {"LIDAR": MODEL.lidar.num_points, "RADAR": MODEL.radar.num_points}
pytestmark = pytest.mark.filterwarnings("ignore:.*that a budget pays for:UserWarning")


def points_of(counts, num_fields: int, seed: int = 0) -> PointBatch:
    """So many points of each sample, all of one sweep, within 40 m."""
    fields = torch.rand(sum(counts), num_fields, generator=torch.Generator().manual_seed(seed))
    fields[:, :2] = 80 * fields[:, :2] - 40
    fields[:, (LIDAR_FIELDS if num_fields == len(LIDAR_FIELDS) else RADAR_FIELDS).index("lag_s")] = 0
    sample = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return PointBatch(fields, sample, torch.ones(len(counts), dtype=torch.bool))


def crowded(lidar, radar, lost=(), seed: int = 0) -> Batch:
    """A batch whose samples have so many points of LiDAR and radar, and lack what ``lost`` names."""
    batch = small_batch(len(lidar), seed, tuple(lost))
    parts = {}
    for name, counts, width in (("lidar", lidar, len(LIDAR_FIELDS)), ("radar", radar, len(RADAR_FIELDS))):
        present = getattr(batch, name).present
        held = [count if there else 0 for count, there in zip(counts, present.tolist(), strict=True)]
        parts[name] = replace(points_of(held, width, seed), present=present)
    return replace(batch, **parts)


def spent(output: FusionOutput) -> list[float]:
    return [gflops / MODEL.prices().full_gflops for gflops in output.trace.gflops()]


def run(batch: Batch, budget, allocation: Allocation | None = None) -> FusionOutput:
    MODEL.shared_budget = None if allocation is None else SharedBudget([allocation], (), "")
    try:
        with torch.inference_mode():
            return MODEL(batch, budget=budget)
    finally:
        MODEL.shared_budget = None
        SharedBudget([], (), "").set(MODEL, None)


ALONE = [tuple(CAMERAS), (LIDAR,), tuple(RADARS)]
"""Channels of one sensor; a sample may have this alone."""


def without(row: int, only) -> list[tuple[int, str]]:
    return [] if only is None else [(row, name) for name in (*CAMERAS, LIDAR, *RADARS) if name not in ALONE[only]]


class Stubborn:
    """Every exit says the same of every sample."""

    looks_back = False

    def __init__(self, score):
        self.score = score

    def __call__(self, history):
        return torch.full((len(history[-1]),), self.score)


MANY = st.sampled_from([0, 1, 19, 20, 21, 50, 51, 200, 201, 400, 401, 2_000, 9_000])
SAMPLE = st.tuples(MANY, MANY, st.sampled_from([None, None, 0, 1, 2]))


@settings(max_examples=25, derandomize=True)
@given(
    samples=st.lists(SAMPLE, min_size=1, max_size=4),
    ask=st.floats(0, 1),
    score=st.sampled_from([-math.inf, 0.0, math.inf, math.nan]),
    lead=st.sampled_from([-math.inf, 0.0]),
    wants=st.sampled_from([-1e4, 0.0, 1e4]),
    is_shared=st.booleans(),
)
def test_no_input_makes_a_sample_cost_more_than_its_cap(samples, ask, score, lead, wants, is_shared):
    """Any number of points, any sensors, exits at which nobody or everybody leaves, tokens that all stay, a router that
    wants everything or nothing; one budget for all, or one of each sample."""
    lost = [pair for row, (_, _, only) in enumerate(samples) for pair in without(row, only)]
    batch = crowded([one[0] for one in samples], [one[1] for one in samples], lost)
    least, kept = MODEL.min_budget, MODEL.router.bias.detach().clone()
    caps = [least + (1 - least) * ((ask + row / 3) % 1) for row in range(len(samples))]
    MODEL.exits.policy = Stubborn(score)
    try:
        with torch.no_grad():
            MODEL.router.bias += torch.tensor([0.0, wants / 2, wants])
        if is_shared:
            caps = caps[:1] * len(samples)
            found = run(batch, caps[0], Allocation(least, caps[0], (0.5, 0.5), token_threshold=lead, cap=caps[0]))
        else:
            MODEL.exits.thresholds = (0.5, 0.5)
            found = run(batch, torch.tensor(caps, dtype=torch.float64))
    finally:
        with torch.no_grad():
            MODEL.router.bias.copy_(kept)
    for cost, cap in zip(spent(found), caps, strict=True):
        assert cost <= cap + 1e-6


@torch.no_grad()
def test_the_full_route_of_a_budget_costs_one_at_most():
    """Without the thinning this sample would cost more than everything does."""
    batch = crowded([40_000, 3], [60, 8_000])
    shared = run(batch, ASKED, ALL_ON)
    assert max(spent(shared)) <= 1 + 1e-9
    assert shared.trace.left_out == [("LIDAR", 0, 39_600), ("RADAR", 0, 10), ("RADAR", 1, 7_950)]
    whole = MODEL(batch, plan=MODEL.full_plan(batch))  # decided elsewhere: no budget is in force
    assert max(spent(whole)) > 1
    assert whole.trace.left_out == []
    assert spent(MODEL(batch, plan=MODEL.full_plan(batch), is_capped=True)) == pytest.approx(spent(shared))


def test_a_budget_of_one_asks_for_no_bound():
    """Each sample for itself; where an allocation decides, what was asked counts, not what the route may cost."""
    batch = crowded([40_000, 40_000], [60, 8_000])
    plan = MODEL.full_plan(batch).choice
    found = run(batch, torch.tensor([1.0, ASKED], dtype=torch.float64))
    assert torch.equal(found.plan.choice[0], plan[0])
    assert spent(found)[0] > 1 >= spent(found)[1]
    assert {row for _, row, _ in found.trace.left_out} == {1}
    for allocation in (None, replace(ALL_ON, budget=1.0)):
        free = run(batch, 1.0, allocation)
        assert free.trace.left_out == []
        assert min(spent(free)) > 1
    kept = thinned(points_of([9, 9, 3], len(LIDAR_FIELDS)), 4, torch.tensor([False, True, True]))
    assert num_points_of(kept).tolist() == [9, 4, 3]


@torch.no_grad()
def test_a_sample_among_others_is_thinned_as_it_is_alone():
    batch = crowded([3_000, 100, 401], [7, 500, 50])
    together = run(batch, ASKED)
    first = replace(batch, lidar=batch.lidar.rows(torch.tensor([0])), radar=batch.radar.rows(torch.tensor([0])))
    taken = small_batch(3)
    alone = replace(small_batch(1), **_row(taken, 0), lidar=first.lidar, radar=first.radar)
    plan = MODEL.plan_of(together.plan.choice[:1], MODEL.available(alone))
    own = MODEL(alone, plan=plan, is_capped=True)
    assert_equal_outputs(together.head.select(torch.tensor([0])), own.head)
    masked = MODEL(batch, budget=ASKED, execution="masked")
    assert_equal_outputs(together.head, masked.head)
    assert {"LIDAR", "RADAR"} >= {name for name, _, _ in masked.trace.left_out}


def _row(batch: Batch, row: int) -> dict:
    camera = batch.camera
    parts = {name: getattr(camera, name)[row : row + 1] for name in ("images", "image_from_camera", "ego_from_camera")}
    parts |= {"present": camera.present[row : row + 1], "depth_m": camera.depth_m[row : row + 1]}
    return {"camera": replace(camera, **parts)}


def test_within_the_price_nothing_changes():
    """Neither the points nor, in training, the number of them."""
    points = points_of([400, 0, 7], len(LIDAR_FIELDS))
    assert thinned(points, 400) is points
    assert MODEL.lidar.within_price(FULL, points) is points
    assert num_points_of(MODEL.lidar.within_price(LITE, points)).tolist() == [200, 0, 7]
    batch = crowded([500], [3])
    MODEL.train()
    try:
        output = MODEL(batch, budget=1.0)
    finally:
        MODEL.eval()
    assert output.trace.left_out == []


def test_thinned_points_are_spread_and_in_order():
    """Of 32 beams that take turns and of ten sweeps, one after the other, each keeps its share; order stays."""
    count, most = 32 * 1000, 10_000
    points = points_of([count, 5], len(LIDAR_FIELDS))
    points.points[:count, 3] = torch.arange(count)
    kept = thinned(points, most)
    assert num_points_of(kept).tolist() == [most, 5]
    order = kept.points[:most, 3].long()
    assert bool((order.diff() > 0).all())
    for part in (order % 32, order * 10 // count):
        shares = torch.bincount(part).double() / most
        assert shares.numpy() == pytest.approx(np.full(len(shares), 1 / len(shares)), rel=0.02)
    again = thinned(PointBatch(points.points[:count], points.sample[:count], points.present[:1]), most)
    assert torch.equal(again.points, kept.points[:most])
    assert torch.equal(thinned(kept, most).points, kept.points)


def test_measured_depths_cost_no_more_than_they_are_priced_at(monkeypatch):
    """The newest sweep alone gives depths, and of it as many points as the price counts."""
    seen = []
    cameras = MODEL.cameras
    monkeypatch.setattr(cameras, "depth_from_lidar", True)
    monkeypatch.setattr(cameras, "num_points", 300)
    depths_of = cameras.depths_of
    monkeypatch.setattr(
        cameras, "depths_of", lambda points, *a: (seen.append(num_points_of(points)), depths_of(points, *a))[1]
    )
    batch = crowded([2_000, 10, 301], [5, 5, 5])
    batch.lidar.points[:500, LIDAR_FIELDS.index("lag_s")] = 0.5  # measure no depths in any case
    found = run(batch, ASKED, ALL_ON)
    assert seen
    assert {tuple(one.tolist()) for one in seen} == {(300, 10, 300)}
    assert sorted(found.trace.left_out) == [("DEPTH", 0, 1_200), ("DEPTH", 2, 1), ("LIDAR", 0, 1_600)]
    seen.clear()
    run(batch, 1.0)
    assert {tuple(one.tolist()) for one in seen} == {(2_000, 10, 301)}  # older sweeps are left out behind this
    lagging = points_of([400], len(LIDAR_FIELDS))
    lagging.points[:250, LIDAR_FIELDS.index("lag_s")] = 0.5
    assert num_points_of(cameras.within_price(lagging)).tolist() == [150]


def test_a_user_is_told():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(crowded([4_000], [5]), ASKED, ALL_ON)
    assert ["more than the 400 points" in str(one.message) for one in told] == [True]
    assert "\n" not in str(told[0].message)


def test_cheaper_branches_have_limits_of_their_own():
    batch = crowded([5_000], [5_000])
    choice = torch.full((1, len(UNITS)), SKIP)
    choice[0, LIDAR_UNIT:] = LITE
    with torch.inference_mode():
        trace = MODEL(batch, plan=MODEL.plan_of(choice, MODEL.available(batch)), is_capped=True).trace
    price = {unit: MODEL.prices().units[UNITS.index(unit)][BRANCHES[LITE]] for unit in ("LIDAR", "RADAR")}
    assert {e.unit: e.gflops_per_row for e in trace.executions if e.unit in price} == pytest.approx(price)
