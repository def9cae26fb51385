"""Real nuScenes against the devkit: every chain, box and velocity. Skipped where the data are absent."""

import shutil

import numpy as np
import pytest

from datamodules.index import build_index, open_index
from datamodules.labels import boxes_of
from datamodules.nuscenes import NuScenesFrames
from sensors.boxes import ATTRIBUTE_NAMES, DETECTION_FROM_CATEGORY, DETECTION_NAMES, Boxes
from sensors.camera import project
from sensors.rig import CAMERAS, CHANNELS
from sensors.transforms import RigidTransform
from tests.datamodules import devkit_checks as checks

VERSION = "v1.0-mini"


@pytest.fixture(scope="module")
def keyframe(nuscenes_real, tmp_path_factory):
    """The devkit and our frames of the real keyframe, on a copy that the index may be written to."""
    from nuscenes import NuScenes

    root = tmp_path_factory.mktemp("frame")
    shutil.copytree(nuscenes_real / "frame" / VERSION, root / VERSION)
    for folder in ("maps", "samples"):
        (root / folder).symlink_to(nuscenes_real / "frame" / folder)
    return NuScenes(VERSION, str(root), verbose=False), NuScenesFrames(root, VERSION, "mini_train", close_m=0.0)


@pytest.fixture(scope="module")
def tables(nuscenes_real, tmp_path_factory):
    """The devkit and our frames of the official split mini_val: all metadata, no files."""
    from nuscenes import NuScenes

    root = tmp_path_factory.mktemp("minival")
    shutil.copytree(nuscenes_real / "minival-tables" / VERSION, root / VERSION)
    (root / "maps").symlink_to(nuscenes_real / "minival-tables" / "maps")
    return NuScenes(VERSION, str(root), verbose=False), NuScenesFrames(root, VERSION, "mini_val")


def pose_of(record) -> RigidTransform:
    return RigidTransform.from_quaternion(record["rotation"], record["translation"])


def test_points_in_all_boxes_equal_the_annotated_counts(keyframe):
    """In the global frame, where nuScenes' boxes are upright: all 69, whatever their category."""
    _, frames = keyframe
    frame, columns = frames[0], frames.index.annotations
    heading = columns.heading
    boxes = Boxes(
        center_m=columns.center_m,
        size_lwh_m=columns.size_lwh_m,
        yaw_rad=np.arctan2(heading[:, 1], heading[:, 0]),
        velocity_mps=columns.velocity_mps[:, :2],
        label=columns.label,
        score=np.ones(len(heading)),
        attribute=columns.attribute,
        num_points=columns.num_lidar,
    )
    sweep = frame.lidar[0]
    global_from_lidar = frame.global_from_ego @ sweep.ego_from_lidar
    counts = boxes.count_inside(global_from_lidar.points(sweep.xyz_m.astype(np.float64)))
    assert len(boxes) == 69
    np.testing.assert_array_equal(counts, columns.num_lidar)


def test_boxes_in_the_ego_frame_differ_only_by_the_tilt(keyframe):
    """``Boxes`` keeps yaw alone; the vehicle stands tilted by a degree: few points change sides."""
    _, frames = keyframe
    frame, columns = frames[0], frames.index.annotations
    counts = frame.boxes.count_inside(frame.lidar[0].to_ego())
    annotated = columns.num_lidar[columns.label >= 0]
    assert np.abs(counts - annotated).sum() <= 0.03 * annotated.sum()
    assert len(frame.boxes) == 68


def test_lidar_lands_on_the_devkits_pixels(keyframe):
    """The devkit's own chain (``map_pointcloud_to_image`` does these four steps) to 1e-3 px in all six cameras."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points
    from pyquaternion import Quaternion

    nusc, frames = keyframe
    frame, sample = frames[0], nusc.sample[0]
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    xyz_in_ego = frame.lidar[0].ego_from_lidar.points(frame.lidar[0].xyz_m.astype(np.float64))
    for channel in CAMERAS:
        camera = nusc.get("sample_data", sample["data"][channel])
        cloud = LidarPointCloud.from_file(nusc.get_sample_data_path(lidar["token"]))
        cloud.points = cloud.points.astype(np.float64)
        for record, forward in (
            (nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"]), True),
            (nusc.get("ego_pose", lidar["ego_pose_token"]), True),
            (nusc.get("ego_pose", camera["ego_pose_token"]), False),
            (calibration := nusc.get("calibrated_sensor", camera["calibrated_sensor_token"]), False),
        ):
            rotation = Quaternion(record["rotation"]).rotation_matrix
            if forward:
                cloud.rotate(rotation)
                cloud.translate(np.array(record["translation"]))
            else:
                cloud.translate(-np.array(record["translation"]))
                cloud.rotate(rotation.T)
        expected = view_points(cloud.points[:3], np.array(calibration["camera_intrinsic"]), normalize=True)[:2].T
        image = frame.cameras[channel]
        uv, depth = project(image.ego_from_camera.inverse().points(xyz_in_ego), image.image_from_camera)
        seen = (depth > 1) & (uv > 0).all(axis=1) & (uv < [1600, 900]).all(axis=1)
        assert seen.sum() > 1000
        np.testing.assert_allclose(uv[seen], expected[seen], atol=1e-3)
        np.testing.assert_allclose(depth, cloud.points[2], atol=1e-5)


def test_lidar_agrees_with_the_devkits_picture(keyframe):
    """``map_pointcloud_to_image`` itself, float32 and all, drops the same points to some hundredths of a pixel."""
    nusc, frames = keyframe
    frame, sample = frames[0], nusc.sample[0]
    image = frame.cameras["CAM_FRONT"]
    points, depths, _ = nusc.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"]["CAM_FRONT"])
    uv, depth = project(image.ego_from_camera.inverse().points(frame.lidar[0].to_ego()), image.image_from_camera)
    seen = (depth > 1) & (uv > 1).all(axis=1) & (uv < [1599, 899]).all(axis=1)
    assert seen.sum() == len(depths)
    np.testing.assert_allclose(uv[seen], points[:2].T, atol=5e-2)


def test_every_box_and_velocity_of_mini_val(tables):
    nusc, frames = tables
    columns, bounds = frames.index.annotations, frames.index.samples.first_annotation
    assert len(columns.token) == 4514
    for row, token in enumerate(frames.index.samples.token):
        sample = nusc.get("sample", token.decode())
        own = slice(bounds[row], bounds[row + 1])
        boxes = nusc.get_boxes(sample["data"]["LIDAR_TOP"])
        assert [box.token for box in boxes] == [token.decode() for token in columns.token[own]]
        if not boxes:
            continue
        np.testing.assert_array_equal(columns.center_m[own], [box.center for box in boxes])
        np.testing.assert_array_equal(columns.size_lwh_m[own][:, [1, 0, 2]], [box.wlh for box in boxes])
        axes = [box.orientation.rotation_matrix[:, 0] for box in boxes]
        np.testing.assert_allclose(columns.heading[own], axes, atol=1e-12)
        velocity = [nusc.box_velocity(box.token) for box in boxes]
        np.testing.assert_allclose(columns.velocity_mps[own], velocity, rtol=1e-9)
        names = [DETECTION_FROM_CATEGORY.get(box.name) for box in boxes]
        labels = [-1 if name is None else DETECTION_NAMES.index(name) for name in names]
        assert columns.label[own].tolist() == labels


def test_frame_boxes_of_mini_val_are_the_devkits_in_the_ego_frame(tables):
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    nusc, frames = tables
    for i in range(0, len(frames), 8):
        sample = nusc.get("sample", frames.tokens[i])
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        own = boxes_of(frames.index, int(frames.rows[i]), frames.chains.reference(int(frames.rows[i])).ego_from_global)
        expected = [box for box in nusc.get_boxes(sample["data"]["LIDAR_TOP"]) if box.name in DETECTION_FROM_CATEGORY]
        assert len(own) == len(expected)
        for k, box in enumerate(expected):
            annotation = nusc.get("sample_annotation", box.token)
            velocity = nusc.box_velocity(box.token) * [1, 1, 0]
            box.translate(-np.array(pose["translation"]))
            box.rotate(Quaternion(pose["rotation"]).inverse)
            turned = Quaternion(pose["rotation"]).inverse.rotation_matrix @ velocity
            np.testing.assert_allclose(own.center_m[k], box.center, atol=1e-4)
            np.testing.assert_allclose(own.yaw_rad[k], quaternion_yaw(box.orientation), atol=1e-6)
            np.testing.assert_allclose(own.velocity_mps[k], turned[:2], atol=1e-5)
            assert own.num_points[k] == annotation["num_lidar_pts"] + annotation["num_radar_pts"]


def test_every_chain_of_mini_val(tables):
    """Pose, calibration, time and predecessor of each of the 3,925 measurements."""
    nusc, frames = tables
    columns = frames.index.measurements
    row_of = {name.decode(): row for row, name in enumerate(columns.filename)}
    assert len(row_of) == len(nusc.sample_data) == 3925
    for record in nusc.sample_data:
        row = row_of[record["filename"]]
        previous = int(columns.previous[row])
        expected = nusc.get("sample_data", record["prev"])["filename"] if record["prev"] else ""
        assert (columns.filename[previous].decode() if previous >= 0 else "") == expected
        assert CHANNELS[columns.channel[row]] == record["channel"]
        assert columns.timestamp_us[row] == record["timestamp"]
        pose = nusc.get("ego_pose", record["ego_pose_token"])
        np.testing.assert_array_equal(columns.pose_m[row], pose["translation"])
        np.testing.assert_array_equal(columns.pose_wxyz[row], pose["rotation"])


def test_ego_from_sensor_of_every_keyframe_of_mini_val(tables):
    nusc, frames = tables
    for i in range(0, len(frames), 20):
        row = int(frames.rows[i])
        sample, reference = nusc.get("sample", frames.tokens[i]), frames.chains.reference(row)
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        ego_from_global = pose_of(nusc.get("ego_pose", lidar["ego_pose_token"])).inverse()
        for column, channel in enumerate(CHANNELS):
            record = nusc.get("sample_data", sample["data"][channel])
            chain = (
                ego_from_global
                @ pose_of(nusc.get("ego_pose", record["ego_pose_token"]))
                @ pose_of(nusc.get("calibrated_sensor", record["calibrated_sensor_token"]))
            )
            measurement = int(frames.index.samples.keyframes[row, column])
            np.testing.assert_allclose(
                frames.chains.ego_from_sensor(measurement, reference).matrix, chain.matrix, atol=1e-9
            )
            lag_s = frames.chains.lag_s(measurement, reference)
            assert lag_s == pytest.approx((sample["timestamp"] - record["timestamp"]) * 1e-6, abs=1e-12)


def test_velocities_are_unknown_for_single_annotations(keyframe):
    _, frames = keyframe
    assert np.isnan(frames.index.annotations.velocity_mps).all()
    assert frames[0].ego_speed_mps == 0.0


def test_attributes_of_the_keyframe(keyframe):
    nusc, frames = keyframe
    columns = frames.index.annotations
    for row, record in enumerate(nusc.sample_annotation):
        names = [nusc.get("attribute", token)["name"] for token in record["attribute_tokens"]]
        found = [ATTRIBUTE_NAMES[columns.attribute[row]]] if columns.attribute[row] >= 0 else []
        assert found == names
    assert (columns.attribute < 0).sum() == 26


def test_index_of_mini_val_is_built_and_opened_fast(tables, tmp_path):
    _, frames = tables
    groups = build_index(frames.root / VERSION, lambda _: None)
    assert len(groups["measurements"].filename) == 3925
    assert len(open_index(frames.root, VERSION).scenes.name) == 2


def test_the_keyframe_in_every_sensors_frame(keyframe):
    nusc, frames = keyframe
    assert checks.check_chains_and_times(nusc, frames, 0) == 7
    checks.check_intrinsics(nusc, frames, 0)
    checks.check_boxes_in_every_sensor(nusc, frames, 0)
    assert checks.check_labels(nusc, frames, 0) == 68, "one keyframe alone: no velocity is known"
    assert checks.check_lidar_sweeps(nusc, frames, 0, 10) == 1


def test_mini_val_in_every_sensors_frame(tables):
    """All 12 channels with all their sweeps, on every sixteenth of the 81 keyframes."""
    nusc, frames = tables
    for i in range(0, len(frames), 16):
        assert checks.check_chains_and_times(nusc, frames, i) >= 12
        checks.check_intrinsics(nusc, frames, i)
        checks.check_boxes_in_every_sensor(nusc, frames, i)
        checks.check_labels(nusc, frames, i)


def test_unknown_velocities_of_mini_val_are_those_of_single_annotations(tables):
    """NaN exactly where the devkit says NaN, over all 4,514 boxes; some of them exist."""
    nusc, frames = tables
    columns = frames.index.annotations
    expected = np.array([nusc.box_velocity(token.decode()) for token in columns.token])
    np.testing.assert_array_equal(np.isnan(columns.velocity_mps), np.isnan(expected))
    assert 0 < np.isnan(columns.velocity_mps[:, 0]).sum() < len(expected)


def test_real_pictures_are_the_files_pixels(keyframe):
    import cv2

    nusc, frames = keyframe
    frame = frames[0]
    for channel in CAMERAS:
        path, _, intrinsics = nusc.get_sample_data(nusc.sample[0]["data"][channel])
        np.testing.assert_array_equal(frame.cameras[channel].pixels[:, :, ::-1], cv2.imread(path))
        np.testing.assert_array_equal(frame.cameras[channel].image_from_camera, intrinsics)
