"""What makes a cell the same one: weights, data, settings, code; and what its confidences are worth under faults."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from datamodules.datamodule import NuScenesDataModule
from fusion.robustness import run_word as words
from fusion.robustness.axes import planned_cells
from fusion.robustness.cell_runner import SuiteOptions
from fusion.robustness.cells import append_cell, read_cells
from fusion.robustness.detector import ForeignModel
from fusion.robustness.fingerprint import sources_word
from fusion.robustness.results import cells_before, collected
from fusion.robustness.run_word import PARTS, changed_parts, run_word
from fusion.robustness.suite import run_scenarios
from fusion.robustness.summary import summary_of
from fusion.scoring.breakdown import confidence_calibration
from fusion.scoring.metrics import Metrics
from fusion.scoring.scorer import Scorer, score_table
from fusion.scoring.table import BoxTable
from sensors.boxes import Boxes
from sensors.faults.suites import Scenario, suite_named
from tests.fusion.detections import boxes_at
from tests.fusion.devkit_oracle import no_boxes, split_of
from tests.fusion.remembering_model import RememberingModel, scorable_small_set

WITHOUT_LIDAR = {scenario.name: scenario for scenario in suite_named("missing-sensors")}["camera+radar"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return scorable_small_set(tmp_path_factory.mktemp("small"))


@pytest.fixture
def copy(original, tmp_path):
    """The same data set elsewhere, with other times on its files."""
    root = tmp_path / "copy"
    shutil.copytree(original.root, root)
    for path in root.rglob("*.*"):
        os.utime(path, (1, 1))
    return root


def scored_in(root) -> tuple[NuScenesDataModule, Scorer]:
    sweeps = {"lidar_sweeps": 1, "radar_sweeps": 1, "batch_size": 2}
    data = NuScenesDataModule(root, "v1.0-small", "small_train", "small_train", (18, 32), **sweeps)
    return data, Scorer(root, data.version, "small_train")


def word_of(root, tmp_path, settings: str = "") -> str:
    data, scorer = scored_in(root)
    return run_word(RememberingModel(), data, scorer, tmp_path / "run", settings)


def test_contents_of_the_data_count_and_neither_place_nor_time(original, copy, tmp_path):
    word = word_of(copy, tmp_path)
    assert len(word.split("-")) == len(PARTS)
    assert word == word_of(original.root, tmp_path)
    assert changed_parts(word, word_of(copy, tmp_path, "model.merge.fill=0")) == ("settings",)
    assert changed_parts(word, "0123456789abcdef") == PARTS

    table = copy / "v1.0-small" / "sample_annotation.json"
    before = table.read_text()
    table.write_text(before.replace('"size": [', '"size": [ ', 1))
    assert changed_parts(word, word_of(copy, tmp_path)) == ("data set",)
    table.write_text(before)
    assert word_of(copy, tmp_path) == word

    # Seven samples: every keyframe's file counts. One bit of one picture, one file that is not there.
    frames, _ = scored_in(copy)[0].frames("small_train"), None
    row = int(frames.index.samples.keyframes[frames.rows[3], 0])
    picture = copy / frames.index.measurements.filename[row].decode()
    pixels = picture.read_bytes()
    picture.write_bytes(pixels[:-3] + bytes([pixels[-3] ^ 1]) + pixels[-2:])
    changed = word_of(copy, tmp_path)
    assert changed_parts(word, changed) == ("data set",)
    picture.unlink()
    assert len({word, changed, word_of(copy, tmp_path)}) == 3


def test_code_that_makes_scores_counts(tmp_path):
    for name in ("fusion/report/page.py", "fusion/model.py", "sensors/lidar.py", "notes/other.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    word = sources_word(tmp_path)
    for name, counts in (("fusion/report/page.py", False), ("notes/other.py", False), ("sensors/lidar.py", True)):
        (tmp_path / name).write_text("a = 2\n")
        assert (sources_word(tmp_path) != word) == counts
        (tmp_path / name).write_text("a = 1\n")
        assert sources_word(tmp_path) == word
    # What ends one file does not begin the next.
    (tmp_path / "fusion" / "model.py").rename(tmp_path / "fusion" / "models.py")
    assert sources_word(tmp_path) != word


def test_other_code_or_data_are_not_mixed_in_and_named(copy, tmp_path, monkeypatch):
    def scored(scenarios=()):
        data, scorer = scored_in(copy)
        return run_scenarios(RememberingModel(), data, scorer, scenarios, (1.0,), tmp_path)

    first = scored()
    assert (first.num_skipped, first.left_out) == (0, "")
    monkeypatch.setattr(words, "code_word", lambda: "fedcba9876543210")
    second = scored()
    assert second.num_skipped == 0
    assert second.cells[0].run != first.cells[0].run
    path = tmp_path / "robustness.jsonl"
    assert second.left_out == f"1 cells in {path} are left out here, since they differ in: code"
    monkeypatch.undo()
    assert scored().num_skipped == 1
    table = copy / "v1.0-small" / "log.json"
    table.write_text(table.read_text() + "\n")
    third = scored()
    assert third.num_skipped == 0
    assert third.left_out == f"2 cells in {path} are left out here, since they differ in: data set, code"
    assert len({cell.run for cell in read_cells(path)}) == 3


def test_cells_without_the_regret_that_is_asked_for_are_not_collected(tmp_path):
    metrics = Metrics(0.5, 0.4, {}, {}, {}, {}, {}, {})
    planned = planned_cells((), (1.0, 0.5), ("router", "full"))
    for plan in planned:
        regret = {"regret": 0.1} if plan.budget == 0.5 else None
        append_cell(tmp_path / "robustness.jsonl", replace(plan.blank("word"), metrics=metrics, regret=regret))
    assert collected(tmp_path, "word", planned).failed == ()
    (failed,) = collected(tmp_path, "word", planned, regret=True).failed
    assert (failed.budget, failed.policy, failed.metrics) == (1.0, "router", None)
    assert cells_before(tmp_path, "word", regret=True).num_done(planned, "word") == 3
    assert cells_before(tmp_path, "word").num_done(planned, "word") == 4


def test_calibration_of_confidences_by_hand():
    """Four cars, four detections in four bins: hit, missed, hit, missed."""
    labels = boxes_at([[10.0 * row, 0.0, 1.0] for row in range(1, 5)], num_points=np.full(4, 5))
    found = boxes_at(
        [[10.0, 0.5, 1.0], [20.0, 3.0, 1.0], [30.0, -1.0, 1.0], [40.0, -3.0, 1.0]],
        score=np.array([0.95, 0.85, 0.35, 0.15]),
    )
    sample = np.zeros(4, np.int64)
    scored = score_table(BoxTable(found, sample), split_of(BoxTable(labels, sample), np.zeros((1, 2)), no_boxes()))
    calibration = confidence_calibration(scored)["all"]
    assert calibration.num.tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 1, 1]
    assert calibration.hit_rate[calibration.num > 0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert calibration.expected_error == pytest.approx((0.05 + 0.85 + 0.65 + 0.15) / 4)


class Overconfident:
    """Knows where the car is and says 0.9; without LiDAR it looks ten metres beside and still says 0.6."""

    def __init__(self, frames):
        self.boxes = {frame.token: frame.boxes for frame in (frames[row] for row in range(len(frames)))}

    def detect(self, frames):
        return [self._one(frame) for frame in frames]

    def _one(self, frame) -> Boxes:
        boxes = self.boxes[frame.token]
        car = boxes.select(np.flatnonzero(boxes.label == 0)[:1])
        beside, score = (0.0, 0.9) if frame.lidar else (10.0, 0.6)
        moved = car.center_m + np.array([0.0, beside, 0.0], car.center_m.dtype)
        return replace(car, center_m=moved, score=np.full(len(car), score, car.score.dtype))


def test_confidences_under_faults_from_detector_to_summary(original, tmp_path):
    """Every car found at 0.9: error 0.1. Every one missed at 0.6: error 0.6."""
    data, scorer = scored_in(original.root)
    model = ForeignModel(Overconfident(data.frames("small_train")))
    options = SuiteOptions()
    result = run_scenarios(model, data, scorer, (WITHOUT_LIDAR, Scenario("clean")), (1.0,), tmp_path, options=options)
    assert result.exit_code == 0, result.failed
    errors = summary_of(read_cells(tmp_path / "robustness.jsonl"))["at"][0]["calibration_error"]
    assert errors == {"clean": pytest.approx(0.1), "camera+radar": pytest.approx(0.6)}
    clean, blind = result.cells
    assert clean.calibration["num"][9] + clean.calibration["num"][8] == 4
    assert blind.calibration["num"][6] + blind.calibration["num"][5] == sum(blind.calibration["num"]) > 0
