"""The page on faults cannot go stale."""

import re
import runpy
from pathlib import Path

from sensors.faults.suites import PUBLISHED, SUITES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_code():
    tables = runpy.run_path(str(ROOT / "docs" / "faults_tables.py"))
    assert tables["with_tables"](PAGE) == PAGE, "run python docs/faults_tables.py"


def test_every_published_type_says_what_is_exact():
    for suite, types in PUBLISHED.items():
        section = PAGE.split(f"**`{suite}`**")[1].split("**`")[0]
        named = {name.strip() for row in re.findall(r"^\| ([a-z, -]+) \|", section, re.M) for name in row.split(",")}
        # "local-density, -cutout" and "gaussian-, uniform-lidar" share a half.
        for fault in types:
            name = fault.name.split("_", 1)[1].replace("_", "-")
            halves = {name, name.rsplit("-", 1)[0] + "-", "-" + name.rsplit("-", 1)[-1]}
            assert halves & named, f"{suite}: {name} in {sorted(named)}"


def test_every_suite_and_schedule_is_named():
    for suite in SUITES:
        assert f"`{suite}`" in PAGE
        assert (ROOT / "configs" / "suite" / f"{suite}.yaml").is_file()
    for path in (ROOT / "configs" / "faults").glob("*.yaml"):
        assert f"`{path.stem}`" in PAGE or path.stem.startswith("leave-out-"), path.stem


def test_the_fault_of_the_page_works():
    from tests.sensors.toy_frames import toy_frame

    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
    names: dict = {}
    exec(code, names)
    from sensors.faults.suites import Scenario
    from sensors.frame import NoHistory

    frame = toy_frame(height=9, width=16, num_points=32)
    harmed, _ = Scenario("mine", ((names["LIDAR_LIFTED"], 0.3),)).apply(frame, NoHistory())
    assert abs((frame.lidar[0].xyz_m - harmed.lidar[0].xyz_m)[:, 2] - 0.3).max() < 1e-5
