"""The official nuScenes detection metric: an adapter that loads the tables once and scores many submissions.

Every number comes from the devkit's own functions and its ``detection_cvpr_2019`` settings. The adapter adds what the
devkit lacks: it survives a submission without a single box, keeps the filtered ground truth between submissions, hands
each class only its own boxes (the devkit looks at all of a sample's for each class and distance), and prints nothing.
"""

import contextlib
import io
import json
import math
from pathlib import Path

from fusion.scoring.metrics import TP_ERRORS, Metrics
from fusion.scoring.submission import Detections, submission_results

SETTINGS = "detection_cvpr_2019"


@contextlib.contextmanager
def silenced():
    """The devkit prints and draws progress bars whatever ``verbose`` says."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class Scorer:
    """Scores submissions of one split.

    Attributes:
        tokens: every sample token of the split, in the order of the tables.
        nusc: the devkit's tables.

    Raises:
        FileNotFoundError: no data set at ``root``, or no such version in it.
        ValueError: no such split, a split without annotations, or tables that the devkit cannot read.
    """

    def __init__(self, root: str | Path, version: str, split: str):
        self.root, self.version, self.split = Path(root), version, split
        _check_folder(self.root, version)
        from nuscenes.eval.common.config import config_factory

        self._settings = config_factory(SETTINGS)
        with silenced():
            self.nusc = _load_tables(self.root, version)
            self.tokens = _tokens_of_split(self.nusc, split)
            self._labels = self._by_class(self._filtered(_load_labels(self.nusc, split, self.tokens)))
        if not any(len(boxes.all) for boxes in self._labels.values()):
            raise ValueError(
                f"expected annotations in the metric's range in split '{split}' of {self.root / version}, got none; "
                "score a split with labels"
            )

    def score(self, detections: Detections) -> Metrics:
        """Scores of detections in the global frame, an entry for every sample of the split.

        Raises:
            ValueError: a token is missing or foreign, or a box holds something that is no finite number.
        """
        boxes = _eval_boxes(submission_results(detections, self.tokens))
        with silenced():
            return self._metrics(self._by_class(self._filtered(boxes)))

    def _filtered(self, boxes):
        """Range, points and bicycle racks. The devkit's filter raises when there is not one box in the whole set."""
        from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes

        if not any(boxes[token] for token in self.tokens):
            return boxes
        return filter_eval_boxes(self.nusc, add_center_dist(self.nusc, boxes), self._settings.class_range)

    def _by_class(self, boxes) -> dict:
        """The boxes of each class apart, in the same order: what the devkit's matching picks out anyway."""
        from nuscenes.eval.common.data_classes import EvalBoxes

        parts = {name: EvalBoxes() for name in self._settings.class_names}
        for token in self.tokens:
            for part in parts.values():
                part.add_boxes(token, [])
            for box in boxes[token]:
                parts[box.detection_name].boxes[token].append(box)
        return parts

    def _metrics(self, boxes: dict) -> Metrics:
        """As ``DetectionEval.evaluate``, class by class."""
        from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
        from nuscenes.eval.detection.data_classes import DetectionMetrics

        settings = self._settings
        official = DetectionMetrics(settings)
        for name in settings.class_names:
            matched = {
                distance: accumulate(self._labels[name], boxes[name], name, _center_distance, distance)
                for distance in settings.dist_ths
            }
            for distance, data in matched.items():
                official.add_label_ap(name, distance, calc_ap(data, settings.min_recall, settings.min_precision))
            for error in TP_ERRORS:
                applies = error not in _MISSING_ERRORS.get(name, ())
                value = calc_tp(matched[settings.dist_th_tp], settings.min_recall, error) if applies else float("nan")
                official.add_label_tp(name, error, value)
        return self._plain(official, boxes)

    def _plain(self, official, boxes: dict) -> Metrics:
        names = list(self._settings.class_names)
        return Metrics(
            mean_ap=official.mean_ap,
            nds=official.nd_score,
            tp_errors=official.tp_errors,
            class_ap={name: float(ap) for name, ap in official.mean_dist_aps.items()},
            class_ap_by_distance_m={
                name: {distance: official.get_label_ap(name, distance) for distance in self._settings.dist_ths}
                for name in names
            },
            class_tp_errors={
                name: {error: _or_none(official.get_label_tp(name, error)) for error in TP_ERRORS} for name in names
            },
            num_labels={name: len(self._labels[name].all) for name in names},
            num_detections={name: len(boxes[name].all) for name in names},
        )


def _eval_boxes(results: dict[str, list[dict]]):
    """The devkit's boxes of a ``results`` block.

    Without its constructor, which takes 50 us to look for NaN in each box: ``submission_results`` has looked already.
    """
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes = EvalBoxes()
    for token, entries in results.items():
        boxes.add_boxes(token, [])
        for entry in entries:
            box = DetectionBox.__new__(DetectionBox)
            vars(box).update(entry, num_pts=-1)
            boxes.boxes[token].append(box)
    return boxes


def _center_distance(label, detection) -> float:
    """The devkit's ``center_distance`` on plain floats: ten times faster than on arrays of two."""
    (x, y, _), (other_x, other_y, _) = label.translation, detection.translation
    return math.sqrt((x - other_x) * (x - other_x) + (y - other_y) * (y - other_y))


def _or_none(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value


_MISSING_ERRORS = {"traffic_cone": ("attr_err", "vel_err", "orient_err"), "barrier": ("attr_err", "vel_err")}
"""Errors that a class does not have (``DetectionEval.evaluate``)."""


def _check_folder(root: Path, version: str) -> None:
    if not root.is_dir():
        raise FileNotFoundError(f"expected a nuScenes data set, got no folder at {root}; set data.root")
    if not (root / version).is_dir():
        found = sorted(path.parent.name for path in root.glob("*/sample.json"))
        raise FileNotFoundError(f"expected version '{version}' in {root}, got {found or 'none'}; set data.version")


def _load_tables(root: Path, version: str):
    from nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, KeyError, FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected whole nuScenes tables in {root / version}, got {type(error).__name__}: {error}; copy them again"
        ) from None


def _tokens_of_split(nusc, split: str) -> list[str]:
    """Sample tokens of a predefined split, or of one in ``<root>/<version>/splits.json``."""
    from nuscenes.eval.common.loaders import get_samples_of_scenes
    from nuscenes.utils.splits import create_splits_scenes, get_scenes_of_split

    try:
        tokens = get_samples_of_scenes(get_scenes_of_split(split, nusc), nusc)
    except (ValueError, AssertionError):
        custom = Path(nusc.dataroot) / nusc.version / "splits.json"
        names = sorted(json.loads(custom.read_text())) if custom.is_file() else sorted(create_splits_scenes())
        raise ValueError(f"expected a split among {names}, got '{split}'; set the split") from None
    if not tokens:
        raise ValueError(f"expected samples of split '{split}' in {nusc.version}, got none; choose another split")
    return tokens


def _load_labels(nusc, split: str, tokens: list[str]):
    """Ground truth by the devkit's own loaders: one for predefined splits, one for all others."""
    from nuscenes.eval.common.loaders import load_gt, load_gt_of_sample_tokens
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.utils.splits import is_predefined_split

    if not is_predefined_split(split):
        return load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
    try:
        return load_gt(nusc, split, DetectionBox)
    except AssertionError as error:
        raise ValueError(f"expected split '{split}' to fit version '{nusc.version}', got: {error}") from None
