"""Calibrated settings as a file of the run."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from fusion.adaptive.allocation import Allocation, SharedBudget
from fusion.run_directory import write_text

FILE = "adaptive.json"
_NAMES = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def write_shared_budget(
    path: Path, shared: SharedBudget, data: str, num_samples: int, report: Mapping[str, list[dict]] | None = None
) -> None:
    """As JSON; the file is whole or not there. Infinity is written as a word, since JSON has none.

    Args:
        report: further tables for a reader, not read back: how well the settings did where they were not found.
    """
    content = {
        "weights": shared.weights,
        "policy": shared.policy,
        **({} if shared.policy_table is None else {"policy_table": shared.policy_table}),
        "temperatures": list(shared.temperatures),
        "data": data,
        "num_samples": num_samples,
        "allocations": [_worded(asdict(one)) for one in shared.allocations],
        **_worded(dict(report or {})),
    }
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_shared_budget(path: Path) -> SharedBudget:
    """What ``write_shared_budget`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: something else is in it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected calibrated settings at {path}, there are none; run dynfusion adaptive")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        allocations = [Allocation(**_numbered(one)) for one in content["allocations"]]
        table = content.get("policy_table")
        table = None if table is None else tuple(tuple(float(value) for value in row) for row in table)
        return SharedBudget(allocations, tuple(content["temperatures"]), content["weights"], content["policy"], table)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected calibrated settings in {path}, got something else ({error}); delete it and calibrate again"
        ) from None


def _worded(value):
    if isinstance(value, dict):
        return {key: _worded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_worded(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _numbered(values: dict) -> dict:
    def number(item):
        return tuple(number(one) for one in item) if isinstance(item, list) else _NAMES.get(item, item)

    return {key: number(item) for key, item in values.items()}
