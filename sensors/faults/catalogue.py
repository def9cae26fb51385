"""All faults by name."""

from collections.abc import Sequence

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

_BY_NAME = {fault.name: fault for fault in CATALOGUE}


def fault_named(name: str, channels: Sequence[str] | None = None) -> Fault:
    """The fault of that name, on the named channels only if any are given.

    Raises:
        ValueError: there is no such fault, or it cannot harm such a channel.
    """
    if name not in _BY_NAME:
        raise ValueError(f"expected a fault among {', '.join(_BY_NAME)}, got '{name}'; write one of these")
    return _BY_NAME[name] if channels is None else restricted(_BY_NAME[name], channels)


def families() -> dict[str, tuple[str, ...]]:
    """Names of the faults of each family, for runs that leave one family out."""
    names = sorted({fault.family for fault in CATALOGUE})
    return {family: tuple(fault.name for fault in CATALOGUE if fault.family == family) for family in names}
