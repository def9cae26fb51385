"""Fewer points where a price must hold: as many of a sample's points as its price counts, spread over the scan."""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from datamodules.batch import PointBatch

_GOLDEN = (5**0.5 - 1) / 2


def thinned(points: PointBatch, most: int, only: Bool[Tensor, "b"] | None = None) -> PointBatch:
    """At most ``most`` points of each sample, in their order; the batch itself where no sample has more.

    Which ones stay follows from their number and order alone. The r-th of a sample's points is ranked by the fractional
    part of r times the golden ratio: evenly over the scan, never in step with beams or sweeps, and the same in every
    batch.

    Args:
        only: samples for which that holds; None for all.
    """
    if len(points.points) <= most:  # no need to ask the device
        return points
    counts = num_points_of(points)
    over = counts > most if only is None else (counts > most) & only
    if not bool(over.any()):
        return points
    first = (counts.cumsum(0) - counts)[points.sample]
    place = torch.arange(len(points.points), device=counts.device)
    # float64: neighbours among a million points lie 1e-7 apart, far from its last bit.
    key = points.sample.double() + ((place - first).double() * _GOLDEN) % 1
    rank = torch.empty_like(place)
    rank[key.argsort()] = place
    return points.where((rank - first < most) | ~over[points.sample])


def num_points_of(points: PointBatch) -> Int64[Tensor, "b"]:
    """How many points each sample has."""
    return torch.bincount(points.sample, minlength=len(points.present))
