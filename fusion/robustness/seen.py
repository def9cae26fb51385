"""Which faults a run met in training, read from its own configuration."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from datamodules.mixture import mixture_faults
from sensors.faults.catalogue import CATALOGUE
from sensors.faults.suites import PUBLISHED_FAULTS, Scenario

_KNOWN = (*CATALOGUE, *PUBLISHED_FAULTS)
_DROPS = frozenset(fault.name for fault in CATALOGUE if fault.family == "lost")


def trained_faults(config: Path) -> frozenset[str] | None:
    """Names of the faults that a run's ``config.yaml`` names; None without such a file."""
    if not config.is_file():
        return None
    names = {fault.name for fault in _KNOWN}
    written = yaml.safe_load(config.read_text(encoding="utf-8"))
    found = set(_of_mixtures(written))
    for text in _texts(written):
        if text in names:
            found.add(text)
        elif text.endswith("SubsetDropout"):
            found |= _DROPS
    return frozenset(found)


def _of_mixtures(value) -> Iterator[str]:
    """Faults of mixtures, which name only the families that they leave out."""
    children = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
    for child in children:
        yield from _of_mixtures(child)
    target = value.get("_target_") if isinstance(value, dict) else None
    if target in ("datamodules.mixture.FaultMixture", "datamodules.mixture.mixture_injector"):
        left_out = value.get("leave_out") or ()
        yield from (name for names in mixture_faults(value.get("families"), left_out).values() for name in names)
        if target.endswith("injector") and "lost" not in left_out:
            yield from _DROPS


def _texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def seen_in_training(scenario: Scenario, trained: frozenset[str] | None) -> str | None:
    """``fault`` if training had every fault of the scenario, ``family`` if it had their families, else ``neither``.

    None for the clean scenario and where the training is not known.
    """
    if trained is None or not scenario.steps:
        return None
    if all(fault.name in trained for fault, _ in scenario.steps):
        return "fault"
    families = {fault.family for fault in _KNOWN if fault.name in trained}
    return "family" if all(fault.family in families for fault, _ in scenario.steps) else "neither"
