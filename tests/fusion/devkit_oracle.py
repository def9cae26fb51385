"""The devkit's own evaluation of boxes that are in no data set: its filters and ``DetectionEval`` on made-up tables."""

import numpy as np

from fusion.scoring.settings import TP_ERRORS
from fusion.scoring.table import BoxTable, RackTable, SplitLabels, wide
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_NAMES, Boxes


class FewTables:
    """As much of the devkit's ``NuScenes`` as its filters ask for."""

    def __init__(self, split: SplitLabels, racks: BoxTable):
        self.tables = {"sample": {}, "sample_data": {}, "ego_pose": {}, "sample_annotation": {}}
        for row, token in enumerate(split.tokens):
            place = [*split.ego_xy_m[row].tolist(), 0.0]
            inside = np.flatnonzero(racks.sample == row)
            self.tables["sample"][token] = {"data": {"LIDAR_TOP": token}, "anns": [f"rack{i}" for i in inside]}
            self.tables["sample_data"][token] = {"ego_pose_token": token}
            self.tables["ego_pose"][token] = {"translation": place}
        for row, box in enumerate(entries(racks)):
            record = {"category_name": "static_object.bicycle_rack", **box}
            self.tables["sample_annotation"][f"rack{row}"] = record

    def get(self, table: str, token: str) -> dict:
        return self.tables[table][token]


def entries(table: BoxTable) -> list[dict]:
    """Boxes as in a submission; an unknown velocity stays NaN."""
    boxes, half = table.boxes, table.boxes.yaw_rad / 2
    names = [ATTRIBUTE_NAMES[row] if row >= 0 else "" for row in boxes.attribute]
    return [
        {
            "translation": boxes.center_m[i].tolist(),
            "size": boxes.size_lwh_m[i, [1, 0, 2]].tolist(),
            "rotation": [float(np.cos(half[i])), 0.0, 0.0, float(np.sin(half[i]))],
            "velocity": boxes.velocity_mps[i].tolist(),
            "detection_name": DETECTION_NAMES[boxes.label[i]],
            "detection_score": float(boxes.score[i]),
            "attribute_name": names[i],
            "num_pts": int(boxes.num_points[i]),
        }
        for i in range(len(table))
    ]


def eval_boxes(table: BoxTable, tokens: tuple[str, ...]):
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes = EvalBoxes()
    for token in tokens:
        boxes.add_boxes(token, [])
    for sample, entry in zip(table.sample, entries(table), strict=True):
        boxes.add_boxes(tokens[sample], [DetectionBox(sample_token=tokens[sample], **entry)])
    return boxes


def official(detections: BoxTable, split: SplitLabels, racks: BoxTable):
    """``DetectionMetrics`` and ``DetectionMetricDataList`` of the devkit, and its counts of boxes after filtering."""
    return judged(eval_boxes(detections, split.tokens), split, racks)


def judged(found, split: SplitLabels, racks: BoxTable):
    """As ``official``, for detections that are the devkit's ``EvalBoxes`` already."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
    from nuscenes.eval.detection.evaluate import DetectionEval

    nusc, judge = FewTables(split, racks), DetectionEval.__new__(DetectionEval)
    judge.cfg, judge.verbose = config_factory("detection_cvpr_2019"), False
    kept = []
    for boxes in (found, eval_boxes(split.table, split.tokens)):
        add_center_dist(nusc, boxes)
        # The filter raises where there is not one box.
        kept.append(filter_eval_boxes(nusc, boxes, judge.cfg.class_range) if boxes.all else boxes)
    judge.pred_boxes, judge.gt_boxes = kept
    metrics, details = judge.evaluate()
    return metrics, details, tuple(len(boxes.all) for boxes in kept)


def assert_equal_to_devkit(scored, detections: BoxTable, split: SplitLabels, racks: BoxTable, tolerance=1e-9) -> None:
    """Every number of ``metrics_summary.json`` and ``metrics_details.json``."""
    metrics, details, counts = official(detections, split, racks)
    ours = scored.metrics
    assert (len(scored.matches.row), len(scored.labels)) == counts
    close = {"rtol": 0, "atol": tolerance}
    np.testing.assert_allclose(ours.mean_ap, metrics.mean_ap, **close)
    np.testing.assert_allclose(ours.nds, metrics.nd_score, **close)
    for error in TP_ERRORS:
        np.testing.assert_allclose(ours.tp_errors[error], metrics.tp_errors[error], **close)
    for name in DETECTION_NAMES:
        np.testing.assert_allclose(ours.class_ap[name], metrics.mean_dist_aps[name], **close)
        for distance_m, ap in ours.class_ap_by_distance_m[name].items():
            np.testing.assert_allclose(ap, metrics.get_label_ap(name, distance_m), **close)
            for key, values in scored.curves[name, distance_m].to_json().items():
                theirs = details[name, distance_m].serialize()[key]
                np.testing.assert_allclose(values, theirs, err_msg=f"{name} {distance_m} {key}", **close)
        for error, value in ours.class_tp_errors[name].items():
            value = np.nan if value is None else value
            np.testing.assert_allclose(value, metrics.get_label_tp(name, error), **close)


def split_of(labels: BoxTable, ego_xy_m, racks: BoxTable) -> SplitLabels:
    """A split of as many samples as there are places of the vehicle, all in one scene."""
    num = len(ego_xy_m)
    return SplitLabels(
        tokens=tuple(f"sample{row}" for row in range(num)),
        ego_xy_m=np.asarray(ego_xy_m, np.float64).reshape(num, 2),
        table=labels,
        visibility=np.zeros(len(labels), np.int8),
        racks=RackTable.of_boxes(racks.boxes, racks.sample),
        scene=np.zeros(num, np.int64),
        scene_names=("scene",),
        conditions=(frozenset({"day"}),),
    )


def no_boxes() -> BoxTable:
    return BoxTable(wide(Boxes.empty()), np.zeros(0, np.int64))
