"""Whether a confidence means what it says."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64


@dataclass(frozen=True, eq=False)
class Calibration:
    """Confidences against what came true, in equal bins of [0, 1].

    Attributes:
        num: events in each bin.
        confidence, hit_rate: means in each bin; NaN in an empty one.
    """

    num: Int64[np.ndarray, "b"]
    confidence: Float[np.ndarray, "b"]
    hit_rate: Float[np.ndarray, "b"]

    @property
    def expected_error(self) -> float:
        """ECE: mean distance of confidence and hit rate over all events (Guo et al., ICML 2017); NaN without any."""
        used = self.num > 0
        if not used.any():
            return float("nan")
        gap = np.abs(self.confidence[used] - self.hit_rate[used])
        return float((self.num[used] * gap).sum() / self.num.sum())

    def to_json(self) -> dict:
        return {
            "expected_error": self.expected_error,
            "num": self.num.tolist(),
            "confidence": self.confidence.tolist(),
            "hit_rate": self.hit_rate.tolist(),
        }


def calibration_of(
    confidence: Float[np.ndarray, "n"], came_true: Bool[np.ndarray, "n"], num_bins: int = 10
) -> Calibration:
    """Sort confidences into bins; one of exactly 1 belongs to the last bin."""
    row = np.clip((confidence * num_bins).astype(np.int64), 0, num_bins - 1)
    num = np.bincount(row, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(row, weights=values, minlength=num_bins) / num for values in (confidence, came_true)]
    return Calibration(num.astype(np.int64), *means)
