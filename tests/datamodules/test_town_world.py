"""The world itself: sizes, motion, space between things, and codes that must not give the class away."""

import collections
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.nuscenes import conditions_of
from datamodules.town.actors import Motion, Pace, make_actor
from datamodules.town.bodies import SIZES_LWH_M, body_of, size_of, swing_of
from datamodules.town.clearance import outlines_touch
from datamodules.town.layouts import RANGES
from datamodules.town.liveries import livery
from datamodules.town.presets import CONDITIONS, PRESETS, TownConfig
from datamodules.town.roads import LANE_OFFSETS_M, Crossing, Road, Shape
from datamodules.town.sampling import count_inside
from datamodules.town.wanderers import swerving, turning_path
from datamodules.town.world import SceneKey, build_world, condition_of, is_dark
from sensors.boxes import DETECTION_FROM_CATEGORY, DETECTION_NAMES, Boxes

CONFIG = TownConfig(samples_per_scene=4)


@pytest.fixture(scope="module")
def worlds():
    return [build_world(CONFIG, SceneKey("train", index)) for index in range(3)]


@pytest.fixture(scope="module")
def many_worlds(worlds):
    return [*worlds, *(build_world(CONFIG, SceneKey("train", index)) for index in range(3, 14))]


def test_conditions_are_dealt_by_quota():
    config = TownConfig(day_weight=0.5, night_weight=0.25, fog_weight=0.25, rain_weight=0.0)
    counts = collections.Counter(condition_of(config, SceneKey("train", index)) for index in range(8))
    assert counts == {"day": 4, "night": 2, "fog": 2}


def test_a_third_of_fog_and_rain_is_at_night():
    config, keys = PRESETS["bench"], [SceneKey("train", index) for index in range(80)]
    told = collections.Counter((condition_of(config, key), is_dark(config, key)) for key in keys)
    assert told == {
        **{("day", False): 28, ("night", True): 20},
        **{("fog", False): 11, ("fog", True): 5, ("rain", False): 11, ("rain", True): 5},
    }
    assert not any(is_dark(replace(config, dark_share=0.0), key) for key in keys if condition_of(config, key) == "fog")


def test_the_description_tells_darkness_and_weather():
    config = replace(CONFIG, day_weight=0.0, night_weight=0.0, fog_weight=0.0, dark_share=0.5, num_actors=5)
    worlds = [build_world(config, SceneKey("train", index)) for index in range(2)]
    assert [conditions_of(world.description) for world in worlds] == [{"rain"}, {"night", "rain"}]
    assert [world.light.night for world in worlds] == [False, True]
    assert all(world.light.rain_mm_h > 0 for world in worlds)
    assert max(worlds[1].light.horizon_rgb) < 0.2 * max(worlds[0].light.horizon_rgb)


def test_every_condition_is_in_a_split_of_four():
    assert {condition_of(TownConfig(), SceneKey("val", index)) for index in range(4)} == set(CONDITIONS)


@pytest.mark.parametrize("name", DETECTION_NAMES)
def test_bodies_fill_their_size_and_stand_on_the_ground(name):
    rng = np.random.default_rng(0)
    for stance in ("", "rider", "sitting", "walking"):
        size = size_of(name, stance, rng)
        vertices = body_of(name, size, stance, rng).vertices_m
        np.testing.assert_allclose(vertices.max(axis=0) - vertices.min(axis=0), size, rtol=1e-4)
        assert abs(vertices[:, 2].min()) < 1e-5


def test_sizes_follow_the_published_means():
    rng = np.random.default_rng(1)
    drawn = np.array([size_of("car", "", rng) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(axis=0), SIZES_LWH_M["car"][0], rtol=0.02)


def test_sizes_are_those_of_real_instances(nuscenes_real):
    """Mean length, width and height per class over the instances of the official split mini_val."""
    tables = nuscenes_real / "minival-tables" / "v1.0-mini"
    rows = {name: json.loads((tables / f"{name}.json").read_text()) for name in ("category", "instance")}
    first = {row["instance_token"]: row for row in json.loads((tables / "sample_annotation.json").read_text())}
    names = {row["token"]: row["name"] for row in rows["category"]}
    sizes = collections.defaultdict(list)
    for instance in rows["instance"]:
        width, length, height = first[instance["token"]]["size"]
        sizes[DETECTION_FROM_CATEGORY.get(names[instance["category_token"]])].append((length, width, height))
    for name in ("car", "pedestrian", "motorcycle", "bicycle", "traffic_cone"):
        mean, spread = SIZES_LWH_M[name]
        np.testing.assert_allclose(np.mean(sizes[name], axis=0), mean, atol=0.006)
        np.testing.assert_allclose(np.std(sizes[name], axis=0), spread, atol=0.006)


def test_walking_legs_change_feet_and_stay_in_the_box():
    rng = np.random.default_rng(5)
    size = (0.7, 0.6, 1.75)
    body = body_of("pedestrian", size, "walking", rng)
    swing = swing_of(body)
    left, right = body.vertices_m[13], body.vertices_m[27]
    assert left[0] - right[0] > 0.3
    other = body.vertices_m - 2 * swing
    assert other[27][0] - other[13][0] == pytest.approx(float(left[0] - right[0]), abs=1e-5)
    together = body.vertices_m - swing
    assert together[13][0] == pytest.approx(float(together[27][0]), abs=1e-5)
    assert (np.ptp(other, axis=0) <= np.array(size) + 0.12).all()
    assert not swing[52:].any()


def test_reflectivity_does_not_tell_the_class():
    """Means of 60 instances per class differ by less than four standard errors from the common mean."""
    rng = np.random.default_rng(2)
    motion = Motion(Road((-10.0, 10.0), Shape(0.0)), 0.0, 0.0)
    values = {}
    for name in DETECTION_NAMES:
        actors = [make_actor(name, "", motion, rng) for _ in range(60)]
        values[name] = np.array([actor.reflectivity for actor in actors])
    everything = np.concatenate(list(values.values()))
    for name in DETECTION_NAMES:
        error = everything.std(axis=0) / np.sqrt(len(values[name]))
        assert (np.abs(values[name].mean(axis=0) - everything.mean(axis=0)) < 4 * error).all(), name


def test_one_look_at_the_colours_tells_little_of_the_class():
    """The nearest of 100 liveries per class has the right class less than three times as often as a guess, in each
    class less than half of the time: typical colours exist, codes do not."""
    rng = np.random.default_rng(6)
    seen, unseen = (
        np.array([[livery(name, "", rng)[:2].ravel() for _ in range(100)] for name in DETECTION_NAMES]) for _ in "ab"
    )
    nearest = ((unseen[:, :, None] - seen.reshape(-1, 6)) ** 2).sum(axis=3).argmin(axis=2) // 100
    right = (nearest == np.arange(10)[:, None]).mean(axis=1)
    assert right.mean() < 0.3
    assert right.max() < 0.5
    assert right[DETECTION_NAMES.index("traffic_cone")] > 0.3


def test_shuffled_materials_change_the_liveries_alone():
    plain, dressed = (build_world(replace(CONFIG, shuffle_materials=on), SceneKey("val", 1)) for on in (False, True))
    assert len(plain.actors) == len(dressed.actors) > 20
    owners = {actor.colours.tobytes(): actor.name for actor in plain.actors}
    for before, after in zip(plain.actors, dressed.actors, strict=True):
        assert before.motion.pose(0.7) == after.motion.pose(0.7)
        assert (before.category, before.stance, before.size_lwh_m) == (after.category, after.stance, after.size_lwh_m)
        np.testing.assert_array_equal(before.body.vertices_m, after.body.vertices_m)
        assert owners[after.colours.tobytes()] != after.name
    assert plain.description == dressed.description
    assert plain.light == dressed.light
    for before, after in zip(plain.scenery, dressed.scenery, strict=True):
        np.testing.assert_array_equal(before.mesh.vertices_m, after.mesh.vertices_m)
        np.testing.assert_array_equal(before.colours, after.colours)


def test_nothing_stands_in_anything_else(worlds):
    """Ground outlines share no ground (less than 5 % of their union), now or later."""
    pairs = bad = 0
    for world in worlds:
        for time_s in (0.0, 0.5, 1.5):
            x, y, _, yaw = world.ego.pose(time_s)
            outlines = [((x + np.cos(yaw), y + np.sin(yaw)), (4.0, 1.8), np.rad2deg(yaw))]
            for actor in world.actors:
                pose = actor.motion.pose(time_s)
                outlines.append((pose[:2], actor.size_lwh_m[:2], np.rad2deg(pose[3])))
            centers = np.array([outline[0] for outline in outlines])
            for i, outline in enumerate(outlines):
                for j in np.flatnonzero(np.hypot(*(centers[i + 1 :] - centers[i]).T) < 14) + i + 1:
                    touches, corners = cv2.rotatedRectangleIntersection(outline, outlines[j])
                    area = cv2.contourArea(cv2.convexHull(corners)) if touches else 0.0
                    pairs += 1
                    bad += area > 0.05 * (np.prod(outline[1]) + np.prod(outlines[j][1]) - area)
    assert pairs > 1000
    assert bad == 0


@pytest.mark.parametrize(("dx", "turn", "touches"), [(4.9, 0.0, True), (5.1, 0.0, False), (3.6, 90.0, False)])
def test_outlines_touch_as_drawn(dx, turn, touches):
    """Two boxes of 5 m x 2 m: end to end, and one across the other's end (2.5 + 1 m apart)."""
    half = np.array([2.5, 1.0])
    other = np.array([dx, 0.3, np.deg2rad(turn)])
    assert bool(outlines_touch(np.zeros(3), half, other, half)) is touches


@given(st.tuples(*[st.floats(-6, 6)] * 2), st.floats(0, 6.3), st.tuples(*[st.floats(0.2, 3)] * 4))
def test_outlines_touch_where_opencv_finds_ground_in_common(place, turn, half):
    a, b = ((0.0, 0.0), (2 * half[0], 2 * half[1]), 0.0), (place, (2 * half[2], 2 * half[3]), np.rad2deg(turn))
    found, corners = cv2.rotatedRectangleIntersection(a, b)
    area = cv2.contourArea(cv2.convexHull(corners)) if found else 0.0
    told = bool(outlines_touch(np.zeros(3), np.array(half[:2]), np.array([*place, turn]), np.array(half[2:])))
    assert told or area < 1e-3
    if told and not area:  # they touch by a hair: a millimetre less and they do not
        less = np.array(half) - 2e-3
        assert not outlines_touch(np.zeros(3), less[:2], np.array([*place, turn]), less[2:])


def test_a_change_of_lanes_ends_in_the_other_lane_and_looks_ahead():
    road = Road((-50.0, 150.0), Shape(0.3))
    for direction, start in ((1, 0.0), (-1, 100.0)):
        motion = swerving(Motion(road, start, 1.75, direction, Pace(8.0)), 5.1, 50.0, np.random.default_rng(0))
        for time_s, d in ((0.0, 1.75), (12.0, 5.1)):
            expected = road.xy(start + direction * 8.0 * time_s, d)
            np.testing.assert_allclose(motion.pose(time_s)[:2], expected, atol=1e-9)
        for time_s in np.linspace(0.1, 12.0, 40):
            vx, vy, _ = motion.velocity(float(time_s))
            error = np.arctan2(vy, vx) - motion.pose(float(time_s))[3]
            assert abs(np.angle(np.exp(1j * error))) < 0.01


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("arm", [1, -1])
def test_who_turns_off_leaves_by_the_right_hand_lane(direction, arm):
    road, side = Road((-200.0, 200.0), Shape(0.4)), Road((-85.0, 85.0), Shape(0.4 + np.pi / 2))
    side.shifted(road.xy(20.0, 0.0) - side.xy(0.0, 0.0))
    path = turning_path(road, Crossing(side, 20.0), direction, arm, 10.0)
    motion = Motion(path, -40.0, 0.0, 1, Pace(5.0))
    rates = [motion.yaw_rate(float(time_s)) for time_s in np.linspace(8.1, 11.0, 7)]
    np.testing.assert_allclose(rates, direction * arm * 5.0 / 10.0, rtol=1e-6)
    np.testing.assert_allclose(motion.pose(14.0)[:2], _on(side, motion.pose(14.0), -2.4 * arm), atol=1e-2)
    lane = LANE_OFFSETS_M[0] if direction * arm > 0 else LANE_OFFSETS_M[1]
    np.testing.assert_allclose(motion.pose(1.0)[:2], _on(road, motion.pose(1.0), -direction * lane), atol=1e-2)
    heading = motion.pose(14.0)[3] - (0.4 + np.pi / 2 + (np.pi if arm < 0 else 0.0))
    assert abs(np.angle(np.exp(1j * heading))) < 1e-6


def _on(road, pose, d_m):
    """The place at an offset of a straight road that is nearest to a pose."""
    s = np.linspace(*road.s_range_m, 40_001)
    places = road.xy(s, np.full_like(s, d_m))
    return places[np.hypot(*(places - pose[:2]).T).argmin()]


def test_some_cross_some_change_lanes_and_some_turn_off(many_worlds):
    found = collections.Counter()
    for world in many_worlds:
        for actor in world.actors:
            headings = [actor.motion.pose(time_s)[3] for time_s in (0.0, 1.5)]
            found["lanes"] += actor.motion.swerve is not None
            if actor.name == "pedestrian" and actor.motion.dip_m and actor.motion.road.s_range_m[1] < 40.0:
                found["across"] += 1
                found["on the road"] += actor.motion.pose(0.7)[2] == 0.0
            found["turning"] += abs(headings[1] - headings[0]) > 0.3 and actor.name != "pedestrian"
    assert found["lanes"] > 5
    assert found["across"] > 5
    assert found["on the road"] > 3
    assert found["turning"] > 0


def test_about_as_many_actors_as_asked_for(worlds):
    near = []
    for world in worlds:
        ego = np.array(world.ego.pose(0.5)[:2])
        places = np.array([actor.motion.pose(0.5)[:2] for actor in world.actors])
        near.append((np.hypot(*(places - ego).T) < 50.0).sum())
    assert 0.7 * CONFIG.num_actors < np.mean(near) < 1.4 * CONFIG.num_actors


def test_training_and_validation_worlds_differ():
    train, val = (build_world(CONFIG, SceneKey(split, 0)) for split in ("train", "val"))
    assert train.ego.pose(0.0) != val.ego.pose(0.0)
    assert len(train.actors) != len(val.actors) or train.actors[0].size_lwh_m != val.actors[0].size_lwh_m


def test_a_road_keeps_its_distances():
    road = Road((-50.0, 150.0), Shape(0.7, swing_rad=0.4, wavelength_m=200.0))
    s = np.linspace(-40.0, 140.0, 50)
    places = np.array([road.place(float(a), 3.0)[:2] for a in s])
    np.testing.assert_allclose(places, road.xy(s, np.full(50, 3.0)), atol=1e-9)
    center = road.xy(s, np.zeros(50))
    np.testing.assert_allclose(np.linalg.norm(places - center, axis=1), 3.0, atol=1e-9)
    fine = road.xy(np.arange(0.0, 100.0, 0.5), np.zeros(200))
    np.testing.assert_allclose(np.linalg.norm(np.diff(fine, axis=0), axis=1).sum(), 99.5, rtol=1e-6)


@pytest.mark.parametrize(
    "shape", [Shape(0.3, bend=(20.0, 60.0, 0.9)), Shape(-1.0, island=(50.0, 27.0, 7.0)), Shape(2.0, 0.3, 240.0, 1.0)]
)
def test_a_heading_is_the_direction_of_travel(shape):
    road = Road((-50.0, 150.0), shape)
    for d in (-5.1, 1.75):
        for start, direction in ((10.0, 1), (95.0, -1)):
            motion = Motion(road, start, d, direction, Pace(8.0))
            for time_s in np.linspace(0.5, 10.0, 30):
                vx, vy, _ = motion.velocity(float(time_s))
                error = np.arctan2(vy, vx) - motion.pose(float(time_s))[3]
                assert abs(np.angle(np.exp(1j * error))) < 0.03


def test_a_bend_is_a_turn_at_a_constant_rate():
    motion = Motion(Road((-50.0, 150.0), Shape(0.0, bend=(20.0, 60.0, 0.9))), 0.0, 1.75, 1, Pace(10.0))
    rates = [motion.yaw_rate(float(time_s)) for time_s in np.linspace(2.2, 7.8, 9)]
    np.testing.assert_allclose(rates, 0.9 / 60.0 * 10.0, rtol=1e-6)


def test_stop_and_go_stops_and_its_attribute_follows():
    pace = Pace(3.0, 3.0, 0.7, 0.0)
    actor = make_actor("car", "", Motion(Road((-90.0, 90.0), Shape(0.0)), 0.0, 1.75, 1, pace), np.random.default_rng(0))
    times = np.linspace(0.0, 9.0, 181)
    told = {actor.attribute(float(time_s)) for time_s in times}
    assert told == {"vehicle.moving", "vehicle.stopped"}
    assert min(pace.speed_at(time_s) for time_s in times) > -1e-9


def test_validation_layouts_differ_from_training(many_worlds):
    for name in ("swing", "bend", "radius_m", "part_m"):
        (low_a, high_a), (low_b, high_b) = RANGES["train"][name], RANGES["val"][name]
        assert high_a <= low_b or high_b <= low_a
    layouts = {world.description.split(", ")[1] for world in many_worlds}
    assert len(layouts) >= 5


def test_pace_is_the_integral_of_its_speed():
    pace = Pace(8.0, 2.0, 0.6, 1.0)
    times = np.linspace(0.0, 4.0, 4001)
    speeds = np.array([pace.speed_at(time) for time in times])
    assert pace.travelled_m(4.0) == pytest.approx(float(((speeds[1:] + speeds[:-1]) / 2).sum() * 0.001), abs=1e-5)


def test_counting_agrees_with_boxes():
    rng = np.random.default_rng(3)
    points = rng.uniform(-10, 10, (5000, 3))
    centers, sizes, yaws = rng.uniform(-8, 8, (20, 3)), rng.uniform(0.5, 6, (20, 3)), rng.uniform(-4, 4, 20)
    none = np.zeros(20, np.int64)
    boxes = Boxes(centers, sizes, yaws, np.zeros((20, 2)), none, np.ones(20), none, none)
    np.testing.assert_array_equal(count_inside(points, centers, sizes, yaws), boxes.count_inside(points))
