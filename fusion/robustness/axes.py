"""The axes of a suite: which scenarios, at which budgets, under which policies; and who runs which of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusion.robustness.cells import CLEAN, ROUTER, Cell
from fusion.robustness.policies import POLICIES
from sensors.faults.suites import Scenario, suite_named


@dataclass(frozen=True)
class Planned:
    """One cell before it runs."""

    scenario: Scenario
    budget: float
    policy: str = ROUTER

    def blank(self, word: str, seen_in_training: str | None = None) -> Cell:
        """The cell as far as it is known before it runs, under a word of ``run_word``."""
        scenario = self.scenario
        return Cell(
            scenario.name,
            steps_of(scenario),
            scenario.seed,
            self.budget,
            word,
            seen_in_training=seen_in_training,
            policy=self.policy,
        )


@dataclass(frozen=True)
class Share:
    """Part ``index`` of ``count`` equal parts of a suite's cells."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"expected a share index from 0 to {self.count - 1}, got {self.index}")


def planned_cells(
    scenarios: Sequence[Scenario], budgets: Sequence[float], policies: Sequence[str] = (ROUTER,)
) -> list[Planned]:
    """Clean data first and once, then the scenarios in order, each with all budgets and policies.

    Raises:
        ValueError: an unknown policy, or no budget or policy at all.
    """
    unknown = [policy for policy in policies if policy not in POLICIES]
    if unknown:
        raise ValueError(f"expected policies among {', '.join(POLICIES)}, got {', '.join(unknown)}")
    if not budgets or not policies:
        raise ValueError(f"expected at least one budget and one policy, got {list(budgets)} and {list(policies)}")
    disturbed = [scenario for scenario in scenarios if scenario.steps]
    return [
        Planned(scenario, float(budget), policy)
        for scenario in (Scenario(CLEAN), *disturbed)
        for budget in dict.fromkeys(budgets)
        for policy in dict.fromkeys(policies)
    ]


def own_cells(planned: Sequence[Planned], share: Share) -> list[Planned]:
    """Whole scenarios, dealt out in turn: budgets and policies of one scenario have their inputs in common.

    Controls are compared with the router on clean data, so every share that has some runs those cells, too.
    """
    names = list(dict.fromkeys(cell.scenario.name for cell in planned))
    own = set(names[share.index :: share.count])
    has_controls = any(cell.policy != ROUTER for cell in planned)
    return [
        cell
        for cell in planned
        if cell.scenario.name in own or (has_controls and not cell.scenario.steps and cell.policy == ROUTER)
    ]


def chosen_scenarios(
    suite: str, names: Sequence[str] = (), faults: Sequence[str] = (), severities: Sequence[int] = ()
) -> list[Scenario]:
    """Scenarios of a suite that every given filter lets through; clean data always.

    Args:
        names: of scenarios.
        faults: names of faults, of their families (``weather``) or modalities (``lidar``), as the faults page lists.
        severities: places of the level on the fault's own ladder, 1 the mildest; of a scenario with several faults the
            strongest counts.

    Raises:
        ValueError: an unknown suite or scenario, or a filter that lets nothing through.
    """
    scenarios = suite_named(suite)
    unknown = sorted(set(names) - {scenario.name for scenario in scenarios})
    if unknown:
        known = ", ".join(scenario.name for scenario in scenarios)
        raise ValueError(f"expected scenarios among {known}, got {', '.join(unknown)}")
    known = {word for scenario in scenarios for word in words_of(scenario)}
    unknown = sorted(set(faults) - known)
    if unknown:
        raise ValueError(
            f"expected faults, families or modalities that suite {suite} has, got {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))}"
        )
    chosen = [
        scenario
        for scenario in scenarios
        if not scenario.steps
        or (
            (not names or scenario.name in names)
            and (not faults or words_of(scenario) & set(faults))
            and (not severities or severity_of(scenario) in severities)
        )
    ]
    clean_names = {scenario.name for scenario in scenarios if not scenario.steps}
    if not any(scenario.steps for scenario in chosen) and not (names and set(names) <= clean_names):
        asked = ", ".join([*names, *faults, *map(str, severities)])
        raise ValueError(f"expected filters that let scenarios of {suite} through, got {asked}: none fits all of them")
    return chosen


def steps_of(scenario: Scenario) -> tuple[dict, ...]:
    """A scenario's faults as plain values."""
    return tuple(
        {
            "fault": fault.name,
            "level": level,
            "unit": fault.unit,
            "family": fault.family,
            "channels": None if fault.channels is None else list(fault.channels),
        }
        for fault, level in scenario.steps
    )


def words_of(scenario: Scenario) -> set[str]:
    """What a filter may call a scenario's faults by."""
    return {word for fault, _ in scenario.steps for word in (fault.name, fault.family, fault.modality)}


def severity_of(scenario: Scenario) -> int | None:
    """The greatest place of its levels on their faults' ladders, from 1; None for clean data."""
    places = [
        min(range(len(fault.levels)), key=lambda row: abs(fault.levels[row] - level)) + 1
        for fault, level in scenario.steps
    ]
    return max(places, default=None)
