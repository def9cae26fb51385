"""A scenario: which faults, at which levels, in every sample of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws, Number, applied_name, check_level, scope_of
from sensors.faults.severity import Severities, added_severities, no_severities
from sensors.faults.time_course import phase_of
from sensors.frame import Frame, History


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

    def phase(self, frame: Frame) -> str | None:
        """Whether a sample is ``before``, ``during`` or ``after`` the failure; None for one without onset and end."""
        phases = [phase for phase in (phase_of(fault, frame) for fault, _ in self.steps) if phase is not None]
        return phases[0] if phases else None

    def apply(
        self, frame: Frame, history: History, epoch: int | None = None, progress: Number = 1.0
    ) -> tuple[Frame, tuple[str, ...]]:
        """The harmed frame and the names of the faults; a fault that rests at this sample is not named.

        Raises:
            ValueError: a fault finds none of its sensors in the frame as it was read. A sensor that an earlier step of
                the scenario took away is no error.
        """
        return self.labelled(frame, history)[:2]

    def labelled(
        self, frame: Frame, history: History, moment: object = None
    ) -> tuple[Frame, tuple[str, ...], Severities]:
        """As ``apply``, with the severity for each channel; it looks at no moment of training."""
        names, severities = [], no_severities()
        read = frame
        for fault, level in self.steps:
            scope = scope_of(fault)
            taken = any(read.present(channel) for channel in scope) and not any(
                frame.present(channel) for channel in scope
            )
            before = frame
            if not taken:
                frame = fault(frame, history, level, Draws(self.seed, frame.token, fault.name))
            if taken or frame is not before:
                names.append(applied_name(fault, level))
            severities = added_severities(severities, before, frame, (fault, level))
        return frame, tuple(names), severities
