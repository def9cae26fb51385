"""The adapter against the devkit's own ``DetectionEval.main`` on the real mini_val tables."""

import json
import math
import shutil

import numpy as np
import pytest

from datamodules.nuscenes import NuScenesFrames
from fusion.scoring.devkit import Scorer, silenced
from fusion.scoring.metrics import TP_ERRORS, Metrics, write_metrics
from fusion.scoring.submission import SubmissionMeta, labels_as_detections, write_submission
from sensors.boxes import DETECTION_FROM_CATEGORY, DETECTION_NAMES, Boxes
from tests.fusion.detections import boxes_at, noisy_detections


def labels_of(scorer: Scorer) -> dict[str, Boxes]:
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


def official_summary(scorer: Scorer, detections: dict[str, Boxes], split: str, folder) -> dict:
    """What the devkit's own command writes."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    path = folder / "detections.json"
    write_submission(path, detections, scorer.tokens, SubmissionMeta())
    with silenced():
        settings = config_factory("detection_cvpr_2019")
        DetectionEval(scorer.nusc, settings, str(path), split, str(folder), verbose=False).main(render_curves=False)
    return json.loads((folder / "metrics_summary.json").read_text())


def assert_official(metrics: Metrics, summary: dict) -> None:
    assert metrics.mean_ap == summary["mean_ap"]
    assert metrics.nds == summary["nd_score"]
    assert metrics.tp_errors == summary["tp_errors"]
    assert metrics.class_ap == summary["mean_dist_aps"]
    for name in DETECTION_NAMES:
        by_distance = {float(distance): ap for distance, ap in summary["label_aps"][name].items()}
        assert metrics.class_ap_by_distance_m[name] == by_distance
        for error in TP_ERRORS:
            official = summary["label_tp_errors"][name][error]
            assert metrics.class_tp_errors[name][error] == (None if math.isnan(official) else official)


@pytest.fixture(scope="module")
def real(nuscenes_real) -> Scorer:
    return Scorer(nuscenes_real / "minival-tables", "v1.0-mini", "mini_val")


@pytest.fixture(scope="module")
def real_labels(real) -> dict[str, Boxes]:
    return labels_of(real)


def test_every_number_is_the_devkits(real, real_labels, tmp_path, capsys):
    detections = noisy_detections(real_labels, np.random.default_rng(0), share=0.05)
    metrics = real.score(detections)
    assert capsys.readouterr() == ("", "")
    assert 0.005 < metrics.mean_ap < 0.9
    assert_official(metrics, official_summary(real, detections, "mini_val", tmp_path))


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
    scorer = Scorer(root, "v1.0-mini", "half")
    assert 0 < len(scorer.tokens) < len(real.tokens)
    detections = noisy_detections(
        {token: real_labels[token] for token in scorer.tokens}, np.random.default_rng(1), share=0.1
    )
    assert_official(scorer.score(detections), official_summary(scorer, detections, "half", tmp_path))
    with pytest.raises(ValueError, match=r"expected a split among \['half', 'nothing'\], got 'other'"):
        Scorer(root, "v1.0-mini", "other")
    with pytest.raises(ValueError, match="expected samples of split 'nothing'"):
        Scorer(root, "v1.0-mini", "nothing")
    (root / "v1.0-mini" / "sample.json").write_text("[{")
    with pytest.raises(ValueError, match="expected whole nuScenes tables"):
        Scorer(root, "v1.0-mini", "half")


def test_wrong_places_are_named(nuscenes_real, tmp_path):
    with pytest.raises(FileNotFoundError, match="got no folder"):
        Scorer(tmp_path / "none", "v1.0-mini", "mini_val")
    with pytest.raises(FileNotFoundError, match=r"expected version 'v1.0-trainval' in .*, got \['v1.0-mini'\]"):
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
    scorer = Scorer(tiny_town, "v1.0-town", "town_train")
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
    assert_official(scorer.score(detections), official_summary(scorer, detections, "town_train", tmp_path))
