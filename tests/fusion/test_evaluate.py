"""Evaluation: what comes home is where it was, and what is counted is what ran."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusion.heads.decode import DecodeOptions
from fusion.routing.plan import LITE, SKIP, ExecutionTrace, fixed_plan
from fusion.scoring.evaluate import EvaluationResult, InputDigest, evaluate_model, executed_branches
from sensors.rig import LIDAR, LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT
from sensors.transforms import RigidTransform
from tests.fusion.random_batch import random_batch
from tests.fusion.remembering_model import ALWAYS_GFLOPS, UNIT_GFLOPS, RememberingModel

SURE = DecodeOptions(min_score=0.99)


def batch_at(pose: RigidTransform, seed: int, lost=()):
    """A batch of two whose vehicle stands at ``pose``."""
    batch = random_batch(2, seed=seed, image_size_px=(16, 32), num_points=40, lost=lost)
    return replace(batch, global_from_ego=torch.from_numpy(pose.matrix).expand(2, 4, 4).clone())


@pytest.fixture
def result() -> tuple[EvaluationResult, list]:
    pose = RigidTransform.from_yaw(0.7, (1000.0, -500.0, 3.0))
    batches = [batch_at(pose, seed=1), batch_at(pose, seed=2, lost=((1, LIDAR),)), batch_at(pose, seed=3)]
    model = RememberingModel().train()
    seen = []
    found = evaluate_model(model, batches, decode_options=SURE, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert model.executions == ["sparse"] * 3
    assert not model.training
    return found, batches


def test_boxes_come_home(result):
    found, batches = result
    assert found.tokens == tuple(token for batch in batches for token in batch.tokens)
    labels = batches[0].boxes
    pose = RigidTransform.from_yaw(0.7, (1000.0, -500.0, 3.0))
    wanted = pose.points(labels.center_m[labels.sample == 0].numpy().astype(np.float64))
    boxes = found.detections[batches[0].tokens[0]]
    distance = np.linalg.norm(wanted[:, None] - boxes.center_m[None], axis=2)
    assert boxes.center_m.dtype == np.float64
    assert len(boxes) == len(wanted)
    assert distance.min(axis=1).max() < 1e-3
    match = distance.argmin(axis=1)
    yaw = labels.yaw_rad[labels.sample == 0].numpy() + 0.7
    np.testing.assert_allclose(np.exp(1j * boxes.yaw_rad[match]), np.exp(1j * yaw), atol=1e-4)


def test_a_sample_without_lidar_is_blind_but_has_an_entry(result):
    found, batches = result
    assert len(found.detections[batches[1].tokens[1]]) == 0
    assert len(found.detections) == 6


def test_costs_and_shares_are_those_of_the_trace(result):
    found, _ = result
    full = ALWAYS_GFLOPS + 8 * UNIT_GFLOPS
    np.testing.assert_allclose(found.gflops, [full, full, full, full - UNIT_GFLOPS, full, full])
    assert found.sensor_shares() == {"camera": 1.0, "lidar": pytest.approx(5 / 6), "radar": 1.0}
    assert found.branch_shares()["LIDAR"] == {"lite": 0.0, "full": pytest.approx(5 / 6)}
    assert found.mean_views == 6
    assert found.unit_present[:, LIDAR_UNIT].tolist() == [True, True, True, False, True, True]


def test_milliseconds_leave_out_the_first_batch(result):
    found, _ = result
    assert len(found.batch_ms) == 3
    assert replace(found, batch_ms=np.array([900.0, 2.0, 4.0])).median_ms == 3.0
    assert replace(found, batch_ms=np.array([900.0])).median_ms == 900.0


def test_budget_and_foreign_plans_reach_the_model():
    batch = random_batch(2, image_size_px=(16, 32), num_points=40)
    frugal = evaluate_model(RememberingModel(), [batch], budget=0.3)
    assert frugal.sensor_shares() == {"camera": 0.0, "lidar": 1.0, "radar": 1.0}
    assert frugal.mean_views == 0

    def lite_radar(batch):
        choice = torch.full(batch.unit_present.shape, SKIP)
        choice[:, RADAR_UNIT] = LITE
        return fixed_plan(choice, batch.unit_present)

    planned = evaluate_model(RememberingModel(), [batch], plan_source=lite_radar)
    assert planned.branch_shares()["RADAR"] == {"lite": 1.0, "full": 0.0}
    np.testing.assert_allclose(planned.gflops, ALWAYS_GFLOPS + UNIT_GFLOPS / 2)


class GoingWithout(RememberingModel):
    """Leaves points of each batch's second sample out and does not guide its first, unless told not to."""

    is_short = True

    def forward(self, batch, **options):
        output = super().forward(batch, **options)
        if self.is_short:
            output.trace.left_out += [("LIDAR", 1, 30), ("LIDAR", 1, 10), ("DEPTH", 0, 2)]
        return replace(output, unguided=torch.tensor([self.is_short, False]))


def test_what_samples_went_without_is_told():
    batches = [random_batch(2, seed=seed, image_size_px=(16, 32), num_points=40) for seed in (1, 2)]
    model = GoingWithout()
    found = evaluate_model(model, batches)
    assert {unit: counts.tolist() for unit, counts in found.points_left_out.items()} == {
        "LIDAR": [0, 40, 0, 40],
        "DEPTH": [2, 0, 2, 0],
    }
    assert found.unguided.tolist() == [True, False, True, False]
    assert found.went_without() == {"points_left_out": {"LIDAR": 20.0, "DEPTH": 1.0}, "unguided": 0.5}
    model.is_short = False
    assert evaluate_model(model, batches).went_without() == {}
    assert evaluate_model(RememberingModel(), batches).went_without() == {}


def test_the_greater_branch_counts_and_always_on_parts_are_no_unit():
    trace = ExecutionTrace(2)
    trace.add("always", "head", (0, 1), 1.0)
    trace.add("LIDAR", "full", (1,), 1.0)
    trace.add("LIDAR", "lite", (0, 1), 1.0)
    assert executed_branches(trace)[:, LIDAR_UNIT].tolist() == [1, 2]
    assert executed_branches(trace)[:, :NUM_CAMERAS].sum() == 0


def test_the_digest_depends_on_the_inputs_and_not_on_the_batch_size():
    def word(*batches):
        digest = InputDigest()
        for batch in batches:
            digest.update(batch)
        return digest.word

    one, two = random_batch(1, seed=1), random_batch(1, seed=2)
    assert word(one, two) == word(one, two)
    assert word(one, two) != word(two, one)
    moved = one.camera.ego_from_camera.clone()
    moved[0, 3, 0, 3] += 0.01
    assert word(replace(one, camera=replace(one.camera, ego_from_camera=moved))) != word(one)
    joint = random_batch(2, seed=3)
    halves = [_sample(joint, 0), _sample(joint, 1)]
    assert word(*halves) == word(joint)


def _sample(batch, row):
    rows = torch.tensor([row])
    camera = replace(
        batch.camera,
        **{name: getattr(batch.camera, name)[rows] for name in ("images", "image_from_camera", "ego_from_camera")},
        present=batch.camera.present[rows],
        depth_m=None,
    )
    return replace(
        batch,
        camera=camera,
        lidar=batch.lidar.rows(rows),
        radar=batch.radar.rows(rows),
        health=batch.health[rows],
        thumbnails=batch.thumbnails[rows],
        channel_present=batch.channel_present[rows],
        **{name: getattr(batch, name)[row : row + 1] for name in ("tokens", "scenes", "faults", "conditions")},
        **{name: getattr(batch, name)[rows] for name in ("timestamp_us", "global_from_ego", "ego_from_ego_aug")},
        **{name: getattr(batch, name)[rows] for name in ("ego_speed_mps", "unit_present", "progress")},
    )


def test_an_empty_loader_is_an_error():
    with pytest.raises(ValueError, match="expected samples to evaluate"):
        evaluate_model(RememberingModel(), [])
