"""Which cells a suite has, who runs them, and who writes: by sets, by hand, by a second writer."""

import subprocess
import sys

import pytest

from fusion.robustness.axes import Share, chosen_scenarios, own_cells, planned_cells, severity_of, words_of
from fusion.robustness.lock import only_writer
from sensors.faults.suites import suite_named


def names(scenarios) -> list[str]:
    return [scenario.name for scenario in scenarios if scenario.steps]


def test_filters_agree_with_the_scenarios_own_faults():
    suite = suite_named("quick")
    lidar = names(chosen_scenarios("quick", faults=["lidar"]))
    assert lidar == ["lidar-beams-lost", "lidar-limited-view", "lidar-misaligned"]
    assert names(chosen_scenarios("quick", faults=["radar_ghosts", "weather"])) == [
        scenario.name for scenario in suite if words_of(scenario) & {"radar_ghosts", "weather"}
    ]
    assert names(chosen_scenarios("quick", severities=[3])) == ["lidar-beams-lost"]
    assert names(chosen_scenarios("quick", names=["fog", "night"], severities=[4])) == ["fog", "night"]
    # A whole ladder: every radar fault has its five levels at the places 1 to 5.
    for place in (1, 5):
        kept = chosen_scenarios("radar", severities=[place])
        assert {severity_of(scenario) for scenario in kept if scenario.steps} == {place}
        assert len(names(kept)) == len(suite_named("radar")) // 5
    assert chosen_scenarios("quick")[0].name == "clean"


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"names": ["frog"]}, "expected scenarios among"),
        ({"faults": ["frog"]}, "expected faults, families or modalities that suite quick has, got frog"),
        ({"names": ["fog"], "faults": ["radar_ghosts"]}, "none fits all of them"),
    ],
)
def test_filters_that_let_nothing_through_are_mistakes(filters, message):
    with pytest.raises(ValueError, match=message):
        chosen_scenarios("quick", **filters)


def test_clean_data_come_once_and_first():
    plan = planned_cells(suite_named("missing-sensors")[:2], (1.0, 0.5, 1.0), ("router", "random"))
    assert [(cell.scenario.name, cell.budget, cell.policy) for cell in plan] == [
        (name, budget, policy)
        for name in ("clean", "camera+lidar")
        for budget in (1.0, 0.5)
        for policy in ("router", "random")
    ]
    with pytest.raises(ValueError, match="expected policies among router, full, random, static"):
        planned_cells((), (1.0,), ("oracle",))
    with pytest.raises(ValueError, match="at least one budget"):
        planned_cells((), ())


def test_shares_hold_every_cell_once():
    plan = planned_cells(suite_named("quick"), (1.0, 0.5))
    parts = [own_cells(plan, Share(index, 4)) for index in range(4)]
    assert sorted(plan.index(cell) for part in parts for cell in part) == list(range(len(plan)))
    controls = planned_cells(suite_named("quick"), (1.0,), ("router", "static"))
    for index in range(3):
        own = own_cells(controls, Share(index, 3))
        assert (own[0].scenario.name, own[0].policy) == ("clean", "router")
    with pytest.raises(ValueError, match="share index"):
        Share(2, 2)


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    second = only_writer(tmp_path)
    with only_writer(tmp_path), pytest.raises(ValueError, match=r"the only suite that writes .* but process \d+ on"):
        second.__enter__()
    with only_writer(tmp_path):
        pass


def test_a_killed_writer_leaves_no_lock(tmp_path):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]);"
        "import importlib.util as u; s = u.spec_from_file_location('lock', sys.argv[3]);"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "from pathlib import Path; c = m.only_writer(Path(sys.argv[1])); c.__enter__(); os.kill(os.getpid(), 9)"
    )
    from fusion.robustness import lock

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), ".", lock.__file__], check=False)
    assert done.returncode == -9
    with only_writer(tmp_path):
        pass
