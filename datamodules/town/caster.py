"""Rays against the world at one moment: what is hit, where, and which way its surface looks.

What stands still is one ray-casting scene per world, what moves a small one per moment: a BVH of a few thousand
triangles is cheaper than one of all. One thread each: samples are what runs in parallel.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Int32, UInt8

from datamodules.open3d_import import load_open3d
from datamodules.town.actors import Actor
from datamodules.town.bodies import swing_of
from datamodules.town.meshes import (
    FOLIAGE,
    GLASS,
    GROUND,
    HAIR,
    KERB,
    LAMP,
    METAL,
    NUM_PARTS,
    PRIMARY,
    REAR_LAMP,
    ROOF,
    SECONDARY,
    SKIN,
    STREET_LAMP,
    TRUNK,
    TYRE,
    WALL,
    Mesh,
    merged,
    placed_vertices,
)
from datamodules.town.world import World

NOBODY = -1
_GROUND_HALF_M = 1500.0
_UNLIT = 0.25
_TWO_STEPS_M = 1.4
_PART_COLOURS = {
    GLASS: (0.07, 0.08, 0.10),
    TYRE: (0.05, 0.05, 0.05),
    LAMP: (0.85, 0.80, 0.72),
    KERB: (0.50, 0.50, 0.48),
    ROOF: (0.35, 0.27, 0.24),
    TRUNK: (0.24, 0.18, 0.12),
    FOLIAGE: (0.20, 0.32, 0.12),
    METAL: (0.40, 0.42, 0.43),
    STREET_LAMP: (0.9, 0.9, 0.85),
    REAR_LAMP: (0.75, 0.06, 0.04),
    HAIR: (0.09, 0.07, 0.05),
}
_PART_REFLECTIVITY = {
    **{GLASS: 0.12, TYRE: 0.12, LAMP: 0.5, REAR_LAMP: 0.5, GROUND: 0.25, KERB: 0.35},
    **{ROOF: 0.3, TRUNK: 0.3, FOLIAGE: 0.4, METAL: 0.45, STREET_LAMP: 0.4, HAIR: 0.25, SKIN: 0.35},
}


@dataclass(frozen=True, eq=False)
class Hits:
    """Where rays end; rows of rays that hit nothing have an infinite range and triangle 0.

    Attributes:
        normal: unit, towards the ray's origin.
        triangle: index into Surfaces.
    """

    range_m: Float32[np.ndarray, "n"]
    normal: Float32[np.ndarray, "n 3"]
    triangle: Int32[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What every triangle of a world is made of: the standing ones first, then the moving ones."""

    part: UInt8[np.ndarray, "t"]
    colour: Float32[np.ndarray, "t 3"]
    reflectivity: Float32[np.ndarray, "t"]
    owner: Int16[np.ndarray, "t"]


def _painted(mesh: Mesh, colours, reflectivity, owner: int) -> Surfaces:
    colour_of = np.zeros((NUM_PARTS, 3), np.float32)
    reflectivity_of = np.zeros(NUM_PARTS, np.float32)
    for part, rgb in _PART_COLOURS.items():
        colour_of[part] = rgb
    for part, share in _PART_REFLECTIVITY.items():
        reflectivity_of[part] = share
    for part, k in ((PRIMARY, 0), (SECONDARY, 1), (WALL, 0)):
        colour_of[part], reflectivity_of[part] = colours[k], reflectivity[k]
    colour_of[SKIN] = colours[-1]
    return Surfaces(mesh.part, colour_of[mesh.part], reflectivity_of[mesh.part], np.full(len(mesh), owner, np.int16))


class Caster:
    """The rays of one world."""

    def __init__(self, world: World):
        self.world = world
        self._kept: tuple[float, Moment] | None = None
        half = _GROUND_HALF_M
        plain = Mesh(
            np.array([(-half, -half, 0), (half, -half, 0), (half, half, 0), (-half, half, 0)], np.float32),
            np.array([(0, 1, 2), (0, 2, 3)], np.uint32),
            np.full(2, GROUND, np.uint8),
        )
        grey = (np.full((2, 3), 0.4), np.full(2, 0.3))
        meshes = [plain, world.pavements]
        painted = [_painted(mesh, *grey, NOBODY) for mesh in meshes]
        for prop in world.scenery:
            meshes.append(prop.mesh)
            painted.append(_painted(prop.mesh, prop.colours, prop.reflectivity, NOBODY))
        self.moving, moving_painted = [], []
        for index, actor in enumerate(world.actors):
            surfaces = _painted(actor.body, actor.colours, actor.reflectivity, index)
            if actor.stance == "parked":
                surfaces.colour[np.isin(surfaces.part, (LAMP, REAR_LAMP))] *= _UNLIT
            if actor.motion.moves:
                self.moving.append(actor)
                moving_painted.append(surfaces)
            else:
                meshes.append(actor.body.placed(*actor.motion.pose(0.0)))
                painted.append(surfaces)
        self.surfaces = Surfaces(
            *(
                np.concatenate([getattr(part, name) for part in painted + moving_painted])
                for name in ("part", "colour", "reflectivity", "owner")
            )
        )
        standing = merged(meshes)
        self._num_standing = len(standing)
        self._standing = _scene(standing.vertices_m, standing.triangles)
        self._moving_mesh = merged([actor.body for actor in self.moving]) if self.moving else None
        swings = [
            swing_of(actor.body) if actor.stance == "walking" else np.zeros_like(actor.body.vertices_m)
            for actor in self.moving
        ]
        self._swing = np.concatenate(swings) if swings else np.zeros((0, 3), np.float32)
        self._mover = np.repeat(np.arange(len(self.moving)), [len(actor.body.vertices_m) for actor in self.moving])

    def at(self, time_s: float) -> "Moment":
        """The world at a time of its own clock; the last one is kept."""
        if self._kept is None or self._kept[0] != time_s:
            self._kept = (time_s, self.seen_at([time_s] * len(self.moving)))
        return self._kept[1]

    def seen_at(self, times_s: list[float]) -> "Moment":
        """The world with each of the ``moving`` actors where it is at its own time."""
        scene = None
        if self._moving_mesh is not None:
            poses = np.array([actor.motion.pose(t) for actor, t in zip(self.moving, times_s, strict=True)])
            steps = [_step(actor, t) for actor, t in zip(self.moving, times_s, strict=True)]
            body = self._moving_mesh.vertices_m + self._swing * np.array(steps, np.float32)[self._mover, None]
            posed = placed_vertices(body, *poses[self._mover].T)
            scene = _scene(posed, self._moving_mesh.triangles)
        return Moment(self.surfaces, self._standing, scene, self._num_standing)


def _step(actor: Actor, time_s: float) -> float:
    """How a walking body at full stride must be changed, as a factor on its swing: 0 to -2 and back in two steps."""
    if actor.stance != "walking":
        return 0.0
    return math.sin(2 * math.pi * actor.motion.pace.travelled_m(time_s) / _TWO_STEPS_M + actor.motion.s_m) - 1.0


@dataclass(frozen=True, eq=False)
class Moment:
    """A world at one time."""

    surfaces: Surfaces
    _standing: object
    _moving: object | None
    _num_standing: int

    def cast(self, origin_m: Float32[np.ndarray, "n 3"], direction: Float32[np.ndarray, "n 3"]) -> Hits:
        """Nearest hits of rays with unit directions."""
        rays = _rays(origin_m, direction)
        range_m, normal, triangle = _nearest(self._standing, rays)
        if self._moving is not None:
            range_b, normal_b, triangle_b = _nearest(self._moving, rays)
            nearer = np.flatnonzero(range_b < range_m)
            range_m[nearer], normal[nearer] = range_b[nearer], normal_b[nearer]
            triangle[nearer] = triangle_b[nearer] + self._num_standing
        away = (normal[:, 0] * direction[:, 0] + normal[:, 1] * direction[:, 1] + normal[:, 2] * direction[:, 2]) > 0
        normal[away] *= -1
        triangle[np.isinf(range_m)] = 0
        return Hits(range_m, normal, triangle)

    def blocked(self, origin_m: Float32[np.ndarray, "n 3"], direction: Float32[np.ndarray, "n 3"]) -> np.ndarray:
        """Whether anything lies along each ray."""
        rays = _rays(origin_m, direction)
        hidden = self._standing.test_occlusions(rays, nthreads=1).numpy()
        if self._moving is not None:
            hidden = hidden | self._moving.test_occlusions(rays, nthreads=1).numpy()
        return hidden


def turned(rotation, vectors: Float32[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """Rotated vectors, by explicit sums: a BLAS may round differently with another number of threads."""
    x, y, z = vectors.T
    r = rotation.astype(np.float32)
    return np.stack([r[k, 0] * x + r[k, 1] * y + r[k, 2] * z for k in range(3)], axis=1)


def _rays(origin_m, direction):
    rays = np.empty((len(direction), 6), np.float32)
    rays[:, :3], rays[:, 3:] = origin_m, direction
    return _tensor(rays)


def _tensor(array):
    return load_open3d().core.Tensor(np.ascontiguousarray(array, np.float32))


def _scene(vertices_m, triangles):
    open3d = load_open3d()
    scene = open3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(_tensor(vertices_m), open3d.core.Tensor(np.ascontiguousarray(triangles, np.uint32)))
    return scene


def _nearest(scene, rays):
    answer = scene.cast_rays(rays, nthreads=1)
    # Copies: the arrays share memory with the tensors, and misses carry an id that is no index.
    triangle = answer["primitive_ids"].numpy().astype(np.int32)
    return answer["t_hit"].numpy().copy(), answer["primitive_normals"].numpy().copy(), triangle
