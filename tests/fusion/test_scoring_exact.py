"""The fast metric against the devkit's ``DetectionEval`` on inputs made to find a difference, to 1e-9."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fusion.scoring.matching import stable_pairs
from fusion.scoring.scorer import score_table
from fusion.scoring.settings import (
    CLASS_RANGE_M,
    DISTANCES_M,
    MAX_BOXES_PER_SAMPLE,
    MEAN_AP_WEIGHT,
    MIN_PRECISION,
    MIN_RECALL,
    TP_DISTANCE_M,
    TP_ERRORS,
)
from fusion.scoring.table import BoxTable
from sensors.boxes import DETECTION_NAMES, Boxes, concatenate_boxes
from tests.fusion.detections import boxes_at
from tests.fusion.devkit_oracle import assert_equal_to_devkit, no_boxes, split_of

CAR, PEDESTRIAN, BICYCLE, CONE, BARRIER = (
    DETECTION_NAMES.index(name) for name in ("car", "pedestrian", "bicycle", "traffic_cone", "barrier")
)


def table(boxes: Boxes, sample=None) -> BoxTable:
    return BoxTable(boxes, np.zeros(len(boxes), np.int64) if sample is None else np.asarray(sample, np.int64))


def check(detections: BoxTable, labels: BoxTable, ego_xy_m=((0.0, 0.0),), racks: BoxTable | None = None):
    """Scored by us, after every number was found equal to the devkit's."""
    racks = no_boxes() if racks is None else racks
    split = split_of(labels, ego_xy_m, racks)
    scored = score_table(detections, split)
    assert_equal_to_devkit(scored, detections, split, racks)
    return scored


def test_settings_are_the_official_ones():
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.constants import TP_METRICS

    config = config_factory("detection_cvpr_2019")
    assert dict(zip(DETECTION_NAMES, CLASS_RANGE_M, strict=True)) == config.class_range
    assert tuple(config.class_names) == DETECTION_NAMES
    assert (*DISTANCES_M, TP_DISTANCE_M) == (*config.dist_ths, config.dist_th_tp)
    assert (config.min_recall, config.min_precision) == (MIN_RECALL, MIN_PRECISION)
    assert (config.max_boxes_per_sample, config.mean_ap_weight) == (MAX_BOXES_PER_SAMPLE, MEAN_AP_WEIGHT)
    assert list(TP_ERRORS) == TP_METRICS


# Few values of everything: equal scores, equal distances, boxes on top of each other and exactly on a limit are common.
PLACES = st.sampled_from([-50.0, -40.0, -30.0, -4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 30.0, 40.0, 50.0])
BOX = st.tuples(
    st.integers(0, 2),
    st.sampled_from([CAR, CAR, CAR, PEDESTRIAN, BICYCLE, CONE, BARRIER]),
    st.tuples(PLACES, st.sampled_from([0.0, 0.5, 1.0, 4.0])),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([-np.pi, -np.pi / 2, 0.0, 0.3, np.pi / 2, 3.0, np.pi]),
    st.sampled_from([-1, 0, 2, 5, 6]),
    st.sampled_from([np.nan, 0.0, 1.5]),
    st.integers(0, 2),
)


def boxes_of(drawn: list, are_labels: bool) -> BoxTable:
    drawn = sorted(drawn, key=lambda box: box[0])
    sample, label, place, score, yaw_rad, attribute, speed_mps, points = zip(*drawn, strict=True) if drawn else [()] * 8
    num = len(drawn)
    size_lwh_m = np.array([[1.0 + number, 2.0, 1.5] for number in points]).reshape(num, 3)
    center_m = np.concatenate([np.array(place).reshape(num, 2), np.zeros((num, 1))], axis=1)
    boxes = boxes_at(
        center_m,
        label=0,
        size_lwh_m=size_lwh_m,
        yaw_rad=np.array(yaw_rad, float),
        velocity_mps=np.array([[speed, 0.5] for speed in speed_mps], float).reshape(num, 2),
        score=np.array(score, float),
        attribute=np.array(attribute, np.int64),
        num_points=np.array(points if are_labels else [-1] * num, np.int64),
    )
    return table(replace(boxes, label=np.array(label, np.int64)), sample)


# Faces of racks along the axes: whether a point on the face of a turned one is inside is decided by rounding.
RACK = BOX.map(lambda box: (*box[:4], 0.0, *box[5:]))


# Without shrinking: the devkit is slow, and few boxes are drawn anyway.
@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(BOX, max_size=16), st.lists(BOX, max_size=10), st.lists(RACK, max_size=2))
def test_any_boxes_score_as_by_the_devkit(detections, labels, racks):
    check(
        boxes_of(detections, False),
        boxes_of(labels, True),
        [(0.0, 0.0), (1.0, 0.5), (0.0, -0.5)],
        boxes_of(racks, True),
    )


def crowd(seed: int, num_samples: int, num: int, spread_m: float) -> tuple[BoxTable, BoxTable, np.ndarray]:
    """Detections scattered about labels that stand close together, far from the map's origin."""
    rng = np.random.default_rng(seed)
    ego_xy_m = rng.uniform(-2000, 2000, (num_samples, 2))

    def some(count: int, score) -> BoxTable:
        sample = np.sort(rng.integers(0, num_samples, count))
        away = np.concatenate([rng.normal(0, spread_m, (count, 2)), rng.normal(0, 1, (count, 1))], axis=1)
        center_m = np.concatenate([ego_xy_m, np.zeros((num_samples, 1))], axis=1)[sample] + away
        boxes = boxes_at(
            center_m,
            size_lwh_m=rng.uniform(0.5, 5, (count, 3)),
            yaw_rad=rng.uniform(-9, 9, count),
            velocity_mps=np.where(rng.random((count, 1)) < 0.2, np.nan, rng.normal(0, 3, (count, 2))),
            score=score(count),
            attribute=rng.integers(-1, 8, count),
            num_points=np.full(count, -1),
        )
        return table(replace(boxes, label=rng.integers(0, 10, count)), sample)

    labels = some(num, np.ones)
    points = rng.integers(0, 4, num)
    labels = BoxTable(replace(labels.boxes, num_points=points), labels.sample)
    far = some(4 * num, lambda count: np.round(rng.random(count) * 0.7, 2))
    near = labels.select(rng.integers(0, num, 2 * num))
    moved = replace(near.boxes, center_m=near.boxes.center_m + rng.normal(0, 0.8, (2 * num, 3)))
    moved = replace(moved, score=np.round(rng.random(2 * num), 2), num_points=np.full(2 * num, -1))
    sample = np.concatenate([near.sample, far.sample])
    detections = table(concatenate_boxes([moved, far.boxes]), sample)
    return detections.select(np.argsort(sample, kind="stable")), labels, ego_xy_m


@pytest.mark.parametrize(("seed", "spread_m"), [(0, 3.0), (1, 12.0), (2, 40.0)])
def test_crowds_score_as_by_the_devkit(seed, spread_m):
    detections, labels, ego_xy_m = crowd(seed, num_samples=4, num=120, spread_m=spread_m)
    rng = np.random.default_rng(seed)
    around = rng.normal(0, 5, (8, 3)) + np.append(ego_xy_m, np.zeros((4, 1)), axis=1).repeat(2, axis=0)
    racks = boxes_at(around, size_lwh_m=rng.uniform(2, 9, (8, 3)), yaw_rad=rng.uniform(-4, 4, 8))
    scored = check(detections, labels, ego_xy_m, table(racks, np.arange(4).repeat(2)))
    assert scored.metrics.mean_ap > 0.05


def test_no_box_at_all_and_no_label_at_all_score_zero():
    some = table(boxes_at([[1, 2, 0]], num_points=np.array([3])))
    for detections, labels in ((no_boxes(), some), (some, no_boxes()), (no_boxes(), no_boxes())):
        scored = check(detections, labels)
        assert (scored.metrics.mean_ap, scored.metrics.nds) == (0.0, 0.0)


def test_one_box_that_fits():
    """By hand: one class of ten is perfect, the other nine have no label."""
    box = table(boxes_at([[10, 0, 0]], num_points=np.array([3]), attribute=np.array([6])))
    scored = check(box, box)
    assert scored.metrics.class_ap["car"] == pytest.approx(1)
    assert scored.metrics.mean_ap == pytest.approx(0.1)
    # Errors of the nine others are 1; cones have no orientation error, cones and barriers no velocity or attribute.
    expected = {"trans_err": 0.9, "scale_err": 0.9, "orient_err": 8 / 9, "vel_err": 7 / 8, "attr_err": 7 / 8}
    assert scored.metrics.tp_errors == pytest.approx(expected)
    assert scored.metrics.nds == pytest.approx((5 * 0.1 + 0.1 + 0.1 + 1 / 9 + 1 / 8 + 1 / 8) / 10)


def test_a_distance_equal_to_the_limit_is_no_match():
    labels = table(boxes_at([[0, 0, 0]], num_points=np.array([1])))
    for distance_m, found in ((0.5, (0, 1, 1, 1)), (2.0, (0, 0, 0, 1)), (4.0, (0, 0, 0, 0)), (0.4999, (1, 1, 1, 1))):
        scored = check(table(boxes_at([[distance_m, 0, 0]])), labels)
        assert tuple((scored.matches.pair[:, 0] >= 0).astype(int)) == found


def test_a_box_on_the_range_limit_does_not_count():
    places = [[50.0, 0, 0], [49.999, 0, 0], [30.0, 40.0, 0]]
    scored = check(table(boxes_at(places)), table(boxes_at(places, num_points=np.ones(3, int))))
    assert (len(scored.labels), len(scored.matches.row)) == (1, 1)


def test_bicycles_in_racks_do_not_count():
    rack = table(boxes_at([[10, 10, 0]], size_lwh_m=np.array([[4.0, 2.0, 2.0]]), yaw_rad=np.array([0.0])))
    places = [[10, 10, 0], [12, 11, 1], [12.01, 10, 0], [10, 10, 1.2]]
    bicycles = table(boxes_at(places, label=BICYCLE, num_points=np.ones(4, int)))
    scored = check(bicycles, bicycles, racks=rack)
    np.testing.assert_array_equal(scored.labels.boxes.center_m, places[2:])
    cars = table(boxes_at(places, label=CAR, num_points=np.ones(4, int)))
    assert len(check(cars, cars, racks=rack).labels) == 4


def test_equal_scores_go_from_the_last_box_to_the_first():
    labels = table(boxes_at([[0, 0, 0]], num_points=np.array([1])))
    scored = check(table(boxes_at([[0.1, 0, 0], [0.3, 0, 0]], score=np.array([0.5, 0.5]))), labels)
    assert scored.matches.errors[:, 0] == pytest.approx([0.3])


def test_of_equally_near_labels_the_first_is_taken():
    labels = table(boxes_at([[1, 0, 0], [-1, 0, 0]], num_points=np.ones(2, int), yaw_rad=np.array([0.5, 0.0])))
    scored = check(table(boxes_at([[0, 0, 0]])), labels)
    assert scored.matches.truth.tolist() == [0]


def test_a_chain_of_displacements():
    """Each detection prefers a label that a better one takes: as many rounds as boxes."""
    num = 30
    labels = table(boxes_at([[1.0 * i, 0, 0] for i in range(num)], num_points=np.ones(num, int)))
    places = [[1.0 * i + 0.4, 0, 0] for i in range(num)] + [[-0.1, 0, 0]]
    detections = table(boxes_at(places, score=np.append(np.linspace(0.1, 0.9, num), 0.95)))
    check(detections, labels)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6)), max_size=30), st.randoms())
def test_rounds_equal_one_after_the_other(drawn, random):
    """Against the sequential rule itself: each in turn takes the first candidate that is still free."""
    pairs = list(dict.fromkeys(drawn))
    random.shuffle(pairs)
    pairs = sorted(pairs, key=lambda pair: pair[0])
    taken, served, expected = set(), set(), []
    for row, (box, label) in enumerate(pairs):
        if box not in served and label not in taken:
            taken.add(label)
            served.add(box)
            expected.append(row)
    box, truth = (
        (np.array(column, np.int64) for column in zip(*pairs, strict=True)) if pairs else [np.zeros(0, int)] * 2
    )
    assert stable_pairs(box, truth, 7).tolist() == expected
