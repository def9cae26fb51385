"""What a calibration found, as tables for a terminal."""

from collections.abc import Sequence

from rich.table import Table

from fusion.adaptive.allocation import Allocation
from fusion.adaptive.held_out import HeldOut
from fusion.adaptive.reliable import AnswerCalibration, ExitCalibration


def allocation_table(allocations: Sequence[Allocation]) -> Table:
    """What was chosen for each budget."""
    table = _table(
        "settings by budget",
        ("budget", "mean cost", "no sample above", "route within", "exit thresholds", "token lead", "ViT rate", "loss"),
    )
    for one in allocations:
        table.add_row(
            f"{one.budget:.3f}",
            f"{one.mean_cost:.3f} ± {one.standard_error:.3f}",
            f"{one.cap:.3f}",
            _route(one),
            ", ".join(f"{value:.3f}" for value in one.thresholds) or "none",
            f"{one.token_threshold:.2f}",
            f"{one.view_rate:.2f}",
            f"{one.loss:.3f}",
        )
    return table


def _route(one: Allocation) -> str:
    if one.route_budget is None:
        return "full route"
    some = f", {one.rich_share:.0%} {one.rich_route_budget:.3f}" if one.rich_share else ""
    return f"{one.route_budget:.3f}{some}"


def held_out_table(rows: Sequence[HeldOut]) -> Table:
    """Executed on scenes that the settings had not seen."""
    table = _table(
        "budgets on the half of the scenes that the settings were not found on",
        ("asked", "expected", "executed", "dearest sample", "samples", "within 3 % or 2 standard errors"),
    )
    for one in rows:
        table.add_row(
            f"{one.asked:.3f}",
            f"{one.expected:.3f}",
            f"{one.mean:.3f} ± {one.standard_error:.3f}",
            f"{one.most:.3f}",
            f"{one.num_samples}",
            "yes" if one.verdict == "within" else one.verdict,
        )
    return table


def reliability_table(exits: Sequence[ExitCalibration], answers: Sequence[AnswerCalibration], held_out: bool) -> Table:
    """Each exit over all samples, then what left where."""
    where = "on held-out scenes" if held_out else "on the same samples"
    table = _table(
        "calibration of the exits' probabilities",
        ("exit", "samples", "temperature", "ECE at 1", f"ECE after (all: {where})", "NLL at 1", "NLL after"),
    )
    last = len(exits) - 1

    def name(number: int) -> str:
        return "last" if number == last else str(number)

    for one in exits:
        fitted = f"{one.temperature:.3f}" if one.is_fitted else "1 (not fitted: peaks all right or all wrong)"
        table.add_row(name(one.exit), "all", fitted, *_errors(one))
    for one in answers:
        fitted = f"{exits[one.exit].temperature:.3f}"
        table.add_row(f"{name(one.exit)} at {one.budget:.2f}", f"{one.num_samples} left", fitted, *_errors(one))
    return table


def _errors(one: ExitCalibration | AnswerCalibration) -> tuple[str, ...]:
    pairs = ((one.before.ece, one.after.ece), (one.before.nll, one.after.nll))
    return tuple(f"{value:.3f}" for pair in pairs for value in pair)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
