"""What a fault is: a pure function of a frame, its past, a level and draws that depend on nothing else.

A fault never changes an array of the frame that it is given: it builds new ones and shares the rest. Levels are in a
physical unit, continuous, and nested: the draws come from a hash of (seed, sample token, channel, fault[, epoch]) and
never from the level, the worker, the order or the rank, so that what a mild fault loses a stronger one loses too.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from sensors.frame import Frame, History, Measurement
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS, modality_of

NUM_LEVELS = 5
CHANNELS_OF_MODALITY = {
    "camera": CAMERAS,
    "lidar": (LIDAR,),
    "radar": RADARS,
    "camera+lidar": (*CAMERAS, LIDAR),
    "all": CHANNELS,
}

M = TypeVar("M")
Number = float | int
Effect = Callable[[M, float, np.random.Generator, Frame], M]
"""(one picture or sweep, level, its own draws, the frame before the fault) -> the harmed picture or sweep."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one fault in one sample.

    Attributes:
        seed: of the run or scenario.
        token: sample token.
        fault: name of the fault.
        epoch: in training only, so that a sample meets new draws in every epoch; None in evaluation.
    """

    seed: int
    token: str
    fault: str
    epoch: int | None = None

    def generator(self, channel: str, sweep: int | None = None) -> np.random.Generator:
        """The draws of one channel, or of one of its sweeps (0 the newest); the same on every machine and process."""
        key = "\x1f".join(map(str, (self.seed, self.token, channel, self.fault, self.epoch, sweep)))
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


@runtime_checkable
class Fault(Protocol):
    """What the injector, the scenarios and the reports need of a fault; anybody may write one.

    Attributes:
        name: as in ``lidar_beam_drop``.
        family: what it is a case of (``lost``, ``stuck``, ``weather``, ``light``, ...), for leave-one-family-out runs.
        modality: ``camera``, ``lidar``, ``radar``, ``camera+lidar`` or ``all``.
        unit: of the level.
        levels: five named severities, from mild to strong.
        clean: the level at which nothing happens.
        worst: the strongest level that makes sense.
        channels: which channels it may harm; None for all of its modality.
    """

    name: str
    family: str
    modality: str
    unit: str
    levels: tuple[float, ...]
    clean: float
    worst: float
    channels: tuple[str, ...] | None

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        """The harmed frame; the frame itself at the clean level. Raises ValueError where it cannot be applied."""


@dataclass(frozen=True)
class Ladder:
    """The part that all faults of this package share: a name, five levels, and the channels that it may harm.

    ``worst`` is the fifth level unless told otherwise.
    """

    name: str
    family: str
    modality: str
    unit: str
    levels: tuple[float, ...]
    clean: float = field(default=0.0, kw_only=True)
    worst: float = field(default=float("nan"), kw_only=True)
    channels: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        steps = np.diff([self.clean, *self.levels])
        if len(self.levels) != NUM_LEVELS or not ((steps > 0).all() or (steps < 0).all()):
            raise ValueError(f"expected five levels of {self.name} that lead away from {self.clean}, got {self.levels}")
        if np.isnan(self.worst):
            object.__setattr__(self, "worst", float(self.levels[-1]))
        if self.channels is not None:
            object.__setattr__(self, "channels", self._known_channels())

    def _known_channels(self) -> tuple[str, ...]:
        choices = CHANNELS_OF_MODALITY[self.modality]
        unknown = [channel for channel in self.channels if channel not in choices]
        if unknown or not self.channels:
            raise ValueError(f"expected channels of {self.name} among {', '.join(choices)}, got {list(self.channels)}")
        return tuple(channel for channel in choices if channel in self.channels)

    def targets(self, frame: Frame) -> tuple[str, ...]:
        """The channels in scope that the frame has.

        Raises:
            ValueError: it has none of them: a fault that cannot be applied must never score as clean.
        """
        found = tuple(channel for channel in scope_of(self) if frame.present(channel))
        if not found:
            raise ValueError(
                f"expected one of {', '.join(scope_of(self))} in sample {frame.token} for {self.name}, got none; "
                "read that sensor or leave the fault out"
            )
        return found

    def harms(self, level: Number) -> bool:
        """False at the clean level.

        Raises:
            ValueError: the level is not between clean and worst.
        """
        check_level(self, level)
        return level != self.clean


def scope_of(fault: Fault) -> tuple[str, ...]:
    """The channels that a fault may harm."""
    return tuple(fault.channels or CHANNELS_OF_MODALITY[fault.modality])


def check_level(fault: Fault, level: Number) -> None:
    """Raises ValueError unless ``level`` lies between the fault's clean and worst levels."""
    low, high = sorted((fault.clean, fault.worst))
    if not low <= level <= high:
        raise ValueError(
            f"expected a level of {fault.name} between {low:g} and {high:g} ({fault.unit}), got {level:g}; "
            f"its five levels are {', '.join(f'{value:g}' for value in fault.levels)}"
        )


def applied_name(fault: Fault, level: Number) -> str:
    """How an applied fault is written down: ``lidar_beam_drop@0.40``, ``camera_drop[CAM_FRONT]@1.00``."""
    where = f"[{'+'.join(fault.channels)}]" if fault.channels else ""
    number = f"{level:.2f}" if abs(level) >= 0.1 or level == 0 else f"{level:.2g}"
    return f"{fault.name}{where}@{number}"


def restricted(fault: Fault, channels: Sequence[str]) -> Fault:
    """The same fault on the named channels only."""
    return replace(fault, channels=tuple(channels))


def measurement_of(frame: Frame, channel: str) -> Measurement:
    """What a present channel holds."""
    if channel == LIDAR:
        return frame.lidar
    return frame.cameras[channel] if modality_of(channel) == "camera" else frame.radars[channel]


def with_measurements(frame: Frame, changed: Mapping[str, Measurement | None]) -> Frame:
    """The frame with some channels replaced; None takes a channel away."""
    cameras, lidar, radars = dict(frame.cameras), frame.lidar, dict(frame.radars)
    for channel, measurement in changed.items():
        if channel == LIDAR:
            lidar = measurement or ()
            continue
        part = cameras if channel in CAMERAS else radars
        if measurement is None:
            part.pop(channel, None)
        else:
            part[channel] = measurement
    return replace(frame, cameras=cameras, lidar=lidar, radars=radars)


@dataclass(frozen=True)
class SensorFault(Ladder):
    """A fault that harms each picture or each sweep by itself.

    Attributes:
        effect: the harm, a pure function.
        per_sweep: new draws for every sweep (noise); False for a defect of the device, the same in all sweeps.
    """

    effect: Effect = field(kw_only=True)
    per_sweep: bool = field(default=True, kw_only=True)

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        if not self.harms(level):
            return frame
        return with_measurements(
            frame, {channel: self._harmed(frame, channel, level, draws) for channel in self.targets(frame)}
        )

    def _harmed(self, frame: Frame, channel: str, level: Number, draws: Draws) -> Measurement:
        measurement = measurement_of(frame, channel)
        if not isinstance(measurement, tuple):
            return self.effect(measurement, level, draws.generator(channel), frame)
        return tuple(
            self.effect(sweep, level, draws.generator(channel, k if self.per_sweep else None), frame)
            for k, sweep in enumerate(measurement)
        )
