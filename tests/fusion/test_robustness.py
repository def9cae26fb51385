"""The suite on a hand-made data set with a model that knows the labels: scores, resuming, failing in the open."""

import io
import json
import math
import re
from dataclasses import dataclass, replace

import pytest
from rich.console import Console

from fusion.report.gallery import load_sample_detections
from fusion.robustness.cells import Cell, append_cell, newest_cells, read_cells
from fusion.robustness.lock import only_writer
from fusion.robustness.metrics import mean_resilience, resilience
from fusion.robustness.seen import seen_in_training, trained_faults
from fusion.robustness.suite import run_scenarios
from fusion.robustness.table import robustness_table
from fusion.scoring.metrics import Metrics
from fusion.scoring.scorer import Scorer
from sensors.boxes import DETECTION_NAMES
from sensors.faults.suites import Scenario, suite_named
from tests.fusion.remembering_model import RememberingModel, scorable_small_set

SUBSETS = {scenario.name: scenario for scenario in suite_named("missing-sensors")}
WITHOUT_LIDAR = SUBSETS["camera+radar"]
BLACK = Scenario("camera_blackout", (("camera_blackout", 6.0),))


@dataclass(frozen=True)
class FakeFault:
    """Returns its input, or raises."""

    name: str
    raises: bool = False
    family: str = "fake"
    modality: str = "all"
    unit: str = "-"
    levels: tuple = (1.0, 2.0, 3.0, 4.0, 5.0)
    clean: float = 0.0
    worst: float = 5.0
    channels: tuple | None = None

    def __call__(self, frame, history, level, draws):
        if self.raises:
            raise ValueError("expected a sensor that is there, got none")
        return frame


LAZY = Scenario("lazy", ((FakeFault("lazy"), 1.0),))
BROKEN = Scenario("broken", ((FakeFault("broken", raises=True), 1.0),))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scorable_small_set(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def scorer(data):
    return Scorer(data.root, data.version, "small_train")


@pytest.fixture(scope="module")
def finished(data, scorer, tmp_path_factory):
    """A run of five scenarios at two budgets."""
    run_dir = tmp_path_factory.mktemp("run")
    (run_dir / "config.yaml").write_text(
        "faults:\n  rules:\n  - {_target_: datamodules.inject.FaultRule, fault: camera_freeze}\n"
    )
    seen = []
    scenarios = (SUBSETS["camera+lidar+radar"], WITHOUT_LIDAR, BLACK, LAZY, BROKEN)
    result = run_scenarios(
        RememberingModel(), data, scorer, scenarios, (1.0, 0.3), run_dir, lambda *args: seen.append(args)
    )
    return run_dir, result, seen


def test_every_cell_is_scored_where_it_can_be(finished):
    _, result, _ = finished
    by_name = {(cell.scenario, cell.budget): cell for cell in result.cells}
    assert list(by_name) == [
        (name, budget)
        for name in ("clean", "camera+radar", "camera_blackout", "lazy", "broken")
        for budget in (1.0, 0.3)
    ]
    clean = by_name["clean", 1.0]
    assert clean.metrics.class_ap["car"] == pytest.approx(1)
    assert clean.metrics.class_ap["pedestrian"] == pytest.approx(1)
    assert clean.metrics.mean_ap == pytest.approx(0.2)
    assert clean.num_samples == 7
    assert clean.sensor_shares == {"camera": 1, "lidar": 1, "radar": 1}
    assert by_name["clean", 0.3].sensor_shares == {"camera": 0, "lidar": 1, "radar": 1}
    assert by_name["camera+radar", 1.0].metrics.mean_ap == 0
    assert by_name["camera+radar", 1.0].sensor_shares["lidar"] == 0
    assert by_name["camera_blackout", 1.0].metrics == clean.metrics
    assert by_name["camera_blackout", 1.0].faulty == 1
    assert by_name["camera_blackout", 1.0].gflops > by_name["camera_blackout", 0.3].gflops


def test_a_scenario_that_changes_nothing_is_warned_of(finished):
    _, result, _ = finished
    assert {cell.scenario for cell in result.warned} == {"lazy"}
    assert "changed nothing" in result.warned[0].warning


def test_a_scenario_that_cannot_run_is_no_score(finished):
    _, result, _ = finished
    assert [cell.scenario for cell in result.failed] == ["broken", "broken"]
    assert result.exit_code == 1
    assert result.failed[0].metrics is None
    assert result.failed[0].error == "ValueError: expected a sensor that is there, got none"
    assert math.isnan(resilience(result.failed[0], result.cells))
    assert math.isnan(mean_resilience(result.cells, 1.0))


def test_resilience_is_relative_to_clean_data_at_the_same_budget(finished):
    _, result, _ = finished
    lost = next(cell for cell in result.cells if cell.scenario == "camera+radar")
    assert resilience(lost, result.cells, "mean_ap") == 0
    black = next(cell for cell in result.cells if cell.scenario == "camera_blackout")
    assert resilience(black, result.cells) == 1
    whole = [cell for cell in result.cells if cell.error is None and cell.scenario != "lazy"]
    assert mean_resilience(whole, 1.0, "mean_ap") == pytest.approx(0.5)


def test_what_training_saw_is_told_apart(finished):
    run_dir, result, _ = finished
    trained = trained_faults(run_dir / "config.yaml")
    assert trained == {"camera_freeze"}
    frozen, stuck = Scenario("a", (("camera_freeze", 1.0),)), Scenario("b", (("lidar_freeze", 1.0),))
    assert [seen_in_training(s, trained) for s in (Scenario("clean"), frozen, stuck, BLACK)] == [
        None,
        "fault",
        "family",
        "neither",
    ]
    assert {cell.seen_in_training for cell in result.cells if cell.scenario == "camera_blackout"} == {"neither"}
    (run_dir / "other.yaml").write_text("a: {_target_: datamodules.inject.SubsetDropout}")
    assert trained_faults(run_dir / "other.yaml") == {"camera_drop", "lidar_drop", "radar_drop"}
    assert trained_faults(run_dir / "none.yaml") is None


def test_progress_counts_all_batches(finished):
    _, _, seen = finished
    assert seen[0] == ("all sensors, budget 1", 1, 40)
    assert all(before[1] < after[1] for before, after in zip(seen, seen[1:], strict=False))


def test_a_repeat_runs_only_what_failed(finished, data, scorer):
    run_dir, result, _ = finished
    model = RememberingModel()
    again = run_scenarios(model, data, scorer, (WITHOUT_LIDAR, BLACK, LAZY, BROKEN), (1.0, 0.3), run_dir)
    assert again.num_skipped == 8
    assert model.executions == []
    assert [cell.metrics for cell in again.cells[2:4]] == [cell.metrics for cell in result.cells[2:4]]
    assert again.warned
    kept = newest_cells(read_cells(run_dir / "robustness.jsonl"))
    assert len(kept) == 10


def test_an_interruption_loses_the_running_cell_only(finished, data, scorer, tmp_path):
    run_dir, result, _ = finished
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    lines = [cell.line() for cell in result.cells]
    (tmp_path / "robustness.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:200])
    assert len(read_cells(tmp_path / "robustness.jsonl")) == 3
    model = RememberingModel()
    again = run_scenarios(model, data, scorer, (WITHOUT_LIDAR,), (1.0, 0.3), tmp_path)
    assert again.num_skipped == 3
    assert len(model.executions) == 4
    written = (tmp_path / "robustness.jsonl").read_text().splitlines()
    assert len(written) == 4
    assert json.loads(written[3])["metrics"] == json.loads(lines[3])["metrics"]


class Interrupted(RememberingModel):
    """Somebody presses Ctrl-C in the third cell, after the first of its four batches."""

    def forward(self, *args, **options):
        if len(self.executions) == 2 * 4 + 1:
            raise KeyboardInterrupt
        return super().forward(*args, **options)


def test_ctrl_c_keeps_every_cell_that_was_done(data, scorer, tmp_path):
    """Cells are in the file when they end, not when the suite does; the folder is free for the next suite."""
    path = tmp_path / "robustness.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_scenarios(Interrupted(), data, scorer, (WITHOUT_LIDAR,), (1.0, 0.3), tmp_path)
    text = path.read_text()
    assert text.endswith("\n")
    done = [json.loads(line) for line in text.splitlines()]
    assert [(line["scenario"], line["budget"]) for line in done] == [("clean", 1.0), ("clean", 0.3)]
    assert all(line["metrics"] is not None for line in done)
    with only_writer(tmp_path):
        pass
    assert (tmp_path / "robustness.lock").read_text() == ""
    model = RememberingModel()
    again = run_scenarios(model, data, scorer, (WITHOUT_LIDAR,), (1.0, 0.3), tmp_path)
    assert again.num_skipped == 2
    assert len(model.executions) == 2 * 4
    assert path.read_text().startswith(text)
    assert [(cell.scenario, cell.budget) for cell in read_cells(path)[2:]] == [
        ("camera+radar", 1.0),
        ("camera+radar", 0.3),
    ]


def test_other_weights_or_settings_are_not_mixed_in(finished, data, scorer, tmp_path):
    model = RememberingModel()
    first = run_scenarios(model, data, scorer, (), (1.0,), tmp_path)
    model.weight.data += 1
    second = run_scenarios(model, data, scorer, (), (1.0,), tmp_path)
    (tmp_path / "config.yaml").write_text("data: {image_size_px: [9, 16]}")
    third = run_scenarios(model, data, scorer, (), (1.0,), tmp_path)
    assert second.num_skipped == third.num_skipped == 0
    assert len({result.cells[0].run for result in (first, second, third)}) == 3
    assert newest_cells(read_cells(tmp_path / "robustness.jsonl")) == list(third.cells)


def test_budgets_out_of_reach_are_refused_before_anything_runs(data, scorer, tmp_path):
    for budget in (0.1, 1.5):
        with pytest.raises(ValueError, match=r"expected budgets from 0.200 .* to 1, got"):
            run_scenarios(RememberingModel(), data, scorer, (), (budget,), tmp_path)
    assert not any(tmp_path.iterdir())


def test_samples_for_the_gallery_are_kept(finished):
    run_dir, _, _ = finished
    kept = load_sample_detections(run_dir)
    assert ("clean", 1.0) in kept
    assert ("broken", 1.0) not in kept
    found = kept["clean", 0.3]["scene-a-sample-0"]
    assert found.branches["LIDAR"] == "full"
    assert found.branches["CAM_FRONT"] == "skip"
    assert len(found.boxes) > 0


def made_up_cell(scenario: str, steps=(), **values) -> Cell:
    blank = dict.fromkeys(DETECTION_NAMES, 0.0)
    metrics = Metrics(values.pop("mean_ap", 0.5), values.pop("nds", 0.4), {}, blank, {}, {}, {}, {})
    shares = {"camera": 1.0, "lidar": 0.5, "radar": 0.0}
    return Cell(scenario, steps, 0, 1.0, "run", metrics=metrics, gflops=12.5, ms=30.0, sensor_shares=shares, **values)


def test_the_table_reads_well():
    drop, dark = ({"fault": "lidar_drop", "level": 1.0},), ({"fault": "dark", "level": 2.0},)
    cells = [
        made_up_cell("clean"),
        made_up_cell("camera+radar", drop, mean_ap=0.1, nds=0.1),
        made_up_cell("radar", drop, mean_ap=0.1, nds=0.1),
        made_up_cell("camera_dark", dark, warning="the scenario changed nothing"),
        replace(made_up_cell("camera_fog", dark), metrics=None, error="ValueError: no camera"),
    ]
    # 80 columns, the width of an output that is no terminal: nothing may be cut off.
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(robustness_table(cells))
    text = console.export_text()
    header = next(row for row, line in enumerate(text.splitlines()) if "─" in line)
    lines = [line for line in text.splitlines()[header + 1 :] if line.strip()]
    assert "…" not in text
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        *("all sensors", "0.500", "0.400", "100%", "12.50", "30.0", "100%", "50%", "0%")
    ]
    assert "camera + radar" in lines[1]
    assert "25%" in lines[1]
    assert "radar only" in lines[2]
    assert "camera dark !" in lines[3]
    assert "failed" in lines[4]
    assert "failed: camera fog, budget 1: ValueError: no camera" in text


def test_lines_in_the_middle_must_be_cells(tmp_path):
    path = tmp_path / "robustness.jsonl"
    append_cell(path, made_up_cell("clean"))
    assert read_cells(path) == [made_up_cell("clean")]
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 of"):
        read_cells(path)
    path.write_bytes(made_up_cell("clean").line().encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2 of"):
        read_cells(path)
