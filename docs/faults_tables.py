"""Writes the tables of docs/faults.md from the code: ``python docs/faults_tables.py``. A test compares them."""

import re
from pathlib import Path

from sensors.faults.catalogue import CATALOGUE
from sensors.faults.suites import SUITES

PAGE = Path(__file__).with_name("faults.md")
_WORDS = {"camera": "camera", "lidar": "LiDAR", "radar": "radar", "camera+lidar": "camera, LiDAR", "all": "all"}


def catalogue_table() -> str:
    """One row per fault, by family."""
    rows = ["| fault | family | sensors | unit of the level | levels 1 to 5 |", "|---|---|---|---|---|"]
    for fault in sorted(CATALOGUE, key=lambda fault: fault.family):
        levels = " ".join(f"{level:g}" for level in fault.levels)
        rows.append(f"| `{fault.name}` | {fault.family} | {_WORDS[fault.modality]} | {fault.unit} | {levels} |")
    return "\n".join(rows)


def suite_table() -> str:
    """One row per suite, with the names of its scenarios; severities are folded."""
    rows = ["| suite | scenarios | names |", "|---|---|---|"]
    for suite, scenarios in SUITES.items():
        folded: dict[str, list[str]] = {}
        for scenario in scenarios:
            stem, severity = re.fullmatch(r"(.*?)(?:-(\d)|@([\d.]+))?", scenario.name).group(1, 2)
            folded.setdefault(stem, []).append(severity or "")
        names = ", ".join(f"{stem}-1..{len(found)}" if found[-1] else stem for stem, found in folded.items())
        rows.append(f"| `{suite}` | {len(scenarios)} | {names} |")
    return "\n".join(rows)


def with_tables(page: str) -> str:
    """The page with its tables as the code has them."""
    for name, table in (("catalogue", catalogue_table()), ("suites", suite_table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        page = before + begin + table + "\n" + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
