"""A training mixture over the whole catalogue, balanced over families, with any of them left out."""

from collections.abc import Sequence

from datamodules.inject import FaultInjector, FaultRule, Planned, SubsetDropout, drawn_level
from datamodules.schedules import Number, Ramp, Scaled, Scheduled, scheduled_share
from sensors.faults.catalogue import families as catalogue_families
from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws


class FaultMixture:
    """At most one fault: a family is drawn, then a fault of it, then its level up to a share of its ladder.

    Attributes:
        probability: of any fault.
        strength: share of the ladder that levels are drawn from: 0 clean, 1 the fifth level.
        families: what to draw from; None for all of the catalogue but ``lost``, which has rules of its own.
        leave_out: families that are never drawn, to score how well others prepare for them.
    """

    name = "mixture"

    def __init__(
        self,
        probability: Scheduled,
        strength: Scheduled = 1.0,
        families: Sequence[str] | None = None,
        leave_out: Sequence[str] = (),
    ):
        self.probability = scheduled_share(probability, "the probability of a mixture")
        self.strength = scheduled_share(strength, "the strength of a mixture")
        self.faults = {
            family: tuple(fault_named(name) for name in names)
            for family, names in mixture_faults(families, leave_out).items()
        }

    def plan(self, draws: Draws, progress: Number) -> list[Planned]:
        generator = draws.generator("mixture")
        hit = generator.random() < self.probability(progress)
        family = list(self.faults)[int(generator.integers(len(self.faults)))]
        fault = self.faults[family][int(generator.integers(len(self.faults[family])))]
        level = drawn_level(fault, generator, self.strength(progress))
        return [(fault, level)] if hit else []


def mixture_faults(families: Sequence[str] | None = None, leave_out: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """Names of the faults that a mixture draws from, by family.

    Raises:
        ValueError: an unknown family, or none is left.
    """
    known = catalogue_families()
    unknown = sorted({*(families or ()), *leave_out} - set(known))
    if unknown:
        raise ValueError(f"expected families among {', '.join(known)}, got {', '.join(unknown)}; write these")
    chosen = [family for family in known if family in families] if families else [f for f in known if f != "lost"]
    kept = {family: known[family] for family in chosen if family not in leave_out}
    if not kept:
        raise ValueError(f"expected a family that is left in the mixture, got leave_out {list(leave_out)}; name fewer")
    return kept


def mixture_injector(
    seed: int = 0,
    probability: Scheduled | None = None,
    strength: Scheduled | None = None,
    drop_probability: Scheduled | None = None,
    leave_out: Sequence[str] = (),
) -> FaultInjector:
    """Lost sensors, whole modalities and single channels, and a mixture of everything else, all ramped.

    Leave-one-family-out runs name the family in ``leave_out``; ``lost`` takes the dropping of sensors away.

    Args:
        probability: of a fault of the mixture; None ramps to .6 within the first 60 % of training.
        strength: share of the ladder; None ramps from .2 to 1.
        drop_probability: of losing modalities; None ramps to .3. Single cameras and radars are lost a fifth as often.
    """
    probability = Ramp(0.0, 0.6, 0.05, 0.6) if probability is None else probability
    strength = Ramp(0.2, 1.0, 0.05, 0.8) if strength is None else strength
    drop = scheduled_share(Ramp(0.0, 0.3, 0.05, 0.6) if drop_probability is None else drop_probability, "dropping")
    rules = [FaultMixture(probability, strength, leave_out=leave_out)]
    if "lost" not in leave_out:
        seldom = Scaled(drop, 0.2)
        singles = [FaultRule(f"{kind}_drop", seldom, severity=1.0, each="channel") for kind in ("camera", "radar")]
        rules = [SubsetDropout(drop), *singles, *rules]
    return FaultInjector(rules, seed)
