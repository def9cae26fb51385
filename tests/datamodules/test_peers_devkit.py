"""The devkit's own tests, renderers and export scripts, run against the town.

What passes and what cannot apply: docs/peers-tests.md. Windows are the one thing replaced: the headless OpenCV that the
devkit installs has none.
"""

import json
import os
import unittest
from functools import partial

import cv2
import matplotlib
import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.utils.geometry_utils import BoxVisibility

from sensors.boxes import DETECTION_FROM_CATEGORY
from sensors.rig import CAMERAS, LIDAR

matplotlib.use("Agg")
IMAGE_PX = (160, 90)


@pytest.fixture(scope="module")
def as_mini(tiny_town, tmp_path_factory):
    """The town under the version name that the devkit's tests have in their source."""
    root = tmp_path_factory.mktemp("mini")
    for name in ("samples", "sweeps", "maps"):
        (root / name).symlink_to(tiny_town / name)
    (root / "v1.0-mini").mkdir()
    for table in (tiny_town / "v1.0-town").glob("*.json"):
        (root / "v1.0-mini" / table.name).symlink_to(table)
    return root


@pytest.fixture(scope="module")
def nusc(as_mini):
    return NuScenes("v1.0-mini", str(as_mini), verbose=False)


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture
def no_windows(monkeypatch):
    for name in ("namedWindow", "moveWindow", "imshow", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda *_: -1)


def num_pictures(path) -> int:
    """Of a video; every one must be decodable."""
    video, count = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        count += 1
    return count


def test_its_own_test_of_loading(as_mini, monkeypatch):
    from nuscenes.tests.test_nuscenes import TestNuScenes

    monkeypatch.setenv("NUSCENES", str(as_mini))
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(TestNuScenes).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), result.errors + result.failures


def test_its_check_of_a_download(nusc, capsys):
    """Every file of every table is there, and every map."""
    from nuscenes.tests.assert_download import verify_setup

    verify_setup(nusc)
    assert "missing" not in capsys.readouterr().out.lower()


def test_its_mock_submission_is_evaluated(nusc, tmp_path, monkeypatch):
    """``test_evaluate.TestMain.test_delta`` without its last line, which holds the score of the real mini_val."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.tests.test_evaluate import TestMain

    monkeypatch.setattr("random.random", np.random.default_rng(0).random)
    np.random.seed(42)  # noqa: NPY002 (the devkit draws from the global generator)
    submission = tmp_path / "submission.json"
    submission.write_text(json.dumps(TestMain._mock_submission(nusc, "town_val")))
    config = config_factory("detection_cvpr_2019")
    metrics, _ = DetectionEval(nusc, config, str(submission), "town_val", str(tmp_path / "out"), False).evaluate()
    assert 0 < metrics.nd_score < 1
    assert 0 < metrics.mean_ap < 1


def test_its_lists(nusc, capsys):
    nusc.list_categories()
    nusc.list_attributes()
    nusc.list_scenes()
    nusc.list_sample(nusc.sample[0]["token"])
    text = capsys.readouterr().out
    assert "vehicle.car" in text
    assert all(scene["name"][-4:] in text for scene in nusc.scene)


def test_its_pictures_of_a_sample(nusc, tmp_path):
    sample = nusc.sample[1]
    nusc.render_sample(sample["token"], out_path=str(tmp_path / "sample.png"), verbose=False)
    for i, sensor in enumerate((LIDAR, "RADAR_FRONT")):
        nusc.render_pointcloud_in_image(
            sample["token"], pointsensor_channel=sensor, out_path=str(tmp_path / f"points{i}.png"), verbose=False
        )
    nusc.render_pointcloud_in_image(
        sample["token"], render_intensity=True, out_path=str(tmp_path / "intensity.png"), verbose=False
    )
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 4


def test_its_pictures_of_labels(nusc, tmp_path):
    """``render_annotation`` wants the box in exactly one keyframe camera: any that some camera sees whole."""
    sample = nusc.sample[1]
    _, boxes, _ = nusc.get_sample_data(sample["data"]["CAM_FRONT"], box_vis_level=BoxVisibility.ALL)
    token = boxes[0].token
    nusc.render_annotation(token, out_path=str(tmp_path / "annotation.png"))
    nusc.render_instance(
        nusc.get("sample_annotation", token)["instance_token"], out_path=str(tmp_path / "instance.png")
    )
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.usefixtures("no_windows")
def test_its_videos_of_a_scene(nusc, tmp_path):
    """Ten pictures a second for six cameras together; every picture of one camera by itself."""
    scene = nusc.scene[0]
    nusc.render_scene(scene["token"], imsize=(160, 90), out_path=str(tmp_path / "scene.avi"))
    nusc.render_scene_channel(scene["token"], "CAM_BACK", imsize=(160, 90), out_path=str(tmp_path / "channel.avi"))
    first, last = (nusc.get("sample", scene[f"{end}_sample_token"]) for end in ("first", "last"))
    assert num_pictures(tmp_path / "scene.avi") == np.ceil((last["timestamp"] - first["timestamp"]) / 100_000)
    assert num_pictures(tmp_path / "channel.avi") >= scene["nbr_samples"]


@pytest.mark.slow
def test_export_egoposes_on_map(nusc, tmp_path, monkeypatch):
    """By way of ``render_egoposes_on_map``."""
    from nuscenes.scripts.export_egoposes_on_map import export_ego_poses

    monkeypatch.setattr(nusc, "log", nusc.log[:1])
    export_ego_poses(nusc, str(tmp_path / "maps"))
    assert next((tmp_path / "maps").glob("*.png")).stat().st_size > 5_000


@pytest.mark.usefixtures("no_windows")
def test_export_scene_videos(nusc, tmp_path, monkeypatch):
    from nuscenes.scripts.export_scene_videos import export_videos

    monkeypatch.setattr(nusc, "scene", nusc.scene[:1])
    export_videos(nusc, str(tmp_path / "videos"))
    assert num_pictures(next((tmp_path / "videos").iterdir())) > 0


def test_export_poses(nusc):
    """Poses pass; latitudes are known for nuScenes' four cities alone, and the town lies in none."""
    from nuscenes.scripts import export_poses

    poses = export_poses.get_poses(nusc, nusc.scene[0]["token"])
    assert len(poses) >= nusc.scene[0]["nbr_samples"]
    assert all(b["timestamp"] > a["timestamp"] for a, b in zip(poses, poses[1:], strict=False))
    location = nusc.get("log", nusc.scene[0]["log_token"])["location"]
    with pytest.raises(AssertionError, match="no available reference"):
        export_poses.derive_latlon(location, poses)
    assert len(export_poses.derive_latlon("boston-seaport", poses)) == len(poses)


def test_export_pointclouds_as_obj(nusc, tmp_path):
    from nuscenes.scripts.export_pointclouds_as_obj import export_scene_pointcloud

    export_scene_pointcloud(nusc, str(tmp_path / "scene.obj"), nusc.scene[0]["token"], max_dist=8.0, verbose=False)
    lines = (tmp_path / "scene.obj").read_text().splitlines()
    points = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    assert len(points) > 1000
    assert np.isfinite(points).all()


@pytest.fixture(scope="module")
def records_2d(nusc):
    """What ``export_2d_annotations_as_json`` writes, of the cameras of two samples.

    The script takes every picture to be 1600x900; its function has the size as an argument.
    """
    from nuscenes.scripts import export_2d_annotations_as_json as script

    patch = pytest.MonkeyPatch()
    patch.setattr(script, "nusc", nusc, raising=False)
    patch.setattr(script, "post_process_coords", partial(script.post_process_coords, imsize=IMAGE_PX))
    tokens = [sample["data"][channel] for sample in nusc.sample[:2] for channel in CAMERAS]
    records = [record for token in tokens for record in script.get_2d_boxes(token, ["", "1", "2", "3", "4"])]
    patch.undo()
    return json.loads(json.dumps(records))


def test_export_2d_annotations(nusc, records_2d):
    """Outlines inside the picture, of labels of its sample, around the projected centre of boxes seen whole."""
    assert len(records_2d) > 20
    checked = 0
    for record in records_2d:
        x1, y1, x2, y2 = record["bbox_corners"]
        assert 0 <= x1 <= x2 <= IMAGE_PX[0]
        assert 0 <= y1 <= y2 <= IMAGE_PX[1]
        data = nusc.get("sample_data", record["sample_data_token"])
        assert record["sample_annotation_token"] in nusc.get("sample", data["sample_token"])["anns"]
        _, boxes, intrinsics = nusc.get_sample_data(
            data["token"], BoxVisibility.ALL, [record["sample_annotation_token"]]
        )
        for box in boxes:
            x, y, depth = intrinsics @ box.center
            assert x1 <= x / depth <= x2
            assert y1 <= y / depth <= y2
            checked += 1
    assert checked > 10


def test_export_instance_videos(nusc, as_mini, records_2d, tmp_path, monkeypatch):
    from nuscenes.scripts import export_instance_videos as script

    boxes = script.convert_annotation_list_to_dict([dict(record) for record in records_2d])
    assert set(boxes) <= {instance["token"] for instance in nusc.instance}
    written = 0
    for samples in boxes.values():
        best = script.get_most_visible_camera_annotation(next(iter(samples.values())))
        x1, y1, x2, y2 = best["bbox_corners"]
        if x2 <= 150 and y2 <= 80 and x2 - x1 > 3 and y2 - y1 > 3:
            picture = script.get_cropped_image_for_annotation(best, str(as_mini), (32, 32))
            assert np.asarray(picture).shape == (32, 32, 3)
            written += 1
    assert written > 3


def test_export_kitti_and_back(nusc, as_mini, tmp_path, monkeypatch):
    """To KITTI's format and back: the boxes are those that the devkit sees from the LiDAR.

    ``render_kitti`` itself fails in devkit 1.2 on any data set (it calls a method without its object); given a colour
    function, what it calls draws.
    """
    from nuscenes.scripts import export_kitti as script

    monkeypatch.setattr(script, "NuScenes", lambda version: nusc)
    # The script's list of logs by split knows nuScenes' own splits alone.
    monkeypatch.setattr(script, "create_splits_logs", lambda split, nusc: [log["logfile"] for log in nusc.log])
    converter = script.KittiConverter(str(tmp_path), image_count=2, split="mini_train")
    converter.nuscenes_gt_to_kitti()
    kitti = script.KittiDB(root=str(tmp_path), splits=("mini_train",))
    for sensor in ("lidar", "camera"):
        kitti.render_sample_data(
            kitti.tokens[0], sensor, color_func=lambda _: (255, 0, 0), out_path=str(tmp_path / f"{sensor}.png")
        )
        assert (tmp_path / f"{sensor}.png").stat().st_size > 5_000
    converter.kitti_res_to_nuscenes()
    results = json.loads((tmp_path / "submission.json").read_text())["results"]
    assert len(results) == 2
    for token, boxes in results.items():
        _, expected, _ = nusc.get_sample_data(nusc.get("sample", token)["data"][LIDAR])
        centers = np.array([box.center for box in expected if box.name in DETECTION_FROM_CATEGORY])
        assert len(boxes) > 0
        for box in boxes:
            # KITTI's labels have two decimals.
            assert np.linalg.norm(centers - box["translation"], axis=1).min() < 0.03


def test_what_cannot_apply(nusc, as_mini, monkeypatch):
    """Say so as soon as one of them could: each needs an expansion, another data set, or a package."""
    monkeypatch.setenv("NUSCENES", str(as_mini))
    assert not hasattr(nusc, "lidarseg"), "test_lidarseg: point labels"
    assert not hasattr(nusc, "panoptic"), "panoptic tests: point labels"
    assert not (as_mini / "maps" / "expansion").exists(), "test_all_maps, test_static_layers: vector maps"
    assert not (as_mini / "can_bus").exists(), "can_bus"
    racks = [row for row in nusc.sample_annotation if row["category_name"] == "static_object.bicycle_rack"]
    assert not racks or os.environ["NUSCENES"], "test_loader: one bicycle rack of one real sample, by token"
    with pytest.raises(KeyError):
        nusc.get("sample", "0af0feb5b1394b928dd13d648de898f5")
