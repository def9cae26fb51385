"""How far a score would move with other scenes: the bootstrap over scenes (Efron 1979).

Samples of a scene resemble each other, so scenes are drawn, not samples. Matching is done once: what a detection finds
does not depend on other samples. A draw only changes how often each detection and label counts.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from fusion.scoring.breakdown import label_counts
from fusion.scoring.curves import curves_of, metrics_of
from fusion.scoring.scorer import Scored
from sensors.boxes import DETECTION_NAMES


@dataclass(frozen=True)
class Interval:
    """Where a score lies in a share ``level`` of the draws."""

    low: float
    high: float
    level: float


def bootstrap_intervals(
    scored: Scored, num_draws: int = 200, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percentile intervals of ``mean_ap``, ``nds`` and each class's AP (by its name).

    Raises:
        ValueError: fewer than two scenes.
    """
    num_scenes = len(scored.split.scene_names)
    if num_scenes < 2:
        raise ValueError(f"expected at least two scenes to draw from, got {num_scenes}; score a greater split")
    rng = np.random.default_rng(seed)
    draws = np.stack(
        [np.bincount(rng.integers(0, num_scenes, num_scenes), minlength=num_scenes) for _ in range(num_draws)]
    )
    values = scores_of_draws(scored, draws)
    edges = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    names = ("mean_ap", "nds", *DETECTION_NAMES)
    return {name: Interval(float(low), float(high), level) for name, low, high in zip(names, *edges, strict=True)}


def scores_of_draws(scored: Scored, draws: np.ndarray) -> Float64[np.ndarray, "d 12"]:
    """mAP, NDS and the ten APs, for each row of how often every scene was drawn."""
    counts, matches = label_counts(scored), scored.matches
    scene = scored.split.scene[matches.sample]
    rows = []
    for times in draws:
        drawn = replace(matches, num_labels=times @ counts)
        metrics = metrics_of(drawn, curves_of(drawn, copies=times[scene]))
        rows.append([metrics.mean_ap, metrics.nds, *metrics.class_ap.values()])
    return np.array(rows, np.float64).reshape(len(draws), 2 + len(DETECTION_NAMES))
