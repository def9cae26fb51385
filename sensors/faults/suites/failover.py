"""A sensor dies or degrades in the middle of every scene, and comes back or not: score before, during and after.

Failures begin at a third of the scene and, where the sensor comes back, end at two thirds. ``Scenario.phase`` tells
where a sample lies.
"""

from dataclasses import replace

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Fault
from sensors.faults.suites.scenario import Scenario
from sensors.faults.time_course import Burst, Onset
from sensors.faults.time_stuck import CAMERA_STUCK, LIDAR_STUCK, Stuck

BEGIN, END = 1 / 3, 2 / 3


def _step(name: str, level: int, channels: tuple[str, ...] | None = None, **course: float) -> tuple[Fault, float]:
    """A fault of the catalogue at one of its five levels (0: the worst), from a third to two thirds of the scene."""
    fault = Onset(fault_named(name), channels=channels, **{"begin": BEGIN, "end": END, **course})
    return fault, fault.levels[level - 1] if level else fault.worst


def _stuck(fault: Stuck, **course: float) -> tuple[Fault, float]:
    return replace(fault, begin=BEGIN, end=END, **course), 1.0


FAILOVER = (
    Scenario("clean"),
    Scenario("lidar-lost-and-back", (_step("lidar_drop", 0),)),
    Scenario("lidar-lost-for-good", (_step("lidar_drop", 0, end=1.0),)),
    Scenario("lidar-silent", (_step("lidar_blackout", 0),)),
    Scenario("lidar-stuck", (_stuck(LIDAR_STUCK),)),
    Scenario("lidar-beams-fade", (_step("lidar_beam_drop", 5, rise=1 / 3),)),
    Scenario("cameras-lost-and-back", (_step("camera_drop", 0),)),
    Scenario("cameras-black", (_step("camera_blackout", 0),)),
    Scenario("cameras-stuck", (_stuck(CAMERA_STUCK),)),
    Scenario("front-camera-lost", (_step("camera_drop", 0, ("CAM_FRONT",)),)),
    Scenario("cameras-darken", (_step("camera_dark", 5, rise=1 / 3),)),
    Scenario("radars-lost-and-back", (_step("radar_drop", 0),)),
    Scenario("radars-silent", (_step("radar_blackout", 0),)),
    Scenario("fog-comes-up", (_step("fog", 5, rise=1 / 3),)),
    Scenario("cameras-flicker-in-bursts", ((Burst("camera_blackout", mean_burst_s=2.0, mean_gap_s=4.0), 6.0),)),
    Scenario("lidar-and-front-camera-lost", (_step("lidar_drop", 0), _step("camera_drop", 0, ("CAM_FRONT",)))),
)
