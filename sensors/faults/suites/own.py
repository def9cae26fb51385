"""Suites of our own: a first look, missing sensors, the ladder of radar faults, the demo."""

from collections.abc import Sequence
from itertools import combinations

from sensors.faults.catalogue import CATALOGUE, fault_named
from sensors.faults.protocol import Fault, applied_name
from sensors.faults.suites.scenario import Scenario
from sensors.rig import CAMERAS, RADARS

MODALITIES = ("camera", "lidar", "radar")
_DEMO_FAULTS = ("fog", "night", "front-dead", "cameras-black", "lidar-beams-lost", "radar-ghosts")


def _step(name: str, level: int, channels: Sequence[str] | None = None) -> tuple[Fault, float]:
    """A fault at one of its five levels, 1 the mildest."""
    fault = fault_named(name, channels)
    return fault, fault.levels[level - 1]


def _lost(modalities: Sequence[str]) -> tuple[tuple[Fault, float], ...]:
    faults = [fault_named(f"{modality}_drop") for modality in modalities]
    return tuple((fault, fault.worst) for fault in faults)


def _without(channel: str) -> Scenario:
    fault = fault_named("camera_drop" if channel in CAMERAS else "radar_drop", (channel,))
    return Scenario(f"without-{channel}", ((fault, 1.0),))


def _subsets() -> tuple[Scenario, ...]:
    kept = [subset for size in (3, 2, 1) for subset in combinations(MODALITIES, size)]
    return tuple(
        Scenario("+".join(subset), _lost([modality for modality in MODALITIES if modality not in subset]))
        for subset in kept
    )


MISSING_SENSORS = (*_subsets(), *(_without(channel) for channel in (*CAMERAS, *RADARS)))
"""All seven non-empty subsets of the modalities, then each single camera and radar lost."""

QUICK = (
    Scenario("clean"),
    Scenario("fog", (_step("fog", 4),)),
    Scenario("night", (_step("camera_dark", 4),)),
    Scenario("front-dead", (_step("camera_drop", 1, ("CAM_FRONT",)), _step("radar_drop", 1, ("RADAR_FRONT",)))),
    Scenario("cameras-black", (_step("camera_blackout", 5),)),
    Scenario("lidar-beams-lost", (_step("lidar_beam_drop", 3),)),
    Scenario("lidar-limited-view", (_step("lidar_limited_view", 4),)),
    Scenario("lidar-misaligned", (_step("lidar_misalignment", 4),)),
    Scenario("radar-ghosts", (_step("radar_ghosts", 5),)),
)
"""A first look: clean and eight ways to fail, of known and of silent loss, weather, light, points, view and pose."""

DEMO = (*_subsets(), *(scenario for scenario in QUICK if scenario.name in _DEMO_FAULTS))
"""What `dynfusion demo` shows: the seven subsets of the sensors, then a few faults that keep all of them."""

_PROOF_QUICK = ("fog", "night", "cameras-black", "lidar-limited-view", "lidar-misaligned")

PROOF = (
    *_subsets(),
    # In the training schedule `ramped`.
    Scenario("camera-noise", (_step("camera_noise", 3),)),
    Scenario("camera-motion-blur", (_step("camera_motion_blur", 3),)),
    Scenario("lidar-points-lost", (_step("lidar_point_drop", 3),)),
    Scenario("lidar-range-noise", (_step("lidar_range_noise", 3),)),
    Scenario("radar-clutter", (_step("radar_clutter", 3),)),
    Scenario("radar-doppler-noise", (_step("radar_doppler_noise", 3),)),
    # Of families that it has not.
    *(scenario for scenario in QUICK if scenario.name in _PROOF_QUICK),
    Scenario("snow", (_step("snow", 3),)),
    Scenario("camera-glare", (_step("camera_glare", 3),)),
    Scenario("camera-jpeg", (_step("camera_jpeg", 4),)),
    Scenario("cameras-frozen", (_step("camera_freeze", 3),)),
    Scenario("lidar-late", (_step("lidar_late", 3),)),
    Scenario("lidar-objects-lost", (_step("lidar_object_failure", 3),)),
)
"""The subsets of the sensors, faults that a schedule trains with, and others of families that it never had."""

RADAR = tuple(
    Scenario(applied_name(fault, level), ((fault, level),))
    for fault in CATALOGUE
    if fault.modality == "radar"
    for level in fault.levels
)
"""Every radar fault at its five levels."""
