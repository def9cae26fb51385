"""Roads: a smooth centre line with lanes beside it, the painted ground, and raised pavements.

A place on a road is (s, d): metres along the centre line and metres to its left.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from datamodules.town.meshes import GROUND, KERB, Mesh

CELL_M = 0.1
"""Side of a ground cell, the resolution of nuScenes' map masks."""
GRASS, ASPHALT, PAVING, PAINT = 0, 1, 2, 3
KERB_HEIGHT_M = 0.15
LANE_OFFSETS_M = (1.75, 5.1)
BIKE_LANE_OFFSET_M = 7.1
PARKING_OFFSET_M = 9.2
KERB_OFFSET_M = 10.8
PAVEMENT_EDGE_M = 15.2
_STEP_M = 0.5


@dataclass(frozen=True)
class Shape:
    """How a road's direction and width change along it.

    Attributes:
        heading_rad: at s = 0 of a straight road.
        swing_rad, wavelength_m, phase_rad: a sine of the heading; 0 for none.
        bend: start and length in metres and angle in radians of an arc of constant radius; the angle 0 for none.
        island: place and half length in metres, and how far both halves of the road part there, around an island.
    """

    heading_rad: float
    swing_rad: float = 0.0
    wavelength_m: float = 300.0
    phase_rad: float = 0.0
    bend: tuple[float, float, float] = (0.0, 1.0, 0.0)
    island: tuple[float, float, float] = (0.0, 1.0, 0.0)


class Road:
    """A road with a smooth centre line. Who drives at a constant pace turns at a constant rate in its bend."""

    def __init__(self, s_range_m: tuple[float, float], shape: Shape):
        self.s_range_m, self.shape = s_range_m, shape
        self._s = np.arange(s_range_m[0], s_range_m[1] + _STEP_M, _STEP_M)
        heading = self.heading(self._s + _STEP_M / 2)
        steps = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * _STEP_M
        self._xy = np.concatenate([np.zeros((1, 2)), np.cumsum(steps[:-1], axis=0)])
        self._corners = self._xy.tolist()

    def shifted(self, offset_xy_m) -> None:
        """Move the whole road (while the world is being laid out)."""
        self._xy = self._xy + np.asarray(offset_xy_m)
        self._corners = self._xy.tolist()

    def heading(self, s_m):
        """Direction of travel along the centre line, radians."""
        s_m, shape = np.asarray(s_m, float), self.shape
        wave = shape.swing_rad * np.sin(s_m * (2 * np.pi / shape.wavelength_m) + shape.phase_rad)
        start, length, angle = shape.bend
        return shape.heading_rad + wave + angle * np.clip((s_m - start) / length, 0.0, 1.0)

    def parted_m(self, s_m):
        """How far the halves of the road have moved apart here."""
        at, half, part = self.shape.island
        share = np.clip((np.asarray(s_m, float) - at) / half, -1.0, 1.0)
        return part * 0.5 * (1.0 + np.cos(np.pi * share))

    def xy(self, s_m, d_m) -> Float[np.ndarray, "*n 2"]:
        """Positions in metres."""
        s_m, d_m = np.asarray(s_m, float), np.asarray(d_m, float)
        heading = self.heading(s_m)
        center = np.stack([np.interp(s_m, self._s, self._xy[:, k]) for k in range(2)], axis=-1)
        aside = d_m + np.sign(d_m) * self.parted_m(s_m)
        return center + np.stack([-np.sin(heading), np.cos(heading)], axis=-1) * aside[..., None]

    def place(self, s_m: float, d_m: float) -> tuple[float, float, float]:
        """x and y of one place, and the heading there; many times faster than ``xy`` for a single one."""
        shape = self.shape
        heading = shape.heading_rad
        if shape.swing_rad:
            heading += shape.swing_rad * math.sin(s_m * (2 * math.pi / shape.wavelength_m) + shape.phase_rad)
        if shape.bend[2]:
            heading += shape.bend[2] * min(max((s_m - shape.bend[0]) / shape.bend[1], 0.0), 1.0)
        step = (s_m - self._s[0]) / _STEP_M
        cell = min(max(int(step), 0), len(self._s) - 2)
        share = min(max(step - cell, 0.0), 1.0)
        (x0, y0), (x1, y1) = self._corners[cell], self._corners[cell + 1]
        x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
        aside, drift = d_m, 0.0
        at, half, part = shape.island
        if part and d_m and abs(s_m - at) < half:
            angle, outward = math.pi * (s_m - at) / half, math.copysign(0.5 * part, d_m)
            aside += outward * (1.0 + math.cos(angle))
            drift = -math.atan(outward * math.sin(angle) * math.pi / half)
        return x - math.sin(heading) * aside, y + math.cos(heading) * aside, heading + drift

    def outline(self, s_range_m, d_range_m, step_m: float = 2.0) -> Float[np.ndarray, "n 2"]:
        """Polygon around a strip."""
        s = np.linspace(*s_range_m, max(2, int((s_range_m[1] - s_range_m[0]) / step_m) + 1))
        return np.concatenate(
            [self.xy(s, np.full_like(s, d_range_m[0])), self.xy(s[::-1], np.full_like(s, d_range_m[1]))]
        )


@dataclass(frozen=True)
class Crossing:
    """A side road that crosses the main one at right angles; its own s is 0 at the junction.

    Attributes:
        start_m: distance from the junction at which the side road's own pavements begin.
        arms: which sides it leaves to: 1 left, -1 right.
    """

    road: Road
    at_s_m: float
    start_m: float = PAVEMENT_EDGE_M
    arms: tuple[int, ...] = (-1, 1)
    half_width_m: float = 5.5

    def blocks(self, s_m: float, margin_m: float = 0.0) -> bool:
        """Whether a place along the main road lies on the junction."""
        return bool(abs(s_m - self.at_s_m) < self.half_width_m + 1.5 + margin_m)

    def reach_m(self, arm: int) -> tuple[float, float]:
        """Stretch of its own s from the junction to the end of one arm."""
        return (0.0, self.road.s_range_m[1]) if arm > 0 else (self.road.s_range_m[0], 0.0)


@dataclass(frozen=True, eq=False)
class Ground:
    """What the ground is made of, by cell: ``kind[iy, ix]`` with x along columns, from the world's origin."""

    kind: UInt8[np.ndarray, "ny nx"]

    def at(self, x_m: Float[np.ndarray, "n"], y_m: Float[np.ndarray, "n"]) -> UInt8[np.ndarray, "n"]:
        """The kind under each point; grass outside."""
        ny, nx = self.kind.shape
        ix, iy = (x_m / np.float32(CELL_M)).astype(np.int32), (y_m / np.float32(CELL_M)).astype(np.int32)
        inside = (ix >= 0) & (iy >= 0) & (ix < nx) & (iy < ny)
        return np.where(inside, self.kind[np.clip(iy, 0, ny - 1), np.clip(ix, 0, nx - 1)], np.uint8(GRASS))

    def mask_png(self) -> bytes:
        """nuScenes' semantic prior: 255 where one may drive or walk; the first row is the largest y."""
        mask = np.where(self.kind[::-1] == GRASS, 0, 255).astype(np.uint8)
        done, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_COMPRESSION, 3])
        assert done, "OpenCV could not encode a PNG from uint8"
        return encoded.tobytes()


def painter(size_xy_m: tuple[float, float]):
    """An empty ground, and a function (road, s_range_m, d_range_m, kind) that fills a strip of it."""
    kind = np.zeros((int(size_xy_m[1] / CELL_M), int(size_xy_m[0] / CELL_M)), np.uint8)

    def fill(which: Road, s_range_m, d_range_m, value: int) -> None:
        corners = (which.outline(s_range_m, d_range_m) / CELL_M * 16).round().astype(np.int32)
        cv2.fillPoly(kind, [corners], value, shift=4)

    return kind, fill


def paint_ground(size_xy_m: tuple[float, float], road: Road, crossing: Crossing | None) -> Ground:
    """Asphalt, paving, markings and islands of a main road and perhaps a crossing one."""
    kind, fill = painter(size_xy_m)
    fill(road, road.s_range_m, (-PAVEMENT_EDGE_M, PAVEMENT_EDGE_M), PAVING)
    if crossing:
        edge = crossing.half_width_m + 2.5
        for arm in crossing.arms:
            fill(crossing.road, crossing.reach_m(arm), (-edge, edge), PAVING)
            fill(crossing.road, crossing.reach_m(arm), (-crossing.half_width_m, crossing.half_width_m), ASPHALT)
    fill(road, road.s_range_m, (-KERB_OFFSET_M, KERB_OFFSET_M), ASPHALT)
    _paint_main_markings(fill, road, crossing)
    if crossing:
        _paint_crossing(fill, road, crossing)
    at, half, part = road.shape.island
    if part:
        fill(road, (at - half, at + half), (-0.25, 0.25), PAVING)
        fill(road, (at - 0.8 * half, at + 0.8 * half), (-0.02, 0.02), GRASS)
    return Ground(kind)


def _paint_main_markings(fill, road: Road, crossing: Crossing | None) -> None:
    start, stop = road.s_range_m
    for s in np.arange(start, stop - 9.0, 9.0):
        if crossing and crossing.blocks(s + 4.5, 8.0):
            continue
        for d in (-3.42, 3.42):
            fill(road, (s, s + 3.0), (d - 0.08, d + 0.08), PAINT)
        for d in (-0.15, 0.15, -6.6, 6.6, -7.8, 7.8):
            fill(road, (s, s + 9.0), (d - 0.07, d + 0.07), PAINT)


def _paint_crossing(fill, road: Road, crossing: Crossing) -> None:
    reach = crossing.half_width_m + 2.0
    for side in (-1, 1):
        middle = crossing.at_s_m + side * (reach + 2.0)
        for d in np.arange(-10.0, 10.0, 1.0):
            fill(road, (middle - 1.8, middle + 1.8), (d, d + 0.5), PAINT)
        stop_line = crossing.at_s_m + side * (reach + 5.5)
        fill(road, (stop_line - 0.2, stop_line + 0.2), (0.3, 6.6) if side > 0 else (-6.6, -0.3), PAINT)
    for arm in crossing.arms:
        for s in np.arange(crossing.start_m, crossing.road.s_range_m[1] - 6.0, 6.0):
            fill(crossing.road, (arm * s, arm * s + 3.0), (-0.08, 0.08), PAINT)
        give_way = crossing.start_m - 3.4
        right = sorted((0.3 * arm, 5.2 * arm))
        for d in np.arange(right[0], right[1], 0.8):
            fill(crossing.road, (arm * give_way, arm * (give_way + 0.4)), (d, d + 0.45), PAINT)


def pavement_mesh(road: Road, crossing: Crossing | None, s_range_m, step_m: float = 3.0) -> Mesh:
    """Raised pavements along both sides of the main road, and along the crossing road."""
    strips = []
    for side in (-1, 1):
        for s in np.arange(s_range_m[0], s_range_m[1], step_m):
            if not (crossing and side in crossing.arms and crossing.blocks(s + step_m / 2, -1.5)):
                strips.append((road, s, s + step_m, side * KERB_OFFSET_M, side * PAVEMENT_EDGE_M))
    if crossing:
        for arm in crossing.arms:
            for side in (-1, 1):
                near, far = crossing.start_m, abs(crossing.road.s_range_m[1])
                kerb = side * crossing.half_width_m
                strips.append((crossing.road, *sorted((arm * near, arm * far)), kerb, kerb + side * 2.5))
    return raised(strips)


def raised(strips: list[tuple[Road, float, float, float, float]]) -> Mesh:
    """Slabs as high as a kerb: road, from and to along it, offset of the kerb and of the far edge."""
    vertices, triangles, part = [], [], []
    for which, s0, s1, d_kerb, d_edge in strips:
        s, d = np.array([s0, s1, s1, s0, s0, s1]), np.array([d_kerb, d_kerb, d_edge, d_edge, d_kerb, d_kerb])
        z = np.array([KERB_HEIGHT_M] * 4 + [0.0] * 2)
        first = 6 * len(part) // 4
        vertices.append(np.concatenate([which.xy(s, d), z[:, None]], axis=1))
        triangles += [(first + a, first + b, first + c) for a, b, c in ((0, 1, 2), (0, 2, 3), (4, 5, 1), (4, 1, 0))]
        part += [GROUND, GROUND, KERB, KERB]
    return Mesh(np.concatenate(vertices).astype(np.float32), np.array(triangles, np.uint32), np.array(part, np.uint8))
