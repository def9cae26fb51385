"""Labels and detections, the same type: oriented boxes with class, velocity and attribute."""

from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from sensors.transforms import RigidTransform, wrap_angle

DETECTION_NAMES = (
    "car",
    "truck",
    "bus",
    "trailer",
    "construction_vehicle",
    "pedestrian",
    "motorcycle",
    "bicycle",
    "traffic_cone",
    "barrier",
)
"""The ten classes of the nuScenes detection task, in the devkit's order."""

ATTRIBUTE_NAMES = (
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "cycle.with_rider",
    "cycle.without_rider",
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
)
NO_ATTRIBUTE = -1

DETECTION_FROM_CATEGORY = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""nuScenes categories that count in the detection task; all others are ignored, as in the devkit."""


def attributes_of_class(name: str) -> tuple[int, ...]:
    """Indices into ATTRIBUTE_NAMES that a class may carry; empty for cones and barriers."""
    group = {
        "pedestrian": "pedestrian",
        "motorcycle": "cycle",
        "bicycle": "cycle",
        "traffic_cone": "none",
        "barrier": "none",
    }.get(name, "vehicle")
    return tuple(i for i, attribute in enumerate(ATTRIBUTE_NAMES) if attribute.startswith(group))


@dataclass(frozen=True, eq=False)
class Boxes:
    """N boxes in one frame (named by the holder: the ego frame in Frame, the global frame in submissions).

    Attributes:
        center_m: geometric centre.
        size_lwh_m: length (along the heading), width, height.
        yaw_rad: heading about +z.
        velocity_mps: x and y; NaN where unknown.
        label: index into DETECTION_NAMES.
        score: confidence in [0, 1]; 1 for labels.
        attribute: index into ATTRIBUTE_NAMES, or NO_ATTRIBUTE.
        num_points: LiDAR + radar points inside, for labels; -1 where unknown (detections).
    """

    center_m: Float[np.ndarray, "n 3"]
    size_lwh_m: Float[np.ndarray, "n 3"]
    yaw_rad: Float[np.ndarray, "n"]
    velocity_mps: Float[np.ndarray, "n 2"]
    label: Int[np.ndarray, "n"]
    score: Float[np.ndarray, "n"]
    attribute: Int[np.ndarray, "n"]
    num_points: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.label)

    @staticmethod
    def empty() -> "Boxes":
        def none(*shape):
            return np.zeros((0, *shape), np.float32)

        no_index = np.zeros(0, np.int64)
        return Boxes(none(3), none(3), none(), none(2), no_index, none(), no_index, no_index)

    def select(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "k"]) -> "Boxes":
        """The boxes of a mask or of an index array."""
        return Boxes(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def moved(self, dst_from_src: RigidTransform) -> "Boxes":
        """The same boxes seen from another frame.

        The heading is that of the turned x axis projected on the ground, as in the devkit's ``quaternion_yaw``: roll
        and pitch are not kept.
        """
        heading = np.stack([np.cos(self.yaw_rad), np.sin(self.yaw_rad), np.zeros_like(self.yaw_rad)], axis=-1)
        turned = dst_from_src.vectors(heading)
        velocity = np.concatenate([self.velocity_mps, np.zeros_like(self.velocity_mps[:, :1])], axis=-1)
        return replace(
            self,
            center_m=dst_from_src.points(self.center_m),
            yaw_rad=wrap_angle(np.arctan2(turned[:, 1], turned[:, 0])).astype(self.yaw_rad.dtype),
            velocity_mps=dst_from_src.vectors(velocity)[:, :2],
        )

    def corners(self) -> Float[np.ndarray, "n 8 3"]:
        """First four the front face, last four the rear face; each from upper left, clockwise seen along +x."""
        x = np.array([1, 1, 1, 1, -1, -1, -1, -1]) / 2
        y = np.array([1, -1, -1, 1, 1, -1, -1, 1]) / 2
        z = np.array([1, 1, -1, -1, 1, 1, -1, -1]) / 2
        local = np.stack([x, y, z], axis=-1) * self.size_lwh_m[:, None, :]
        c, s = np.cos(self.yaw_rad)[:, None], np.sin(self.yaw_rad)[:, None]
        turned = np.stack(
            [local[..., 0] * c - local[..., 1] * s, local[..., 0] * s + local[..., 1] * c, local[..., 2]], axis=-1
        )
        return (turned + self.center_m[:, None, :]).astype(self.center_m.dtype)

    def count_inside(self, xyz_m: Float[np.ndarray, "p 3"]) -> Int[np.ndarray, "n"]:
        """How many points lie in each box (faces included)."""
        counts = np.zeros(len(self), np.int64)
        for i in range(len(self)):
            local = xyz_m.astype(np.float64) - self.center_m[i]
            c, s = np.cos(float(self.yaw_rad[i])), np.sin(float(self.yaw_rad[i]))
            along = local[:, 0] * c + local[:, 1] * s
            across = local[:, 1] * c - local[:, 0] * s
            half = self.size_lwh_m[i].astype(np.float64) / 2
            inside = (np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(local[:, 2]) <= half[2])
            counts[i] = int(inside.sum())
        return counts


def concatenate_boxes(parts: list[Boxes]) -> Boxes:
    """All boxes of a list, in order."""
    if not parts:
        return Boxes.empty()
    return Boxes(
        **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Boxes)}
    )
