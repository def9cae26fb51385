"""A sensor fails in the middle of a scene: scores before, during and after, and how fast the router lets go of it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fusion.robustness.gates import unit_severity
from fusion.robustness.metrics import frames_until
from fusion.routing.plan import SKIP
from fusion.scoring.breakdown import matches_of_samples
from fusion.scoring.curves import metrics_of
from fusion.scoring.evaluate import EvaluationResult
from fusion.scoring.scorer import Scored
from fusion.scoring.settings import DISTANCES_M, TP_DISTANCE_M
from sensors.rig import UNITS

PHASES = ("before", "during", "after")
RECOVERED = 0.9
"""Share of the recall before the failure at which detection counts as back."""
LET_GO = 0.5
"""A harmed unit whose gate is below, or that did not run, is let go of."""


def failover_report(result: EvaluationResult, scored: Scored) -> dict | None:
    """Phases and time lines of a cell; None where no scene has a sample before its failure.

    Returns:
        ``phases``: mAP, NDS, recall at 2 m and number of samples; ``frames``: one entry per keyframe of a scene, means
        over scenes; ``react_frames``, ``recover_frames``: by scene, from the onset to the first keyframe where every
        harmed unit is let go of, and from the end to the first with RECOVERED of the recall before; None for never.
    """
    if result.severity is None or not result.scenes:
        return None
    harmed = unit_severity(result.severity) > 0
    scenes = scene_rows(result.scenes)
    onset = {name: np.flatnonzero(harmed[rows].any(axis=1)) for name, rows in scenes.items()}
    if not any(len(places) and places[0] > 0 for places in onset.values()):
        return None
    phase = np.zeros(len(result.tokens), np.int64)
    for name, rows in scenes.items():
        if len(onset[name]):
            phase[rows[onset[name][0] :]] = 1
            phase[rows[onset[name][-1] + 1 :]] = 2
    found, num_labels = recall_counts(result, scored)
    let_go = _let_go(result, harmed)
    report = {
        "phases": {name: _phase(scored, result, phase == row, (found, num_labels)) for row, name in enumerate(PHASES)},
        "frames": _frames(result, scenes, (harmed, let_go), (found, num_labels)),
        "react_frames": {},
        "recover_frames": {},
    }
    for name, rows in scenes.items():
        if not len(onset[name]) or onset[name][0] == 0:
            continue
        start, end = int(onset[name][0]), int(onset[name][-1]) + 1
        report["react_frames"][name] = frames_until(let_go[rows][:end], start)
        if end < len(rows):
            recall = _ratio(found[rows], num_labels[rows])
            usual = _ratio(found[rows[:start]].sum(), num_labels[rows[:start]].sum())
            is_back = np.nan_to_num(recall, nan=1.0) >= RECOVERED * usual
            report["recover_frames"][name] = frames_until(is_back, end)
    return report


def scene_rows(scenes: Sequence[str]) -> dict[str, Int[np.ndarray, "k"]]:
    """Rows of each scene's samples, in time as they come."""
    names = np.array(scenes)
    return {str(name): np.flatnonzero(names == name) for name in dict.fromkeys(scenes)}


def recall_counts(result: EvaluationResult, scored: Scored) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Counted labels found at 2 m, and counted labels, of each sample in the order of evaluation."""
    size = len(scored.split.tokens)
    pair = scored.matches.pair[DISTANCES_M.index(TP_DISTANCE_M)]
    hit = scored.labels.sample[scored.matches.truth[pair[pair >= 0]]]
    found, there = (np.bincount(rows, minlength=size) for rows in (hit, scored.labels.sample))
    place = {token: row for row, token in enumerate(scored.split.tokens)}
    order = np.array([place[token] for token in result.tokens], np.int64)
    return found[order], there[order]


def _let_go(result: EvaluationResult, harmed: Bool[np.ndarray, "n u"]) -> Bool[np.ndarray, "n"]:
    """Whether no harmed unit of a sample is believed: absent, not run, or weighed below LET_GO."""
    gate = np.nan_to_num(result.gate, nan=0.0) if result.gate is not None else np.ones(harmed.shape)
    believed = harmed & result.unit_present & (result.branch != SKIP) & (gate >= LET_GO)
    return ~believed.any(axis=1)


def _phase(scored: Scored, result: EvaluationResult, chosen: Bool[np.ndarray, "n"], counts) -> dict:
    found, num_labels = counts
    tokens = {token for token, is_in in zip(result.tokens, chosen, strict=True) if is_in}
    samples = np.array([token in tokens for token in scored.split.tokens])
    metrics = metrics_of(matches_of_samples(scored, samples))
    return {
        "num_samples": int(chosen.sum()),
        "mean_ap": metrics.mean_ap,
        "nds": metrics.nds,
        "recall_2m": float(_ratio(found[chosen].sum(), num_labels[chosen].sum())),
    }


def _frames(result: EvaluationResult, scenes: dict, states, counts) -> list[dict]:
    """Means over the scenes that are long enough, keyframe by keyframe."""
    (harmed, let_go), (found, num_labels) = states, counts
    frames = []
    for place in range(max(len(rows) for rows in scenes.values())):
        rows = np.array([rows[place] for rows in scenes.values() if place < len(rows)])
        frames.append(
            {
                "harmed": float(harmed[rows].any(axis=1).mean()),
                "let_go": float((let_go & harmed.any(axis=1))[rows].mean()),
                "recall_2m": float(_ratio(found[rows].sum(), num_labels[rows].sum())),
                "gflops": float(result.gflops[rows].mean()),
                "ran": {unit: float((result.branch[rows, column] != SKIP).mean()) for column, unit in enumerate(UNITS)},
            }
        )
    return frames


def _ratio(part, whole) -> Float[np.ndarray, "..."] | float:
    """NaN where there is nothing."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
