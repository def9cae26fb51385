"""Fixed lists of scenarios for evaluation, by name."""

from collections.abc import Sequence

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Fault, restricted
from sensors.faults.suites.failover import FAILOVER
from sensors.faults.suites.multicorrupt import MULTICORRUPT
from sensors.faults.suites.nuscenes_r import NUSCENES_R
from sensors.faults.suites.own import DEMO, MISSING_SENSORS, MODALITIES, PROOF, QUICK, RADAR
from sensors.faults.suites.published import Published
from sensors.faults.suites.robo3d import ROBO3D
from sensors.faults.suites.robobev import ROBOBEV
from sensors.faults.suites.roburcdet import ROBURCDET
from sensors.faults.suites.scenario import Scenario
from sensors.faults.suites.thu_nuscenes_c import THU_NUSCENES_C

__all__ = [
    "MODALITIES",
    "PUBLISHED",
    "PUBLISHED_FAULTS",
    "SUITES",
    "Published",
    "Scenario",
    "known_fault",
    "suite_named",
]


def _cells(faults: tuple[Published, ...], suite: str) -> tuple[Scenario, ...]:
    """Every type at every severity: ``fog-2``."""
    prefix = f"{suite}_"
    return tuple(
        Scenario(f"{fault.name.removeprefix(prefix).replace('_', '-')}-{level:.0f}", ((fault, level),))
        for fault in faults
        for level in fault.levels
    )


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "multicorrupt": MULTICORRUPT,
    "thu-nuscenes-c": THU_NUSCENES_C,
    "robobev": ROBOBEV,
    "robo3d": ROBO3D,
}
"""Types of the suites that have severities, by suite."""

PUBLISHED_FAULTS = tuple(fault for faults in (*PUBLISHED.values(), ROBURCDET) for fault in faults)
"""All published corruptions, RobuRCDet's training noises included."""

_PUBLISHED_BY_NAME = {fault.name: fault for fault in PUBLISHED_FAULTS}

_PREFIX = {"multicorrupt": "multicorrupt", "thu-nuscenes-c": "thu", "robobev": "robobev", "robo3d": "robo3d"}

SUITES: dict[str, tuple[Scenario, ...]] = {
    "quick": QUICK,
    "missing-sensors": MISSING_SENSORS,
    "radar": RADAR,
    "demo": DEMO,
    "proof": PROOF,
    "failover": FAILOVER,
    "nuscenes-r": NUSCENES_R,
    **{suite: _cells(faults, _PREFIX[suite]) for suite, faults in PUBLISHED.items()},
}


def suite_named(name: str) -> tuple[Scenario, ...]:
    """The scenarios of a suite.

    Raises:
        ValueError: there is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"expected a suite among {', '.join(SUITES)}, got '{name}'; write one of these")
    return SUITES[name]


def known_fault(name: str, channels: Sequence[str] | None = None) -> Fault:
    """A fault of the catalogue, or a published one such as ``multicorrupt_fog``, on the named channels only.

    Raises:
        ValueError: there is no such fault, or it cannot harm such a channel.
    """
    if name not in _PUBLISHED_BY_NAME:
        return fault_named(name, channels, others=tuple(_PUBLISHED_BY_NAME))
    fault = _PUBLISHED_BY_NAME[name]
    return fault if channels is None else restricted(fault, channels)
