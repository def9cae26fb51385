"""Faults in time: spells and bursts within a scene, stuck and late sensors, clocks that disagree."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws, restricted
from sensors.faults.time_course import Burst, Onset, phase_of
from sensors.faults.time_stamps import ClockOffset, planar_motion, stale_step
from sensors.faults.time_stuck import CAMERA_STUCK, LIDAR_STUCK, LIDAR_STUTTER, Stuck
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, CHANNELS, LIDAR
from tests.sensors.fault_measures import digest, drifting_scene
from tests.sensors.toy_frames import ListHistory

SCENE = drifting_scene(12, height=9, width=16, num_points=64)
LEAST = replace(SCENE[0], cameras={"CAM_FRONT": SCENE[0].cameras["CAM_FRONT"]}, lidar=(), radars={})


def at(keyframe, num_keyframes=40, scene="s", frame=LEAST):
    return replace(frame, token=f"{scene}-{keyframe}", scene=scene, keyframe=keyframe, num_keyframes=num_keyframes)


def applied(fault, frame, level, history=None, seed=1):
    return fault(frame, history or NoHistory(), level, Draws(seed, frame.token, fault.name))


def ages(fault, level, num_keyframes, scene):
    generator = Draws(1, scene, "x")
    return [fault.age(at(k, num_keyframes), level, generator.generator(LIDAR)) for k in range(num_keyframes)]


@pytest.mark.parametrize(("fault", "run"), [(LIDAR_STUTTER, 1), (LIDAR_STUCK, 4)])
@pytest.mark.parametrize("level", [0.2, 0.5, 0.8])
def test_share_of_stuck_keyframes_is_the_level_and_a_spell_lasts_a_run(fault, run, level):
    stuck = np.array([[age > 0 for age in ages(fault, level, 40, f"scene {i}")] for i in range(60)])
    assert not stuck[:, 0].any()
    # Neighbouring keyframes of a spell are not independent: ``run`` times the variance.
    assert stuck[:, 1:].mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) * run / (60 * 39)))
    inner = [len(spell) for row in stuck for spell in "".join("x" if s else " " for s in row[1:-run]).strip().split()]
    assert min(inner[1:]) >= 1 if run == 1 else np.mean(inner) >= run


@pytest.mark.parametrize("fault", [LIDAR_STUTTER, LIDAR_STUCK])
def test_age_counts_from_the_last_keyframe_that_delivered_and_grows_with_the_level(fault):
    for scene in "abcdef":
        mild, strong = ages(fault, 0.3, 40, scene), ages(fault, 0.7, 40, scene)
        for series in (mild, strong):
            assert all(now in (0, before + 1) for before, now in zip(series, series[1:], strict=False))
        assert all(more >= less for less, more in zip(mild, strong, strict=True))
        assert ages(fault, 1.0, 5, scene) == [0, 1, 2, 3, 4]


def test_stuck_sensor_shows_its_last_good_data_under_todays_pose():
    always = [applied(LIDAR_STUCK, SCENE[k], 1.0, ListHistory(SCENE, k)) for k in range(12)]
    assert always[0] is SCENE[0]
    for frame, today in zip(always[1:], SCENE[1:], strict=True):
        assert frame.lidar[0].xyz_m is SCENE[0].lidar[0].xyz_m
        assert frame.lidar[0].ego_from_lidar is today.lidar[0].ego_from_lidar
    spell = replace(CAMERA_STUCK, begin=0.5, end=0.75)
    for k in range(12):
        pixels = applied(spell, SCENE[k], 1.0, ListHistory(SCENE, k)).cameras["CAM_BACK"].pixels
        # Keyframes 6, 7 and 8 have their middles in [.5, .75) of twelve: the last good one is the fifth.
        expected = SCENE[5 if k in (6, 7, 8) else k].cameras["CAM_BACK"].pixels
        assert np.array_equal(pixels, expected)
    assert [phase_of(spell, SCENE[k]) for k in (0, 5, 6, 8, 9, 11)] == [
        *["before"] * 2,
        *["during"] * 2,
        *["after"] * 2,
    ]


def test_cameras_are_stuck_each_for_itself_and_the_same_whatever_the_order_of_visits():
    def stuck(k):
        frame = applied(fault_named("camera_stutter"), SCENE[k], 0.5, ListHistory(SCENE, k))
        return tuple(frame.cameras[c] is not SCENE[k].cameras[c] for c in CAMERAS)

    forwards = [stuck(k) for k in range(12)]
    order = np.random.default_rng(0).permutation(12)
    shuffled = {k: stuck(k) for k in order}
    assert forwards == [shuffled[k] for k in range(12)]
    assert len(set(zip(*forwards, strict=True))) == 6


@pytest.mark.parametrize(("burst_s", "gap_s"), [(0.5, 0.5), (2.0, 6.0), (4.0, 2.0)])
def test_bursts_have_the_mean_lengths_they_are_given(burst_s, gap_s):
    fault = Burst("camera_drop", mean_burst_s=burst_s, mean_gap_s=gap_s, channels=["CAM_FRONT"])
    num = 100
    states = np.array(
        [[not applied(fault, at(k, num, f"scene {s}"), 1.0).cameras for k in range(0, num)] for s in range(6)]
    )
    # A chain's mean over n steps has about (2 tau + 1) times the variance of independent draws.
    share, tau = burst_s / (burst_s + gap_s), 1 / (0.5 / burst_s + 0.5 / gap_s)
    assert states.mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) * (2 * tau + 1) / states.size))
    before, after = states[:, :-1], states[:, 1:]
    for was, p in ((True, 0.5 / burst_s), (False, 0.5 / gap_s)):
        left = (after != was)[before == was]
        assert left.mean() == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / left.size) + 1e-12)


def test_burst_state_is_common_to_a_scene_and_differs_between_scenes_seeds_channels_and_epochs():
    fault = Burst("camera_noise", each="channel")
    frame = replace(SCENE[3], num_keyframes=40)

    def pattern(scene="a", epoch=None, seed=1):
        rows = []
        for k in range(24):
            now = replace(frame, token=f"{scene}{k}", scene=scene, keyframe=k)
            harmed = fault(now, NoHistory(), 20.0, Draws(seed, now.token, fault.name, epoch))
            rows.append(tuple(harmed.cameras[c] is not now.cameras[c] for c in CAMERAS))
        return tuple(rows)

    patterns = [pattern(), pattern("b"), pattern(epoch=0), pattern(epoch=1), pattern(seed=2)]
    assert pattern() == patterns[0]
    assert len(set(patterns)) == 5
    assert len(set(zip(*patterns[0], strict=True))) == 6
    together = Burst("camera_noise")
    hits = [applied(together, replace(frame, keyframe=k), 20.0).cameras for k in range(24)]
    assert {sum(c[n] is not frame.cameras[n] for n in CAMERAS) for c in hits} == {0, 6}


def test_resting_wrappers_return_the_frame_itself_and_others_what_the_fault_does():
    fault = fault_named("lidar_point_drop")
    onset = Onset("lidar_point_drop", begin=0.25, end=0.5)
    for k, frame in enumerate(SCENE):
        harmed = applied(onset, frame, 0.5)
        if 3 <= k < 6:
            assert digest(harmed) == digest(applied(fault, frame, 0.5))
        else:
            assert harmed is frame
    assert applied(onset, SCENE[4], 0.0) is SCENE[4]
    assert onset.levels == fault.levels
    assert (onset.name, onset.family, onset.worst) == ("lidar_point_drop", "points", 1.0)


def test_rising_fault_reaches_its_level_after_the_rise_and_keeps_it():
    onset = Onset("lidar_limited_view", begin=0.0, end=1.0, rise=0.5)
    levels = [onset.level_now(frame, 60.0) for frame in SCENE]
    # 180 deg is clean: down to 60 along a straight line over six keyframes, by their middles.
    assert levels == pytest.approx([180 - 20 * (k + 0.5) if k < 6 else 60.0 for k in range(12)])


def test_wrappers_restrict_like_any_fault():
    front = restricted(Burst("camera_drop", mean_burst_s=100.0, mean_gap_s=0.5), ["CAM_FRONT"])
    assert front.channels == ("CAM_FRONT",)
    assert (front.mean_burst_s, front.worst) == (100.0, 1.0)
    lost = [set(CHANNELS) - {c for c in CHANNELS if applied(front, SCENE[k], 1.0).present(c)} for k in range(12)]
    assert set(map(frozenset, lost)) == {frozenset({"CAM_FRONT"})} | ({frozenset()} if frozenset() in lost else set())


@given(
    steps=st.lists(st.floats(0.01, 0.6), min_size=1, max_size=8),
    wanted=st.floats(0, 3),
    draws=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    later=st.floats(0, 1),
)
def test_stale_step_brackets_the_wanted_time_and_is_monotone(steps, wanted, draws, later):
    lags = np.cumsum([0.0, *steps]).tolist()
    step = stale_step(lags, wanted, draws[0])
    if wanted >= lags[-1]:
        assert step == len(lags) - 1
    else:
        assert lags[max(step - 1, 0)] <= wanted <= lags[min(step + 1, len(lags) - 1)]
    assert stale_step(lags, wanted + later, draws[0]) >= step
    assert stale_step(lags, wanted, min(draws)) >= stale_step(lags, wanted, max(draws))


def test_late_pictures_are_late_by_the_level_on_average():
    # Keyframes half a second apart: two frames of 1/12 s are a third of that.
    fault, history = fault_named("camera_late"), ListHistory(SCENE, 11)
    old = []
    for i in range(100):
        frame = replace(SCENE[11], token=f"t{i}")
        images = applied(fault, frame, 2.0, history).cameras
        old += [np.array_equal(images[c].pixels, SCENE[10].cameras[c].pixels) for c in CAMERAS]
        assert images["CAM_FRONT"].lag_s == SCENE[11].cameras["CAM_FRONT"].lag_s
    assert np.mean(old) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 600))


def test_late_sweeps_move_down_the_slots_and_the_last_come_from_the_past():
    # Two sweeps per keyframe, 75 ms apart; eight sweeps of delay are 0.6 s: all but exactly one keyframe and more.
    frame, history, radar = SCENE[11], ListHistory(SCENE, 11), "RADAR_FRONT"
    one = applied(fault_named("radar_late", [radar]), frame, 1.0, history).radars[radar]
    assert one[0].velocity_mps is frame.radars[radar][1].velocity_mps
    assert one[0].xyz_m is frame.radars[radar][1].xyz_m
    for slot, today in zip(one, frame.radars[radar], strict=True):
        assert (slot.lag_s, slot.ego_from_radar) == (today.lag_s, today.ego_from_radar)
    eight = applied(fault_named("radar_late", [radar]), frame, 8.0, history).radars[radar]
    sources = [k for k in (9, 10) if eight[0].xyz_m is SCENE[k].radars[radar][1].xyz_m]
    assert sources == [10] or eight[0].xyz_m is SCENE[9].radars[radar][0].xyz_m
    other = applied(fault_named("radar_late", [radar]), frame, 8.0, history).radars["RADAR_BACK_LEFT"]
    assert other is frame.radars["RADAR_BACK_LEFT"]


def test_late_stops_at_the_scenes_start():
    first = applied(fault_named("camera_late"), SCENE[0], 6.0, ListHistory(SCENE, 0))
    assert digest(first) == digest(SCENE[0])
    second = applied(fault_named("lidar_late"), SCENE[1], 10.0, ListHistory(SCENE, 1))
    ends = [sweep.xyz_m for sweep in (*SCENE[0].lidar, SCENE[1].lidar[1])]
    assert all(any(sweep.xyz_m is end for end in ends) for sweep in second.lidar)


@given(speed=st.floats(-20, 40), rate=st.floats(-1, 1), a=st.floats(-0.5, 0.5), b=st.floats(-0.5, 0.5))
def test_planar_motion_is_a_group(speed, rate, a, b):
    both = planar_motion(speed, rate, a) @ planar_motion(speed, rate, b)
    assert np.allclose(both.matrix, planar_motion(speed, rate, a + b).matrix, atol=1e-9)


def test_planar_motion_by_hand():
    assert planar_motion(10, 0, 0.2).translation_m == pytest.approx([2, 0, 0])
    # A quarter of a circle of radius 10 / (pi / 2) to the left.
    quarter = planar_motion(10, np.pi / 2, 1.0)
    assert quarter.translation_m == pytest.approx([20 / np.pi, 20 / np.pi, 0])
    assert quarter.yaw_rad == pytest.approx(np.pi / 2)


def test_clock_offset_moves_stamp_and_pose_and_keeps_data_and_side_through_the_scene():
    fault = fault_named("lidar_clock_offset")
    sides = []
    for frame in SCENE:
        sweep, was = applied(fault, frame, 100.0).lidar[1], frame.lidar[1]
        assert sweep.xyz_m is was.xyz_m
        offset_s = was.lag_s - sweep.lag_s
        sides.append(np.sign(offset_s))
        assert abs(offset_s) == pytest.approx(0.1)
        moved = sweep.ego_from_lidar @ was.ego_from_lidar.inverse()
        # 8 m/s and 0.1 rad/s.
        assert moved.yaw_rad == pytest.approx(0.1 * offset_s)
        assert moved.translation_m[0] == pytest.approx(8 * offset_s, abs=1e-4)
    assert len(set(sides)) == 1
    other = [
        np.sign(f.lidar[0].lag_s - applied(fault, replace(f, scene=f"s{i}"), 100.0).lidar[0].lag_s)
        for i, f in enumerate(SCENE)
    ]
    assert set(other) == {-1, 1}
    assert isinstance(fault, ClockOffset)


def test_flicker_blackens_a_share_of_the_frames_of_each_camera():
    fault = fault_named("camera_flicker")
    black = []
    for i in range(200):
        images = applied(fault, replace(SCENE[0], token=f"t{i}"), 0.3).cameras
        black.append([not images[c].pixels.any() for c in CAMERAS])
    black = np.array(black)
    assert black.mean(axis=0) == pytest.approx([0.3] * 6, abs=4 * np.sqrt(0.21 / 200))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Burst("fogg"), "expected a fault of the families"),
        (lambda: Burst("camera_fog", channels=["RADAR_FRONT"]), "expected channels of camera_fog among"),
        (lambda: Burst("fog", mean_burst_s=0.1), "at least 0.5 s"),
        (lambda: Burst("fog", each="point"), "'sample' or 'channel'"),
        (lambda: Onset("fog", begin=0.6, end=0.4), "0 <= begin < end <= 1"),
        (lambda: Onset("fog", rise=0.9), "rise between 0 and"),
        (lambda: replace(LIDAR_STUCK, run=0), "at least 1 keyframe"),
        (lambda: replace(LIDAR_STUCK, begin=0.5, end=0.5), "0 <= begin < end <= 1"),
        (lambda: applied(Onset("lidar_beam_drop"), SCENE[0], 1.5), "expected a level of lidar_beam_drop between"),
        (lambda: applied(Burst("camera_drop", each="channel"), SCENE[0], 2.0), "between 0 and 1"),
        (lambda: applied(Onset("lidar_late", begin=0, end=1), LEAST, 2.0), "lidar_late, got none"),
        (lambda: applied(LIDAR_STUCK, LEAST, 0.5), "lidar_stuck, got none"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_stuck_is_a_fault_of_its_own_for_other_runs():
    twice = Stuck("lidar_twice", "stuck", "lidar", "share", (0.1, 0.2, 0.3, 0.4, 0.5), run=2)
    assert 0 in ages(twice, 0.5, 40, "a")
