"""Gates, failover and summaries of suites against hand arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fusion.robustness.cells import Cell
from fusion.robustness.failover import PHASES, failover_report
from fusion.robustness.gates import gate_histograms, gate_report, unit_severity
from fusion.robustness.summary import corruption_of, failover_row, score_table, summary_of
from fusion.scoring.evaluate import EvaluationResult
from fusion.scoring.metrics import Metrics
from fusion.scoring.routes import by_view, routes_by_condition
from fusion.scoring.scorer import score_table as scored_of
from fusion.scoring.table import BoxTable
from sensors.boxes import DETECTION_NAMES
from sensors.rig import CAMERAS, CHANNELS, LIDAR_UNIT, UNITS
from tests.fusion.detections import boxes_at
from tests.fusion.devkit_oracle import no_boxes, split_of

NUM = 6


def result_of(**values) -> EvaluationResult:
    """Six samples of one scene at the origin, everything run; the LiDAR is harmed at places 2 and 3."""
    severity = np.zeros((NUM, len(CHANNELS)), np.float32)
    severity[2:4, CHANNELS.index("LIDAR_TOP")] = 1.0
    gate = np.full((NUM, len(UNITS)), 0.9)
    gate[3:5, LIDAR_UNIT] = 0.1
    blank = EvaluationResult(
        detections={},
        tokens=tuple(f"token{row}" for row in range(NUM)),
        gflops=np.arange(NUM, dtype=float),
        branch=np.full((NUM, len(UNITS)), 2),
        unit_present=np.ones((NUM, len(UNITS)), bool),
        batch_ms=np.ones(1),
        loading_s=0.0,
        faults=((),) * NUM,
        conditions=(frozenset({"night"}),) * 2 + (frozenset(),) * 4,
        inputs="",
        scenes=("a",) * NUM,
        severity=severity,
        gate=gate,
        ego_yaw_rad=np.zeros(NUM),
    )
    return replace(blank, **values)


def scored_samples(found: list[bool]):
    """One car ahead in every sample, found or not."""
    sample = np.arange(NUM)
    cars = boxes_at([[10.0, 0.0, 1.0]] * NUM, label=0, num_points=np.full(NUM, 5))
    split = split_of(BoxTable(cars, sample), np.zeros((NUM, 2)), no_boxes())
    split = replace(split, tokens=tuple(f"token{row}" for row in range(NUM)))
    kept = np.flatnonzero(found)
    return scored_of(BoxTable(cars.select(kept), sample[kept]), split)


def test_frames_to_react_and_to_recover():
    # Harmed at 2 and 3; the gate lets go at 3; recall is gone at 2, 3 and 4, back at 5.
    report = failover_report(result_of(), scored_samples([True, True, False, False, False, True]))
    assert report["react_frames"] == {"a": 1}
    assert report["recover_frames"] == {"a": 1}
    assert [report["phases"][name]["num_samples"] for name in PHASES] == [2, 2, 2]
    assert [report["phases"][name]["recall_2m"] for name in PHASES] == [1.0, 0.0, 0.5]
    assert [frame["recall_2m"] for frame in report["frames"]] == [1, 1, 0, 0, 0, 1]
    assert [frame["let_go"] for frame in report["frames"]] == [0, 0, 0, 1, 0, 0]
    assert failover_row(cell("x", 0.1, failover=report))["react_frames"] == 1


def test_who_never_reacts_never_counts_as_quick():
    stubborn = result_of(gate=np.full((NUM, len(UNITS)), 0.9))
    report = failover_report(stubborn, scored_samples([True, True, False, False, False, False]))
    assert report["react_frames"] == {"a": None}
    assert report["recover_frames"] == {"a": None}
    assert failover_row(cell("x", 0.1, failover=report))["react_frames"] is None
    absent = np.ones((NUM, len(UNITS)), bool)
    absent[2:4, LIDAR_UNIT] = False
    known = failover_report(replace(stubborn, unit_present=absent), scored_samples([True] * NUM))
    assert known["react_frames"] == {"a": 0}
    assert failover_report(result_of(severity=np.zeros((NUM, 12), np.float32)), scored_samples([True] * NUM)) is None


def test_gates_against_a_second_auroc():
    rng = np.random.default_rng(0)
    severity = (rng.random((NUM, 12)) < 0.4).astype(np.float32)
    result = result_of(severity=severity, gate=np.round(rng.random((NUM, 8)), 1) * 0.99)
    report = gate_report([cell("fog", 0.1, gates=gate_histograms(result))])
    failed = unit_severity(severity) > 0
    assert failed[:, -1].tolist() == (severity[:, 7:].max(axis=1) > 0).tolist()
    middles = (np.floor(result.gate * 100) + 0.5) / 100
    assert report["all"]["auroc"] == pytest.approx(roc_auc_score(failed.ravel(), -middles.ravel()))
    assert report["all"]["num_failed"] + report["all"]["num_sound"] == NUM * 8
    assert gate_report([cell("clean", 0.5, gates=gate_histograms(result_of()))])["radar"]["auroc"] is None


def cell(scenario: str, nds: float | None, level: float = 1.0, fault: str = "fog", **values) -> Cell:
    steps = () if scenario == "clean" else ({"fault": fault, "level": level, "channels": None},)
    scores = None if nds is None else Metrics(nds, nds, {}, {}, {}, {}, {}, {})
    return Cell(scenario, steps, 0, values.pop("budget", 1.0), "run", metrics=scores, gflops=10.0, **values)


def test_a_summary_by_hand():
    cells = [cell("clean", 0.8), cell("fog-1", 0.6, 1.0), cell("fog-2", 0.2, 2.0), cell("dark", 0.6, 1.0, "dark")]
    base = [cell("clean", 0.6), cell("fog-1", 0.5, 1.0), cell("fog-2", 0.3, 2.0), cell("dark", 0.5, 1.0, "dark")]
    assert score_table(cells) == {"fog": (0.6, 0.2), "dark": (0.6,)}
    part = summary_of(cells, base)["at"][0]["nds"]
    assert part["RA"] == pytest.approx({"fog": 0.5, "dark": 0.75})
    assert part["mRA"] == pytest.approx(0.625)
    assert part["mRR"] == pytest.approx(62.5)
    assert part["CE"] == pytest.approx({"fog": 100 * 1.2 / 1.2, "dark": 100 * 0.4 / 0.5})
    assert part["mCE"] == pytest.approx(90)
    assert part["RRA"] == pytest.approx({"fog": 0, "dark": 20})
    assert part["RCE"]["fog"] == pytest.approx((0.25, 0.75))
    assert summary_of(cells)["at"][0]["mean_ap"]["AP_cor"] == pytest.approx((0.4 + 0.6) / 2)
    assert "mCE" not in summary_of(cells, base[:2])["at"][0]["nds"]
    broken = summary_of([*cells, cell("snow", None, fault="snow", error="no")])
    assert np.isnan(broken["at"][0]["nds"]["mRA"])
    assert broken["failed"] == [{"scenario": "snow", "budget": 1.0, "error": "no"}]
    leaner = [*cells, cell("clean", 0.4, budget=0.5)]
    assert summary_of(leaner)["budget_curves"]["router"]["clean"]["nds"] == pytest.approx(0.6)
    assert (
        corruption_of(replace(cells[1], steps=({**cells[1].steps[0], "channels": ["CAM_FRONT"]},)))
        == "fog on CAM_FRONT"
    )


def test_recall_of_skipped_views_and_routes_by_condition():
    branch = np.full((NUM, len(UNITS)), 2)
    branch[:2, CAMERAS.index("CAM_FRONT")] = 0
    result = result_of(branch=branch)
    recalls = by_view(scored_samples([True, False, True, True, True, True]), result)
    assert {name: (part["num_labels"], part["recall_2m"]) for name, part in recalls.items()} == {
        "front, skipped": (2, 0.5),
        "front, run": (4, 1.0),
    }
    turned = by_view(scored_samples([True] * NUM), replace(result, ego_yaw_rad=np.full(NUM, np.pi)))
    assert list(turned) == ["back, run"]
    assert routes_by_condition(result) == {
        "night": {"num_samples": 2, "gflops": 0.5, "sensor_shares": {"camera": 1.0, "lidar": 1.0, "radar": 1.0}}
    }
    assert DETECTION_NAMES[0] == "car"
