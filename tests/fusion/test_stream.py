"""Streams open what the route chose and nothing else, and find what the evaluation finds."""

import builtins
import io
import json
import os

import numpy as np
import pytest
import torch

from fusion.cli import main
from fusion.commands.runs import open_run
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.policies import ArgmaxPolicy
from fusion.scoring.evaluate import evaluate_model
from fusion.stream import record, senses
from fusion.stream.record import summary_of
from fusion.stream.runner import Stream, StreamSettings
from fusion.stream.senses import SceneSenses
from sensors.rig import CAMERAS, LIDAR, LIDAR_UNIT, RADAR_UNIT, RADARS
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, budget_of, write_routed_run

INPUTS = ("health", "thumbnails", "speed")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream")
    scorable_small_set(root / "set")
    return write_routed_run(root / "run", root / "set", *SMALL_SET)


@pytest.fixture(scope="module")
def opened(run_folder):
    return open_run(run_folder, [], [])


def stream_of(opened, route=None, glance="reduced", settings=None, **options) -> Stream:
    frames = opened.data.frames("small_train")
    sense = SceneSenses(frames, opened.data.clean_preparation, glance, INPUTS, **options)
    route_of = None if route is None else lambda keyframe: torch.tensor(route)
    return Stream(opened.model, sense, settings or StreamSettings(budget_of(opened.model, 0.3)), route_of)


@pytest.fixture
def files(monkeypatch):
    """Paths of the sensor files that are opened, by whatever means."""
    seen = []

    def recording(plain):
        def opens(file, *arguments, **options):
            if any(part in str(file) for part in ("samples/", "sweeps/")):
                seen.append(str(file))
            return plain(file, *arguments, **options)

        return opens

    monkeypatch.setattr(builtins, "open", recording(builtins.open))
    monkeypatch.setattr(io, "open", recording(io.open))
    monkeypatch.setattr(os, "open", recording(os.open))
    return seen


def channels_of(files) -> set[str]:
    return {path.split("/")[-2] for path in files}


def assert_as_evaluated(frames, plain) -> None:
    np.testing.assert_allclose([frame.gflops for frame in frames], plain.gflops, rtol=1e-6)
    for frame in frames:
        wanted = plain.detections[frame.token]
        assert len(frame.boxes) == len(wanted) > 0
        np.testing.assert_allclose(frame.boxes.score, wanted.score, atol=1e-5)
        np.testing.assert_allclose(frame.boxes.center_m, wanted.center_m, atol=1e-3)


def test_files_of_skipped_sensors_are_never_opened(opened, files):
    route = [SKIP] * 8
    route[0], route[RADAR_UNIT] = FULL, LITE
    frames = list(stream_of(opened, route).run(range(7)))
    assert channels_of(files) == {CAMERAS[0], *RADARS}
    assert sum(CAMERAS[0] in path for path in files) == 7
    assert set(frames[0].opened) == {CAMERAS[0], *RADARS}
    assert frames[0].joules < stream_joules(frames[0], everything=True)


def stream_joules(frame, everything: bool) -> float:
    return StreamSettings().energy.sample_j(frame.gflops, [everything] * 8)


def test_the_lite_lidar_reads_the_newest_sweep_alone(opened, files):
    route = [SKIP] * 8
    for branch, wanted in ((FULL, 2), (LITE, 1)):
        files.clear()
        route[LIDAR_UNIT] = branch
        list(stream_of(opened, route).run([3]))
        assert len(files) == wanted, branch


def test_a_glance_at_what_is_known_opens_only_what_runs(opened, files):
    """After the first frame of a scene, which looks at everything."""
    stream = stream_of(opened, glance="last").run(range(4))
    next(stream)
    assert channels_of(files) == {*CAMERAS, LIDAR, *RADARS}
    for _ in range(3):
        files.clear()
        frame = next(stream)
        wanted = {name for unit, name in enumerate((*CAMERAS, LIDAR)) if frame.route[unit] != SKIP}
        assert channels_of(files) == wanted | (set(RADARS) if frame.route[RADAR_UNIT] != SKIP else set())


def test_a_reduced_glance_decodes_no_picture_in_full_that_does_not_run(opened, monkeypatch):
    decoded, plain = [], senses.decode_pixels
    monkeypatch.setattr(senses, "decode_pixels", lambda data, name: decoded.append(name) or plain(data, name))
    monkeypatch.setattr(senses, "_LEAST_ROWS", 4)  # pictures of 36 rows would not be reduced
    frames = list(stream_of(opened).run(range(3)))
    assert len(decoded) == sum(int((frame.route[:6] != SKIP).sum()) for frame in frames)


def test_with_a_full_glance_routes_and_boxes_are_those_of_evaluation(opened):
    for budget in (budget_of(opened.model, 0.3), budget_of(opened.model, 0.8)):
        plain = evaluate_model(opened.model, opened.data.evaluation_loader("small_train", batch_size=1), budget=budget)
        frames = list(stream_of(opened, glance="full", settings=StreamSettings(budget)).run(range(7)))
        np.testing.assert_array_equal(np.stack([frame.route.numpy() for frame in frames]), plain.branch)
        assert_as_evaluated(frames, plain)


def test_boxes_under_any_plan_are_those_of_evaluation(opened):
    """Whatever the glance was: only the plan decides."""
    frames = list(stream_of(opened, glance="last").run(range(7)))
    routes = {frame.token: frame.route for frame in frames}

    def planned(batch):
        choice = torch.stack([routes[token] for token in batch.tokens])
        return opened.model.plan_of(choice, opened.model.available(batch))

    plain = evaluate_model(
        opened.model, opened.data.evaluation_loader("small_train", batch_size=1), plan_source=planned
    )
    for frame in frames:
        np.testing.assert_allclose(frame.boxes.score, plain.detections[frame.token].score, atol=1e-5)


def test_points_are_thinned_where_a_budget_below_one_decides_and_nowhere_else(opened, monkeypatch):
    """As in evaluation: not under a given route, and not at a budget of 1."""
    bounds = []
    execute = opened.model.execute
    monkeypatch.setattr(
        opened.model, "execute", lambda *a, **k: (bounds.append(bool(a[1].capped)), execute(*a, **k))[1]
    )
    for branch in opened.model.lidar.num_points:
        monkeypatch.setitem(opened.model.lidar.num_points, branch, 1)
    route = [SKIP] * 6 + [FULL, FULL]
    given = list(stream_of(opened, route=route).run(range(3)))
    list(stream_of(opened, settings=StreamSettings(budget_of(opened.model, 0.3))).run(range(1)))
    list(stream_of(opened, settings=StreamSettings(1.0)).run(range(1)))
    assert bounds == [False] * 3 + [True, False]
    monkeypatch.setattr(opened.model, "execute", execute)
    plain = evaluate_model(
        opened.model,
        opened.data.evaluation_loader("small_train", batch_size=1),
        plan_source=lambda batch: opened.model.plan_of(torch.tensor([route]), opened.model.available(batch)),
    )
    np.testing.assert_allclose([frame.gflops for frame in given], plain.gflops[:3], rtol=1e-6)


class CountedPolicy(ArgmaxPolicy):
    resets = 0

    def reset(self) -> None:
        self.resets += 1


def test_the_router_sees_the_frame_before_and_forgets_at_the_start_of_a_scene(opened, monkeypatch):
    router, seen = opened.model.router, []
    policy = CountedPolicy()
    monkeypatch.setattr(router, "inputs", INPUTS)
    stream = stream_of(opened)
    monkeypatch.setattr(router, "inputs", (*INPUTS, "previous"))
    monkeypatch.setattr(router, "policy", policy)
    monkeypatch.setattr(router, "outcome", torch.nn.Linear(3, router.mix.out_features, bias=False), raising=False)
    handle = router.register_forward_pre_hook(lambda *_: seen.append(router.previous))
    try:
        frames = list(stream.run(range(7)))
    finally:
        handle.remove()
    assert [value is None for value in seen] == [True, False, False, False, True, False, False]
    assert policy.resets == 2
    np.testing.assert_allclose(seen[1][0, :, 0], frames[0].route.float() / FULL)
    assert seen[1][0, 0, 1].item() == pytest.approx(np.log10(1 + len(frames[0].boxes)) / 2)
    assert router.previous is None


def test_deadlines_and_waking_up(opened):
    frames = list(stream_of(opened, settings=StreamSettings(1.0, deadline_ms=1e-3)).run(range(2)))
    assert [frame.missed for frame in frames] == [True, True]
    assert list(stream_of(opened).run([0]))[0].missed is None
    calls = iter([[FULL] + [SKIP] * 7, [FULL] + [SKIP] * 7, [SKIP, FULL] + [SKIP] * 6])
    stream = stream_of(opened, [0] * 8, settings=StreamSettings(deadline_ms=1e8, wake_ms=1e9))
    stream.route_of = lambda keyframe: torch.tensor(next(calls))
    frames = list(stream.run(range(3)))
    assert [frame.wake_ms for frame in frames] == [0.0, 0.0, 1e9]
    assert [frame.missed for frame in frames] == [False, False, True]
    summary = summary_of(frames)
    assert (summary.num_frames, summary.num_missed, summary.num_switches) == (3, 1, 1)
    assert summary.ran_share["CAM_FRONT"] == pytest.approx(2 / 3)


def test_ages_grow_while_a_sensor_is_not_looked_at(opened):
    sense = SceneSenses(opened.data.frames("small_train"), opened.data.clean_preparation, "last", INPUTS)
    first, _ = sense.glance(sense.keyframe(0))
    later, _ = sense.glance(sense.keyframe(1))
    age = later[:, -1] - first[:, -1]
    np.testing.assert_allclose(age, 5.0, atol=1e-3)  # half a second in tenths
    np.testing.assert_array_equal(later[:, :-1], first[:, :-1])
    again = SceneSenses(
        opened.data.frames("small_train"), opened.data.clean_preparation, "last", INPUTS, look_every_s=0.4
    )
    again.glance(again.keyframe(0))
    looked, _ = again.glance(again.keyframe(1))
    assert np.abs(looked[:, -1]).max() < 2


def test_mistakes_are_named(opened):
    with pytest.raises(ValueError, match="glance"):
        stream_of(opened, glance="all")
    with pytest.raises(ValueError, match="budget"):
        stream_of(opened, settings=StreamSettings(1e-4))


def test_the_command(run_folder, opened, capsys, monkeypatch):
    budget = f"budget={budget_of(opened.model, 0.3)}"
    assert main(["stream", f"run={run_folder}", "scene=scene-b", budget, "deadline_ms=5"]) == 0
    lines = [json.loads(line) for line in (run_folder / "stream.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert set(lines[0]["ms"]) == set(record.PARTS)
    assert main(["stream", f"run={run_folder}", "scene=nowhere"]) == 2
    assert main(["stream", f"run={run_folder}", "policy=deadline", "deadline_ms=5"]) == 2
    assert "dynfusion costs" in capsys.readouterr().err
    for policy in ("hysteresis", "bucket"):
        assert main(["stream", f"run={run_folder}", "scene=all", budget, f"policy={policy}"]) == 0
    plain = Stream.run

    def stopped(self, frames):
        yield from plain(self, list(frames)[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "run", stopped)
    assert main(["stream", f"run={run_folder}", "scene=all"]) == 130
    assert len((run_folder / "stream.jsonl").read_text().splitlines()) == 2


def test_thresholds_belong_to_their_checkpoint(run_folder, opened, capsys):
    low, high = budget_of(opened.model, 0.3), budget_of(opened.model, 0.8)
    assert main(["calibrate", f"run={run_folder}", f"budgets=[{low},{high}]"]) == 0
    arguments = ["stream", f"run={run_folder}", "policy=threshold", "max_frames=1"]
    assert main([*arguments, f"budget={low}"]) == 0
    assert main([*arguments, "budget=1.0"]) == 2
    assert f"calibrated budgets {low:g}, {high:g}" in capsys.readouterr().err
    kept = run_folder / "checkpoints" / "last.ckpt"
    whole = torch.load(kept, weights_only=True)
    whole["state_dict"]["model.router.bias"] += 1.0
    torch.save(whole, kept)
    assert main([*arguments, f"budget={low}"]) == 2
    assert "calibrate again" in capsys.readouterr().err


def test_costs_on_this_machine(run_folder, opened):
    budget = budget_of(opened.model, 0.3)
    assert main(["costs", f"run={run_folder}", "repeats=1", "rows=[1,6]", f"budgets=[{budget}]"]) == 0
    costs = json.loads((run_folder / "costs.json").read_text())
    found = costs["budgets"][f"{budget:g}"]
    assert sum(found["counts"]) == 7
    assert {group["name"]: group["num_samples"] for group in found["by_condition"]} == {"night": 4, "rain": 4, "day": 3}
    assert found["joules"]["computing_by_model"] == pytest.approx(0.02 * found["mean"])
    assert costs["always_gflops"]["trunk"] > 0
    assert main(["stream", f"run={run_folder}", "policy=deadline", "deadline_ms=1e6", "max_frames=1"]) == 0
