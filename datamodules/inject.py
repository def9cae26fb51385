"""Which faults hit a sample in training, how likely and how strong, as training goes on.

Rules decide, faults act. Every decision is drawn from a hash of (seed, sample token, channel, rule[, epoch]), so it
depends on no worker, order or rank, and a resumed run injects what the uninterrupted one would have. ``Together``
decides for a whole scene or batch at once: its name takes the place of the sample token.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np

from datamodules.dose import FaultDose
from datamodules.schedules import (
    CHECKED_PROGRESS,
    Moment,
    Number,
    Scheduled,
    Severity,
    scheduled_severity,
    scheduled_share,
)
from sensors.faults.catalogue import fault_named
from sensors.faults.failures import SensorLoss
from sensors.faults.protocol import Draws, Fault, applied_name, restricted, scope_of
from sensors.faults.severity import Severities, added_severities, no_severities
from sensors.faults.suites import Published, known_fault
from sensors.frame import Frame, History
from sensors.rig import CHANNELS

Planned = tuple[Fault, float]


@runtime_checkable
class Rule(Protocol):
    """Decides which faults hit a sample."""

    name: str

    def plan(self, draws: Draws, progress: Number) -> list[Planned]:
        """Faults and their levels, in the order of application."""


class FaultRule:
    """One fault, with its probability and severity as functions of training progress.

    Attributes:
        fault: a fault, or its name in the catalogue.
        probability: of each sample, or of each channel when ``each`` is "channel".
        severity: in the fault's unit: a number, a schedule, or (low, high) to draw from uniformly; None draws a place
            on the ladder between clean and the fifth level.
        channels: limits the fault; None for all of its modality.
        each: "sample" hits all channels together; "channel" decides, and draws the severity, for each one alone.
    """

    def __init__(
        self,
        fault: Fault | str,
        probability: Scheduled = 1.0,
        severity: Severity = None,
        channels: Sequence[str] | None = None,
        each: str = "sample",
    ):
        fault = known_fault(fault) if isinstance(fault, str) else fault
        self.fault = fault if channels is None else restricted(fault, channels)
        self.name = self.fault.name
        self.probability = scheduled_share(probability, self.name)
        if each not in ("sample", "channel"):
            raise ValueError(f"expected each to be 'sample' or 'channel' in the rule for {self.name}, got '{each}'")
        self.each = each
        alone = restricted(self.fault, scope_of(self.fault)[:1]) if each == "channel" else self.fault
        self.severity = scheduled_severity(severity, alone)

    def plan(self, draws: Draws, progress: Number) -> list[Planned]:
        probability = self.probability(progress)
        if not probability:
            return []
        if self.each == "sample":
            generator = draws.generator("sample")
            hit = generator.random() < probability
            return [(self.fault, self.level(self.fault, generator, progress))] if hit else []
        planned = []
        for channel in scope_of(self.fault):
            generator = draws.generator(channel)
            if generator.random() < probability:
                fault = restricted(self.fault, (channel,))
                planned.append((fault, self.level(fault, generator, progress)))
        return planned

    def level(self, fault: Fault, generator: np.random.Generator, progress: Number) -> float:
        """The severity now: scheduled, or drawn."""
        if self.severity is None:
            return drawn_level(fault, generator)
        if isinstance(self.severity, tuple):
            low, high = self.severity
            return low + (high - low) * generator.random()
        return self.severity(progress)


def drawn_level(fault: Fault, generator: np.random.Generator, strength: Number = 1.0) -> float:
    """Some place on the fault's ladder up to ``strength`` (1: its last level); whole numbers where only those exist."""
    share = (1 - generator.random()) * strength
    if isinstance(fault, SensorLoss):
        return float(np.ceil(share * fault.worst))
    num_levels = len(fault.levels)
    if isinstance(fault, Published):
        return float(np.ceil(share * num_levels))
    return float(np.interp(share * num_levels, range(num_levels + 1), [fault.clean, *fault.levels]))


class OneOf:
    """At most one of several rules, for mixtures such as CMT's: half as it is, a quarter without the cameras, a quarter
    without the LiDAR (Yan et al., ICCV 2023).

    Attributes:
        weights: probability of each rule; what is missing to 1 stays as it is. The chosen rule's own probability counts
            on top, so leave it at 1.
    """

    def __init__(self, rules: Sequence[Rule], weights: Sequence[Scheduled]):
        if len(rules) != len(weights) or not rules:
            raise ValueError(f"expected one weight per rule, got {len(rules)} rules and {len(weights)} weights")
        if any(isinstance(rule, Together) for rule in rules):
            raise ValueError("expected plain rules in OneOf, got Together; put the OneOf into the Together")
        self.rules = tuple(rules)
        self.name = f"one_of({','.join(rule.name for rule in self.rules)})"
        self.weights = tuple(scheduled_share(weight, self.name) for weight in weights)
        for progress in CHECKED_PROGRESS:
            total = sum(weight(progress) for weight in self.weights)
            if total > 1 + 1e-9:
                raise ValueError(
                    f"expected weights that sum to at most 1, got {total:.3g} at progress {progress:.2f}; lower them"
                )

    def plan(self, draws: Draws, progress: Number) -> list[Planned]:
        left = draws.generator("choice").random()
        for rule, weight in zip(self.rules, self.weights, strict=True):
            left -= weight(progress)
            if left < 0:
                return rule.plan(Draws(draws.seed, draws.token, f"{draws.fault}/{rule.name}", draws.epoch), progress)
        return []


class SubsetDropout:
    """Keeps a random non-empty proper subset of the modalities and drops the others as a whole.

    Attributes:
        probability: of dropping anything; every subset that loses something is equally likely.
        modalities: what to choose from.
    """

    name = "subset_dropout"

    def __init__(self, probability: Scheduled, modalities: Sequence[str] = ("camera", "lidar", "radar")):
        unknown = [modality for modality in modalities if modality not in ("camera", "lidar", "radar")]
        if unknown or len(set(modalities)) < 2:
            raise ValueError(
                f"expected two or three of camera, lidar and radar in {self.name}, got {list(modalities)}; name more"
            )
        self.probability = scheduled_share(probability, self.name)
        self.lost_sets = [lost for size in range(1, len(modalities)) for lost in combinations(modalities, size)]

    def plan(self, draws: Draws, progress: Number) -> list[Planned]:
        generator = draws.generator("subset")
        chosen = int(generator.integers(len(self.lost_sets)))
        if generator.random() >= self.probability(progress):
            return []
        faults = [fault_named(f"{modality}_drop") for modality in self.lost_sets[chosen]]
        return [(fault, fault.worst) for fault in faults]


class Together:
    """One decision for all samples of a batch or of a scene: the same faults at the same levels for all of them.

    Batch-wise dropping is what UniBEV trains with (Wang et al., IV 2024). A batch is known by its epoch and its place
    in it, so that the batches that several ranks process together share a decision. What a fault itself draws (noise,
    which of the cameras) is still drawn for each sample.

    Attributes:
        per: "batch" or "scene".
    """

    def __init__(self, rule: Rule, per: str = "batch"):
        if per not in ("batch", "scene"):
            raise ValueError(f"expected per to be 'batch' or 'scene' in Together, got '{per}'")
        if isinstance(rule, Together) or not isinstance(rule, Rule):
            raise ValueError(f"expected a rule (FaultRule, OneOf, SubsetDropout) in Together, got {rule!r}")
        self.rule, self.per = rule, per
        self.name = f"{rule.name} per {per}"

    def plan(self, draws: Draws, progress: Number) -> list[Planned]:
        return self.rule.plan(draws, progress)

    def token(self, frame: Frame, moment: Moment) -> str:
        """What its samples have in common."""
        if self.per == "scene":
            return f"scene {frame.scene}"
        if moment.batch is None:
            raise ValueError(
                f"expected a place in the epoch's batches for the rule {self.name}, got none; batch-wise rules act in "
                "training only"
            )
        return f"batch {moment.batch}"


class FaultInjector:
    """Applies rules to samples.

    A rule whose sensor is gone from the sample does nothing there. A fault that would leave no channel at all is left
    out, unless ``may_lose_all``. What is reported is what was applied.
    """

    def __init__(self, rules: Sequence, seed: int = 0, may_lose_all: bool = False):
        self.rules, self.seed, self.may_lose_all = tuple(rules), seed, may_lose_all
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise ValueError(f"expected rules (FaultRule, OneOf, SubsetDropout), got {rule!r}")
        # Two rules of one name must not decide alike: the second draws under another key.
        names = [rule.name for rule in self.rules]
        self._keys = [f"rule {name}#{names[:i].count(name)}" for i, name in enumerate(names)]

    def apply(
        self, frame: Frame, history: History, epoch: int | None, progress: Number
    ) -> tuple[Frame, tuple[str, ...]]:
        """The harmed frame and the names of what was done to it, such as ``lidar_beam_drop@0.40``."""
        return self.labelled(frame, history, Moment(epoch, progress))[:2]

    def labelled(
        self, frame: Frame, history: History, moment: Moment, dose: FaultDose | None = None
    ) -> tuple[Frame, tuple[str, ...], Severities]:
        """As ``apply``, with the severity of what was done to each channel.

        Args:
            dose: how much of what the rules plan acts; None for all.

        Raises:
            ValueError: a batch-wise rule outside of training.
        """
        names, severities = [], no_severities()
        for rule, key in zip(self.rules, self._keys, strict=True):
            token = rule.token(frame, moment) if isinstance(rule, Together) else frame.token
            draws = Draws(self.seed, token, key, moment.epoch)
            planned = rule.plan(draws, moment.progress)
            for fault, level in planned if dose is None else dose.of(planned, draws):
                if level == fault.clean or not any(frame.present(channel) for channel in scope_of(fault)):
                    continue
                harmed = fault(frame, history, level, Draws(self.seed, frame.token, fault.name, moment.epoch))
                # A fault that rests at this sample hands back what it was given.
                if harmed is frame or (
                    not self.may_lose_all and not any(harmed.present(channel) for channel in CHANNELS)
                ):
                    continue
                severities = added_severities(severities, frame, harmed, (fault, level))
                frame = harmed
                names.append(applied_name(fault, level))
        return frame, tuple(names), severities
