"""All faults by name."""

from collections.abc import Sequence
from difflib import get_close_matches

from sensors.faults.alignment import ALIGNMENT_FAULTS
from sensors.faults.camera import CAMERA_FAULTS
from sensors.faults.failures import FAILURES
from sensors.faults.lidar import LIDAR_FAULTS
from sensors.faults.protocol import Fault, restricted
from sensors.faults.radar import RADAR_FAULTS
from sensors.faults.time_stamps import STAMP_FAULTS
from sensors.faults.time_stuck import STUCK_FAULTS
from sensors.faults.weather import WEATHER_FAULTS

CATALOGUE: tuple[Fault, ...] = (
    *FAILURES,
    *STUCK_FAULTS,
    *STAMP_FAULTS,
    *CAMERA_FAULTS,
    *LIDAR_FAULTS,
    *RADAR_FAULTS,
    *ALIGNMENT_FAULTS,
    *WEATHER_FAULTS,
)

_NUM_SUGGESTED = 4

_BY_NAME = {fault.name: fault for fault in CATALOGUE}


def fault_named(name: str, channels: Sequence[str] | None = None, others: Sequence[str] = ()) -> Fault:
    """The fault of that name, on the named channels only if any are given.

    Args:
        others: names beyond the catalogue that the caller knows, to suggest where there is no such fault.

    Raises:
        ValueError: there is no such fault, or it cannot harm such a channel.
    """
    if name not in _BY_NAME:
        raise ValueError(unknown_fault(name, others))
    return _BY_NAME[name] if channels is None else restricted(_BY_NAME[name], channels)


def unknown_fault(name: str, others: Sequence[str] = ()) -> str:
    """What to tell somebody who wrote a name that is none: the nearest ones, the choices of its family, where all are.

    Args:
        others: names beyond the catalogue that count too.
    """
    if name in families():
        return f"expected a fault, got the family '{name}'; write one of {', '.join(families()[name])}"
    near = get_close_matches(name, [*_BY_NAME, *others], n=_NUM_SUGGESTED, cutoff=0.5)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return (
        f"expected a fault of the families {', '.join(families())}, got '{name}'{meant}; a family's name in its place "
        "lists its faults, `dynfusion view gallery` shows all"
    )


def families() -> dict[str, tuple[str, ...]]:
    """Names of the faults of each family, for runs that leave one family out."""
    names = sorted({fault.family for fault in CATALOGUE})
    return {family: tuple(fault.name for fault in CATALOGUE if fault.family == family) for family in names}
