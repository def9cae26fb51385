"""Fixed lists of scenarios for evaluation, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from sensors.faults.catalogue import CATALOGUE, fault_named
from sensors.faults.protocol import Draws, Fault, Number, applied_name, check_level, scope_of
from sensors.frame import Frame, History
from sensors.rig import CAMERAS, RADARS

MODALITIES = ("camera", "lidar", "radar")
_DEMO_FAULTS = ("fog", "night", "front-dead", "cameras-black", "lidar-beams-lost", "radar-ghosts")


@dataclass(frozen=True)
class Scenario:
    """What is broken, and how much, in every sample of an evaluation; deterministic and blind to epoch and progress.

    Attributes:
        name: of the row in the table.
        steps: faults with their levels, applied in order; none is the clean scenario.
        seed: of the draws.
    """

    name: str
    steps: Sequence[Sequence] = ()
    seed: int = 0

    def __post_init__(self):
        steps = []
        for step in self.steps:
            if len(step) != 2:
                raise ValueError(f"expected (fault, level) as a step of scenario {self.name}, got {list(step)}")
            fault = fault_named(step[0]) if isinstance(step[0], str) else step[0]
            check_level(fault, step[1])
            steps.append((fault, float(step[1])))
        object.__setattr__(self, "steps", tuple(steps))

    @property
    def families(self) -> frozenset[str]:
        """Families of its faults, to tell what a run saw in training from what it did not."""
        return frozenset(fault.family for fault, _ in self.steps)

    def apply(
        self, frame: Frame, history: History, epoch: int | None = None, progress: Number = 1.0
    ) -> tuple[Frame, tuple[str, ...]]:
        """The harmed frame and the names of the faults.

        Raises:
            ValueError: a fault finds none of its sensors in the frame as it was read. A sensor that an earlier step of
                the scenario took away is no error.
        """
        names = []
        read = frame
        for fault, level in self.steps:
            scope = scope_of(fault)
            taken = any(read.present(channel) for channel in scope) and not any(
                frame.present(channel) for channel in scope
            )
            if not taken:
                frame = fault(frame, history, level, Draws(self.seed, frame.token, fault.name))
            names.append(applied_name(fault, level))
        return frame, tuple(names)


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

RADAR = tuple(
    Scenario(applied_name(fault, level), ((fault, level),))
    for fault in CATALOGUE
    if fault.modality == "radar"
    for level in fault.levels
)
"""Every radar fault at its five levels."""

SUITES: dict[str, tuple[Scenario, ...]] = {
    "quick": QUICK,
    "missing-sensors": MISSING_SENSORS,
    "radar": RADAR,
    "demo": DEMO,
}


def suite_named(name: str) -> tuple[Scenario, ...]:
    """The scenarios of a suite.

    Raises:
        ValueError: there is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"expected a suite among {', '.join(SUITES)}, got '{name}'; write one of these")
    return SUITES[name]
