"""Scores of parts and their intervals, against the devkit on those parts alone and against hand arithmetic."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from fusion.run_directory import write_json
from fusion.scoring.bootstrap import bootstrap_intervals, scores_of_draws
from fusion.scoring.breakdown import breakdown, by_condition, by_distance, by_road_user, by_visibility, recall_by
from fusion.scoring.curves import metrics_of
from fusion.scoring.filters import ego_distance_m
from fusion.scoring.scorer import score_table
from fusion.scoring.table import BoxTable
from sensors.boxes import DETECTION_NAMES, concatenate_boxes
from tests.fusion.detections import boxes_at
from tests.fusion.devkit_oracle import no_boxes, official, split_of
from tests.fusion.test_scoring_exact import crowd, table

SCENES = np.array([0, 0, 1, 1, 2])


@pytest.fixture(scope="module")
def crowded():
    """Five samples of three scenes; every score occurs once, so that no order of samples matters."""
    detections, labels, ego_xy_m = crowd(3, num_samples=5, num=150, spread_m=12.0)
    scores = np.random.default_rng(0).permutation(len(detections)) / len(detections)
    detections = BoxTable(replace(detections.boxes, score=scores), detections.sample)
    split = split_of(labels, ego_xy_m, no_boxes())
    words = (frozenset({"day"}), frozenset({"night", "rain"}), frozenset({"rain"}))
    split = replace(split, scene=SCENES, scene_names=("a", "b", "c"), conditions=words)
    return score_table(detections, replace(split, visibility=np.arange(len(labels)) % 5))


def of_samples(scored, samples: list[int]):
    """Detections and split of some samples, which may repeat, as if there were no others."""
    parts = []
    for source in (scored.detections, scored.split.table):
        rows = [np.flatnonzero(source.sample == sample) for sample in samples]
        number = np.repeat(np.arange(len(samples)), [len(part) for part in rows])
        parts.append(BoxTable(concatenate_boxes([source.boxes.select(part) for part in rows]), number))
    detections, labels = parts
    return detections, split_of(labels, scored.split.ego_xy_m[samples], no_boxes())


def test_rings_are_the_devkits_scores_of_their_boxes(crowded):
    rings = by_distance(crowded)
    assert list(rings) == ["0-10 m", "10-20 m", "20-30 m", "30-40 m", "40-50 m"]
    assert sum(ring.num_labels["car"] for ring in rings.values()) == crowded.metrics.num_labels["car"]
    away_m = ego_distance_m(crowded.detections, crowded.split)
    label_m = ego_distance_m(crowded.split.table, crowded.split)
    for name, low_m, high_m in (("0-10 m", 0, 10), ("10-20 m", 10, 20)):
        labels = crowded.split.table.select((label_m >= low_m) & (label_m < high_m))
        split = replace(crowded.split, table=labels)
        detections = crowded.detections.select((away_m >= low_m) & (away_m < high_m))
        expected, _, _ = official(detections, split, no_boxes())
        assert rings[name].nds == pytest.approx(expected.nd_score, abs=1e-9)
        assert rings[name].mean_ap == pytest.approx(expected.mean_ap, abs=1e-9)
        assert rings[name].mean_ap > 0.02


def test_conditions_are_the_devkits_scores_of_their_scenes(crowded):
    parts = by_condition(crowded)
    assert list(parts) == ["day", "night", "rain"]
    for word, samples in (("day", [0, 1]), ("night", [2, 3]), ("rain", [2, 3, 4])):
        expected, _, _ = official(*of_samples(crowded, samples), no_boxes())
        assert parts[word].nds == pytest.approx(expected.nd_score, abs=1e-9)
        assert parts[word].mean_ap == pytest.approx(expected.mean_ap, abs=1e-9)


def test_recall_by_hand():
    places = [[0, 0, 0], [10, 0, 0], [20, 0, 0]]
    labels = table(boxes_at(places, num_points=np.array([1, 1, 0])))
    split = replace(split_of(labels, [(0.0, 0.0)], no_boxes()), visibility=np.array([4, 1, 1]))
    scored = score_table(table(boxes_at([[0.7, 0, 0], [11.5, 0, 0]])), split)
    found = by_visibility(scored)
    # The third label has no points and does not count.
    assert found["80-100 %"] == {
        "num_labels": 1, "recall_0.5m": 0.0, "recall_1m": 1.0, "recall_2m": 1.0, "recall_4m": 1.0,
    }  # fmt: skip
    assert found["0-40 %"]["num_labels"] == 1
    assert (found["0-40 %"]["recall_1m"], found["0-40 %"]["recall_2m"]) == (0.0, 1.0)
    assert recall_by(scored, np.array([7, 7]))[7]["recall_1m"] == 0.5


def test_pedestrians_and_cyclists_apart(crowded):
    parts, metrics = by_road_user(crowded), crowded.metrics
    assert parts["pedestrians"]["mean_ap"] == metrics.class_ap["pedestrian"]
    cyclists = parts["cyclists"]
    assert cyclists["num_labels"] == metrics.num_labels["bicycle"] + metrics.num_labels["motorcycle"]
    expected = (metrics.class_ap["bicycle"] + metrics.class_ap["motorcycle"]) / 2
    assert cyclists["mean_ap"] == pytest.approx(expected)
    errors = [metrics.class_tp_errors[name]["vel_err"] for name in ("bicycle", "motorcycle")]
    assert cyclists["vel_err"] == pytest.approx(sum(errors) / 2)
    assert math.isnan(parts["obstacles"]["vel_err"])


def test_breakdown_is_plain(crowded, tmp_path):
    write_json(tmp_path / "breakdown.json", breakdown(crowded))
    content = json.loads((tmp_path / "breakdown.json").read_text())
    assert list(content) == [
        "by_distance", "by_condition", "by_visibility", "by_road_user", "calibration", "precision_recall",
    ]  # fmt: skip
    assert sum(content["calibration"]["all"]["num"]) == len(crowded.matches.row)
    assert len(content["precision_recall"]["car"]["0.5"]) == 101


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 0, 1), (0, 3, 0), (1, 2, 2)])
def test_a_draw_of_scenes_is_the_devkits_score_of_their_copies(crowded, times):
    samples = [row for row in range(5) for _ in range(times[SCENES[row]])]
    expected, _, _ = official(*of_samples(crowded, samples), no_boxes())
    (drawn,) = scores_of_draws(crowded, np.array([times]))
    assert drawn[0] == pytest.approx(expected.mean_ap, abs=1e-9)
    assert drawn[1] == pytest.approx(expected.nd_score, abs=1e-9)
    assert drawn[2:] == pytest.approx([expected.mean_dist_aps[name] for name in DETECTION_NAMES], abs=1e-9)


def test_intervals_hold_the_score_and_shrink_to_it(crowded):
    intervals = bootstrap_intervals(crowded, num_draws=15)
    assert intervals == bootstrap_intervals(crowded, num_draws=15)
    nds = intervals["nds"]
    assert nds.low < nds.high
    assert intervals["mean_ap"].low < crowded.metrics.mean_ap < intervals["mean_ap"].high
    narrow = bootstrap_intervals(crowded, num_draws=15, level=0.2)["nds"]
    assert nds.low <= narrow.low <= narrow.high <= nds.high
    # Three scenes that are the same one leave nothing to chance.
    detections, split = of_samples(crowded, [0, 0, 0])
    same = replace(split, scene=np.arange(3), scene_names=("a", "b", "c"), conditions=(frozenset(),) * 3)
    interval = bootstrap_intervals(score_table(detections, same), num_draws=3)["nds"]
    assert interval.high - interval.low < 1e-12
    with pytest.raises(ValueError, match="at least two scenes"):
        bootstrap_intervals(score_table(detections, split))


def test_a_selection_of_matches_scores_alone(crowded):
    everything = crowded.matches.select(np.ones(len(crowded.matches.row), bool), crowded.matches.num_labels)
    assert metrics_of(everything) == crowded.metrics
