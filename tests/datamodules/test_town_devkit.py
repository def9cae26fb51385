"""The devkit is the oracle of the town's format: it loads it, draws it and counts the same points."""

import json

import matplotlib
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility, points_in_box, view_points
from nuscenes.utils.splits import get_scenes_of_custom_split

from datamodules.town.names import ATTRIBUTES, CATEGORIES
from datamodules.town.world import SceneKey, build_world
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_FROM_CATEGORY, DETECTION_NAMES
from sensors.rig import CAMERAS, CHANNELS, LIDAR, RADARS
from tests.town_fixture import TINY_TOWN

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def town(tiny_town) -> NuScenes:
    return NuScenes("v1.0-town", str(tiny_town), verbose=False)


@pytest.fixture
def all_radar_points():
    """The devkit's radar filters are global state: off for the test, restored afterwards."""
    RadarPointCloud.disable_filters()
    yield
    RadarPointCloud.default_filters()


def test_tables_have_nuscenes_vocabulary(town):
    assert len(town.sample) == 9
    assert {row["name"] for row in town.category} == set(CATEGORIES)
    assert len(CATEGORIES) == 23
    assert set(DETECTION_FROM_CATEGORY) <= set(CATEGORIES)
    assert {row["name"] for row in town.attribute} == set(ATTRIBUTES) == set(ATTRIBUTE_NAMES)
    assert [row["level"] for row in town.visibility] == ["v0-40", "v40-60", "v60-80", "v80-100"]
    assert {row["channel"] for row in town.sensor} == set(CHANNELS)


def test_all_ten_classes_and_only_whole_samples(town):
    names = {DETECTION_FROM_CATEGORY[row["category_name"]] for row in town.sample_annotation}
    assert names == set(DETECTION_NAMES)
    assert all(set(sample["data"]) == set(CHANNELS) for sample in town.sample)


def test_splits_are_known_to_the_devkit(town):
    train = get_scenes_of_custom_split("town_train", town)
    val = get_scenes_of_custom_split("town_val", town)
    assert len(train) == 2
    assert len(val) == 1
    assert set(train) | set(val) == {scene["name"] for scene in town.scene}


def test_conditions_stand_in_the_descriptions(town):
    words = [scene["description"].split(",")[0] for scene in town.scene]
    assert words == ["Day", "Night", "Day"]


def test_lidar_point_counts_equal_the_devkits(town):
    for sample in town.sample:
        path, boxes, _ = town.get_sample_data(sample["data"][LIDAR], box_vis_level=BoxVisibility.NONE)
        points = LidarPointCloud.from_file(path).points[:3]
        counted = [int(points_in_box(box, points).sum()) for box in boxes]
        assert counted == [town.get("sample_annotation", box.token)["num_lidar_pts"] for box in boxes]


@pytest.mark.usefixtures("all_radar_points")
def test_radar_point_counts_equal_the_devkits(town):
    for sample in town.sample:
        counted = dict.fromkeys(sample["anns"], 0)
        for channel in RADARS:
            path, boxes, _ = town.get_sample_data(sample["data"][channel], box_vis_level=BoxVisibility.NONE)
            points = RadarPointCloud.from_file(path).points[:3]
            for box in boxes:
                counted[box.token] += int(points_in_box(box, points).sum())
        assert counted == {token: town.get("sample_annotation", token)["num_radar_pts"] for token in counted}


def test_every_label_is_seen_at_its_first_and_last_keyframe(town):
    def num_points(token):
        row = town.get("sample_annotation", token)
        return row["num_lidar_pts"] + row["num_radar_pts"]

    for instance in town.instance:
        assert num_points(instance["first_annotation_token"]) > 0
        assert num_points(instance["last_annotation_token"]) > 0


def test_measurement_chains_run_through_time(town):
    for scene in town.scene:
        first = town.get("sample", scene["first_sample_token"])
        for channel in CHANNELS:
            row = town.get("sample_data", first["data"][channel])
            while row["prev"]:
                row = town.get("sample_data", row["prev"])
            times, keyframes = [row["timestamp"]], row["is_key_frame"]
            while row["next"]:
                row = town.get("sample_data", row["next"])
                times.append(row["timestamp"])
                keyframes += row["is_key_frame"]
            assert times == sorted(set(times))
            assert keyframes == TINY_TOWN.samples_per_scene
            assert len(times) == keyframes * (1 if channel in CAMERAS else 2)


def test_annotation_chains_are_whole(town):
    for instance in town.instance:
        row = town.get("sample_annotation", instance["first_annotation_token"])
        count = 1
        assert row["prev"] == ""
        while row["next"]:
            later = town.get("sample_annotation", row["next"])
            assert later["prev"] == row["token"]
            row, count = later, count + 1
        assert count == instance["nbr_annotations"]
        assert row["token"] == instance["last_annotation_token"]


def test_timestamps_are_nuscenes_like(town):
    for sample in town.sample:
        assert town.get("sample_data", sample["data"][LIDAR])["timestamp"] == sample["timestamp"]
        for channel in CAMERAS:
            lag = sample["timestamp"] - town.get("sample_data", sample["data"][channel])["timestamp"]
            assert 0 <= lag <= 43_000


def test_velocities_are_the_actors_own(town):
    """The devkit differentiates label positions over a second; the actors know their speed."""
    world = build_world(TINY_TOWN, SceneKey("train", 0))
    sample = town.get("sample", town.scene[0]["first_sample_token"])
    sample = town.get("sample", sample["next"])
    checked = 0
    for token in sample["anns"]:
        row = town.get("sample_annotation", token)
        if not (row["prev"] and row["next"]):
            continue
        time_s = world.time_s(sample["timestamp"])
        offsets = [np.linalg.norm(np.array(actor.box_center_m(time_s)) - row["translation"]) for actor in world.actors]
        actor = world.actors[int(np.argmin(offsets))]
        assert min(offsets) < 1e-6
        expected = (actor.motion.velocity(time_s - 0.25) + actor.motion.velocity(time_s + 0.25))[:2] / 2
        np.testing.assert_allclose(town.box_velocity(token)[:2], expected, atol=0.15)
        attribute = town.get("attribute", row["attribute_tokens"][0])["name"] if row["attribute_tokens"] else ""
        assert attribute == actor.attribute(time_s)
        checked += 1
    assert checked > 10


def test_lidar_points_of_a_box_project_into_its_outline(town):
    """Calibration, poses and pictures agree: what stands still and lies in a box appears inside it in the picture."""
    sample = town.sample[0]
    path, boxes, _ = town.get_sample_data(sample["data"][LIDAR], box_vis_level=BoxVisibility.NONE)
    cloud = LidarPointCloud.from_file(path)
    chosen = [box for box in boxes if np.linalg.norm(town.box_velocity(box.token)) < 0.05]
    owners = {box.token: points_in_box(box, cloud.points[:3]) for box in chosen}
    lidar = town.get("sample_data", sample["data"][LIDAR])
    for step in _global_from_sensor(town, lidar):
        cloud.rotate(step[0])
        cloud.translate(step[1])
    checked = 0
    for channel in CAMERAS:
        row = town.get("sample_data", sample["data"][channel])
        _, seen, matrix = town.get_sample_data(row["token"], box_vis_level=BoxVisibility.ALL)
        points = cloud.points[:3].copy()
        for rotation, translation in reversed(_global_from_sensor(town, row)):
            points = rotation.T @ (points - translation[:, None])
        for box in seen:
            if box.token in owners and owners[box.token].any():
                corners = view_points(box.corners(), matrix, normalize=True)[:2]
                pixels = view_points(points[:, owners[box.token]], matrix, normalize=True)[:2]
                assert (pixels >= corners.min(axis=1, keepdims=True) - 0.01).all()
                assert (pixels <= corners.max(axis=1, keepdims=True) + 0.01).all()
                checked += 1
    assert checked > 3


def _global_from_sensor(town, row):
    from pyquaternion import Quaternion

    steps = []
    for table, token in (
        ("calibrated_sensor", row["calibrated_sensor_token"]),
        ("ego_pose", row["ego_pose_token"]),
    ):
        pose = town.get(table, token)
        steps.append((Quaternion(pose["rotation"]).rotation_matrix, np.array(pose["translation"])))
    return steps


@pytest.mark.parametrize("channel", ["CAM_FRONT", LIDAR, "RADAR_FRONT"])
def test_the_devkit_draws_a_measurement(town, channel, tmp_path):
    picture = tmp_path / "out.png"
    town.render_sample_data(
        town.sample[1]["data"][channel], nsweeps=2, out_path=str(picture), verbose=False, underlay_map=True
    )
    assert picture.stat().st_size > 5_000


@pytest.mark.parametrize("channel", [LIDAR, "RADAR_FRONT"])
def test_the_devkit_maps_points_into_a_picture(town, channel):
    data = town.sample[0]["data"]
    pixels, depths, picture = town.explorer.map_pointcloud_to_image(data[channel], data["CAM_FRONT"])
    assert picture.size == (160, 90)
    assert pixels.shape[1] == len(depths) > 3
    assert depths.min() > 1.0


def test_maps_show_where_the_vehicle_drives(town):
    for scene in town.scene:
        log = town.get("log", scene["log_token"])
        mask = town.get("map", log["map_token"])["mask"]
        sample = town.get("sample", scene["first_sample_token"])
        pose = town.get("ego_pose", town.get("sample_data", sample["data"][LIDAR])["ego_pose_token"])
        x, y = pose["translation"][:2]
        assert mask.is_on_mask(np.array([x]), np.array([y])).all()


def test_no_table_names_a_place_on_this_machine(tiny_town):
    for table in (tiny_town / "v1.0-town").glob("*.json"):
        assert str(tiny_town) not in table.read_text()
    names = [row["filename"] for row in json.loads((tiny_town / "v1.0-town" / "sample_data.json").read_text())]
    assert all((tiny_town / name).is_file() for name in names)
    assert names[0].split("/")[0] in ("samples", "sweeps")
