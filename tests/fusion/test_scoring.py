"""Both scorers against the devkit's own ``DetectionEval.main`` on the real mini_val tables."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest

from datamodules.nuscenes import NuScenesFrames
from fusion.scoring.devkit import DevkitScorer, silenced
from fusion.scoring.metrics import TP_ERRORS, Metrics, write_metrics
from fusion.scoring.scorer import Scorer
from fusion.scoring.submission import SubmissionMeta, labels_as_detections, write_submission
from sensors.boxes import DETECTION_FROM_CATEGORY, DETECTION_NAMES, Boxes
from tests.fusion.detections import boxes_at, noisy_detections


def labels_of(scorer: DevkitScorer) -> dict[str, Boxes]:
    """Labels with points, read from the tables by hand."""
    labels = {}
    for token in scorer.tokens:
        rows = [scorer.nusc.get("sample_annotation", row) for row in scorer.nusc.get("sample", token)["anns"]]
        rows = [row for row in rows if row["category_name"] in DETECTION_FROM_CATEGORY]
        rows = [row for row in rows if row["num_lidar_pts"] + row["num_radar_pts"] > 0]
        quaternions = np.array([row["rotation"] for row in rows])
        w, x, y, z = quaternions.T
        labels[token] = boxes_at(
            [row["translation"] for row in rows],
            size_lwh_m=np.array([row["size"] for row in rows])[:, [1, 0, 2]],
            yaw_rad=np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)),
            velocity_mps=np.array([scorer.nusc.box_velocity(row["token"])[:2] for row in rows]),
            label=np.array([DETECTION_NAMES.index(DETECTION_FROM_CATEGORY[row["category_name"]]) for row in rows]),
        )
    return labels


def official_summary(scorer: DevkitScorer, path, split: str, folder) -> dict:
    """What the devkit's own command writes for a submission file."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    with silenced():
        settings = config_factory("detection_cvpr_2019")
        DetectionEval(scorer.nusc, settings, str(path), split, str(folder), verbose=False).main(render_curves=False)
    return json.loads((folder / "metrics_summary.json").read_text())


def assert_official(metrics: Metrics, summary: dict, tolerance: float = 1e-9) -> None:
    close = {"rel": 0, "abs": tolerance}
    assert metrics.mean_ap == pytest.approx(summary["mean_ap"], **close)
    assert metrics.nds == pytest.approx(summary["nd_score"], **close)
    assert metrics.tp_errors == pytest.approx(summary["tp_errors"], **close)
    assert metrics.class_ap == pytest.approx(summary["mean_dist_aps"], **close)
    for name in DETECTION_NAMES:
        by_distance = {float(distance): ap for distance, ap in summary["label_aps"][name].items()}
        assert metrics.class_ap_by_distance_m[name] == pytest.approx(by_distance, **close)
        for error in TP_ERRORS:
            value = metrics.class_tp_errors[name][error]
            official = summary["label_tp_errors"][name][error]
            assert math.isnan(official) if value is None else value == pytest.approx(official, **close)


@pytest.fixture(scope="module")
def judge(nuscenes_real) -> DevkitScorer:
    return DevkitScorer(nuscenes_real / "minival-tables", "v1.0-mini", "mini_val")


@pytest.fixture(scope="module")
def real(nuscenes_real) -> Scorer:
    return Scorer(nuscenes_real / "minival-tables", "v1.0-mini", "mini_val")


@pytest.fixture(scope="module")
def real_labels(judge) -> dict[str, Boxes]:
    return labels_of(judge)


@pytest.fixture(scope="module")
def mediocre(judge, real_labels, tmp_path_factory):
    """Detections of a mediocre detector, their file, and the devkit's verdict."""
    folder = tmp_path_factory.mktemp("mediocre")
    detections = noisy_detections(real_labels, np.random.default_rng(0), share=0.05)
    path = folder / "detections.json"
    write_submission(path, detections, judge.tokens, SubmissionMeta())
    return detections, path, official_summary(judge, path, "mini_val", folder)


def test_every_number_is_the_devkits(real, mediocre, capsys):
    detections, path, summary = mediocre
    metrics = real.score(detections)
    assert 0.005 < metrics.mean_ap < 0.9
    assert_official(metrics, summary)
    assert_official(real.score_file(path), summary)
    assert capsys.readouterr() == ("", "")


def test_the_devkit_judges_itself(judge, real, mediocre, capsys):
    detections, path, summary = mediocre
    metrics = judge.score_file(path)
    assert capsys.readouterr() == ("", "")
    assert_official(metrics, summary, tolerance=0)
    ours = real.score(detections)
    assert (metrics.num_labels, metrics.num_detections) == (ours.num_labels, ours.num_detections)


def test_the_order_of_the_file_decides_between_equal_scores(judge, real, real_labels, tmp_path):
    """Scores rounded to a tenth, samples in another order than the split's."""
    rng = np.random.default_rng(5)
    detections = noisy_detections(real_labels, rng, share=0.05)
    detections = {token: replace(boxes, score=np.round(boxes.score, 1)) for token, boxes in detections.items()}
    path = tmp_path / "shuffled.json"
    write_submission(path, detections, rng.permutation(real.tokens).tolist(), SubmissionMeta())
    metrics = real.score_file(path)
    assert_official(metrics, official_summary(judge, path, "mini_val", tmp_path))
    assert metrics.mean_ap != pytest.approx(real.score(detections).mean_ap, rel=0, abs=1e-9)


def test_labels_score_one_for_every_class_that_has_labels(real, real_labels):
    metrics = real.score(real_labels)
    present = [name for name in DETECTION_NAMES if metrics.num_labels[name]]
    assert "car" in present
    for name in present:
        assert metrics.class_ap[name] == pytest.approx(1)
    assert metrics.mean_ap == pytest.approx(len(present) / 10)
    assert metrics.mean_ap_of_labelled == pytest.approx(1)
    assert metrics.class_tp_errors["car"]["trans_err"] == pytest.approx(0, abs=1e-9)
    assert metrics.num_detections == metrics.num_labels


def test_an_empty_submission_scores_zero(real):
    metrics = real.score({token: Boxes.empty() for token in real.tokens})
    assert (metrics.mean_ap, metrics.nds) == (0.0, 0.0)
    assert set(metrics.tp_errors.values()) == {1.0}


def test_the_devkit_cannot_score_an_empty_submission(judge):
    with pytest.raises(ValueError, match="at least one box"):
        judge.score({token: Boxes.empty() for token in judge.tokens})


def test_one_box_out_of_range_scores_zero(real):
    detections = {token: Boxes.empty() for token in real.tokens}
    detections[real.tokens[0]] = boxes_at([[1e5, 1e5, 0]])
    assert real.score(detections).mean_ap == 0


def test_a_missing_sample_is_an_error(real):
    with pytest.raises(ValueError, match="expected detections for exactly the 81 samples of the split, got 1 missing"):
        real.score({token: Boxes.empty() for token in real.tokens[1:]})


def test_custom_splits_equal_the_devkit(real, real_labels, nuscenes_real, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(nuscenes_real / "minival-tables", root)
    (root / "v1.0-mini" / "splits.json").write_text(json.dumps({"half": ["scene-0916"], "nothing": ["scene-9999"]}))
    judge, scorer = DevkitScorer(root, "v1.0-mini", "half"), Scorer(root, "v1.0-mini", "half")
    assert 0 < len(scorer.tokens) < len(real.tokens)
    # A file of the whole split may be scored on a part of it: the rest is left out.
    path = tmp_path / "detections.json"
    detections = noisy_detections(real_labels, np.random.default_rng(1), share=0.1)
    write_submission(path, detections, real.tokens[::-1], SubmissionMeta())
    summary = official_summary(judge, path, "half", tmp_path)
    assert_official(scorer.score_file(path), summary)
    assert_official(scorer.score({token: detections[token] for token in scorer.tokens}), summary)
    assert_official(judge.score_file(path), summary, tolerance=0)
    with pytest.raises(ValueError, match=r"expected one of the splits half, nothing, .*, got 'other'"):
        Scorer(root, "v1.0-mini", "other")
    with pytest.raises(ValueError, match="expected samples of split 'nothing'"):
        Scorer(root, "v1.0-mini", "nothing")
    (root / "v1.0-mini" / "sample.json").write_text("[{")
    with pytest.raises(ValueError, match="expected a whole JSON list"):
        Scorer(root, "v1.0-mini", "half")


def test_wrong_places_are_named(nuscenes_real, tmp_path):
    with pytest.raises(FileNotFoundError, match="got no folder"):
        Scorer(tmp_path / "none", "v1.0-mini", "mini_val")
    with pytest.raises(FileNotFoundError, match="expected the version 'v1.0-trainval' in .*, found v1.0-mini"):
        Scorer(nuscenes_real / "minival-tables", "v1.0-trainval", "val")
    with pytest.raises(ValueError, match="split 'val'"):
        Scorer(nuscenes_real / "minival-tables", "v1.0-mini", "val")


def test_metrics_file_round_trip(real, real_labels, tmp_path):
    metrics = real.score(noisy_detections(real_labels, np.random.default_rng(2), share=0.05))
    write_metrics(tmp_path / "metrics.json", metrics, split="mini_val")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["split"] == "mini_val"
    assert content["metrics"]["class_tp_errors"]["traffic_cone"]["vel_err"] is None
    assert Metrics.from_json(content["metrics"]) == metrics


def test_town_labels_read_back_score_one_and_equal_the_devkit(tiny_town, tmp_path):
    """Through reading: tables -> ego frame -> global frame -> metric."""
    judge, scorer = DevkitScorer(tiny_town, "v1.0-town", "town_train"), Scorer(tiny_town, "v1.0-town", "town_train")
    frames = NuScenesFrames(tiny_town, "v1.0-town", "town_train", cameras=False)
    labels = labels_as_detections(frames[i] for i in range(len(frames)))
    metrics = scorer.score(labels)
    assert metrics.num_detections == metrics.num_labels
    assert metrics.mean_ap_of_labelled == pytest.approx(1)
    present = [name for name, num in metrics.num_labels.items() if num]
    assert metrics.mean_ap == pytest.approx(len(present) / 10)
    for error in ("trans_err", "orient_err", "scale_err", "attr_err"):
        assert metrics.class_tp_errors["car"][error] == pytest.approx(0, abs=1e-3)
    detections = noisy_detections(labels, np.random.default_rng(3))
    path = tmp_path / "detections.json"
    write_submission(path, detections, judge.tokens, SubmissionMeta())
    assert_official(scorer.score(detections), official_summary(judge, path, "town_train", tmp_path))
