"""What a corrupted copy is asked to be: plain values, so that processes rebuild it and a second run can compare it."""

from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as version_of
from pathlib import Path

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import scope_of
from sensors.faults.suites import Scenario, suite_named
from sensors.rig import CHANNELS

LOST_FORMS = ("missing", "empty")
SWEEP_FORMS = ("remove", "keep")


@dataclass(frozen=True)
class CopyRequest:
    """A data set, what to break in it, and how to write that down.

    Attributes:
        root: folder of the source.
        version: e.g. ``v1.0-mini``.
        split: which scenes; None for all.
        scenario: ``SUITE/NAME``; empty where a single fault is asked for.
        fault, level, channels: a fault of the catalogue, its level in the fault's unit, and where; no channels for all.
        seed: of the draws.
        jpeg_quality: 1 to 100, of the pictures that a fault changed.
        lost: what a lost sensor leaves: ``missing`` (named in the tables, no file) or ``empty`` (a black picture, a
            cloud without points).
        camera_sweeps: pictures between keyframes, which no fault is applied to: ``remove`` takes them out of the tables
            of the harmed cameras, ``keep`` leaves them as they are.
        close_m: LiDAR points nearer than this are left out before the fault, as in evaluation.
    """

    root: Path
    version: str
    split: str | None = None
    scenario: str = ""
    fault: str = ""
    level: float | None = None
    channels: tuple[str, ...] = ()
    seed: int = 0
    jpeg_quality: int = 95
    lost: str = "missing"
    camera_sweeps: str = "remove"
    close_m: float = 1.0

    def __post_init__(self):
        if bool(self.scenario) == bool(self.fault):
            raise ValueError("expected either scenario=SUITE/NAME or fault=NAME level=X, got both or neither")
        if self.fault and self.level is None:
            fault = fault_named(self.fault)
            levels = ", ".join(f"{level:g}" for level in fault.levels)
            raise ValueError(f"expected level=X ({fault.unit}) for the fault {self.fault}, got none; e.g. {levels}")
        if self.scenario and (self.level is not None or self.channels):
            raise ValueError("expected level and channels with fault=NAME only, got them with scenario=SUITE/NAME")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"expected jpeg_quality from 1 to 100, got {self.jpeg_quality}")
        if self.lost not in LOST_FORMS:
            raise ValueError(f"expected lost to be one of {', '.join(LOST_FORMS)}, got '{self.lost}'")
        if self.camera_sweeps not in SWEEP_FORMS:
            raise ValueError(
                f"expected camera_sweeps to be one of {', '.join(SWEEP_FORMS)}, got '{self.camera_sweeps}'"
            )
        if not self.close_m >= 0:
            raise ValueError(f"expected close_m of 0 or more metres, got {self.close_m}")
        self.corruptor()

    def corruptor(self) -> Scenario:
        """What is applied to every sample.

        Raises:
            ValueError: an unknown suite, scenario, fault or channel, or a level out of range.
        """
        if self.fault:
            fault = fault_named(self.fault, self.channels or None)
            return Scenario(self.fault, ((fault, self.level),), self.seed)
        suite, slash, name = self.scenario.partition("/")
        if not slash:
            raise ValueError(f"expected scenario=SUITE/NAME, got '{self.scenario}'; e.g. scenario=quick/fog")
        scenarios = {scenario.name: scenario for scenario in suite_named(suite)}
        if name not in scenarios:
            raise ValueError(f"expected a scenario of the suite {suite} among {', '.join(scenarios)}; got '{name}'")
        return replace(scenarios[name], seed=self.seed)

    def touched(self) -> tuple[str, ...]:
        """The channels that something may harm."""
        steps = self.corruptor().steps
        scope = {channel for fault, level in steps if level != fault.clean for channel in scope_of(fault)}
        return tuple(channel for channel in CHANNELS if channel in scope)

    def to_json(self) -> dict:
        """What two runs must agree in to write into one folder."""
        content = {**asdict(self), "root": str(self.root.resolve()), "channels": list(self.channels)}
        return {**content, "dynfusion": version_of("dynfusion"), "steps": self.steps()}

    def steps(self) -> list[dict]:
        """Every fault in order, spelled out."""
        return [
            {"fault": fault.name, "level": level, "unit": fault.unit, "family": fault.family}
            | {"channels": list(scope_of(fault))}
            for fault, level in self.corruptor().steps
        ]
