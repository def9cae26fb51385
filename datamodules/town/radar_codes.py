"""The status fields of radar detections, in the shares of a real nuScenes file.

Source: 125 detections of one RADAR_BACK_RIGHT file (n008-2018-08-01-15-34-25, 1533152711219287), counted; ``dyn_prop``
4 with all accuracies 0 is one family of unsure detections there (11 of 125), the rest is counted without it.
"""

import numpy as np
from jaxtyping import Bool, Float, Int8

MOVING_MPS = 0.5
UNSURE_SHARE = 11 / 125
INVALID_STATE = {0: 74, 11: 13, 9: 9, 16: 7, 4: 5, 10: 2, 15: 2, 6: 1, 3: 1}
PDH0 = {1: 80, 3: 32, 6: 2}
AMBIG_MOVING = {3: 14, 1: 6, 2: 1}
X_RMS = {19: 39, 20: 35, 21: 27, 22: 13}
Y_RMS = {19: 36, 20: 17, 21: 14, 22: 24, 23: 10, 24: 2, 25: 3, 26: 5, 27: 2, 28: 1}
VX_RMS = {16: 93, 17: 14, 18: 5, 19: 1, 20: 1}
_STATIONARY = {1: 61, 3: 32}
_FALSE_PDH0 = {1: 55, 3: 40, 6: 5}
"""Clutter looks a little less sure of itself; too little to tell it by."""
_UNSURE = {"dyn_prop": 4, "invalid_state": 7, "ambig_state": 0, "pdh0": 6, "x_rms": 0, "y_rms": 0, "vx_rms": 0}


def status_codes(
    speed_mps: Float[np.ndarray, "n"], false: Bool[np.ndarray, "n"], rng: np.random.Generator
) -> dict[str, Int8[np.ndarray, "n"]]:
    """The nine status fields of each detection.

    Args:
        speed_mps: over ground along the line of sight, positive when receding.
        false: clutter, ghosts and scenery.
    """
    count = len(speed_mps)
    moving = np.abs(speed_mps) > MOVING_MPS
    codes = {
        "dyn_prop": np.where(moving, np.where(speed_mps < 0, 2, 0), _drawn(_STATIONARY, count, rng)),
        "is_quality_valid": np.ones(count, int),
        "ambig_state": np.where(moving, _drawn(AMBIG_MOVING, count, rng), 3),
        "invalid_state": _drawn(INVALID_STATE, count, rng),
        "pdh0": np.where(false, _drawn(_FALSE_PDH0, count, rng), _drawn(PDH0, count, rng)),
        "x_rms": _drawn(X_RMS, count, rng),
        "y_rms": _drawn(Y_RMS, count, rng),
        "vx_rms": _drawn(VX_RMS, count, rng),
        "vy_rms": np.full(count, 3),
    }
    unsure = rng.random(count) < UNSURE_SHARE
    for name in codes:
        if name != "is_quality_valid":
            codes[name] = np.where(unsure, _UNSURE.get(name, 0), codes[name])
    return {name: values.astype(np.int8) for name, values in codes.items()}


def _drawn(counts: dict[int, int], size: int, rng: np.random.Generator) -> np.ndarray:
    edges = np.cumsum(list(counts.values())) / sum(counts.values())
    return np.array(list(counts))[np.searchsorted(edges, rng.random(size), side="right").clip(0, len(counts) - 1)]
