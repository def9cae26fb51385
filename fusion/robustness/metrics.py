"""What remains under failures, relative to clean data."""

import math
from collections.abc import Sequence

from fusion.robustness.cells import Cell


def clean_cell(cells: Sequence[Cell], budget: float) -> Cell | None:
    """The cell of undisturbed data at a budget; None where it is missing or could not run."""
    found = [cell for cell in cells if cell.is_clean and cell.budget == budget and cell.metrics is not None]
    return found[-1] if found else None


def resilience(cell: Cell, cells: Sequence[Cell], metric: str = "nds") -> float:
    """RA = M / M_clean at the same budget (MultiCorrupt, Beemelmanns et al., IV 2024); M is ``nds`` or ``mean_ap``.

    NaN where either is missing or the clean score is 0.
    """
    clean = clean_cell(cells, cell.budget)
    if cell.metrics is None or clean is None or getattr(clean.metrics, metric) == 0:
        return math.nan
    return getattr(cell.metrics, metric) / getattr(clean.metrics, metric)


def mean_resilience(cells: Sequence[Cell], budget: float, metric: str = "nds") -> float:
    """Mean RA of all disturbed cells at a budget; NaN as soon as one of them could not run: it is no clean score."""
    values = [resilience(cell, cells, metric) for cell in cells if cell.budget == budget and not cell.is_clean]
    return math.fsum(values) / len(values) if values else math.nan
