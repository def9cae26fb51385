"""Faults on the sample dicts of mmdetection3d and OpenPCDet: what they do is what the fault does to a frame."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sensors.adapters.foreign import CAMERA_ORDER
from sensors.adapters.mmdet3d import CLASS_ORDER, Mmdet3dFaults
from sensors.adapters.openpcdet import OpenPCDetFaults
from sensors.boxes import DETECTION_NAMES, NO_ATTRIBUTE, Boxes
from sensors.faults.catalogue import fault_named
from sensors.faults.suites import Scenario
from sensors.frame import Frame, NoHistory
from sensors.rig import CAMERAS, LIDAR, NUSCENES_RIG
from tests.sensors.toy_frames import toy_frame

EGO_FROM_LIDAR = NUSCENES_RIG[LIDAR].ego_from_sensor
LIDAR_FROM_EGO = EGO_FROM_LIDAR.inverse()


def cars(num: int = 3) -> Boxes:
    """Cars in the LiDAR's frame, moved to the ego frame."""
    rng = np.random.default_rng(1)
    boxes = Boxes(
        center_m=rng.uniform([-20, -20, -1], [20, 20, 0], (num, 3)).astype(np.float32),
        size_lwh_m=np.tile(np.array([[12.0, 12.0, 8.0]], np.float32), (num, 1)),
        yaw_rad=rng.uniform(-3, 3, num).astype(np.float32),
        velocity_mps=np.zeros((num, 2), np.float32),
        label=np.full(num, DETECTION_NAMES.index("car")),
        score=np.ones(num, np.float32),
        attribute=np.full(num, NO_ATTRIBUTE),
        num_points=np.full(num, -1),
    )
    return boxes.moved(EGO_FROM_LIDAR)


@pytest.fixture(scope="module")
def frame() -> Frame:
    """One LiDAR sweep, six small pictures, no radar, three cars."""
    frame = toy_frame("token-7", seed=3, num_sweeps=1, num_points=1600, height=45, width=80)
    return replace(frame, radars={}, boxes=cars(), ego_speed_mps=0.0)


def point_rows(frame: Frame) -> np.ndarray:
    sweep = frame.lidar[0]
    return np.c_[sweep.xyz_m, sweep.intensity, sweep.ring].astype(np.float32)


def camera_from_lidar(frame: Frame, channel: str) -> np.ndarray:
    return (frame.cameras[channel].ego_from_camera.inverse() @ EGO_FROM_LIDAR).matrix


def results_of(frame: Frame) -> dict:
    """What mmdetection3d 1.x holds after LoadMultiViewImageFromFiles and LoadPointsFromFile."""
    intrinsics = [frame.cameras[channel].image_from_camera for channel in CAMERA_ORDER]
    lidar2cam = [camera_from_lidar(frame, channel) for channel in CAMERA_ORDER]
    padded = [np.pad(matrix, ((0, 1), (0, 1))) + np.diag([0, 0, 0, 1.0]) for matrix in intrinsics]
    boxes = frame.boxes.moved(LIDAR_FROM_EGO)
    bottom = boxes.center_m - np.array([[0, 0, 0.5]]) * boxes.size_lwh_m[:, 2:]
    return {
        "sample_idx": 12,
        "token": frame.token,
        "timestamp": frame.timestamp_us * 1e-6,
        "images": {channel: {"img_path": f"{channel}.jpg"} for channel in CAMERA_ORDER},
        "lidar_points": {"num_pts_feats": 5, "lidar2ego": EGO_FROM_LIDAR.matrix.tolist()},
        "img": [np.ascontiguousarray(frame.cameras[channel].pixels[..., ::-1]) for channel in CAMERA_ORDER],
        "cam2img": [matrix.tolist() for matrix in intrinsics],
        "lidar2cam": [matrix.tolist() for matrix in lidar2cam],
        "lidar2img": np.stack([a @ b for a, b in zip(padded, lidar2cam, strict=True)]).astype(np.float32),
        "points": point_rows(frame),
        "ann_info": {
            "gt_bboxes_3d": np.c_[bottom, boxes.size_lwh_m, boxes.yaw_rad, boxes.velocity_mps].astype(np.float32),
            "gt_labels_3d": np.full(len(boxes), CLASS_ORDER.index("car")),
        },
    }


def data_dict_of(frame: Frame, columns: int = 5) -> dict:
    """What OpenPCDet's NuScenesDataset hands to prepare_data, with pictures that are not resized."""
    rows = point_rows(frame)
    boxes = frame.boxes.moved(LIDAR_FROM_EGO)
    intrinsics = [np.eye(4, dtype=np.float32) for _ in CAMERA_ORDER]
    for matrix, channel in zip(intrinsics, CAMERA_ORDER, strict=True):
        matrix[:3, :3] = frame.cameras[channel].image_from_camera
    return {
        "points": np.c_[rows[:, :4], np.zeros(len(rows))].astype(np.float32)[:, :columns],
        "frame_id": "n015-lidar",
        "metadata": {"token": frame.token},
        "gt_names": np.array(["car"] * len(boxes)),
        "gt_boxes": np.c_[boxes.center_m, boxes.size_lwh_m, boxes.yaw_rad, boxes.velocity_mps].astype(np.float32),
        "camera_imgs": [frame.cameras[channel].pixels for channel in CAMERA_ORDER],
        "camera_intrinsics": intrinsics,
        "lidar2camera": [camera_from_lidar(frame, channel).astype(np.float32) for channel in CAMERA_ORDER],
    }


STEPS = [
    (("camera_dark", 3.0),),
    (("lidar_point_drop", 0.5),),
    (("lidar_beam_drop", 0.6),),
    (("fog", 0.03),),
    (("lidar_object_failure", 1.0),),
    (("camera_motion_blur", 20.0), ("lidar_range_noise", 0.1)),
]


@pytest.mark.parametrize("steps", STEPS, ids=["+".join(step[0] for step in steps) for steps in STEPS])
def test_mmdet3d_results_equal_the_fault_on_a_frame(steps, frame):
    results = results_of(frame)
    before = deepcopy(results)
    harmed = Mmdet3dFaults(steps=steps, seed=5)(results)
    expected, names = Scenario("steps", steps, 5).apply(frame, NoHistory())
    assert harmed["faults"] == names
    assert harmed["lost_channels"] == ()
    assert np.array_equal(harmed["points"], point_rows(expected))
    for i, channel in enumerate(CAMERA_ORDER):
        assert np.array_equal(harmed["img"][i][..., ::-1], expected.cameras[channel].pixels), channel
    assert not (
        np.array_equal(harmed["points"], before["points"])
        and all(np.array_equal(a, b) for a, b in zip(harmed["img"], before["img"], strict=True))
    )
    for key in ("points", "lidar2img"):
        assert np.array_equal(results[key], before[key])
    assert all(np.array_equal(a, b) for a, b in zip(results["img"], before["img"], strict=True))


@pytest.mark.parametrize("steps", STEPS, ids=["+".join(step[0] for step in steps) for steps in STEPS])
def test_openpcdet_dicts_equal_the_fault_on_a_frame(steps, frame):
    harmed = OpenPCDetFaults(steps=steps, seed=5)(data_dict_of(frame))
    # That reader keeps no ring: the frame is told what the elevation tells.
    elevation = np.rad2deg(np.arcsin(frame.lidar[0].xyz_m[:, 2] / np.linalg.norm(frame.lidar[0].xyz_m, axis=1)))
    ring = np.clip(np.rint((elevation + 30.67) / (41.34 / 31)), 0, 31).astype(np.uint8)
    known = replace(frame, lidar=(replace(frame.lidar[0], ring=ring),))
    expected, names = Scenario("steps", steps, 5).apply(known, NoHistory())
    assert harmed["metadata"] == {"token": frame.token, "faults": names, "lost_channels": ()}
    assert np.array_equal(harmed["points"][:, :4], point_rows(expected)[:, :4])
    for i, channel in enumerate(CAMERA_ORDER):
        assert np.array_equal(harmed["camera_imgs"][i], expected.cameras[channel].pixels), channel


def test_points_come_back_in_the_container_that_they_came_in(frame):
    class Points:
        """As mmdetection3d's BasePoints: a tensor, and a way to make another of the kind."""

        def __init__(self, tensor):
            self.tensor = tensor

        def new_point(self, data):
            return Points(self.tensor.new_tensor(data))

    results = results_of(frame)
    faults = Mmdet3dFaults(steps=[("lidar_point_drop", 0.5)])
    expected = faults(results)["points"]
    tensor = torch.from_numpy(results["points"])
    for points in (tensor, Points(tensor)):
        harmed = faults({**results, "points": points})["points"]
        assert type(harmed) is type(points)
        assert np.array_equal(np.asarray(getattr(harmed, "tensor", harmed)), expected)


def test_float_pictures_and_rgb_order(frame):
    results = results_of(frame)
    as_bgr = Mmdet3dFaults(steps=[("camera_dark", 3.0)])(results)["img"]
    as_float = [image.astype(np.float32) for image in results["img"]]
    harmed = Mmdet3dFaults(steps=[("camera_dark", 3.0)])({**results, "img": as_float})["img"]
    assert harmed[0].dtype == np.float32
    assert all(np.array_equal(a, b) for a, b in zip(harmed, as_bgr, strict=True))
    as_rgb = [image[..., ::-1] for image in results["img"]]
    harmed = Mmdet3dFaults(steps=[("camera_dark", 3.0)], channel_order="rgb")({**results, "img": as_rgb})["img"]
    assert all(np.array_equal(a[..., ::-1], b) for a, b in zip(harmed, as_bgr, strict=True))


def test_every_time_of_a_merged_cloud_is_a_sweep(frame):
    """Noise differs between sweeps and equals that of the frame with the same sweeps, all in the keyframe's frame."""
    older = replace(frame.lidar[0], xyz_m=frame.lidar[0].xyz_m + 1, lag_s=0.5)
    merged = replace(frame, lidar=(frame.lidar[0], older))
    rows = [np.c_[sweep.xyz_m, sweep.intensity, sweep.ring, np.full(len(sweep), sweep.lag_s)] for sweep in merged.lidar]
    results = {**results_of(frame), "points": np.concatenate(rows[::-1]).astype(np.float32)}
    harmed = Mmdet3dFaults(steps=[("lidar_range_noise", 0.2)], columns=("x", "y", "z", "intensity", "ring", "time"))(
        results
    )
    expected, _ = Scenario("s", [("lidar_range_noise", 0.2)]).apply(merged, NoHistory())
    assert np.array_equal(harmed["points"][:, :3], np.concatenate([sweep.xyz_m for sweep in expected.lidar]))
    assert np.array_equal(harmed["points"][:, 5], np.repeat(np.float32([0, 0.5]), 1600))


def test_a_misaligned_lidar_moves_its_points_and_nothing_else(frame):
    steps = [("lidar_misalignment", 3.0)]
    expected, _ = Scenario("steps", steps).apply(frame, NoHistory())
    believed = LIDAR_FROM_EGO.points(expected.lidar[0].to_ego())
    for faults, given in (
        (Mmdet3dFaults(steps=steps), results_of(frame)),
        (OpenPCDetFaults(steps=steps), data_dict_of(frame)),
    ):
        harmed = faults(given)
        assert np.allclose(harmed["points"][:, :3], believed, atol=1e-4)
        assert np.abs(harmed["points"][:, :3] - frame.lidar[0].xyz_m).max() > 0.5
        for key in ("lidar2cam", "lidar2img", "lidar2camera"):
            assert key not in given or np.array_equal(harmed[key], given[key])


def test_a_misaligned_camera_changes_its_matrices_and_no_pixel(frame):
    steps = [("camera_misalignment", 3.0)]
    expected, _ = Scenario("steps", steps).apply(frame, NoHistory())
    theirs, others = Mmdet3dFaults(steps=steps)(results_of(frame)), OpenPCDetFaults(steps=steps)(data_dict_of(frame))
    point = np.array([3.0, 20.0, -1.0, 1.0])
    for i, channel in enumerate(CAMERA_ORDER):
        believed = camera_from_lidar(expected, channel)
        assert np.allclose(theirs["lidar2cam"][i], believed, atol=1e-6)
        assert isinstance(theirs["lidar2cam"][i], list)
        assert np.allclose(others["lidar2camera"][i], believed, atol=1e-5)
        pixel = expected.cameras[channel].image_from_camera @ (believed @ point)[:3]
        assert np.allclose((theirs["lidar2img"][i] @ point)[:3], pixel, rtol=1e-4, atol=1e-2)
        assert np.array_equal(theirs["img"][i], results_of(frame)["img"][i])
    assert theirs["lidar2img"].dtype == np.float32


def test_resized_and_cropped_pictures_keep_their_intrinsics_in_openpcdet(frame):
    """A fault of the intrinsics speaks of the shown pixels; the dict holds the matrix of the file's."""
    given = data_dict_of(frame)
    given["img_process_infos"] = [[0.5, (4, 6, 36, 22), False, 0]] * 6
    given["camera_imgs"] = [image[6:22, 4:36] for image in given["camera_imgs"]]
    harmed = OpenPCDetFaults(steps=[("camera_misalignment", 3.0)])(given)
    for before, after in zip(given["camera_intrinsics"], harmed["camera_intrinsics"], strict=True):
        assert np.allclose(before, after, atol=1e-4)


def test_lost_sensors_are_black_or_empty_and_named(frame):
    harmed = Mmdet3dFaults("missing-sensors/radar")(results_of(frame))
    assert harmed["lost_channels"] == (*CAMERAS, LIDAR)
    assert harmed["points"].shape == (0, 5)
    assert not any(image.any() for image in harmed["img"])
    harmed = OpenPCDetFaults("missing-sensors/camera+radar")(data_dict_of(frame))
    assert harmed["metadata"]["lost_channels"] == (LIDAR,)
    assert harmed["points"].shape == (0, 5)


def test_pil_pictures_stay_pil_pictures(frame):
    from PIL import Image

    given = data_dict_of(frame)
    expected = OpenPCDetFaults(steps=[("camera_dark", 3.0)])(given)["camera_imgs"]
    given["camera_imgs"] = [Image.fromarray(image) for image in given["camera_imgs"]]
    harmed = OpenPCDetFaults(steps=[("camera_dark", 3.0)])(given)["camera_imgs"]
    assert all(isinstance(image, Image.Image) for image in harmed)
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(harmed, expected, strict=True))


@pytest.mark.parametrize("adapter", [Mmdet3dFaults, OpenPCDetFaults])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": [("radar_ghosts", 0.4)]}, "needs radar"),
        ({"scenario": "missing-sensors/camera+lidar"}, "needs radar"),
        ({"steps": [("lidar_freeze", 2.0)]}, "its past"),
        ({"steps": [("camera_late", 2.0)]}, "its past"),
        ({"steps": [("camera_smog", 2.0)]}, "did you mean camera_fog"),
        ({"steps": [("camera_dark", 99.0)]}, "between"),
        ({"scenario": "quick/smog"}, "cameras-black"),
        ({}, "either scenario"),
        ({"steps": [("camera_dark", 3.0)], "columns": ("x", "y", "z", "intensity", "elongation")}, "elongation"),
        ({"steps": [("camera_dark", 3.0)], "columns": ("x", "y", "z", "time")}, "intensity"),
    ],
)
def test_what_a_dict_cannot_hold_is_refused_at_once(adapter, settings, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        adapter(**settings)
    assert "\n" not in str(caught.value)


def test_dicts_past_the_place_for_faults_are_refused(frame):
    results = results_of(frame)
    dark = Mmdet3dFaults(steps=[("camera_dark", 3.0)])
    wrong = {
        "come before normalisation": {"img": [image / 255 for image in results["img"]]},
        "list of views": {"img": np.stack(results["img"])},
        "one picture for each": {"img": results["img"][:5]},
        "4 columns": {"points": results["points"][:, :4]},
    }
    for expected, change in wrong.items():
        with pytest.raises(ValueError, match=expected):
            dark({**results, **change})
    with pytest.raises(ValueError, match="cam2img"):
        dark({key: value for key, value in results.items() if key != "cam2img"})
    with pytest.raises(ValueError, match="sample_idx"):
        dark({key: value for key, value in results.items() if key not in ("token", "sample_idx")})
    with pytest.raises(ValueError, match="CAM_FRONT"):
        dark({key: value for key, value in results.items() if key != "img"})
    with pytest.raises(ValueError, match="as an array"):
        OpenPCDetFaults(steps=[("lidar_point_drop", 0.5)])({**data_dict_of(frame), "points": torch.zeros(3, 5)})


def test_a_fault_that_asks_for_the_past_says_so_even_if_its_family_does_not_tell(frame):
    fault = replace(fault_named("lidar_freeze"), family="other")
    for faults, given in ((Mmdet3dFaults, results_of(frame)), (OpenPCDetFaults, data_dict_of(frame))):
        with pytest.raises(ValueError, match="LIDAR_TOP.*dynfusion corrupt"):
            faults(steps=[(fault, 2.0)])(given)
