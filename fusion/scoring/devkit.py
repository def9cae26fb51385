"""The official nuScenes detection metric as the devkit itself computes it: slow, and the last word."""

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

from datamodules.splits import PREDEFINED_SPLITS
from fusion.scoring.metrics import TP_ERRORS, Metrics
from fusion.scoring.read import SubmissionTable, read_table
from fusion.scoring.scorer import Scorer
from fusion.scoring.submission import SubmissionMeta, table_of_split, write_submission
from sensors.boxes import DETECTION_NAMES, Boxes

SETTINGS = "detection_cvpr_2019"


@contextlib.contextmanager
def silenced():
    """The devkit prints and draws progress bars whatever ``verbose`` says."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class DevkitScorer(Scorer):
    """A Scorer whose every number comes from the devkit's ``DetectionEval`` and its own reading of the tables.

    Attributes:
        nusc: the devkit's tables.

    Raises:
        FileNotFoundError: no data set at ``root``, or no such version in it.
        ValueError: no such split, a split without annotations, or tables that the devkit cannot read.
    """

    def __init__(self, root: str | Path, version: str, split: str):
        super().__init__(root, version, split)
        with silenced():
            self.nusc = _load_tables(self.root, version)

    def score(self, detections: Mapping[str, Boxes]) -> Metrics:
        """Scores of detections in the global frame, an entry for every sample of the split, best 500 boxes each.

        Raises:
            ValueError: a token is missing or foreign, a box holds something that is no finite number, or there is not
                one box: the devkit cannot score that.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "detections.json"
            write_submission(path, detections, self.tokens, SubmissionMeta())
            return self.score_file(path)

    def score_file(self, path: Path) -> Metrics:
        """Scores of anybody's submission file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no submission of this split, or the devkit refuses it.
        """
        submission = read_table(path)
        table_of_split(submission, self.tokens, self.split, path)
        _check_for_devkit(submission, self.split, self.tokens, path)
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval

        with tempfile.TemporaryDirectory() as folder, silenced():
            settings = config_factory(SETTINGS)
            try:
                judge = DetectionEval(self.nusc, settings, str(path), self.split, folder, verbose=False)
                official, _ = judge.evaluate()
            except AssertionError as error:
                raise ValueError(f"expected a submission that the devkit takes in {path}, got: {error}") from None
        return _plain(official, judge)


def _check_for_devkit(submission: SubmissionTable, split: str, tokens: list[str], path: Path) -> None:
    """The devkit's filter fails where no sample that it reads has a box."""
    used = set(submission.tokens) if split in PREDEFINED_SPLITS else set(tokens)
    if not any(submission.tokens[row] in used for row in set(submission.table.sample.tolist())):
        raise ValueError(f"expected at least one box in {path}, got none: the devkit cannot score that")


def _plain(official, judge) -> Metrics:
    """The devkit's results as plain numbers."""
    distances = judge.cfg.dist_ths
    return Metrics(
        mean_ap=official.mean_ap,
        nds=official.nd_score,
        tp_errors=official.tp_errors,
        class_ap={name: float(ap) for name, ap in official.mean_dist_aps.items()},
        class_ap_by_distance_m={
            name: {distance: official.get_label_ap(name, distance) for distance in distances}
            for name in DETECTION_NAMES
        },
        class_tp_errors={
            name: {error: _or_none(official.get_label_tp(name, error)) for error in TP_ERRORS}
            for name in DETECTION_NAMES
        },
        num_labels=_counts(judge.gt_boxes),
        num_detections=_counts(judge.pred_boxes),
    )


def _counts(boxes) -> dict[str, int]:
    counts = dict.fromkeys(DETECTION_NAMES, 0)
    for box in boxes.all:
        counts[box.detection_name] += 1
    return counts


def _or_none(value: float) -> float | None:
    """None for NaN."""
    return None if math.isnan(value) else value


def _load_tables(root: Path, version: str):
    from nuscenes import NuScenes

    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (AssertionError, KeyError, FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected whole nuScenes tables in {root / version}, got {type(error).__name__}: {error}; copy them again"
        ) from None
