"""The official nuScenes detection metric over columns: the devkit's numbers without its objects."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from fusion.scoring.curves import Curves, curves_of, metrics_of
from fusion.scoring.filters import counted
from fusion.scoring.labels import load_labels
from fusion.scoring.matching import MatchTable, match
from fusion.scoring.metrics import Metrics
from fusion.scoring.submission import checked_table, read_table, table_of_split
from fusion.scoring.table import BoxTable, SplitLabels
from sensors.boxes import Boxes


@dataclass(frozen=True, eq=False)
class Scored:
    """Filtered detections against filtered labels.

    Attributes:
        split: labels of the whole split, unfiltered.
        labels: those that count, by sample.
        label_row: row of each of them in the unfiltered table.
        detections: in the order of the submission, unfiltered.
        matches: what found what, of the detections that count.
    """

    split: SplitLabels
    labels: BoxTable
    label_row: Int64[np.ndarray, "k"]
    detections: BoxTable
    matches: MatchTable

    @cached_property
    def curves(self) -> Curves:
        """Precision and errors over recall, by class and matching distance."""
        return curves_of(self.matches)

    @cached_property
    def metrics(self) -> Metrics:
        """The official scores."""
        return metrics_of(self.matches, self.curves)


def score_table(detections: BoxTable, split: SplitLabels) -> Scored:
    """Filter and match the detections of a split (global frame)."""
    label_row = np.flatnonzero(counted(split.table, split))
    labels = split.table.select(label_row)
    rows = np.flatnonzero(counted(detections, split))
    return Scored(split, labels, label_row, detections, match(detections, rows, labels))


class Scorer:
    """Scores submissions of one split.

    Attributes:
        labels: what is scored against.
        tokens: every sample token of the split, in the order of the tables.

    Raises:
        FileNotFoundError: no data set at ``root``, or no such version in it.
        ValueError: no such split, a split without annotations, or tables that are broken.
    """

    def __init__(self, root: str | Path, version: str, split: str):
        self.root, self.version, self.split = Path(root), version, split
        self.labels = load_labels(self.root, version, split)
        self.tokens = list(self.labels.tokens)
        if not counted(self.labels.table, self.labels).any():
            raise ValueError(
                f"expected annotations in the metric's range in split '{split}' of {self.root / version}, got none; "
                "score a split with labels"
            )

    def score(self, detections: Mapping[str, Boxes]) -> Metrics:
        """Scores of detections in the global frame, an entry for every sample of the split, best 500 boxes each.

        Raises:
            ValueError: a token is missing or foreign, or a box holds something that is no finite number.
        """
        return self.evaluate(detections).metrics

    def evaluate(self, detections: Mapping[str, Boxes]) -> Scored:
        """As ``score``, with all that the scores were made from."""
        return score_table(checked_table(detections, self.tokens), self.labels)

    def score_file(self, path: Path) -> Metrics:
        """Scores of anybody's submission file; errors as ``evaluate_file``."""
        return self.evaluate_file(path).metrics

    def evaluate_file(self, path: Path) -> Scored:
        """Score anybody's submission file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: as ``read_table`` and ``table_of_split``.
        """
        return score_table(table_of_split(read_table(path), self.tokens, self.split, path), self.labels)
