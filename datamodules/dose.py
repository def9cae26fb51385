"""How much of a fault plan acts: a share of what it lets happen, at a share of its strength."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.schedules import Number
from sensors.faults.protocol import Draws, Fault
from sensors.faults.suites import Published


@dataclass(frozen=True)
class FaultDose:
    """Thins out a plan and makes it milder.

    What a small dose lets through, a larger one does too, and at least as strong: curricula nest.

    Attributes:
        share: probability that a planned fault acts, in [0, 1]. Channels that a rule decides for one by one are thinned
            out one by one; what it takes together (a whole modality) stays or goes together.
        severity: factor in [0, 1] on the distance of a level from clean, in the fault's own unit; see ``milder``.
    """

    share: Number = 1.0
    severity: Number = 1.0

    def of(self, planned: Sequence[tuple[Fault, float]], draws: Draws) -> list[tuple[Fault, float]]:
        """What is left of a rule's plan.

        Args:
            draws: those that the rule itself decided by.
        """
        if self.share < 1:
            planned = [one for one in planned if self._acts(one[0], draws)]
        return [(fault, milder(fault, level, self.severity)) for fault, level in planned]

    def _acts(self, fault: Fault, draws: Draws) -> bool:
        return bool(draws.generator(f"share {'+'.join(fault.channels or ())}").random() < self.share)


def milder(fault: Fault, level: float, factor: Number) -> float:
    """A level nearer to clean: the factor times its distance from there.

    Half a LiDAR is one that is lost in half of the samples (``SensorLoss``). Published corruptions have whole
    severities alone: they are rounded up, so that only the factor 0 is clean.
    """
    if factor == 1:
        return level
    if isinstance(getattr(fault, "fault", fault), Published):
        return float(math.ceil(factor * level - 1e-9))
    return fault.clean + factor * (level - fault.clean)
