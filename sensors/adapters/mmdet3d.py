"""The same faults on the ``results`` dict of an mmdetection3d 1.x pipeline; mmdetection3d is not needed.

A transform for between loading and everything else (docs/adapters.md): it reads and replaces ``img``, ``points`` and,
where a fault makes the calibration lie, ``lidar2cam``, ``cam2img``, ``lidar2img`` and ``cam2lidar``.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Shaped

from sensors.adapters.foreign import (
    CAMERA_ORDER,
    HDL_32E,
    NoPast,
    PointRows,
    lost_channels,
    pixels_like,
    rgb_pixels,
    rigid,
    scenario_for_dicts,
    with_matrix,
)
from sensors.boxes import DETECTION_NAMES, NO_ATTRIBUTE, Boxes
from sensors.camera import CameraImage
from sensors.frame import Frame
from sensors.rig import CAMERAS, LIDAR, NUSCENES_RIG
from sensors.transforms import RigidTransform

CLASS_ORDER = (
    *("car", "truck", "trailer", "bus", "construction_vehicle", "bicycle"),
    *("motorcycle", "pedestrian", "traffic_cone", "barrier"),
)
"""What the numbers in ``gt_labels_3d`` mean: mmdetection3d's ``NuScenesDataset.METAINFO``."""


class Mmdet3dFaults:
    """A pipeline transform that lets the sensors of one sample fail.

    Args:
        scenario: ``SUITE/NAME``, or empty where ``steps`` are given.
        steps: (fault, level) in order; fault by its name in the catalogue.
        seed: of the draws, which depend on it, the sample's token, the channel and the fault, and on nothing else.
        columns: of ``points``: x y z intensity ring as ``LoadPointsFromFile`` reads with ``load_dim=5, use_dim=5``;
            x y z intensity time after ``LoadPointsFromMultiSweeps`` with ``use_dim=[0, 1, 2, 3, 4]``.
        channel_order: of ``img``: ``bgr`` as mmcv reads, or ``rgb``.
        full_intensity: the value of the strongest echo in ``points``.
        beams: see ``PointRows``.

    Raises:
        ValueError: what a dict cannot hold: radar, the past.
    """

    def __init__(
        self,
        scenario: str = "",
        steps: Sequence[Sequence] = (),
        seed: int = 0,
        columns: Sequence[str] = ("x", "y", "z", "intensity", "ring"),
        channel_order: str = "bgr",
        full_intensity: float = 255.0,
        beams: tuple[float, float, int] = HDL_32E,
    ):
        if channel_order not in ("bgr", "rgb"):
            raise ValueError(f"expected channel_order to be bgr or rgb, got '{channel_order}'")
        self.scenario = scenario_for_dicts(scenario, steps, seed)
        self.points = PointRows(tuple(columns), full_intensity, tuple(beams))
        self.is_bgr = channel_order == "bgr"

    def __call__(self, results: dict) -> dict:
        return self.transform(results)

    def transform(self, results: dict) -> dict:
        """The results with harmed pictures and points; the arrays of the given dict stay as they are.

        Added keys: ``faults``, the names of what was applied, and ``lost_channels``: what was taken away and is now a
        black picture or a cloud without points.

        Raises:
            ValueError: the fault's sensor is not in the dict, or the dict is past the place for faults.
        """
        ego_from_lidar = _ego_from_lidar(results)
        clean = self._frame(results, ego_from_lidar)
        harmed, names = self.scenario.apply(clean, NoPast())
        new = {**results, "faults": names, "lost_channels": lost_channels(clean, harmed)}
        if clean.lidar and harmed.lidar is not clean.lidar:
            rows = self.points.rows(harmed.lidar, clean.lidar, ego_from_lidar)
            new["points"] = _points_like(rows, results["points"])
        if clean.cameras:
            new["img"] = list(results["img"])
        for i, channel in enumerate(_channels(results) if clean.cameras else ()):
            before, after = clean.cameras[channel], harmed.cameras.get(channel)
            if after is not before:
                pixels = np.zeros_like(before.pixels) if after is None else after.pixels
                new["img"][i] = pixels_like(pixels, results["img"][i], self.is_bgr)
                if after is not None:
                    _recalibrate(new, i, (before, after), ego_from_lidar)
        return new

    def _frame(self, results: dict, ego_from_lidar: RigidTransform) -> Frame:
        """The dict as a frame. Its ego frame is mmdetection3d's, at the LiDAR's time."""
        token = results.get("token", results.get("sample_idx"))
        if token is None:
            raise ValueError("expected 'token' or 'sample_idx' in the results, got neither; the draws depend on it")
        lidar = ()
        if "points" in results:
            lidar = self.points.sweeps(_array(results["points"]), ego_from_lidar)
        cameras = {}
        if "img" in results:
            for i, channel in enumerate(_channels(results)):
                cameras[channel] = CameraImage(
                    pixels=rgb_pixels(results["img"][i], self.is_bgr),
                    image_from_camera=np.asarray(results["cam2img"][i], np.float64)[:3, :3],
                    ego_from_camera=ego_from_lidar @ rigid(results["lidar2cam"][i]).inverse(),
                    lag_s=0.0,
                )
        return Frame(
            token=str(token),
            scene=str(results.get("scene_token", "")),
            timestamp_us=round(float(results.get("timestamp", 0.0)) * 1e6),
            global_from_ego=RigidTransform.identity(),
            ego_speed_mps=0.0,
            cameras={channel: cameras[channel] for channel in CAMERAS if channel in cameras},
            lidar=lidar,
            radars={},
            boxes=_boxes(results, ego_from_lidar),
        )


def _channels(results: dict) -> tuple[str, ...]:
    """The channel of each picture in ``img``."""
    images = results["img"]
    if not isinstance(images, (list, tuple)):
        raise ValueError(
            f"expected 'img' as a list of views, got {type(images).__name__}; faults come after "
            "LoadMultiViewImageFromFiles and before packing"
        )
    missing = [key for key in ("cam2img", "lidar2cam") if key not in results]
    if missing:
        raise ValueError(
            f"expected {' and '.join(missing)} beside 'img', got none; LoadMultiViewImageFromFiles sets them"
        )
    names = tuple(results["images"]) if isinstance(results.get("images"), dict) else CAMERA_ORDER
    if len(names) != len(images) or any(name not in CAMERAS for name in names):
        raise ValueError(
            f"expected one picture for each of the views {', '.join(names)}, got {len(images)}; several moments in one "
            "dict are not supported"
        )
    return names


def _ego_from_lidar(results: dict) -> RigidTransform:
    """From the infos; nuScenes' nominal mounting where they lack it, since faults need the sensor's height."""
    matrix = results.get("lidar_points", {}).get("lidar2ego")
    return NUSCENES_RIG[LIDAR].ego_from_sensor if matrix is None else rigid(matrix)


def _array(points) -> Shaped[np.ndarray, "n c"]:
    """Rows of an array, a tensor, or mmdetection3d's point class around a tensor."""
    return np.asarray(getattr(points, "tensor", points))


def _points_like(rows: Float32[np.ndarray, "n c"], original):
    """Rows in the container that they replace; both classes of theirs can make one of their kind."""
    if hasattr(original, "new_point"):
        return original.new_point(rows)
    return rows if isinstance(original, np.ndarray) else original.new_tensor(rows)


def _recalibrate(new: dict, i: int, pair: tuple[CameraImage, CameraImage], ego_from_lidar: RigidTransform) -> None:
    """Put what the vehicle now believes of camera ``i`` into the dict, where a fault changed it."""
    before, after = pair
    moved = not np.array_equal(before.ego_from_camera.matrix, after.ego_from_camera.matrix)
    if not moved and np.array_equal(before.image_from_camera, after.image_from_camera):
        return
    camera_from_lidar = after.ego_from_camera.inverse() @ ego_from_lidar
    image_from_camera = np.eye(4)
    image_from_camera[:3, :3] = after.image_from_camera
    matrices = {
        "lidar2cam": camera_from_lidar.matrix,
        "cam2lidar": camera_from_lidar.inverse().matrix,
        "cam2img": image_from_camera,
        "lidar2img": image_from_camera @ camera_from_lidar.matrix,
    }
    for key, matrix in matrices.items():
        if key in new:
            new[key] = with_matrix(new[key], i, matrix)


def _boxes(results: dict, ego_from_lidar: RigidTransform) -> Boxes | None:
    """Labels, for faults of objects, from wherever this stage of the pipeline keeps them; None where it has none."""
    for holder in (results, results.get("ann_info") or {}, results.get("eval_ann_info") or {}):
        if "gt_bboxes_3d" in holder and "gt_labels_3d" in holder:
            rows = _array(holder["gt_bboxes_3d"]).astype(np.float32)
            labels = np.asarray(holder["gt_labels_3d"]).astype(np.int64)
            break
    else:
        return None
    rows, labels = rows[labels >= 0], labels[labels >= 0]
    # mmdetection3d gives the centre of the lower face.
    center_m = rows[:, :3] + rows[:, 5:6] * np.array([0, 0, 0.5], np.float32)
    of_class = np.array([DETECTION_NAMES.index(name) for name in CLASS_ORDER])
    return lidar_boxes(center_m, rows[:, 3:], of_class[labels]).moved(ego_from_lidar)


def lidar_boxes(
    center_m: Float32[np.ndarray, "n 3"], rest: Float32[np.ndarray, "n c"], label: Shaped[np.ndarray, "n"]
) -> Boxes:
    """Boxes of centre, (length width height yaw[, velocity]) and class, in the LiDAR's frame."""
    num = len(label)
    velocity = rest[:, 4:6] if rest.shape[1] >= 6 else np.full((num, 2), np.nan, np.float32)
    return Boxes(
        center_m=center_m,
        size_lwh_m=rest[:, :3],
        yaw_rad=rest[:, 3],
        velocity_mps=velocity,
        label=label.astype(np.int64),
        score=np.ones(num, np.float32),
        attribute=np.full(num, NO_ATTRIBUTE, np.int64),
        num_points=np.full(num, -1, np.int64),
    )
