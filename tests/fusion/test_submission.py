"""The submission format against the devkit's reader and hand arithmetic."""

import json

import numpy as np
import pytest

from fusion.scoring.read import read_table
from fusion.scoring.submission import (
    SubmissionMeta,
    labels_as_detections,
    read_submission,
    strongest,
    submission_results,
    table_of_split,
    write_submission,
)
from sensors.boxes import Boxes
from sensors.frame import Frame
from sensors.transforms import RigidTransform
from tests.fusion.detections import boxes_at


def test_one_box_is_written_in_nuscenes_order(tmp_path):
    boxes = boxes_at([[10, 20, 1]], label=5, yaw_rad=np.array([np.pi / 2]), attribute=np.array([2]))
    path = tmp_path / "deep" / "detections.json"
    write_submission(path, {"a": boxes, "b": Boxes.empty()}, ["a", "b"], SubmissionMeta(use_radar=False))
    content = json.loads(path.read_text())
    assert content["meta"] == {
        "use_camera": True,
        "use_lidar": True,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    assert content["results"]["b"] == []
    (entry,) = content["results"]["a"]
    assert entry["sample_token"] == "a"
    assert entry["translation"] == [10, 20, 1]
    assert entry["size"] == [2.0, 4.0, 1.5]
    np.testing.assert_allclose(entry["rotation"], [np.sqrt(0.5), 0, 0, np.sqrt(0.5)])
    assert entry["detection_name"] == "pedestrian"
    assert entry["attribute_name"] == "pedestrian.standing"
    assert type(entry["detection_score"]) is float
    assert [file.name for file in path.parent.iterdir()] == ["detections.json"]


def test_devkit_reads_what_we_write(tmp_path):
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    rng = np.random.default_rng(0)
    boxes = boxes_at(rng.normal(0, 10, (600, 3)), score=rng.random(600).astype(np.float32))
    write_submission(tmp_path / "d.json", {"a": boxes}, ["a"], SubmissionMeta())
    read, _ = load_prediction(str(tmp_path / "d.json"), 500, DetectionBox)
    assert len(read["a"]) == 500
    assert min(box.detection_score for box in read["a"]) == pytest.approx(np.sort(boxes.score)[-500])


def test_strongest_keeps_order_and_the_first_of_equals():
    assert strongest(np.array([0.5, 0.9, 0.5, 0.1, 0.5]), 3).tolist() == [0, 1, 2]
    assert strongest(np.zeros(0), 3).tolist() == []


def test_round_trip(tmp_path):
    boxes = boxes_at(
        [[1, 2, 3], [4, 5, 6]],
        yaw_rad=np.array([-3.0, 2.9]),
        velocity_mps=np.array([[1.0, -2.0], [np.nan, np.nan]]),
        attribute=np.array([6, -1]),
        score=np.array([0.25, 0.75]),
    )
    write_submission(tmp_path / "d.json", {"a": boxes, "b": Boxes.empty()}, ["b", "a"], SubmissionMeta())
    detections, meta = read_submission(tmp_path / "d.json")
    assert meta["use_lidar"] is True
    assert list(detections) == ["b", "a"]
    assert len(detections["b"]) == 0
    back = detections["a"]
    for name in ("center_m", "size_lwh_m", "yaw_rad", "label", "score", "attribute"):
        np.testing.assert_allclose(getattr(back, name), getattr(boxes, name), atol=1e-12)
    np.testing.assert_allclose(back.velocity_mps, [[1, -2], [0, 0]])


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("score", np.array([np.nan]), "finite numbers in score of sample a"),
        ("velocity_mps", np.array([[np.inf, 0]]), "finite velocities"),
        ("size_lwh_m", np.array([[4.0, 0.0, 1.0]]), "sizes above 0 m"),
    ],
)
def test_impossible_boxes_are_refused(column, value, message):
    with pytest.raises(ValueError, match=message):
        submission_results({"a": boxes_at([[0, 0, 0]], **{column: value})}, ["a"])


def test_missing_and_foreign_tokens_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 missing and 1 foreign"):
        write_submission(tmp_path / "d.json", {"x": Boxes.empty()}, ["a"], SubmissionMeta())
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"meta": {}, "results": {"a": [', "ends or breaks"),
        ('{"meta": {}}', "'meta' and 'results'"),
        ('{"meta": {}, "results": {"a": [{"translation": [1, 2, 3]}]}}', "'sample_token' in box 0 of sample a"),
        ('{"meta": {}, "results": {"a": []}} x', "Extra data"),
        ('{"meta": {}, "results": {"a": [] "b": []}}', "Expecting ','"),
        ('{"meta": {}, "results": []}', "'meta' and 'results'"),
        ('["results"]', "'meta' and 'results'"),
        ("", "ends or breaks"),
        ('{"meta": {}, "results": {"a": {}}}', "a list of boxes for sample a"),
        ('{"results": {"a": [7]}}', "a JSON object as box 0"),
        ('{"results": {"a": [], "b": [], "a": []}}', "got sample a twice"),
        ('{"results": {"a": []}, "results": {"b": []}}', "a second block 'results'"),
        ("[" * 100_000, "brackets within brackets"),
        ('{"results": {"a": [' + "[" * 100_000, "brackets within brackets"),
    ],
)
def test_broken_files_are_named(tmp_path, text, message):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_submission(tmp_path / "d.json")


def test_labels_become_global_detections_without_unseen_boxes():
    pose = RigidTransform.from_yaw(np.pi / 2, (100.0, 200.0, 0.0))
    boxes = boxes_at([[10, 0, 1], [0, 0, 0]], num_points=np.array([3, 0]), velocity_mps=np.array([[2.0, 0], [0, 0]]))
    frame = Frame("a", "scene", 0, pose, 0.0, {}, (), {}, boxes)
    detections = labels_as_detections([frame])["a"]
    np.testing.assert_allclose(detections.center_m, [[100, 210, 1]], atol=1e-9)
    np.testing.assert_allclose(detections.yaw_rad, [np.pi / 2])
    np.testing.assert_allclose(detections.velocity_mps, [[0, 2]], atol=1e-9)
    with pytest.raises(ValueError, match="expected labels in sample a"):
        labels_as_detections([Frame("a", "scene", 0, pose, 0.0, {}, (), {}, None)])


GOOD = {
    "sample_token": "a",
    "translation": [1.0, 2.0, 3.0],
    "size": [2.0, 4.0, 1.5],
    "rotation": [1, 0, 0, 0],
    "velocity": [0.5, 0.0],
    "detection_name": "car",
    "detection_score": 0.5,
    "attribute_name": "",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detection_name": "van"}, "'detection_name' of box 1 of sample a of .*d.json among car, .*; got 'van'"),
        ({"attribute_name": "vehicle.flying"}, "'attribute_name' of box 1 .* or ''; got 'vehicle.flying'"),
        ({"attribute_name": None}, "got None"),
        ({"sample_token": "b"}, "the sample's own token in box 1 of sample a .*, got 'b'"),
        ({"translation": [1.0, 2.0]}, "3 numbers as 'translation' of box 1"),
        ({"translation": [1.0, 2.0, "3"]}, "3 numbers as 'translation' of box 1"),
        ({"velocity": None}, "2 numbers as 'velocity'"),
        ({"size": [[1], [2], [3]]}, "3 numbers as 'size'"),
        ({"translation": [10**400, 0, 0]}, "3 numbers as 'translation'"),
        ({"detection_score": "0.5"}, "a number as 'detection_score' of box 1"),
        ({"detection_score": None}, "a number as 'detection_score'"),
        ({"detection_score": float("nan")}, "a finite score of at least 0 .* box 1 of sample a"),
        ({"detection_score": -1.0}, "a finite score of at least 0"),
        ({"rotation": [2.0, 0, 0, 0]}, "a unit quaternion .* box 1 of sample a"),
        ({"rotation": [0, 0, 0, 0]}, "a unit quaternion"),
        ({"rotation": [float("nan"), 0, 0, 1]}, "a unit quaternion"),
        ({"translation": [float("inf"), 0, 0]}, "a finite translation"),
        ({"size": [2.0, 0.0, 1.0]}, "finite sizes above 0 m"),
        ({"velocity": [float("-inf"), 0]}, "no infinity"),
        ({"rotation": [float("inf"), 0, 0, 0]}, "a unit quaternion"),
        ({"rotation": [1e300, 0, 0, 0]}, "a unit quaternion"),
        ({"translation": [1e300, 0, 0]}, "within 1e9 m"),
        ({"size": [2.0, 1e300, 1.0]}, "up to 1e9 m"),
        ({"velocity": [1e300, 0]}, "up to 1e9 m/s"),
        ({"detection_score": 1e300}, "up to 1e9"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_boxes_are_named_in_one_line(tmp_path, change, message):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"meta": {}, "results": {"x": [], "a": [GOOD, {**GOOD, **change}]}}))
    with pytest.raises(ValueError, match=message) as caught:
        read_submission(path)
    assert "\n" not in str(caught.value)


def test_missing_fields_are_named(tmp_path):
    path = tmp_path / "d.json"
    for name in GOOD:
        box = {key: value for key, value in GOOD.items() if key != name}
        path.write_text(json.dumps({"results": {"a": [box]}}))
        with pytest.raises(ValueError, match=f"expected the field '{name}' in box 0 of sample a"):
            read_submission(path)


def test_more_boxes_than_allowed_are_refused(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"a": [GOOD] * 501}}))
    with pytest.raises(ValueError, match="at most 500 boxes per sample, got 501 for sample a"):
        read_submission(path)
    path.write_text(json.dumps({"results": {"a": [GOOD] * 500}}))
    assert len(read_submission(path)[0]["a"]) == 500


def test_an_unknown_velocity_and_a_rounded_rotation_are_read(tmp_path):
    path = tmp_path / "d.json"
    box = {**GOOD, "velocity": [float("nan"), 1.0], "rotation": [0.7071, 0, 0, 0.7071]}
    path.write_text(json.dumps({"results": {"a": [box]}, "meta": {"use_lidar": True}}, indent=2))
    detections, meta = read_submission(path)
    assert np.isnan(detections["a"].velocity_mps[0, 0])
    np.testing.assert_allclose(detections["a"].yaw_rad, [np.pi / 2])
    assert meta == {"use_lidar": True}


def test_samples_must_be_those_of_the_split(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"b": [], "a": [GOOD], "c": [dict(GOOD, sample_token="c")]}}))
    submission = read_table(path)
    with pytest.raises(ValueError, match="the 2 samples of split 'mini_val' in .*, got 0 missing and 1 foreign"):
        table_of_split(submission, ["a", "b"], "mini_val", path)
    with pytest.raises(ValueError, match="got 1 missing and 0 foreign ones, such as 'z'"):
        table_of_split(submission, ["a", "z"], "own", path)
    assert table_of_split(submission, ["a", "b"], "own", path).sample.tolist() == [0]
    assert table_of_split(submission, ["c", "b", "a"], "own", path).sample.tolist() == [0, 2]
    assert table_of_split(submission, ["c", "b", "a"], "mini_val", path).sample.tolist() == [2, 0]
