"""Cells of our own suites: which sensors are there, what they hold, by how much, against numbers written out here."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults.suites import SUITES
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, RADARS
from tests.sensors.fault_measures import angle_deg, drifting_scene
from tests.sensors.toy_frames import ListHistory, toy_frame

SMALL = dict(height=18, width=32, num_points=640, num_sweeps=1)
FRAME = toy_frame(**SMALL)
SCENE = [
    replace(f, keyframe=k, num_keyframes=9, scene="s", token=f"t{k}") for k, f in enumerate(drifting_scene(9, **SMALL))
]
LADDERS = {
    "radar_drop": (1, 2, 3, 4, 5),
    "radar_blackout": (1, 2, 3, 4, 5),
    "radar_freeze": (1, 2, 3, 4, 6),
    "radar_stuck": (0.1, 0.3, 0.5, 0.7, 0.9),
    "radar_stutter": (0.2, 0.4, 0.6, 0.8, 1.0),
    "radar_late": (1, 2, 4, 6, 8),
    "radar_clock_offset": (10, 25, 50, 100, 200),
    "radar_point_drop": (0.1, 0.3, 0.5, 0.7, 0.9),
    "radar_ghosts": (0.1, 0.2, 0.4, 0.8, 1.6),
    "radar_clutter": (5, 10, 20, 40, 80),
    "radar_doppler_noise": (0.25, 0.5, 1, 2, 4),
    "radar_doppler_alias": (0.05, 0.1, 0.2, 0.4, 0.8),
    "radar_range_azimuth_noise": (0.1, 0.25, 0.5, 1, 2),
    "radar_rcs_loss": (3, 6, 9, 12, 15),
    "radar_interference": (10, 20, 40, 60, 90),
    "radar_blocked": (0.1, 0.25, 0.5, 0.75, 1.0),
    "radar_misalignment": (0.5, 1, 2, 3, 5),
}


def cells(suite):
    return {scenario.name: scenario for scenario in SUITES[suite]}


def radar_cell(name, level):
    return next(s for s in SUITES["radar"] if [(f.name, v) for f, v in s.steps] == [(name, level)])


def test_radar_suite_holds_the_written_ladders():
    held = [(fault.name, level) for s in SUITES["radar"] for fault, level in s.steps]
    assert sorted(held) == sorted((name, float(level)) for name, levels in LADDERS.items() for level in levels)


def shown(name, level, tokens=40, history=None):
    """The front radar's only sweep before and after, over many samples."""
    pairs = []
    for i in range(tokens):
        frame = replace(FRAME, token=f"t{i}", scene=f"s{i}")
        after = radar_cell(name, level).apply(frame, history or NoHistory())[0]
        pairs += [(frame.radars[c][0], after.radars[c][0]) for c in RADARS]
    return pairs


def polar(sweep):
    return np.hypot(*sweep.xyz_m[:, :2].T), np.arctan2(sweep.xyz_m[:, 1], sweep.xyz_m[:, 0])


MEASURES = {
    "radar_point_drop": lambda a, b: 1 - len(b) / len(a),
    "radar_ghosts": lambda a, b: len(b) / len(a) - 1,
    "radar_clutter": lambda a, b: len(b) - len(a),
    "radar_doppler_noise": lambda a, b: np.linalg.norm(b.velocity_mps - a.velocity_mps, axis=1),
    "radar_range_azimuth_noise": lambda a, b: polar(b)[0] - polar(a)[0],
}


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in MEASURES for level in LADDERS[name]])
def test_radar_cells_do_as_much_as_their_level_says(name, level):
    found = [MEASURES[name](a, b) for a, b in shown(name, level, 12)]
    if name in ("radar_doppler_noise", "radar_range_azimuth_noise"):
        assert np.sqrt(np.mean(np.concatenate(found).astype(float) ** 2)) == pytest.approx(level, rel=0.08)
    else:
        # Ghosts beyond 250 m are cut: no more than the level, and at least half of it.
        low = 0.5 if name == "radar_ghosts" else 0.85
        assert low * level <= np.mean(found) <= 1.15 * level


@pytest.mark.parametrize("level", LADDERS["radar_doppler_alias"])
def test_aliased_points_are_twenty_metres_per_second_off(level):
    off = [
        np.linalg.norm(b.velocity_raw_mps - a.velocity_raw_mps, axis=1)
        for a, b in shown("radar_doppler_alias", level, 12)
    ]
    off = np.concatenate(off)
    assert off[off > 1e-3] == pytest.approx(np.full((off > 1e-3).sum(), 20.0), abs=1e-3)
    assert (off > 1e-3).mean() == pytest.approx(level, abs=0.04)


@pytest.mark.parametrize("level", LADDERS["radar_rcs_loss"])
def test_weak_echoes_vanish_below_minus_five(level):
    for before, after in shown("radar_rcs_loss", level, 2):
        left = before.rcs_dbsm - level
        assert np.allclose(after.rcs_dbsm, left[left >= -5])


@pytest.mark.parametrize("level", LADDERS["radar_misalignment"])
def test_radars_are_turned_by_the_level(level):
    turned = [angle_deg(a.ego_from_radar, b.ego_from_radar) for a, b in shown("radar_misalignment", level, 4)]
    assert turned == pytest.approx([level] * 20, abs=1e-4)


@pytest.mark.parametrize("level", LADDERS["radar_clock_offset"])
def test_radar_stamps_are_off_by_the_level(level):
    off = [abs(a.lag_s - b.lag_s) * 1000 for a, b in shown("radar_clock_offset", level, 4)]
    assert off == pytest.approx([level] * 20, abs=1e-3)


@pytest.mark.parametrize("level", LADDERS["radar_blocked"])
def test_a_blocked_radar_loses_the_share_of_its_view(level):
    lost = [1 - len(b) / len(a) for a, b in shown("radar_blocked", level, 12)]
    # Toy points are uniform over +-60 deg: dirt covers the share of that view from one edge.
    assert np.mean(lost) == pytest.approx(level, abs=0.06)


@pytest.mark.parametrize("level", LADDERS["radar_interference"])
def test_a_burst_leaves_a_wedge_empty_and_ten_false_points_elsewhere(level):
    for before, after in shown("radar_interference", level, 3):
        fresh = len(after) - sum(row.tobytes() in {r.tobytes() for r in before.xyz_m} for row in after.xyz_m)
        assert fresh == 10
        assert len(after) <= len(before) + 10
        angles = np.sort(np.rad2deg(polar(after)[1]))
        gaps = np.diff(np.concatenate([[-90], angles, [90]]))
        assert gaps.max() >= min(level, 60) * 0.49


@pytest.mark.parametrize(("name", "level"), [(n, v) for n in ("radar_drop", "radar_blackout") for v in (1, 2, 3, 4, 5)])
def test_that_many_radars_are_gone_or_empty(name, level):
    after = radar_cell(name, level).apply(FRAME, NoHistory())[0]
    gone = [c for c in RADARS if not after.present(c)]
    empty = [c for c in RADARS if after.present(c) and not len(after.radars[c][0])]
    assert (len(gone), len(empty)) == ((level, 0) if name == "radar_drop" else (0, level))


def ages(name, level, keyframe=8, tokens=60):
    """How many keyframes old what the front radar shows is, from the drift of its points by half a metre each."""
    found = []
    for i in range(tokens):
        scene = [replace(f, scene=f"s{i}", token=f"s{i}-{k}") for k, f in enumerate(SCENE)]
        after = radar_cell(name, level).apply(scene[keyframe], ListHistory(scene, keyframe))[0]
        now = scene[keyframe].radars["RADAR_FRONT"][0].xyz_m
        found.append(float((after.radars["RADAR_FRONT"][0].xyz_m - now)[0, 0] / 0.5))
    return np.array(found)


@pytest.mark.parametrize("level", LADDERS["radar_freeze"])
def test_frozen_radars_are_that_many_keyframes_old(level):
    assert ages("radar_freeze", level, tokens=3) == pytest.approx([level] * 3, abs=1e-3)


@pytest.mark.parametrize("level", LADDERS["radar_late"])
def test_late_radars_are_that_many_sweeps_of_75_ms_old_on_average(level):
    # One sweep per keyframe of half a second is there to choose from.
    assert ages("radar_late", level).mean() * 0.5 == pytest.approx(0.075 * level, abs=4 * 0.25 / np.sqrt(60))


@pytest.mark.parametrize(
    ("name", "level"),
    [*(("radar_stuck", v) for v in LADDERS["radar_stuck"]), *(("radar_stutter", v) for v in LADDERS["radar_stutter"])],
)
def test_share_of_stuck_keyframes(name, level):
    stuck = ages(name, level) > 0.5
    assert stuck.mean() == pytest.approx(level, abs=4 * np.sqrt(max(level * (1 - level), 1e-9) / 60))


def present(frame):
    return (len(frame.cameras), bool(frame.lidar), len(frame.radars))


ALL, HALF = (6, True, 5), 4
FAILOVER = {
    "clean": (ALL, ALL),
    "lidar-lost-and-back": ((6, False, 5), ALL),
    "lidar-lost-for-good": ((6, False, 5), (6, False, 5)),
    "lidar-silent": (ALL, ALL),
    "lidar-stuck": (ALL, ALL),
    "lidar-beams-fade": (ALL, ALL),
    "cameras-lost-and-back": ((0, True, 5), ALL),
    "cameras-black": (ALL, ALL),
    "cameras-stuck": (ALL, ALL),
    "front-camera-lost": ((5, True, 5), ALL),
    "cameras-darken": (ALL, ALL),
    "radars-lost-and-back": ((6, True, 0), ALL),
    "radars-silent": (ALL, ALL),
    "fog-comes-up": (ALL, ALL),
    "lidar-and-front-camera-lost": ((5, False, 5), ALL),
}
HARMED = {
    "lidar-silent": lambda now, was: len(now.lidar[0]) == 0,
    "lidar-stuck": lambda now, was: not np.array_equal(now.lidar[0].xyz_m, was.lidar[0].xyz_m),
    "lidar-beams-fade": lambda now, was: 0 < len(now.lidar[0]) < len(was.lidar[0]),
    "cameras-black": lambda now, was: not any(now.cameras[c].pixels.any() for c in CAMERAS),
    "cameras-stuck": lambda now, was: all(
        (now.cameras[c].pixels.astype(int) <= was.cameras[c].pixels).all() for c in CAMERAS
    ),
    "cameras-darken": lambda now, was: all(
        now.cameras[c].pixels.mean() < was.cameras[c].pixels.mean() for c in CAMERAS
    ),
    "radars-silent": lambda now, was: all(len(now.radars[c][0]) == 0 for c in RADARS),
    "fog-comes-up": lambda now, was: now.lidar[0].intensity.sum() < was.lidar[0].intensity.sum(),
}


@pytest.mark.parametrize("name", FAILOVER)
def test_failover_cells_fail_between_a_third_and_two_thirds(name):
    during, after = FAILOVER[name]
    for k, expected in enumerate([ALL] * 3 + [during] * 3 + [after] * 3):
        frame, _ = cells("failover")[name].apply(SCENE[k], ListHistory(SCENE, k))
        assert present(frame) == expected, k
        if not 3 <= k < 6 and name != "lidar-lost-for-good":
            assert frame is SCENE[k]
        elif name in HARMED and k > 3:
            assert HARMED[name](frame, SCENE[k])


def test_flicker_comes_in_bursts_of_two_seconds_out_of_six():
    scenario, black = cells("failover")["cameras-flicker-in-bursts"], []
    for i in range(60):
        scene = [replace(f, scene=f"s{i}", token=f"s{i}-{k}") for k, f in enumerate(SCENE)]
        frame, _ = scenario.apply(scene[5], ListHistory(scene, 5))
        dark = [not frame.cameras[c].pixels.any() for c in CAMERAS]
        assert len(set(dark)) == 1
        black.append(dark[0])
    assert set(cells("failover")) == {*FAILOVER, "cameras-flicker-in-bursts"}
    assert np.mean(black) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 60))


QUICK = {
    "clean": (),
    "fog": (("fog", 0.03, None),),
    "night": (("camera_dark", 4, None),),
    "front-dead": (("camera_drop", 1, ("CAM_FRONT",)), ("radar_drop", 1, ("RADAR_FRONT",))),
    "cameras-black": (("camera_blackout", 6, None),),
    "lidar-beams-lost": (("lidar_beam_drop", 0.6, None),),
    "lidar-limited-view": (("lidar_limited_view", 60, None),),
    "lidar-misaligned": (("lidar_misalignment", 3, None),),
    "radar-ghosts": (("radar_ghosts", 1.6, None),),
}


def test_quick_and_demo_hold_what_is_written_here():
    def steps(scenario):
        return tuple((fault.name, level, fault.channels) for fault, level in scenario.steps)

    assert {s.name: steps(s) for s in SUITES["quick"]} == QUICK
    demo = {s.name: steps(s) for s in SUITES["demo"]}
    kept = ("fog", "night", "front-dead", "cameras-black", "lidar-beams-lost", "radar-ghosts")
    subsets = {s.name: steps(s) for s in SUITES["missing-sensors"][:7]}
    assert demo == {**subsets, **{name: QUICK[name] for name in kept}}


def test_quick_cells_do_what_their_names_say():
    frame = toy_frame(**{**SMALL, "height": 45, "width": 80})
    after = {name: scenario.apply(frame, NoHistory())[0] for name, scenario in cells("quick").items()}
    assert after["clean"] is frame
    # Koschmieder on the LiDAR: what keeps its place has exp(-2 x 0.03 r) of its echo.
    fog = after["fog"].lidar[0]
    kept = {row.tobytes(): value for row, value in zip(fog.xyz_m, fog.intensity, strict=True)}
    same = [
        (kept[r.tobytes()], v, np.linalg.norm(r))
        for r, v in zip(frame.lidar[0].xyz_m, frame.lidar[0].intensity, strict=True)
        if r.tobytes() in kept
    ]
    found, was, range_m = np.array(same).T
    assert found == pytest.approx(was * np.exp(-0.06 * range_m), abs=0.51)
    # Four stops: a sixteenth of the light.
    light = [(f.cameras["CAM_FRONT"].pixels / 255.0) ** 2.2 for f in (frame, after["night"])]
    assert light[1].mean() / light[0].mean() == pytest.approx(1 / 16, rel=0.35)
    assert present(after["front-dead"]) == (5, True, 4)
    assert not any(after["cameras-black"].cameras[c].pixels.any() for c in CAMERAS)
    assert len(set(after["lidar-beams-lost"].lidar[0].ring.tolist())) == round(0.4 * 32)
    ahead = frame.lidar[0].ego_from_lidar.vectors(frame.lidar[0].xyz_m)
    inside = np.abs(np.arctan2(ahead[:, 1], ahead[:, 0])) <= np.deg2rad(60)
    assert len(after["lidar-limited-view"].lidar[0]) == pytest.approx(inside.sum(), abs=2)
    moved = angle_deg(frame.lidar[0].ego_from_lidar, after["lidar-misaligned"].lidar[0].ego_from_lidar)
    assert moved == pytest.approx(3.0, abs=1e-4)
    assert len(after["radar-ghosts"].radars["RADAR_FRONT"][0]) > len(frame.radars["RADAR_FRONT"][0])
