"""The only two published sets of radar corruptions, exactly as published; our own ladder is in ``radar``.

Sources: RobuRCDet, ICLR 2025 (noise in a fifth of the training samples, sigma 5 in evaluation), and D2ICE.
"""

from dataclasses import replace

import numpy as np

from sensors.faults.radar import concatenated
from sensors.radar import RadarSweep

_MISSING_IDS = 8


def roburcdet_missing(sweep: RadarSweep, rng: np.random.Generator) -> RadarSweep:
    """Eight object ids, drawn with replacement and in proportion to their points, lose all points.

    Nothing happens to eight points or fewer.
    """
    if len(sweep) <= _MISSING_IDS:
        return sweep
    return sweep.select(~np.isin(sweep.track_id, rng.choice(sweep.track_id, _MISSING_IDS)))


def roburcdet_spurious(sweep: RadarSweep, sigma_m: float, rng: np.random.Generator) -> RadarSweep:
    """A copy of all points, off by N(0, sigma) in x, y and z, before them: twice as many points."""
    return concatenated([roburcdet_shift(sweep, sigma_m, rng), sweep])


def roburcdet_shift(sweep: RadarSweep, sigma_m: float, rng: np.random.Generator) -> RadarSweep:
    """All points are off by N(0, sigma) in x, y and z (a radar measures no z)."""
    noise = sigma_m * rng.standard_normal((len(sweep), 3))
    return replace(sweep, xyz_m=(sweep.xyz_m + noise).astype(sweep.xyz_m.dtype))


def roburcdet_disturbance(sweep: RadarSweep, sigma: float, rng: np.random.Generator) -> RadarSweep:
    """N(0, sigma) on RCS, x and y velocity (compensated): velocities are not radial any more."""
    noise = sigma * rng.standard_normal((len(sweep), 3))
    return replace(
        sweep,
        rcs_dbsm=(sweep.rcs_dbsm + noise[:, 0]).astype(sweep.rcs_dbsm.dtype),
        velocity_mps=(sweep.velocity_mps + noise[:, 1:]).astype(sweep.velocity_mps.dtype),
    )


def d2ice_point_drop(sweep: RadarSweep, dropped_share: float, rng: np.random.Generator) -> RadarSweep:
    """A random share (published: .25) of the points is lost."""
    num_kept = len(sweep) - int(dropped_share * len(sweep))
    return sweep.select(np.sort(rng.choice(len(sweep), num_kept, replace=False)))


def d2ice_shift(sweep: RadarSweep, sigma_m: float, rng: np.random.Generator) -> RadarSweep:
    """N(0, sigma) (published: .1 m) in x, y and z."""
    return roburcdet_shift(sweep, sigma_m, rng)


def d2ice_rcs_scale(sweep: RadarSweep, factor: float) -> RadarSweep:
    """RCS in dBsm times a factor."""
    return replace(sweep, rcs_dbsm=(sweep.rcs_dbsm * factor).astype(sweep.rcs_dbsm.dtype))
