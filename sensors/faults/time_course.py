"""Any fault, only for a part of the scene: in bursts at random, or from a fixed onset to a fixed end.

The state at a sample is a function of (seed, scene, channel, fault[, epoch]) and of the keyframe's place in its scene.
Where the fault rests the frame is returned as it came, so nothing is reported as applied.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import CHANNELS_OF_MODALITY, Draws, Fault, Number, check_level, restricted
from sensors.faults.time_stuck import check_span, scene_draws, within
from sensors.frame import Frame, History

KEYFRAME_S = 0.5


@dataclass(frozen=True)
class _TimeCourse:
    """What it wraps, under the same name: what is applied at a sample is that fault.

    Attributes:
        fault: a fault, or its name in the catalogue.
        channels: limits the fault; None for all that it may harm.
    """

    fault: Fault | str
    channels: Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self):
        fault = fault_named(self.fault) if isinstance(self.fault, str) else self.fault
        if self.channels is not None:
            fault = restricted(fault, self.channels)
        object.__setattr__(self, "fault", fault)
        object.__setattr__(self, "channels", fault.channels)

    @property
    def name(self) -> str:
        return self.fault.name

    @property
    def family(self) -> str:
        return self.fault.family

    @property
    def modality(self) -> str:
        return self.fault.modality

    @property
    def unit(self) -> str:
        return self.fault.unit

    @property
    def levels(self) -> tuple[float, ...]:
        return self.fault.levels

    @property
    def clean(self) -> float:
        return self.fault.clean

    @property
    def worst(self) -> float:
        return self.fault.worst

    @property
    def scope(self) -> tuple[str, ...]:
        return tuple(self.channels or CHANNELS_OF_MODALITY[self.modality])


@dataclass(frozen=True)
class Burst(_TimeCourse):
    """Bursts at random: a two-state Markov chain over the keyframes of the scene, begun in its stationary state.

    Attributes:
        mean_burst_s, mean_gap_s: mean lengths of a burst and of the time between two; at least one keyframe (0.5 s).
        each: "sample" lets all channels fail together; "channel" gives each one its own bursts, and the level is then
            one of a single channel.
    """

    mean_burst_s: Number = 2.0
    mean_gap_s: Number = 6.0
    each: str = "sample"

    def __post_init__(self):
        super().__post_init__()
        if min(self.mean_burst_s, self.mean_gap_s) < KEYFRAME_S:
            raise ValueError(
                f"expected mean lengths of at least {KEYFRAME_S} s (one keyframe) in the bursts of {self.name}, got "
                f"mean_burst_s {self.mean_burst_s} and mean_gap_s {self.mean_gap_s}"
            )
        if self.each not in ("sample", "channel"):
            raise ValueError(
                f"expected each to be 'sample' or 'channel' in the bursts of {self.name}, got '{self.each}'"
            )

    @property
    def worst(self) -> float:
        return self.fault.worst if self.each == "sample" else restricted(self.fault, self.scope[:1]).worst

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        check_level(self, level)
        if level == self.clean:
            return frame
        if self.each == "sample":
            return self.fault(frame, history, level, draws) if self.active(frame, draws, "all") else frame
        for channel in self.scope:
            if frame.present(channel) and self.active(frame, draws, channel):
                frame = restricted(self.fault, (channel,))(frame, history, level, draws)
        return frame

    def active(self, frame: Frame, draws: Draws, channel: str) -> bool:
        """Whether there is a burst at this keyframe."""
        drawn = scene_draws(draws, frame, "burst").generator(channel).random(frame.keyframe + 1)
        ends, begins = KEYFRAME_S / self.mean_burst_s, KEYFRAME_S / self.mean_gap_s
        bad = bool(drawn[0] < begins / (begins + ends))
        for value in drawn[1:]:
            bad = bool(value >= ends) if bad else bool(value < begins)
        return bad


@dataclass(frozen=True)
class Onset(_TimeCourse):
    """From one moment of every scene to another.

    Attributes:
        begin, end: shares of the scene, by the middle of its keyframes; an end of 1 is no recovery.
        rise: share of the scene over which the level grows from clean; 0 is a sudden fault.
    """

    begin: Number = 1 / 3
    end: Number = 2 / 3
    rise: Number = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_span(self.name, self.begin, self.end)
        if not 0 <= self.rise <= self.end - self.begin:
            raise ValueError(
                f"expected a rise between 0 and end - begin ({self.end - self.begin:g}) in {self.name}, got {self.rise}"
            )

    def __call__(self, frame: Frame, history: History, level: Number, draws: Draws) -> Frame:
        check_level(self, level)
        if level == self.clean or not within(frame.keyframe, frame.num_keyframes, self.begin, self.end):
            return frame
        return self.fault(frame, history, self.level_now(frame, level), draws)

    def level_now(self, frame: Frame, level: Number) -> float:
        """The level at this keyframe of the span."""
        if not self.rise:
            return float(level)
        since = (frame.keyframe + 0.5) / frame.num_keyframes - self.begin
        return float(self.clean + (level - self.clean) * min(since / self.rise, 1.0))


def phase_of(fault: Fault, frame: Frame) -> str | None:
    """``before``, ``during`` or ``after`` a fault of fixed onset; None for others."""
    begin, end = getattr(fault, "begin", None), getattr(fault, "end", None)
    if begin is None or end is None:
        return None
    if within(frame.keyframe, frame.num_keyframes, begin, end):
        return "during"
    return "before" if (frame.keyframe + 0.5) / frame.num_keyframes < begin else "after"
