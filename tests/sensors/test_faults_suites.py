"""Scenarios and suites."""

from dataclasses import replace
from itertools import product

import pytest

from sensors.faults.catalogue import fault_named
from sensors.faults.suites import SUITES, Scenario, suite_named
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, LIDAR, RADARS
from tests.sensors.fault_measures import digest
from tests.sensors.toy_frames import toy_frame

FRAME = toy_frame(height=45, width=80, num_points=640)


def modalities_of(frame):
    return {
        *(["camera"] if frame.cameras else []),
        *(["lidar"] if frame.lidar else []),
        *(["radar"] if frame.radars else []),
    }


def test_missing_sensors_holds_all_seven_subsets_and_every_single_loss():
    seen = []
    for scenario in SUITES["missing-sensors"][:7]:
        frame, names = scenario.apply(FRAME, NoHistory())
        assert modalities_of(frame) == set(scenario.name.split("+"))
        assert len(names) == 3 - len(modalities_of(frame))
        seen.append(frozenset(modalities_of(frame)))
    assert len(set(seen)) == 7
    for scenario in SUITES["missing-sensors"][7:]:
        frame, names = scenario.apply(FRAME, NoHistory())
        lost = [channel for channel in (*CAMERAS, LIDAR, *RADARS) if not frame.present(channel)]
        assert [scenario.name] == [f"without-{channel}" for channel in lost]
        assert len(names) == 1


@pytest.mark.parametrize("suite", SUITES)
def test_every_scenario_applies_is_repeatable_and_but_for_the_clean_one_changes_the_frame(suite):
    names = [scenario.name for scenario in SUITES[suite]]
    assert len(set(names)) == len(names)
    for scenario in SUITES[suite]:
        if any(fault.family == "stuck" for fault, _ in scenario.steps):
            continue  # without a past there is nothing to be stuck at
        first, applied = scenario.apply(FRAME, NoHistory(), None, 0.0)
        second, _ = scenario.apply(FRAME, NoHistory(), 7, 1.0)
        assert digest(first) == digest(second)
        assert (digest(first) == digest(FRAME)) == (not scenario.steps)
        assert len(applied) == len(scenario.steps)


def test_quick_has_clean_first_and_about_eight_more():
    assert SUITES["quick"][0].steps == ()
    assert 8 <= len(SUITES["quick"]) <= 10
    families = {family for scenario in SUITES["quick"] for family in scenario.families}
    assert families == {"weather", "light", "lost", "blackout", "points", "view", "alignment", "false points"}


def test_radar_suite_is_every_radar_fault_at_five_levels():
    assert len(SUITES["radar"]) % 5 == 0
    assert "radar_ghosts@1.60" in [scenario.name for scenario in SUITES["radar"]]


def test_front_dead_takes_two_sensors():
    scenario = next(scenario for scenario in SUITES["quick"] if scenario.name == "front-dead")
    frame, names = scenario.apply(FRAME, NoHistory())
    assert not frame.present("CAM_FRONT")
    assert not frame.present("RADAR_FRONT")
    assert len(frame.cameras) == 5
    assert len(frame.radars) == 4
    assert names == ("camera_drop[CAM_FRONT]@1.00", "radar_drop[RADAR_FRONT]@1.00")


def test_scenario_from_plain_words():
    scenario = Scenario("mine", [["fog", 0.02], ["lidar_beam_drop", 0.4]])
    _, names = scenario.apply(FRAME, NoHistory())
    assert names == ("fog@0.02", "lidar_beam_drop@0.40")
    assert scenario.families == {"weather", "points"}


def test_sensor_that_was_never_there_is_an_error_and_one_taken_before_is_not():
    lost = replace(FRAME, lidar=())
    with pytest.raises(ValueError, match="expected one of LIDAR_TOP in sample token-0 for lidar_beam_drop, got none"):
        Scenario("x", (("lidar_beam_drop", 0.4),)).apply(lost, NoHistory())
    frame, _ = Scenario("x", (("lidar_drop", 1), ("lidar_beam_drop", 0.4))).apply(FRAME, NoHistory())
    assert not frame.lidar


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match="expected a suite among quick, .*, got 'quik'"):
        suite_named("quik")
    with pytest.raises(ValueError, match="expected a level of lidar_drop between 0 and 1"):
        Scenario("x", (("lidar_drop", 2),))
    with pytest.raises(ValueError, match=r"expected \(fault, level\)"):
        Scenario("x", (("lidar_drop",),))


def test_common_seed_gives_common_draws():
    fault = fault_named("lidar_point_drop")
    kept = {
        (seed, level): {
            row.tobytes() for row in Scenario("x", ((fault, level),), seed).apply(FRAME, NoHistory())[0].lidar[0].xyz_m
        }
        for seed, level in product((0, 1), (0.3, 0.7))
    }
    assert kept[0, 0.3] > kept[0, 0.7]
    assert not kept[0, 0.3] >= kept[1, 0.7]
