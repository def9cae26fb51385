"""Corruptions as other suites publish them, made into faults: whole severities, one or more parts per severity.

A part acts on one kind of sensor and is passed over where the frame has none of it; a frame that has none of them all
is an error, so that a corruption that cannot be applied never scores as clean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from sensors.faults.protocol import (
    CHANNELS_OF_MODALITY,
    Draws,
    Fault,
    Number,
    check_level,
    measurement_of,
    scope_of,
    with_measurements,
)
from sensors.faults.published_lidar import rows_of, sweep_of
from sensors.frame import Frame, History
from sensors.lidar import LidarSweep
from sensors.rig import CAMERAS, LIDAR, RADARS


@runtime_checkable
class Part(Protocol):
    """What a corruption does to one kind of sensor."""

    modality: str

    def __call__(self, frame: Frame, history: History, draws: Draws) -> Frame:
        """The frame with that sensor corrupted."""


@dataclass(frozen=True)
class LidarPart:
    """``function(rows, [boxes,] *arguments[, rng])`` on every sweep, x y z intensity ring in the sensor frame.

    Attributes:
        objects: the function takes the boxes, seen from the sensor.
        random: it takes draws.
        per_sweep: new draws for every sweep.
    """

    function: Callable
    arguments: tuple = ()
    objects: bool = field(default=False, kw_only=True)
    random: bool = field(default=True, kw_only=True)
    per_sweep: bool = field(default=True, kw_only=True)
    modality: str = field(default="lidar", init=False)

    def __call__(self, frame: Frame, history: History, draws: Draws) -> Frame:
        return replace(frame, lidar=tuple(self._swept(frame, k, draws) for k in range(len(frame.lidar))))

    def _swept(self, frame: Frame, k: int, draws: Draws) -> LidarSweep:
        sweep = frame.lidar[k]
        inputs = [rows_of(sweep)]
        if self.objects:
            if frame.boxes is None:
                raise ValueError(
                    f"expected labels in sample {frame.token} for {draws.fault}, got none; corruptions of objects need "
                    "a split with annotations"
                )
            inputs.append(frame.boxes.moved(sweep.ego_from_lidar.inverse()))
        inputs += self.arguments
        if self.random:
            inputs.append(draws.generator(LIDAR, k if self.per_sweep else None))
        return sweep_of(self.function(*inputs), sweep)


@dataclass(frozen=True)
class CameraPart:
    """``function(pixels, *arguments, rng)`` on every picture of the named cameras."""

    function: Callable
    arguments: tuple = ()
    channels: tuple[str, ...] = CAMERAS
    modality: str = field(default="camera", init=False)

    def __call__(self, frame: Frame, history: History, draws: Draws) -> Frame:
        changed = {}
        for channel in self.channels:
            if channel in frame.cameras:
                image = frame.cameras[channel]
                pixels = self.function(image.pixels, *self.arguments, draws.generator(channel))
                changed[channel] = replace(image, pixels=pixels)
        return with_measurements(frame, changed)


@dataclass(frozen=True)
class RadarPart:
    """``function(sweep, *arguments, rng)`` on every sweep of every radar."""

    function: Callable
    arguments: tuple = ()
    modality: str = field(default="radar", init=False)

    def __call__(self, frame: Frame, history: History, draws: Draws) -> Frame:
        changed = {}
        for channel in RADARS:
            if frame.present(channel):
                changed[channel] = tuple(
                    self.function(sweep, *self.arguments, draws.generator(channel, k))
                    for k, sweep in enumerate(frame.radars[channel])
                )
        return with_measurements(frame, changed)


@dataclass(frozen=True)
class FramePart:
    """``function(frame, history, draws, *arguments)``, for what looks at more than one picture or sweep."""

    modality: str
    function: Callable
    arguments: tuple = ()

    def __call__(self, frame: Frame, history: History, draws: Draws) -> Frame:
        return self.function(frame, history, draws, *self.arguments)


@dataclass(frozen=True)
class FaultPart:
    """A fault of the catalogue at a level, where it is the published definition itself."""

    fault: Fault
    level: Number

    @property
    def modality(self) -> str:
        return self.fault.modality

    def __call__(self, frame: Frame, history: History, draws: Draws) -> Frame:
        return self.fault(frame, history, self.level, draws)


@dataclass(frozen=True)
class Published:
    """A corruption type of a published suite; the level is its severity, a whole number from 1.

    Attributes:
        name: such as ``multicorrupt_fog``.
        family: the word that the catalogue uses for such faults.
        cells: of each severity, what is done.
        channels: limits it; None for all of its sensors.
    """

    name: str
    family: str
    cells: tuple[tuple[Part, ...], ...]
    channels: Sequence[str] | None = None
    unit: str = field(default="severity", init=False)
    clean: float = field(default=0.0, init=False)

    def __post_init__(self):
        if self.channels is not None:
            choices = CHANNELS_OF_MODALITY[self.modality]
            if not self.channels or any(channel not in choices for channel in self.channels):
                raise ValueError(
                    f"expected channels of {self.name} among {', '.join(choices)}, got {list(self.channels)}"
                )
            object.__setattr__(self, "channels", tuple(self.channels))

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(float(k + 1) for k in range(len(self.cells)))

    @property
    def worst(self) -> float:
        return float(len(self.cells))

    @property
    def modality(self) -> str:
        parts = {part for cell in self.cells for item in cell for part in item.modality.split("+")}
        name = "+".join(part for part in ("camera", "lidar", "radar") if part in parts)
        return name if name in CHANNELS_OF_MODALITY else "all"

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        check_level(self, level)
        if level != int(level):
            raise ValueError(f"expected a whole severity of {self.name}, 1 to {len(self.cells)}, got {level:g}")
        if level == self.clean:
            return frame
        found = [part for part in self.cells[int(level) - 1] if _has(frame, part.modality)]
        if not found or not any(frame.present(channel) for channel in scope_of(self)):
            raise ValueError(
                f"expected one of {', '.join(scope_of(self))} in sample {frame.token} for {self.name}, got none; "
                "read that sensor or leave the scenario out"
            )
        harmed = frame
        for part in found:
            harmed = part(harmed, history, draws)
        return harmed if self.channels is None else _only(frame, harmed, self.channels)


def _has(frame: Frame, modality: str) -> bool:
    return any(frame.present(channel) for channel in CHANNELS_OF_MODALITY[modality])


def _only(frame: Frame, harmed: Frame, channels: Sequence[str]) -> Frame:
    """The frame with the named channels as they are in the harmed one."""
    return with_measurements(
        frame,
        {
            channel: measurement_of(harmed, channel) if harmed.present(channel) else None
            for channel in channels
            if frame.present(channel)
        },
    )


def ladder(part: Callable[..., Part], function: Callable, *rows: tuple, **options) -> tuple[tuple[Part, ...], ...]:
    """One part per severity: the same function with each row of arguments."""
    return tuple((part(function, row, **options),) for row in rows)


def together(*ladders: tuple[tuple[Part, ...], ...]) -> tuple[tuple[Part, ...], ...]:
    """Several ladders of the same severities, applied one after the other."""
    return tuple(tuple(part for cell in cells for part in cell) for cells in zip(*ladders, strict=True))
