"""Triangle meshes from a few primitives: boxes, tubes, balls.

Every triangle carries a *part*: what it is made of. Colours and reflectivities are given to parts later, per instance.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, UInt8, UInt32

PRIMARY, SECONDARY, GLASS, TYRE, LAMP = 0, 1, 2, 3, 4
GROUND, KERB, WALL, ROOF, TRUNK, FOLIAGE, METAL, STREET_LAMP, REAR_LAMP = 5, 6, 7, 8, 9, 10, 11, 12, 13
SKIN, HAIR = 14, 15
NUM_PARTS = 16


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles in one frame (metres), wound counter-clockwise seen from outside where it matters little."""

    vertices_m: Float32[np.ndarray, "v 3"]
    triangles: UInt32[np.ndarray, "t 3"]
    part: UInt8[np.ndarray, "t"]

    def __len__(self) -> int:
        return len(self.triangles)

    def placed(self, x_m: float, y_m: float, z_m: float, yaw_rad: float) -> "Mesh":
        """Turned about +z, then shifted."""
        return Mesh(placed_vertices(self.vertices_m, x_m, y_m, z_m, yaw_rad), self.triangles, self.part)

    def fitted(self, size_lwh_m: tuple[float, float, float]) -> "Mesh":
        """Stretched to these extents, centred in x and y, standing on z = 0."""
        low, high = self.vertices_m.min(axis=0), self.vertices_m.max(axis=0)
        scale = np.asarray(size_lwh_m, np.float32) / (high - low)
        base = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
        return Mesh((self.vertices_m - base) * scale, self.triangles, self.part)


def placed_vertices(vertices_m: Float32[np.ndarray, "v 3"], x_m, y_m, z_m, yaw_rad) -> Float32[np.ndarray, "v 3"]:
    """Vertices turned about +z, then shifted; the pose is one for all, or one per vertex."""
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    x, y, z = vertices_m.T
    return np.stack([x * c - y * s + x_m, x * s + y * c + y_m, z + z_m], axis=1).astype(np.float32)


def merged(meshes: list[Mesh]) -> Mesh:
    """One mesh of several; the triangles keep their order."""
    starts = np.cumsum([0] + [len(mesh.vertices_m) for mesh in meshes[:-1]])
    return Mesh(
        np.concatenate([mesh.vertices_m for mesh in meshes]),
        np.concatenate([mesh.triangles + np.uint32(start) for mesh, start in zip(meshes, starts, strict=True)]),
        np.concatenate([mesh.part for mesh in meshes]),
    )


def _mesh(vertices, triangles, part: int) -> Mesh:
    triangles = np.asarray(triangles, np.uint32)
    return Mesh(np.asarray(vertices, np.float32), triangles, np.full(len(triangles), part, np.uint8))


_BOX_TRIANGLES = [
    *((0, 2, 1), (0, 3, 2), (4, 5, 6), (4, 6, 7), (0, 1, 5), (0, 5, 4)),
    *((1, 2, 6), (1, 6, 5), (2, 3, 7), (2, 7, 6), (3, 0, 4), (3, 4, 7)),
]


def box(x, y, z, part: int = PRIMARY, top_x=None, top_y=None) -> Mesh:
    """A box between the bounds x, y, z (pairs); ``top_x`` and ``top_y`` are the bounds of a narrower top."""
    top_x, top_y = top_x or x, top_y or y
    bottom = [(x[0], y[0], z[0]), (x[1], y[0], z[0]), (x[1], y[1], z[0]), (x[0], y[1], z[0])]
    top = [
        (top_x[0], top_y[0], z[1]),
        (top_x[1], top_y[0], z[1]),
        (top_x[1], top_y[1], z[1]),
        (top_x[0], top_y[1], z[1]),
    ]
    return _mesh(bottom + top, _BOX_TRIANGLES, part)


def tube(start, end, radius, part: int = PRIMARY, sides: int = 6, end_radius=None) -> Mesh:
    """A closed tube from one point to another; a cone where ``end_radius`` is small."""
    dx, dy, dz = (float(b - a) for a, b in zip(start, end, strict=True))
    length, flat = math.sqrt(dx * dx + dy * dy + dz * dz), math.hypot(dx, dy)
    # u is level and v completes the right-handed frame (u, v, along).
    ux, uy = (-dy / flat, dx / flat) if flat > 1e-9 else (1.0, 0.0)
    ax, ay, az = dx / length, dy / length, dz / length
    frame = np.array([(ux, uy, 0.0), (-az * uy, az * ux, ax * uy - ay * ux)])
    unit, triangles = _tube_pattern(sides)
    ring = unit @ frame
    end_radius = radius if end_radius is None else end_radius
    vertices = np.concatenate([ring * radius + start, ring * end_radius + end, [start], [end]])
    return _mesh(vertices, triangles, part)


@cache
def _tube_pattern(sides: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a unit circle, and the triangles of a tube between two of them with its two lids."""
    angle = np.arange(sides) * 2 * np.pi / sides
    triangles = []
    for i in range(sides):
        j = (i + 1) % sides
        triangles += [(i, j, sides + j), (i, sides + j, sides + i)]
        triangles += [(2 * sides, j, i), (2 * sides + 1, sides + i, sides + j)]
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1), np.array(triangles, np.uint32)


def ball(center, radii, part: int = PRIMARY, sides: int = 7, rings: int = 3) -> Mesh:
    """An ellipsoid of ``rings`` rings of ``sides`` corners between two poles."""
    unit, triangles = _ball_pattern(sides, rings)
    return _mesh(unit * np.asarray(radii) + np.asarray(center), triangles, part)


@cache
def _ball_pattern(sides: int, rings: int) -> tuple[np.ndarray, np.ndarray]:
    polar = np.arange(1, rings + 1) * np.pi / (rings + 1)
    angle = np.arange(sides) * 2 * np.pi / sides
    flat, z = np.sin(polar)[:, None], np.repeat(np.cos(polar)[:, None], sides, axis=1)
    grid = np.stack([flat * np.cos(angle), flat * np.sin(angle), z], axis=-1).reshape(-1, 3)
    top, bottom = len(grid), len(grid) + 1
    triangles = []
    for i in range(sides):
        j = (i + 1) % sides
        triangles += [(top, i, j), (bottom, (rings - 1) * sides + j, (rings - 1) * sides + i)]
        for r in range(rings - 1):
            a, b = r * sides, (r + 1) * sides
            triangles += [(a + i, b + i, b + j), (a + i, b + j, a + j)]
    return np.concatenate([grid, [[0, 0, 1], [0, 0, -1]]]), np.array(triangles, np.uint32)


def wheel(x, y, radius, width, sides: int = 10) -> Mesh:
    """A wheel that rolls along x and stands on z = 0."""
    return tube((x, y - width / 2, radius), (x, y + width / 2, radius), radius, TYRE, sides)
