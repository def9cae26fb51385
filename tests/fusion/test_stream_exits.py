"""Router, exits and tokens in a stream: what evaluation finds, without opening what a frame that left did not need."""

import json
import math

import numpy as np
import pytest
import torch

from fusion.adaptive.allocation import Allocation, SharedBudget
from fusion.adaptive.files import FILE, write_shared_budget
from fusion.cli import main
from fusion.commands.runs import open_run
from fusion.robustness.fingerprint import model_word
from fusion.routing.plan import FULL, SKIP
from fusion.scoring.evaluate import evaluate_model
from fusion.stream import senses
from fusion.stream.record import summary_of
from fusion.stream.runner import Stream, StreamSettings
from fusion.stream.senses import SceneSenses
from sensors.rig import CAMERAS, LIDAR, LIDAR_UNIT, RADARS
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run
from tests.fusion.test_stream import assert_as_evaluated

NUM_FRAMES = 7


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stream_exits")
    scorable_small_set(root / "set")
    return write_routed_run(root / "run", root / "set", *SMALL_SET, "model=tiny_adaptive")


@pytest.fixture(scope="module")
def opened(run_folder):
    return open_run(run_folder, [], [])


@pytest.fixture(scope="module")
def thresholds(opened):
    """That about half of the frames leave at the first exit, and half of the others at the second."""
    opened.model.exits.observing = True
    try:
        scores = [opened.model(batch).exits.scores for batch in loader(opened)]
    finally:
        opened.model.exits.observing = False
    first, second = torch.cat(scores).T
    middle = first.median()
    return float(middle), float(second[first < middle].median())


def loader(opened):
    return opened.data.evaluation_loader("small_train", batch_size=1)


def sharing(opened, monkeypatch, *thresholds: float, **options) -> None:
    """Every budget has the same settings."""
    allocation = Allocation(**{"budget": 0.1, "route_budget": None, "thresholds": thresholds, **options})
    shared = SharedBudget([allocation], (1.0, 1.0), "", type(opened.model.exits.policy).__name__)
    monkeypatch.setattr(opened.model, "shared_budget", shared)


def streamed(opened, route_of=None, budget: float = 0.9, glance: str = "full"):
    frames = opened.data.frames("small_train")
    sense = SceneSenses(frames, opened.data.clean_preparation, glance, opened.model.router.inputs)
    return list(Stream(opened.model, sense, StreamSettings(budget), route_of).run(range(NUM_FRAMES)))


def evaluated(opened):
    return evaluate_model(opened.model, loader(opened), budget=0.9)


def test_a_frame_that_leaves_before_the_cameras_does_not_open_them(opened, thresholds, monkeypatch):
    sharing(opened, monkeypatch, *thresholds)
    frames = streamed(opened)
    assert_as_evaluated(frames, evaluated(opened))
    assert {frame.exit for frame in frames} == {0, 1, None}
    for frame in frames:
        points = {LIDAR, *RADARS}
        assert set(frame.opened) == (points if frame.exit == 0 else points | set(CAMERAS))
        assert bool((frame.route[:LIDAR_UNIT] == (SKIP if frame.exit == 0 else FULL)).all())
        assert frame.ms["glance"] == 0  # the full route needs no router
        assert frame.line()["exit"] == frame.exit


def test_with_the_router_tokens_and_bounds_of_single_frames(opened, thresholds, monkeypatch):
    bounds = {"route_budget": opened.model.min_budget + 0.1, "rich_route_budget": 0.95, "rich_share": 0.5}
    sharing(opened, monkeypatch, thresholds[0], math.inf, token_threshold=0.1, token_most=0.5, **bounds)
    frames = streamed(opened)
    assert_as_evaluated(frames, evaluated(opened))
    assert 0 < sum(frame.exit == 0 for frame in frames) < NUM_FRAMES


@pytest.mark.parametrize("glance", ["reduced", "last"])
def test_what_the_glance_opens_stays_small_where_the_frame_leaves(glance, opened, thresholds, monkeypatch):
    """The first frame of a scene looks at everything. Pictures of 36 lines are not reduced unless asked to."""
    decoded, plain = [], senses.decode_pixels
    monkeypatch.setattr(senses, "decode_pixels", lambda data, name: decoded.append(name) or plain(data, name))
    monkeypatch.setattr(senses, "_LEAST_ROWS", 4)
    sharing(opened, monkeypatch, -math.inf, math.inf, route_budget=0.95)
    frames = streamed(opened, glance=glance)
    assert [frame.exit for frame in frames] == [0] * NUM_FRAMES
    assert not decoded
    opens = [bool(set(frame.opened) & {*CAMERAS}) for frame in frames]
    begins = [i == 0 or frame.scene != frames[i - 1].scene for i, frame in enumerate(frames)]
    assert opens == (begins if glance == "last" else [True] * NUM_FRAMES)
    assert summary_of(frames).num_switches == sum(
        a.scene == b.scene and not a.chosen.equal(b.chosen) for a, b in zip(frames, frames[1:], strict=False)
    )


@pytest.mark.parametrize("group", [["camera"], ["camera", "radar"]])
def test_cameras_that_run_first_have_what_they_look_at(group, run_folder, monkeypatch):
    """The LiDAR gives them depths, although it runs after the first exit."""
    words = [f"model.exits.first_group=[{','.join(group)}]", "model.cameras.depth_from_lidar=true"]
    opened = open_run(run_folder, words, [], calibrated=False)
    opened.model.exits.observing = True
    with torch.no_grad():
        scores = torch.cat([opened.model(batch).exits.scores[:, 0] for batch in loader(opened)])
    opened.model.exits.observing = False
    sharing(opened, monkeypatch, float(scores.median()), math.inf)
    frames = streamed(opened)
    assert_as_evaluated(frames, evaluated(opened))
    assert 0 < sum(frame.exit == 0 for frame in frames) < NUM_FRAMES
    for frame in frames:
        assert frame.exit is None or frame.route[LIDAR_UNIT] == SKIP  # it has not run
        assert LIDAR in frame.opened


def test_nothing_is_read_twice(opened, thresholds, monkeypatch):
    sharing(opened, monkeypatch, math.inf, math.inf)
    whole = streamed(opened)
    read = []
    plain = SceneSenses.read
    monkeypatch.setattr(
        SceneSenses, "read", lambda self, frame, choice: (read.append(choice > SKIP), plain(self, frame, choice))[1]
    )
    sharing(opened, monkeypatch, 1e9, math.inf)  # an exit that is on, and nobody leaves at
    frames = streamed(opened)
    assert len(read) == 2 * NUM_FRAMES
    for first, second in zip(read[::2], read[1::2], strict=True):
        assert not (first & second).any()
    for frame, other in zip(frames, whole, strict=True):
        np.testing.assert_allclose(frame.boxes.score, other.boxes.score, atol=1e-5)
        assert frame.route.equal(other.route)


def test_a_given_route_goes_all_the_way(opened, thresholds, monkeypatch):
    sharing(opened, monkeypatch, *thresholds)
    frames = streamed(opened, lambda keyframe: torch.full((8,), FULL))
    assert [frame.exit for frame in frames] == [None] * NUM_FRAMES


def test_the_command_uses_what_was_calibrated(run_folder, opened, thresholds, capsys):
    name, word = type(opened.model.exits.policy).__name__, model_word(opened.model)
    allocations = [Allocation(0.9, None, thresholds, mean_cost=0.8, standard_error=0.0, loss=1.0)]
    command = ["stream", f"run={run_folder}", "scene=all", "budget=0.9"]
    write_shared_budget(run_folder / FILE, SharedBudget(allocations, (1.0, 1.0), word, name), "small_train", 7)
    assert main(command) == 0
    assert "left early" in capsys.readouterr().out
    lines = [json.loads(line) for line in (run_folder / "stream.jsonl").read_text().splitlines()]
    assert {line["exit"] for line in lines} == {0, 1, None}
    assert main([*command, "policy=bucket"]) == 0  # keeps budgets by routes
    assert "left early" not in capsys.readouterr().out
    write_shared_budget(run_folder / FILE, SharedBudget(allocations, (1.0, 1.0), "other", name), "", 7)
    assert main(command) == 2
    assert "calibrate again" in capsys.readouterr().err
