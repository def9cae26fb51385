"""A toy frame with labelled objects that the LiDAR sees, for corruptions of objects."""

from dataclasses import replace

import numpy as np

from sensors.boxes import DETECTION_NAMES, NO_ATTRIBUTE, Boxes
from sensors.frame import Frame
from tests.sensors.toy_frames import toy_frame

CLASSES = ("car", "truck", "pedestrian")
POINTS_PER_OBJECT = 60


def labelled_frame(token: str = "token-0", num_ground: int = 0, **sizes: int) -> Frame:
    """A car ahead, a truck on the left and a pedestrian behind, of 60 points each, well inside of their boxes.

    ``num_ground`` more points of intensity 20 lie on a flat ground, none of them in a box.
    """
    frame = toy_frame(token, **sizes)
    boxes = Boxes(
        center_m=np.array([[12.0, 1.0, 1.0], [5.0, 14.0, 1.6], [-9.0, -2.0, 1.0]], np.float32),
        size_lwh_m=np.array([[4.5, 1.9, 1.6], [8.0, 2.5, 3.0], [0.8, 0.8, 1.8]], np.float32),
        yaw_rad=np.array([0.3, 1.5, -0.4], np.float32),
        velocity_mps=np.zeros((3, 2), np.float32),
        label=np.array([DETECTION_NAMES.index(name) for name in CLASSES]),
        score=np.ones(3, np.float32),
        attribute=np.full(3, NO_ATTRIBUTE),
        num_points=np.full(3, POINTS_PER_OBJECT),
    )
    rng = np.random.default_rng(4)
    sweeps = []
    for sweep in frame.lidar:
        xyz_ego = sweep.to_ego()
        outside = xyz_ego[~inside(xyz_ego, boxes).any(axis=0)]
        kept = sweep.select(np.flatnonzero(~inside(xyz_ego, boxes).any(axis=0)))
        inner = [
            rng.uniform(-0.45, 0.45, (POINTS_PER_OBJECT, 3)) * size @ turn(yaw).T + center
            for center, size, yaw in zip(boxes.center_m, boxes.size_lwh_m, boxes.yaw_rad, strict=True)
        ]
        floor = np.append(rng.uniform(-40, 40, (3 * num_ground, 2)), np.zeros((3 * num_ground, 1)), axis=1)
        clear = ~inside(floor, boxes, 1.0).any(axis=0) & (np.hypot(floor[:, 0], floor[:, 1]) > 3)
        inner.append(floor[clear][:num_ground])
        added = sweep.ego_from_lidar.inverse().points(np.concatenate(inner).astype(np.float32))
        num = len(added)
        assert len(outside) == len(kept)
        sweeps.append(
            replace(
                kept,
                xyz_m=np.concatenate([kept.xyz_m, added]),
                intensity=np.concatenate(
                    [kept.intensity, np.repeat(np.array([30, 20], np.float32), [num - num_ground, num_ground])]
                ),
                ring=np.concatenate([kept.ring, (np.arange(num) % 32).astype(np.uint8)]),
            )
        )
    return replace(frame, lidar=tuple(sweeps), boxes=boxes)


def turn(yaw_rad: float) -> np.ndarray:
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def inside(xyz_ego: np.ndarray, boxes: Boxes, margin_m: float = 0.0) -> np.ndarray:
    """(boxes, points) mask by plain loops over boxes."""
    masks = []
    for center, size, yaw in zip(boxes.center_m, boxes.size_lwh_m, boxes.yaw_rad, strict=True):
        local = (xyz_ego - center) @ turn(yaw)
        masks.append((np.abs(local) <= size / 2 + margin_m).all(axis=1))
    return np.array(masks)
