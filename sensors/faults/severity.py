"""How strong the faults in a sample are, channel by channel: labels for routers and for diagnosis."""

import numpy as np
from jaxtyping import Float32

from sensors.faults.protocol import NUM_LEVELS, Fault, measurement_of
from sensors.frame import Frame
from sensors.rig import CHANNELS

Severities = Float32[np.ndarray, "12"]
"""In the order of CHANNELS: 0 untouched, 0.2 to 1 the five levels of a fault's ladder, 1 also beyond them and for a
channel that was taken away."""


def no_severities() -> Severities:
    """Of a clean sample."""
    return np.zeros(len(CHANNELS), np.float32)


def added_severities(so_far: Severities, before: Frame, after: Frame, applied: tuple[Fault, float]) -> Severities:
    """With one more fault and its level: each channel carries the strongest that changed it.

    A channel is changed where it holds another object than before: what a fault leaves alone it shares.
    """
    if before is after:
        return so_far
    place = place_on_ladder(*applied)
    severities = so_far.copy()
    for row, channel in enumerate(CHANNELS):
        if not before.present(channel):
            continue
        if not after.present(channel):
            severities[row] = 1.0
        elif measurement_of(after, channel) is not measurement_of(before, channel):
            severities[row] = max(severities[row], place)
    return severities


def unknown_severities(before: Frame, after: Frame) -> Severities:
    """1 for every channel that changed, where nobody says by how much."""
    severities = no_severities()
    for row, channel in enumerate(CHANNELS):
        if before.present(channel):
            same = after.present(channel) and measurement_of(after, channel) is measurement_of(before, channel)
            severities[row] = float(not same)
    return severities


def place_on_ladder(fault: Fault, level: float) -> float:
    """0 at the clean level, 0.2, 0.4, ... at the five levels (of n at k: k / n), straight in between, 1 beyond.

    Whole-sensor faults count sensors or samples, so a sensor that they hit is hit altogether: 1.
    """
    if fault.family in ("lost", "blackout", "stuck"):
        return float(level != fault.clean)
    ladder = np.array([fault.clean, *fault.levels])
    rising = np.sign(ladder[-1] - ladder[0])
    num_levels = len(fault.levels) or NUM_LEVELS
    return float(np.interp(rising * level, rising * ladder, np.arange(num_levels + 1) / num_levels))
