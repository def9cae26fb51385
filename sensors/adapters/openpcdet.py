"""The same faults on the ``data_dict`` of an OpenPCDet data set; OpenPCDet is not needed.

For between reading and ``prepare_data`` (docs/adapters.md): it reads and replaces ``points`` and, of data sets with
pictures, ``camera_imgs`` and, where a fault makes the calibration lie, the matrices beside them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

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
from sensors.adapters.mmdet3d import lidar_boxes
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import CameraImage
from sensors.frame import Frame
from sensors.rig import CAMERAS, LIDAR, NUSCENES_RIG
from sensors.transforms import RigidTransform


class OpenPCDetFaults:
    """A function of a ``data_dict`` to one whose sensors fail.

    Args:
        scenario: ``SUITE/NAME``, or empty where ``steps`` are given.
        steps: (fault, level) in order; fault by its name in the catalogue.
        seed: of the draws, which depend on it, the sample's token, the channel and the fault, and on nothing else.
        columns: of ``points``: x y z intensity time as OpenPCDet's nuScenes reader gives them; x y z intensity for
            KITTI and the like.
        full_intensity: the value of the strongest echo in ``points``: 255 for nuScenes, 1 for KITTI.
        beams: see ``PointRows``; that reader leaves the ring out, so beams are told apart by their elevation.
        cameras: the channel of each picture.

    Raises:
        ValueError: what a dict cannot hold: radar, the past.
    """

    def __init__(
        self,
        scenario: str = "",
        steps: Sequence[Sequence] = (),
        seed: int = 0,
        columns: Sequence[str] = ("x", "y", "z", "intensity", "time"),
        full_intensity: float = 255.0,
        beams: tuple[float, float, int] = HDL_32E,
        cameras: Sequence[str] = CAMERA_ORDER,
    ):
        self.scenario = scenario_for_dicts(scenario, steps, seed)
        self.points = PointRows(tuple(columns), full_intensity, tuple(beams))
        unknown = [channel for channel in cameras if channel not in CAMERAS]
        if unknown:
            raise ValueError(f"expected cameras among {', '.join(CAMERAS)}, got {', '.join(unknown)}")
        self.cameras = tuple(cameras)

    def __call__(self, data_dict: dict) -> dict:
        return self.transform(data_dict)

    def transform(self, data_dict: dict) -> dict:
        """The dict with harmed points and pictures; the arrays of the given one stay as they are.

        What was applied is in ``metadata['faults']`` and ``metadata['lost_channels']``, which OpenPCDet carries through
        to the batch: a key of its own would have to be an array there.

        Raises:
            ValueError: the fault's sensor is not in the dict, or the dict is past the place for faults.
        """
        clean = self._frame(data_dict)
        harmed, names = self.scenario.apply(clean, NoPast())
        metadata = {**data_dict.get("metadata", {}), "faults": names, "lost_channels": lost_channels(clean, harmed)}
        new = {**data_dict, "metadata": metadata}
        if clean.lidar and harmed.lidar is not clean.lidar:
            rows = self.points.rows(harmed.lidar, clean.lidar, _EGO_FROM_LIDAR)
            new["points"] = rows.astype(data_dict["points"].dtype)
        if clean.cameras:
            new["camera_imgs"] = list(data_dict["camera_imgs"])
        for i, channel in enumerate(self.cameras if clean.cameras else ()):
            before, after = clean.cameras[channel], harmed.cameras.get(channel)
            if after is not before:
                pixels = np.zeros_like(before.pixels) if after is None else after.pixels
                new["camera_imgs"][i] = _picture_like(pixels, data_dict["camera_imgs"][i])
                if after is not None:
                    _recalibrate(new, i, (before, after))
        return new

    def _frame(self, data_dict: dict) -> Frame:
        token = data_dict.get("metadata", {}).get("token", data_dict.get("frame_id"))
        if token is None:
            raise ValueError(
                "expected metadata['token'] or 'frame_id' in the dict, got neither; the draws depend on it"
            )
        points = data_dict.get("points")
        if points is not None and not isinstance(points, np.ndarray):
            raise ValueError(f"expected 'points' as an array of one sample, got {type(points).__name__}")
        cameras = self._views(data_dict) if "camera_imgs" in data_dict else {}
        return Frame(
            token=str(token),
            scene="",
            timestamp_us=0,
            global_from_ego=RigidTransform.identity(),
            ego_speed_mps=0.0,
            cameras={channel: cameras[channel] for channel in CAMERAS if channel in cameras},
            lidar=() if points is None else self.points.sweeps(points, _EGO_FROM_LIDAR),
            radars={},
            boxes=_boxes(data_dict),
        )

    def _views(self, data_dict: dict) -> dict[str, CameraImage]:
        images = data_dict["camera_imgs"]
        if len(images) != len(self.cameras):
            raise ValueError(
                f"expected one picture for each of {', '.join(self.cameras)}, got {len(images)}; set cameras"
            )
        return {
            channel: CameraImage(
                pixels=rgb_pixels(np.asarray(images[i]), is_bgr=False),
                image_from_camera=_shown(data_dict, i) @ np.asarray(data_dict["camera_intrinsics"][i], float)[:3, :3],
                ego_from_camera=_EGO_FROM_LIDAR @ rigid(data_dict["lidar2camera"][i]).inverse(),
                lag_s=0.0,
            )
            for i, channel in enumerate(self.cameras)
        }


_EGO_FROM_LIDAR = NUSCENES_RIG[LIDAR].ego_from_sensor
"""The dict does not tell the LiDAR's mounting; faults need its height above the ground."""


def _shown(data_dict: dict, i: int) -> Float[np.ndarray, "3 3"]:
    """Shown pixels from those of the file: OpenPCDet resizes and crops while it reads."""
    if "img_process_infos" not in data_dict:
        return np.eye(3)
    resize, crop, is_flipped, rotate_deg = data_dict["img_process_infos"][i]
    if is_flipped or rotate_deg:
        raise ValueError(
            "expected pictures that are resized and cropped only, got flipped or turned ones; faults come first"
        )
    # Pixel centres are at whole numbers: a picture's corner is at -0.5.
    return np.array(
        [[resize, 0, 0.5 * resize - 0.5 - crop[0]], [0, resize, 0.5 * resize - 0.5 - crop[1]], [0, 0, 1]], float
    )


def _picture_like(pixels: Shaped[np.ndarray, "h w 3"], original):
    """Pixels as an array or as a PIL picture, whichever they replace."""
    if isinstance(original, np.ndarray):
        return pixels_like(pixels, original, is_bgr=False)
    from PIL import Image

    return Image.fromarray(pixels)


def _recalibrate(new: dict, i: int, pair: tuple[CameraImage, CameraImage]) -> None:
    """Put what the vehicle now believes of camera ``i`` into the dict, where a fault changed it."""
    before, after = pair
    moved = not np.array_equal(before.ego_from_camera.matrix, after.ego_from_camera.matrix)
    if not moved and np.array_equal(before.image_from_camera, after.image_from_camera):
        return
    camera_from_lidar = after.ego_from_camera.inverse() @ _EGO_FROM_LIDAR
    image_from_camera = np.eye(4)
    image_from_camera[:3, :3] = np.linalg.inv(_shown(new, i)) @ after.image_from_camera
    error = before.ego_from_camera.inverse() @ after.ego_from_camera
    matrices = {
        "lidar2camera": camera_from_lidar.matrix,
        "camera2lidar": camera_from_lidar.inverse().matrix,
        "camera_intrinsics": image_from_camera,
        "lidar2image": image_from_camera @ camera_from_lidar.matrix,
    }
    if "camera2ego" in new:
        matrices["camera2ego"] = np.asarray(new["camera2ego"][i], float) @ error.matrix
    for key, matrix in matrices.items():
        if key in new:
            new[key] = with_matrix(new[key], i, matrix)


def _boxes(data_dict: dict) -> Boxes | None:
    """Labels, for faults of objects; classes that nuScenes' detection task does not know are left out."""
    if "gt_boxes" not in data_dict or "gt_names" not in data_dict:
        return None
    rows, names = np.asarray(data_dict["gt_boxes"], np.float32), np.asarray(data_dict["gt_names"])
    known = np.array([name in DETECTION_NAMES for name in names], bool)
    label = np.array([DETECTION_NAMES.index(name) for name in names[known]], np.int64)
    rows = rows[known]
    # Columns: x y z, length width height, heading, and for nuScenes the velocity.
    return lidar_boxes(rows[:, :3], rows[:, 3:], label).moved(_EGO_FROM_LIDAR)
