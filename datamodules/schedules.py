"""Schedules: training progress in [0, 1] to a value. Pure functions, so a resumed run continues them exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sensors.faults.protocol import Fault, check_level

Number = float | int

CHECKED_PROGRESS = tuple(step / 100 for step in range(101))
"""Where schedules are looked at before a training begins."""


@dataclass(frozen=True)
class Moment:
    """When in training a sample is drawn: all that a decision may depend on besides the sample itself.

    Attributes:
        epoch: None outside training.
        progress: in [0, 1]; outside training a schedule stands at its end.
        batch: place of the sample's batch in its epoch, the same for the batches that several ranks process together;
            None outside training.
    """

    epoch: int | None = None
    progress: Number = 1.0
    batch: int | None = None


@runtime_checkable
class Schedule(Protocol):
    """A function of training progress."""

    def __call__(self, progress: Number) -> float:
        """The value at ``progress`` in [0, 1]."""


Scheduled = Schedule | Number
Severity = Scheduled | Sequence[Number] | None


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: Number

    def __post_init__(self):
        _check_finite("value", self.value)

    def __call__(self, progress: Number) -> float:
        _check_progress(progress)
        return float(self.value)


@dataclass(frozen=True)
class Ramp:
    """Straight from ``first`` (until progress ``begin``) to ``last`` (from progress ``end`` on)."""

    first: Number
    last: Number
    begin: Number = 0.0
    end: Number = 1.0

    def __post_init__(self):
        _check_span(self)

    def __call__(self, progress: Number) -> float:
        return self.first + (self.last - self.first) * _share(progress, self.begin, self.end)


@dataclass(frozen=True)
class Cosine:
    """As Ramp, along half a cosine wave: flat at both ends."""

    first: Number
    last: Number
    begin: Number = 0.0
    end: Number = 1.0

    def __post_init__(self):
        _check_span(self)

    def __call__(self, progress: Number) -> float:
        share = _share(progress, self.begin, self.end)
        return self.first + (self.last - self.first) * (1 - math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class Steps:
    """``values[0]`` before the first boundary, ``values[k]`` from boundary k - 1 (included) on."""

    boundaries: Sequence[Number]
    values: Sequence[Number]

    def __post_init__(self):
        rising = all(a < b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False))
        if not rising or any(not 0 <= boundary <= 1 for boundary in self.boundaries):
            raise ValueError(f"expected rising boundaries in [0, 1], got {list(self.boundaries)}; sort them")
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"expected one value more than boundaries, got {len(self.values)} values and {len(self.boundaries)} "
                "boundaries; add or remove a value"
            )
        for value in self.values:
            _check_finite("values", value)

    def __call__(self, progress: Number) -> float:
        _check_progress(progress)
        return float(self.values[sum(progress >= boundary for boundary in self.boundaries)])


@dataclass(frozen=True)
class Scaled:
    """A schedule times a factor."""

    schedule: Schedule | Number
    factor: Number

    def __post_init__(self):
        object.__setattr__(self, "schedule", as_schedule(self.schedule))
        _check_finite("factor", self.factor)

    def __call__(self, progress: Number) -> float:
        return self.factor * self.schedule(progress)


@dataclass(frozen=True)
class Sequential:
    """Several schedules one after the other, each over its own stretch of training, from 0 to 1 of that stretch.

    A curriculum: clean, then a ramp, then a plateau.

    Attributes:
        boundaries: where the next one takes over, rising, within (0, 1).
    """

    schedules: Sequence[Schedule | Number]
    boundaries: Sequence[Number]

    def __post_init__(self):
        object.__setattr__(self, "schedules", tuple(as_schedule(schedule) for schedule in self.schedules))
        edges = [0, *self.boundaries, 1]
        if any(a >= b for a, b in zip(edges, edges[1:], strict=False)):
            raise ValueError(f"expected rising boundaries within (0, 1), got {list(self.boundaries)}; sort them")
        if len(self.schedules) != len(self.boundaries) + 1:
            raise ValueError(
                f"expected one schedule more than boundaries, got {len(self.schedules)} schedules and "
                f"{len(self.boundaries)} boundaries; add or remove a schedule"
            )

    def __call__(self, progress: Number) -> float:
        _check_progress(progress)
        edges = [0.0, *self.boundaries, 1.0]
        part = sum(progress >= boundary for boundary in self.boundaries)
        low, high = edges[part], edges[part + 1]
        return self.schedules[part](min(max((progress - low) / (high - low), 0.0), 1.0))


def as_schedule(value: object) -> Schedule:
    """A number is a constant; a schedule stays itself."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Constant(value)
    if not callable(value):
        raise ValueError(
            f"expected a number or a schedule, got {value!r}; use Constant, Ramp, Cosine, Steps, Scaled or Sequential"
        )
    return value


def scheduled_share(value: Scheduled, name: str) -> Schedule:
    """A probability as a schedule; ``name`` is whose.

    Raises:
        ValueError: it leaves [0, 1] somewhere.
    """
    schedule = as_schedule(value)
    for progress in CHECKED_PROGRESS:
        now = schedule(float(progress))
        if not 0 <= now <= 1:
            raise ValueError(f"expected a probability in [0, 1] for {name}, got {now:g} at progress {progress:.2f}")
    return schedule


def scheduled_severity(value: Severity, fault: Fault) -> Schedule | tuple[float, float] | None:
    """A severity as a schedule or as (low, high) to draw from; None where the ladder decides.

    Raises:
        ValueError: the fault has no such level.
    """
    if value is None:
        return None
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise ValueError(
                f"expected (low, high) as the severity of {fault.name}, got {list(value)}; give two numbers"
            )
        for level in value:
            check_level(fault, level)
        return (float(value[0]), float(value[1]))
    schedule = as_schedule(value)
    for progress in CHECKED_PROGRESS:
        check_level(fault, schedule(float(progress)))
    return schedule


def _share(progress: Number, begin: Number, end: Number) -> float:
    _check_progress(progress)
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)


def _check_span(schedule: Ramp | Cosine) -> None:
    if not 0 <= schedule.begin < schedule.end <= 1:
        raise ValueError(
            f"expected 0 <= begin < end <= 1 in training progress, got begin {schedule.begin} and end {schedule.end}"
        )
    _check_finite("first", schedule.first)
    _check_finite("last", schedule.last)


def _check_finite(name: str, value: Number) -> None:
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number as {name} of a schedule, got {value}")


def _check_progress(progress: Number) -> None:
    if not 0 <= progress <= 1:
        raise ValueError(
            f"expected training progress in [0, 1], got {progress}; it is consumed samples over all samples"
        )
