"""A car park: rows of bays on both sides of aisles, in one of which the vehicle drives."""

import numpy as np

from datamodules.town.actors import STANDING, Motion, Pace
from datamodules.town.meshes import SECONDARY, Mesh, box
from datamodules.town.population import Population
from datamodules.town.roads import ASPHALT, PAINT, PAVING, Ground, Road, painter, raised
from datamodules.town.scenery import Prop, buildings, make_prop, plain_prop

EDGE_M = 30.5
_ROWS_M = (6.4, 12.0, 25.4)
"""Middles of the rows of bays on either side; an aisle runs along d = 0 and d = 18.7."""
_BAY_M = 2.75
_AISLE_M = 18.7
_BAY_MIX = {"car": 0.74, "truck": 0.07, "motorcycle": 0.06, "trailer": 0.03, "empty": 0.10}
_THINGS = {"bicycle": 0.2, "barrier": 0.25, "traffic_cone": 0.3, "motorcycle": 0.15, "construction_vehicle": 0.1}


def fill_car_park(town: Population) -> None:
    """Parked cars bay by bay, a few that look for one, people on the way to theirs."""
    rng, road = town.rng, town.road
    start, stop = town.ego_range()
    for side in (-1, 1):
        for row, d in enumerate(_ROWS_M):
            s = start
            while s < stop:
                s += _fill_bay(town, s, side * d, row)
        _fill_aisle(town, side)
        _fill_walkers(town, side * (_AISLE_M + 1.9), start, stop)
        for s in np.arange(start, stop, 12.0 * town.spacing):
            kind = town.pick(_THINGS)
            d = side * (EDGE_M + 2.2)
            town.add(kind, "parked" if kind != "bicycle" else "", Motion(road, s, d, 1, STANDING, rng.normal(0, 0.1)))
    oncoming = Pace(rng.uniform(1.5, 3.5), 0.0)
    for s in np.arange(start + 20.0, stop + oncoming.travelled_m(town.duration_s), rng.uniform(22.0, 40.0)):
        if s > 12.0 + town.ego.pace.travelled_m(town.duration_s) + oncoming.travelled_m(town.duration_s):
            town.add("car", "", Motion(road, float(s), 1.7, -1, oncoming))


def _fill_bay(town: Population, s_m: float, d_m: float, row: int) -> float:
    """Put something into the bay that begins at s; returns how much of the row is used up."""
    rng = town.rng
    kind = town.pick(_BAY_MIX)
    if kind == "empty" or rng.random() > min(0.32 / town.spacing, 0.95):
        if rng.random() < 0.12:
            motion = Motion(town.road, s_m + 1.3, d_m, 1, STANDING, rng.uniform(0, 2 * np.pi))
            town.add("pedestrian", "", motion)
        return _BAY_M
    if kind in ("truck", "trailer"):  # too long for a bay: along the row, over several of them
        actor = town.made(kind, "parked", Motion(town.road, 0.0, d_m, 1, STANDING))
        length = actor.size_lwh_m[0] + 1.0
        town.add_at(actor, s_m + length / 2)
        return _BAY_M * np.ceil(length / _BAY_M)
    turn = (np.pi / 2 if rng.random() < 0.5 else -np.pi / 2) + rng.normal(0.0, 0.03)
    motion = Motion(town.road, s_m + _BAY_M / 2, d_m + rng.normal(0.0, 0.12), 1, STANDING, turn)
    town.add(kind, "parked" if kind == "car" else "", motion)
    return _BAY_M


def _fill_aisle(town: Population, side: int) -> None:
    """One or two vehicles crawl along the outer aisle, one behind the other."""
    rng = town.rng
    pace = Pace(rng.uniform(1.0, 3.0))
    for s in np.arange(rng.uniform(-40.0, -10.0), 60.0, rng.uniform(18.0, 45.0)):
        kind = town.pick({"car": 0.7, "truck": 0.2, "motorcycle": 0.1})
        stance = "rider" if kind == "motorcycle" else ""
        town.add(kind, stance, Motion(town.road, float(s), side * (_AISLE_M - 1.6), side, pace))


def _fill_walkers(town: Population, d_m: float, start_m: float, stop_m: float) -> None:
    rng = town.rng
    pace, direction = Pace(rng.uniform(0.7, 1.7)), int(rng.choice([-1, 1]))
    s = start_m + rng.uniform(0.0, 12.0)
    while s < stop_m:
        town.add("pedestrian", "walking", Motion(town.road, s, d_m, direction, pace))
        s += rng.uniform(5.0, 32.0) * town.spacing


def paint_car_park(size_xy_m: tuple[float, float], road: Road) -> Ground:
    """Asphalt with the lines of the bays, paving around it."""
    kind, fill = painter(size_xy_m)
    fill(road, road.s_range_m, (-EDGE_M - 5.0, EDGE_M + 5.0), PAVING)
    fill(road, road.s_range_m, (-EDGE_M, EDGE_M), ASPHALT)
    for s in np.arange(road.s_range_m[0], road.s_range_m[1], _BAY_M):
        for d in _ROWS_M:
            for side in (-1, 1):
                fill(road, (s - 0.05, s + 0.05), sorted((side * (d - 2.6), side * (d + 2.6))), PAINT)
    return Ground(kind)


def car_park_rim(road: Road, stretch: tuple[float, float]) -> Mesh:
    """The kerb around it."""
    steps = np.arange(*stretch, 6.0)
    return raised([(road, s, s + 6.0, side * EDGE_M, side * (EDGE_M + 5.0)) for side in (-1, 1) for s in steps])


def car_park_lamps(stretch: tuple[float, float], rng: np.random.Generator) -> list[tuple[float, float]]:
    """(s, d) of lamps between rows that stand back to back."""
    places = np.arange(stretch[0] + rng.uniform(0, 20), stretch[1], 26.0)
    return [(float(s), side * 9.2) for s in places for side in (-1, 1)]


def car_park_scenery(road: Road, stretch: tuple[float, float], rng: np.random.Generator) -> list[Prop]:
    """Hedges, trees, a fence and what stands behind."""
    props = buildings(road, None, stretch, rng, edge_m=EDGE_M + 6.0)
    for s in np.arange(stretch[0], stretch[1], 11.0):
        for side in (-1, 1):
            kind = str(rng.choice(["tree", "bush", "sign", "bin", "bollard"], p=[0.4, 0.3, 0.1, 0.1, 0.1]))
            props.append(make_prop(kind, road, float(s) + rng.uniform(-3, 3), side * (EDGE_M + 4.4), rng))
    for s in np.arange(stretch[0], stretch[1], 24.0):
        wall = box((0.0, 9.0), (-0.08, 0.08), (0.0, 0.9), SECONDARY)
        x, y = road.xy(float(s), 9.2)
        if rng.random() < 0.3:
            props.append(plain_prop(wall.placed(float(x), float(y), 0.0, float(road.heading(s))), rng))
    return props
