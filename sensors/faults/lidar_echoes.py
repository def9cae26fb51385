"""What a LiDAR makes of several echoes in one beam: the strongest place of all their pulses."""

import numpy as np
from jaxtyping import Float, Int

from sensors.faults.lidar_fog import LIGHT_MPS

PULSE_M = LIGHT_MPS * 10e-9
BIN_M = 0.1
_PER_M = 2 * np.pi / PULSE_M


def strongest_echo(
    beam: Int[np.ndarray, "k"], distance_m: Float[np.ndarray, "k"], power: Float[np.ndarray, "k"]
) -> tuple[Float[np.ndarray, "b"], Float[np.ndarray, "b"]]:
    """Where the sum of all pulses of a beam is strongest, in bins of 0.1 m, less the delay of the peak; and its power.

    Each echo is a sin^2 pulse of 3 m (10 ns) that begins at its distance. ``beam`` runs from 0 without gaps. Pulses end
    in the order in which they begin, so that those that are on between two neighbouring ends are a run of them.
    """
    num_beams = int(beam.max(initial=-1)) + 1
    if not num_beams:
        return np.zeros(0), np.zeros(0)
    place_m = beam * (distance_m.max() + 3 * PULSE_M) + distance_m
    rows = np.argsort(place_m, kind="stable")
    beam, distance_m, power, place_m = beam[rows], distance_m[rows], power[rows], place_m[rows]
    first_row = np.flatnonzero(np.diff(beam, prepend=-1))
    strongest = np.maximum.reduceat(power, first_row)

    edges = np.argsort(np.concatenate([place_m, place_m + PULSE_M]), kind="stable")
    begun = np.cumsum(edges < len(beam))
    ended = np.arange(1, len(edges) + 1) - begun
    total = _sums_before(power)
    # A bin may miss a peak by half its width: 0.3 % of the power.
    chosen = np.flatnonzero((begun > ended) & (total[begun] - total[ended] >= 0.99 * strongest[beam[begun - 1]]))
    edge_m = np.concatenate([distance_m, distance_m + PULSE_M])
    stretch_m = edge_m[edges[chosen]], edge_m[edges[chosen + 1]]
    begun, ended = begun[chosen], ended[chosen]
    sums = (_sums_before(part) for part in (power * np.cos(_PER_M * distance_m), power * np.sin(_PER_M * distance_m)))
    bins, height = _best_bins(stretch_m, total[begun] - total[ended], *(part[begun] - part[ended] for part in sums))
    beam = beam[begun - 1]

    where_m, peak = distance_m[first_row] + PULSE_M / 2, np.zeros(num_beams)
    np.maximum.at(peak, beam, height)
    # Of equals the nearest: what is written last stays.
    best = np.flatnonzero(height == peak[beam])[::-1]
    where_m[beam[best]] = bins[best] * BIN_M
    return where_m - PULSE_M / 2, peak


def _sums_before(values: Float[np.ndarray, "k"]) -> Float[np.ndarray, "k+1"]:
    return np.concatenate([[0.0], np.cumsum(values)])


def _best_bins(
    stretch_m: tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]],
    total: Float[np.ndarray, "c"],
    cosine: Float[np.ndarray, "c"],
    sine: Float[np.ndarray, "c"],
) -> tuple[Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    """The bin of each stretch where its sum is highest, and how high; 0 where a stretch holds no bin.

    A sum of pulses is a constant less a wave, (total - cosine cos - sine sin) / 2. A stretch is no longer than a wave,
    so its bin nearest to the crest that is nearest to its middle is the highest.
    """
    begin_m, end_m = stretch_m
    crest_m = (np.arctan2(sine, cosine) + np.pi) / _PER_M
    crest_m += PULSE_M * np.rint(((begin_m + end_m) / 2 - crest_m) / PULSE_M)
    first, last = np.ceil(begin_m / BIN_M), np.floor(end_m / BIN_M)
    bins = np.clip(np.rint(crest_m / BIN_M), first, np.maximum(first, last))
    height = (total + np.hypot(cosine, sine) * np.cos(_PER_M * (bins * BIN_M - crest_m))) / 2
    return bins, np.where(first <= last, height, 0.0)
