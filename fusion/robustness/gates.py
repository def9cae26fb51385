"""What a router believed of its sensors, against what was injected: histograms that fit a line of JSON.

A gate is the chance, by the router, that a unit runs. A unit has failed where one of its channels was harmed. Absent
units have no gate: nothing is left to decide.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from fusion.robustness.cells import Cell
from fusion.robustness.metrics import gate_auroc, gate_calibration
from fusion.scoring.calibration import Calibration
from fusion.scoring.evaluate import SENSOR_UNITS, EvaluationResult
from sensors.rig import CAMERAS, CHANNELS, LIDAR

NUM_BINS = 100
"""AUROC from bins this fine is within half a percent of that from the values."""


def unit_severity(severity: Float[np.ndarray, "n 12"]) -> Float[np.ndarray, "n 8"]:
    """How strongly each unit was harmed: the radar set as its worst radar."""
    rows = [CHANNELS.index(channel) for channel in (*CAMERAS, LIDAR)]
    radar = severity[:, [row for row in range(len(CHANNELS)) if row not in rows]].max(axis=1, keepdims=True)
    return np.concatenate([severity[:, rows], radar], axis=1)


def gate_histograms(result: EvaluationResult) -> dict | None:
    """By sensor, how many gates of failed and of sound units lie in each of NUM_BINS bins; None where nobody said."""
    if result.severity is None or result.gate is None:
        return None
    failed, known = unit_severity(result.severity) > 0, ~np.isnan(result.gate)
    histograms = {}
    for sensor, units in SENSOR_UNITS.items():
        gate, is_failed = (values[:, list(units)][known[:, list(units)]] for values in (result.gate, failed))
        histograms[sensor] = {"failed": _counts(gate[is_failed]), "sound": _counts(gate[~is_failed])}
    return histograms


def _counts(gate: Float[np.ndarray, "k"]) -> list[list[int]]:
    """(bin, count) of the bins that hold something."""
    counts = np.bincount(np.clip((gate * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1), minlength=NUM_BINS)
    return [[int(row), int(counts[row])] for row in np.flatnonzero(counts)]


def pooled(
    histograms: Sequence[Mapping | None], sensors: Sequence[str] = tuple(SENSOR_UNITS)
) -> tuple[Float[np.ndarray, "k"], Bool[np.ndarray, "k"]]:
    """Gates (bin middles) and whether their unit had failed, over cells and sensors."""
    gates, failures = [np.zeros(0)], [np.zeros(0, bool)]
    for histogram in histograms:
        for sensor in sensors if histogram else ():
            for word, is_failed in (("failed", True), ("sound", False)):
                for row, count in histogram[sensor][word]:
                    gates.append(np.full(count, (row + 0.5) / NUM_BINS))
                    failures.append(np.full(count, is_failed))
    return np.concatenate(gates), np.concatenate(failures)


def gate_report(cells: Sequence[Cell]) -> dict:
    """AUROC and calibration of the gates by sensor and over all, from cells of one budget and policy, clean included.

    AUROC is None where no unit failed or none was sound.
    """
    histograms = [cell.gates for cell in cells if cell.metrics is not None]
    report = {}
    for name, sensors in {**{sensor: (sensor,) for sensor in SENSOR_UNITS}, "all": tuple(SENSOR_UNITS)}.items():
        gate, failed = pooled(histograms, sensors)
        auroc = gate_auroc(gate, failed)
        calibration: Calibration = gate_calibration(gate, ~failed)
        report[name] = {
            "num_failed": int(failed.sum()),
            "num_sound": int((~failed).sum()),
            "auroc": None if math.isnan(auroc) else auroc,
            "calibration": calibration.to_json(),
        }
    return report
