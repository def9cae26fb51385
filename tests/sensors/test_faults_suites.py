"""Scenarios and suites."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from sensors.faults.catalogue import families, fault_named
from sensors.faults.protocol import restricted
from sensors.faults.suites import PUBLISHED, SUITES, Scenario, suite_named
from sensors.faults.suites.robobev import dead_cameras
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, LIDAR, RADARS
from tests.sensors.fault_measures import digest
from tests.sensors.labelled_frames import labelled_frame
from tests.sensors.toy_frames import ListHistory, toy_frame

FRAME = toy_frame(height=45, width=80, num_points=640)
SMALL = dict(height=18, width=32, num_points=640, num_ground=1200, num_sweeps=1)
MIDDLE = replace(labelled_frame(**SMALL), keyframe=3, num_keyframes=6)
FEW = replace(MIDDLE, cameras={c: MIDDLE.cameras[c] for c in ("CAM_FRONT", *sorted(dead_cameras(0, 2)))})
RADARS_ONLY = replace(MIDDLE, cameras={}, lidar=())
PAST = ListHistory([*(labelled_frame(**SMALL, seed=60 + k) for k in range(3)), MIDDLE], 3)


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
    middle = FEW if suite in PUBLISHED else RADARS_ONLY if suite == "radar" else MIDDLE
    for scenario in SUITES[suite]:
        first, names = scenario.apply(middle, PAST, None, 0.0)
        if scenario.name.endswith(("-1", "00", "d")):
            second, _ = scenario.apply(middle, PAST, 7, 1.0)
            assert digest(first) == digest(second)
        assert len(names) == (0 if first is middle else len(scenario.steps))
        assert changes(scenario, first, middle) == bool(scenario.steps), scenario.name


def changes(scenario, first, middle) -> bool:
    """Whether it changes this sample, or one of many others: some faults act by chance."""
    if digest(first) != digest(middle):
        return True
    others = (replace(middle, token=f"t{i}", scene=f"s{i}") for i in range(40 if scenario.steps else 2))
    return any(digest(scenario.apply(frame, PAST)[0]) != digest(frame) for frame in others)


def test_quick_has_clean_first_and_about_eight_more():
    assert SUITES["quick"][0].steps == ()
    assert 8 <= len(SUITES["quick"]) <= 10
    families = {family for scenario in SUITES["quick"] for family in scenario.families}
    assert families == {"weather", "light", "lost", "blackout", "points", "view", "alignment", "false points"}


def test_published_suites_have_their_types_and_severities():
    sizes = {suite: (len(types), {len(fault.levels) for fault in types}) for suite, types in PUBLISHED.items()}
    assert sizes == {
        "multicorrupt": (10, {3}),
        "thu-nuscenes-c": (27, {5}),
        "robobev": (8, {3}),
        "robo3d": (8, {3}),
    }
    assert all(
        len(SUITES[suite]) == n * k for suite, (n, (k,)) in {s: (n, tuple(k)) for s, (n, k) in sizes.items()}.items()
    )
    known = set(families()) | {"objects"}
    assert {fault.family for types in PUBLISHED.values() for fault in types} <= known


@pytest.mark.parametrize("fault", [fault for types in PUBLISHED.values() for fault in types], ids=lambda f: f.name)
def test_published_types_say_what_they_lack(fault):
    nothing = replace(FEW, cameras={}, lidar=(), radars={})
    with pytest.raises(ValueError, match=f"for {fault.name}, got none"):
        Scenario("x", ((fault, 1),)).apply(nothing, NoHistory())
    with pytest.raises(ValueError, match=f"expected a level of {fault.name} between 0 and {len(fault.levels)}"):
        Scenario("x", ((fault, 6),))
    with pytest.raises(ValueError, match="expected a whole severity"):
        Scenario("x", ((fault, 1.5),)).apply(FEW, NoHistory())


def test_corruptions_of_objects_need_labels():
    unlabelled = replace(FEW, boxes=None)
    for suite, name in (("robo3d", "incomplete-echo-1"), ("thu-nuscenes-c", "moving-object-2")):
        scenario = next(s for s in SUITES[suite] if s.name == name)
        with pytest.raises(ValueError, match="expected labels in sample token-0"):
            scenario.apply(unlabelled, NoHistory())


def test_published_corruption_can_be_limited_to_a_channel():
    fault = restricted(next(f for f in PUBLISHED["multicorrupt"] if f.name == "multicorrupt_brightness"), ["CAM_FRONT"])
    frame, names = Scenario("x", ((fault, 2),)).apply(FEW, NoHistory())
    assert names == ("multicorrupt_brightness[CAM_FRONT]@2.00",)
    assert [c for c in frame.cameras if frame.cameras[c] is not FEW.cameras[c]] == ["CAM_FRONT"]
    assert frame.lidar is FEW.lidar


def test_failover_knows_before_during_and_after():
    scenario = next(s for s in SUITES["failover"] if s.name == "lidar-lost-and-back")
    frames = [replace(MIDDLE, keyframe=k) for k in range(6)]
    assert [scenario.phase(frame) for frame in frames] == ["before"] * 2 + ["during"] * 2 + ["after"] * 2
    applied = [scenario.apply(frame, PAST) for frame in frames]
    assert [bool(frame.lidar) for frame, _ in applied] == [True, True, False, False, True, True]
    assert [names for _, names in applied] == [()] * 2 + [("lidar_drop@1.00",)] * 2 + [()] * 2
    good = next(s for s in SUITES["failover"] if s.name == "lidar-lost-for-good")
    assert [good.phase(frame) for frame in frames] == ["before"] * 2 + ["during"] * 4
    assert SUITES["failover"][0].phase(MIDDLE) is None


def test_camera_crash_takes_the_same_cameras_in_every_sample_of_a_run_and_draws_with_replacement():
    scenarios = [s for s in SUITES["robobev"] if s.name.startswith("camera-crash")]
    for scenario, num in zip(scenarios, (2, 4, 5), strict=True):
        dead = []
        for i in range(5):
            frame, _ = scenario.apply(replace(MIDDLE, token=f"t{i}", scene=f"s{i}"), PAST)
            dead.append(frozenset(c for c in CAMERAS if not frame.cameras[c].pixels.any()))
        assert set(dead) == {dead_cameras(0, num)}
    # Expected distinct ones of n draws from six: 1.83, 3.11, 3.59, as published.
    for num, expected in ((2, 1.83), (4, 3.11), (5, 3.59)):
        assert np.mean([len(dead_cameras(seed, num)) for seed in range(400)]) == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize(("severity", "share"), [(1, 2 / 6), (2, 4 / 6), (3, 5 / 6)])
def test_frame_lost_and_missing_camera_blacken_each_frame_of_each_camera(severity, share):
    for suite, name, expected in (
        ("robobev", "frame-lost", share),
        ("multicorrupt", "missing-camera", 0.2 * severity),
    ):
        scenario = next(s for s in SUITES[suite] if s.name == f"{name}-{severity}")
        black = []
        for i in range(100):
            frame, _ = scenario.apply(replace(MIDDLE, token=f"t{i}"), PAST)
            black.append([not frame.cameras[c].pixels.any() for c in CAMERAS])
        spread = 4 * np.sqrt(expected * (1 - expected) / 600)
        assert np.mean(black) == pytest.approx(expected, abs=spread)


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
