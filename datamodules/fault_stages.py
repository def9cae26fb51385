"""Curricula of severity: how much of the data's fault plan acts in each stage of training.

The dose is a pure function of a sample's place in training (epoch and batch), which travels with its key: neither
workers, nor prefetching, nor a resumed run can change it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datamodules.dose import FaultDose
from datamodules.inject import FaultInjector
from datamodules.schedules import Moment, Number
from sensors.faults.severity import Severities
from sensors.frame import Frame, History

FAULTS = ("all", "none")
DOSES = ("share", "severity")
Pair = tuple[float, float]


@dataclass(frozen=True)
class FaultStage:
    """What a stage of training makes of the fault plan.

    Attributes:
        name: of the stage.
        until: share of training at which it ends.
        share, severity: of ``FaultDose``, at the stage's start and end, straight in between.
    """

    name: str
    until: float
    share: Pair = (1.0, 1.0)
    severity: Pair = (1.0, 1.0)

    @classmethod
    def of(cls, name: str, until: float, faults: object) -> "FaultStage":
        """From what a stage declares: ``all``, ``none``, or a mapping of ``share`` and ``severity`` to a number or a
        pair.

        Raises:
            ValueError: something else, or numbers outside [0, 1].
        """
        doses = {"share": 0.0} if faults == "none" else {} if faults == "all" else faults
        if not isinstance(doses, Mapping) or set(doses) - set(DOSES):
            raise ValueError(
                f"stage '{name}': expected faults to be {' or '.join(FAULTS)}, or a mapping of {' and '.join(DOSES)}; "
                f"got {faults!r}"
            )
        return cls(name, until, **{key: _pair(name, key, value) for key, value in doses.items()})

    @property
    def changes(self) -> bool:
        """Whether less than all of the plan acts at some time."""
        return (self.share, self.severity) != ((1.0, 1.0), (1.0, 1.0))

    @property
    def asks(self) -> bool:
        """Whether it wants a part of a plan, so that there must be one."""
        return self.changes and self.share != (0.0, 0.0)

    def dose(self, place: float) -> FaultDose:
        """The dose at a place in the stage, from 0 at its start to 1 at its end."""
        return FaultDose(*(low + (high - low) * place for low, high in (self.share, self.severity)))


class StagedFaults:
    """A fault injector whose plan acts by the dose of each stage. Outside training all of it acts.

    Args:
        injector: the plan.
        stages: over training progress, the last one until 1.
        num_batches: of an epoch.
        total_epochs: of training.
    """

    def __init__(self, injector: FaultInjector, stages: Sequence[FaultStage], num_batches: int, total_epochs: int):
        self.injector, self.stages = injector, tuple(stages)
        self.num_batches, self.total_epochs = num_batches, total_epochs

    def apply(
        self, frame: Frame, history: History, epoch: int | None, progress: Number
    ) -> tuple[Frame, tuple[str, ...]]:
        """As ``FaultInjector.apply``."""
        return self.labelled(frame, history, Moment(epoch, progress))[:2]

    def labelled(self, frame: Frame, history: History, moment: Moment) -> tuple[Frame, tuple[str, ...], Severities]:
        """As ``FaultInjector.labelled``."""
        return self.injector.labelled(frame, history, moment, self.dose(moment))

    def dose(self, moment: Moment) -> FaultDose:
        """That of the stage that the sample's batch is trained in: all samples of a batch have the same."""
        if moment.epoch is None:
            return FaultDose()
        progress = moment.progress
        if moment.batch is not None:
            done = moment.epoch * self.num_batches + moment.batch
            progress = min(done / (self.num_batches * self.total_epochs), 1.0)
        ends = [stage.until for stage in self.stages]
        number = next((i for i, end in enumerate(ends) if progress < end), len(ends) - 1)
        begin = ends[number - 1] if number else 0.0
        return self.stages[number].dose(min(1.0, (progress - begin) / (ends[number] - begin)))


def _pair(stage: str, name: str, value: object) -> Pair:
    pair = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, value]
    if len(pair) != 2 or not all(isinstance(number, (int, float)) and 0 <= number <= 1 for number in pair):
        raise ValueError(
            f"stage '{stage}': expected {name} of its faults as a number in [0, 1] or a pair of them, got {value!r}"
        )
    return float(pair[0]), float(pair[1])
