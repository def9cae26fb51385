"""Everything that stands around unlabelled: buildings, trees, lamps, signs, benches, bins, bollards.

Some of it resembles labelled classes from afar (bollards and cones, bins and people): that is wanted.
"""

from dataclasses import dataclass

import numpy as np

from datamodules.town.liveries import livery, random_colours, random_reflectivity
from datamodules.town.meshes import (
    FOLIAGE,
    METAL,
    PRIMARY,
    ROOF,
    SECONDARY,
    STREET_LAMP,
    TRUNK,
    WALL,
    Mesh,
    ball,
    box,
    merged,
    tube,
)
from datamodules.town.roads import KERB_HEIGHT_M, KERB_OFFSET_M, PAVEMENT_EDGE_M, Crossing, Road

LAMP_HEIGHT_M = 7.0


@dataclass(frozen=True, eq=False)
class Prop:
    """An unlabelled object: a mesh in the global frame with its two colours and reflectivities."""

    mesh: Mesh
    colours: np.ndarray
    reflectivity: np.ndarray


def make_prop(kind: str, road: Road, s_m: float, d_m: float, rng: np.random.Generator) -> Prop:
    """One object of street furniture, or a tree."""
    shapes = {
        "tree": _tree,
        "lamp": _lamp,
        "sign": _sign,
        "bin": _bin,
        "bollard": _bollard,
        "bench": _bench,
        "bush": _bush,
    }
    x, y = road.xy(s_m, d_m)
    toward_road = float(road.heading(s_m)) + (np.pi / 2 if d_m < 0 else -np.pi / 2)
    z = KERB_HEIGHT_M if KERB_OFFSET_M < abs(d_m) < PAVEMENT_EDGE_M else 0.0
    mesh = merged(shapes[kind](rng)).placed(float(x), float(y), z, toward_road)
    # Signs and bollards of a road-works kind wear what cones and barriers wear.
    colours = livery(kind, "", rng) if kind in ("sign", "bollard", "bin") else random_colours(rng)
    return Prop(mesh, colours, random_reflectivity(rng))


def _tree(rng):
    height, width = rng.uniform(3.5, 8.0), rng.uniform(1.1, 2.2)
    trunk = tube((0, 0, 0), (0, 0, height * 0.6), rng.uniform(0.1, 0.22), TRUNK, 6, 0.08)
    crowns = [
        ball(
            (*rng.uniform(-0.5, 0.5, 2), height * rng.uniform(0.6, 0.85)),
            width * rng.uniform(0.7, 1.1, 3) * (1, 1, 0.9),
            FOLIAGE,
            8,
            4,
        )
        for _ in range(3)
    ]
    return [trunk, *crowns]


def _lamp(rng):
    return [
        tube((0, 0, 0), (0, 0, LAMP_HEIGHT_M), 0.09, METAL, 6, 0.06),
        tube((0, 0, LAMP_HEIGHT_M), (1.6, 0, LAMP_HEIGHT_M + 0.2), 0.05, METAL, 5),
        box((1.2, 1.9), (-0.12, 0.12), (LAMP_HEIGHT_M + 0.02, LAMP_HEIGHT_M + 0.14), STREET_LAMP),
    ]


def _sign(rng):
    plate = box((-0.02, 0.02), (-0.35, 0.35), (2.1, 2.8), PRIMARY)
    return [tube((0, 0, 0), (0, 0, 2.5), 0.04, METAL, 5), plate]


def _bin(rng):
    return [tube((0, 0, 0), (0, 0, rng.uniform(0.8, 1.2)), rng.uniform(0.22, 0.32), PRIMARY, 8)]


def _bollard(rng):
    height, radius = rng.uniform(0.7, 1.1), rng.uniform(0.07, 0.12)
    band = tube((0, 0, 0.7 * height), (0, 0, 0.85 * height), radius * 1.05, SECONDARY, 7)
    return [tube((0, 0, 0), (0, 0, height), radius, PRIMARY, 7), band]


def _bench(rng):
    return [
        box((-0.25, 0.25), (-0.9, 0.9), (0.36, 0.42), SECONDARY),
        box((-0.32, -0.25), (-0.9, 0.9), (0.42, 0.85), SECONDARY),
        *(box((-0.2, 0.2), (y - 0.04, y + 0.04), (0.0, 0.36), METAL) for y in (-0.7, 0.7)),
    ]


def _bush(rng):
    return [ball((0, 0, 0.5), rng.uniform(0.45, 0.9, 3), FOLIAGE, 8, 3)]


def street_lamps(road: Road, crossing: Crossing | None, s_range_m, rng) -> list[tuple[float, float]]:
    """(s, d) of the lamps along a main road."""
    places, side = [], 1
    for s in np.arange(s_range_m[0] + rng.uniform(0, 20), s_range_m[1], 24.0):
        side = -side
        if not (crossing and crossing.blocks(s, 2.0)):
            places.append((float(s), side * (KERB_OFFSET_M + 0.4)))
    return places


def plain_prop(mesh: Mesh, rng: np.random.Generator) -> Prop:
    """Of a mesh that already stands in its place."""
    return Prop(mesh, random_colours(rng), random_reflectivity(rng))


def buildings(road: Road, crossing: Crossing | None, s_range_m, rng, edge_m: float = PAVEMENT_EDGE_M) -> list[Prop]:
    """Houses along both sides, with gaps where trees, bushes and fences stand."""
    props = []
    for side in (-1, 1):
        s = s_range_m[0]
        while s < s_range_m[1]:
            length = rng.uniform(9.0, 24.0)
            middle = s + length / 2
            if not (crossing and side in crossing.arms and crossing.blocks(middle, length / 2 + 4.0)):
                if rng.random() < 0.8:
                    props.append(_building(road, middle, side * edge_m, length, rng))
                else:
                    props += _garden(road, middle, side * edge_m, length, rng)
            s += length + (rng.uniform(2.0, 9.0) if rng.random() < 0.4 else 0.3)
    return props


def _building(road: Road, s_m: float, edge_m: float, length_m: float, rng) -> Prop:
    depth, height = rng.uniform(8.0, 14.0), rng.uniform(5.0, 19.0)
    d = edge_m + np.sign(edge_m) * (rng.uniform(0.3, 4.0) + depth / 2)
    x, y = road.xy(s_m, d)
    half = (length_m / 2 - 0.6, depth / 2)
    parts = [box((-half[0], half[0]), (-half[1], half[1]), (0.0, height), WALL)]
    if rng.random() < 0.4:
        parts.append(
            box(
                (-half[0], half[0]), (-half[1], half[1]), (height, height + 3.0), ROOF, (-half[0], half[0]), (-0.2, 0.2)
            )
        )
    mesh = merged(parts).placed(float(x), float(y), 0.0, float(road.heading(s_m)))
    colours = random_colours(rng)
    plaster = 0.4 * colours + 0.6 * colours.mean(axis=1, keepdims=True)
    return Prop(mesh, plaster * 0.6 + 0.25, random_reflectivity(rng))


def _garden(road: Road, s_m: float, edge_m: float, length_m: float, rng) -> list[Prop]:
    side = np.sign(edge_m)
    edge = edge_m + side * 0.6
    x, y = road.xy(s_m, edge)
    fence = box((-length_m / 2, length_m / 2), (-0.06, 0.06), (0.0, rng.uniform(0.9, 1.8)), SECONDARY)
    props = [
        Prop(
            fence.placed(float(x), float(y), 0.0, float(road.heading(s_m))),
            random_colours(rng),
            random_reflectivity(rng),
        )
    ]
    for _ in range(3):
        place = s_m + rng.uniform(-0.45, 0.45) * length_m
        kind = "tree" if rng.random() < 0.6 else "bush"
        props.append(make_prop(kind, road, place, edge_m + side * rng.uniform(3.0, 9.0), rng))
    return props
