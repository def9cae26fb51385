"""Scores of one submission as plain numbers, and their JSON file."""

from dataclasses import asdict, dataclass
from pathlib import Path

from fusion.run_directory import write_json
from fusion.scoring.settings import TP_ERRORS

TP_ERROR_NAMES = dict(zip(TP_ERRORS, ("mATE", "mASE", "mAOE", "mAVE", "mAAE"), strict=True))


@dataclass(frozen=True)
class Metrics:
    """nuScenes detection scores.

    Attributes:
        mean_ap: mAP over the ten classes and the four distances.
        nds: nuScenes detection score.
        tp_errors: mean over classes, by name in TP_ERRORS.
        class_ap: by class, mean over the four distances. A class without a label in the split counts 0, as in the
            devkit: see ``num_labels``.
        class_ap_by_distance_m: by class, then by matching distance in metres.
        class_tp_errors: by class, then by error; None where a class has no such error (cones, barriers).
        num_labels, num_detections: by class, after the devkit's filters of range, points and bicycle racks.
    """

    mean_ap: float
    nds: float
    tp_errors: dict[str, float]
    class_ap: dict[str, float]
    class_ap_by_distance_m: dict[str, dict[float, float]]
    class_tp_errors: dict[str, dict[str, float | None]]
    num_labels: dict[str, int]
    num_detections: dict[str, int]

    @property
    def mean_ap_of_labelled(self) -> float:
        """mAP over the classes that have a label in the split; not an official number, for small splits."""
        aps = [ap for name, ap in self.class_ap.items() if self.num_labels[name]]
        return sum(aps) / len(aps) if aps else 0.0

    def to_json(self) -> dict:
        """Plain JSON values."""
        by_distance = {
            name: {str(distance): ap for distance, ap in aps.items()}
            for name, aps in self.class_ap_by_distance_m.items()
        }
        return {**asdict(self), "class_ap_by_distance_m": by_distance}

    @staticmethod
    def from_json(content: dict) -> "Metrics":
        """The inverse of ``to_json``."""
        by_distance = {
            name: {float(distance): ap for distance, ap in aps.items()}
            for name, aps in content["class_ap_by_distance_m"].items()
        }
        return Metrics(**{**content, "class_ap_by_distance_m": by_distance})


def write_metrics(path: Path, metrics: Metrics, **context) -> None:
    """Write ``metrics.json``: the scores under ``metrics`` and whatever describes the run beside them."""
    content = {"metrics": metrics.to_json(), **context}
    write_json(path, content)
