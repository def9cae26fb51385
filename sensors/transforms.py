"""Rigid transforms between named frames, and the quaternion and yaw conversions that nuScenes needs."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class RigidTransform:
    """Rotation and translation that carry points of a source frame into a destination frame.

    Variables are named ``dst_from_src``, so chains cancel in the reading:
    ``global_from_ego @ ego_from_lidar`` is ``global_from_lidar``.

    Attributes:
        rotation: (3, 3) orthonormal, right-handed.
        translation_m: origin of the source frame, seen from the destination frame.
    """

    rotation: Float[np.ndarray, "3 3"]
    translation_m: Float[np.ndarray, "3"]

    @staticmethod
    def identity() -> "RigidTransform":
        return RigidTransform(np.eye(3), np.zeros(3))

    @staticmethod
    def from_quaternion(quaternion_wxyz, translation_m) -> "RigidTransform":
        """From a (not necessarily unit) quaternion in nuScenes' order w x y z and a translation in metres."""
        return RigidTransform(
            rotation_of_quaternion(np.asarray(quaternion_wxyz, np.float64)), np.asarray(translation_m, np.float64)
        )

    @staticmethod
    def from_yaw(yaw_rad: float, translation_m=(0.0, 0.0, 0.0)) -> "RigidTransform":
        """Rotation about +z (counter-clockwise seen from above), then translation."""
        c, s = np.cos(yaw_rad), np.sin(yaw_rad)
        rotation = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        return RigidTransform(rotation, np.asarray(translation_m, np.float64))

    def points(self, xyz_m: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Positions turn and shift. float32 in, float32 out; computed in float64."""
        moved = xyz_m.astype(np.float64) @ self.rotation.T + self.translation_m
        return moved.astype(xyz_m.dtype)

    def vectors(self, xyz: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Velocities and directions turn and do not shift."""
        return (xyz.astype(np.float64) @ self.rotation.T).astype(xyz.dtype)

    def __matmul__(self, other: "RigidTransform") -> "RigidTransform":
        """``a_from_b @ b_from_c`` is ``a_from_c``."""
        return RigidTransform(self.rotation @ other.rotation, self.rotation @ other.translation_m + self.translation_m)

    def inverse(self) -> "RigidTransform":
        return RigidTransform(self.rotation.T, -self.rotation.T @ self.translation_m)

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.translation_m
        return matrix

    @property
    def quaternion_wxyz(self) -> Float[np.ndarray, "4"]:
        return quaternion_of_rotation(self.rotation)

    @property
    def yaw_rad(self) -> float:
        """Heading of the source's x axis in the destination's x-y plane, in (-pi, pi]."""
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))


def rotation_of_quaternion(quaternion_wxyz: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of a quaternion w x y z; the quaternion is normalised first.

    Raises:
        ValueError: the quaternion is zero or not finite.
    """
    # Python's floats: several times faster than numpy's scalars, and every measurement needs two of these.
    w, x, y, z = quaternion_wxyz.tolist()
    norm = math.sqrt(w * w + x * x + y * y + z * z)
    if not math.isfinite(norm) or norm < 1e-9:
        raise ValueError(f"expected a quaternion w x y z of non-zero length, got {quaternion_wxyz.tolist()}")
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of_rotation(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """Unit quaternion w x y z of a rotation matrix, w >= 0 (Shepperd's method: divide by the largest component)."""
    m = rotation
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2],
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )
    largest = int(np.argmax(squares))
    twice = np.sqrt(squares[largest])
    wx, wy, wz = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    rows = np.array(
        [
            [squares[0], wx, wy, wz],
            [wx, squares[1], xy, xz],
            [wy, xy, squares[2], yz],
            [wz, xz, yz, squares[3]],
        ]
    )
    quaternion = rows[largest] / (2 * twice)
    return quaternion if quaternion[0] >= 0 else -quaternion


def wrap_angle(angle_rad):
    """The same angle in [-pi, pi)."""
    return (np.asarray(angle_rad) + np.pi) % (2 * np.pi) - np.pi
