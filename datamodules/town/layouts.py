"""Where a scene takes place: the layout of its roads and how the vehicle drives through it.

Training and validation draw the same kinds of places from disjoint ranges: other bends, other islands, other junctions.
"""

from dataclasses import dataclass

import numpy as np

from datamodules.town.actors import STANDING, Pace
from datamodules.town.carpark import car_park_lamps, car_park_rim, car_park_scenery, paint_car_park
from datamodules.town.meshes import Mesh
from datamodules.town.population import REACH_M
from datamodules.town.roads import (
    LANE_OFFSETS_M,
    PAVEMENT_EDGE_M,
    Crossing,
    Ground,
    Road,
    Shape,
    paint_ground,
    pavement_mesh,
)
from datamodules.town.scenery import Prop, buildings, street_lamps

CAR_PARK = "car park"
SHARES = {
    **{"straight road": 0.2, "winding road": 0.16, "curve": 0.17},
    **{"crossing": 0.2, "roundabout": 0.15, CAR_PARK: 0.12},
}
RANGES = {
    "train": {"swing": (0.25, 0.40), "bend": (0.4, 0.9), "radius_m": (65.0, 110.0), "part_m": (5.0, 7.0), "arms": 2},
    "val": {"swing": (0.40, 0.55), "bend": (0.9, 1.4), "radius_m": (50.0, 65.0), "part_m": (7.0, 9.0), "arms": 1},
}
"""By split; with one arm, junctions are T-shaped."""
_MARGIN_M = 120.0
_ISLAND_HALF_M = 27.0


@dataclass(frozen=True, eq=False)
class Place:
    """Roads with the ego at s = 0, its offset and pace, and the ground's extent from the origin."""

    layout: str
    road: Road
    crossing: Crossing | None
    ego_d_m: float
    pace: Pace
    size_xy_m: tuple[float, float]

    def ground(self) -> Ground:
        if self.layout == CAR_PARK:
            return paint_car_park(self.size_xy_m, self.road)
        return paint_ground(self.size_xy_m, self.road, self.crossing)

    def pavements(self, stretch: tuple[float, float]) -> Mesh:
        if self.layout == CAR_PARK:
            return car_park_rim(self.road, stretch)
        return pavement_mesh(self.road, self.crossing, stretch)

    def lamps(self, stretch: tuple[float, float], rng: np.random.Generator) -> list[tuple[float, float]]:
        if self.layout == CAR_PARK:
            return car_park_lamps(stretch, rng)
        return street_lamps(self.road, self.crossing, stretch, rng)

    def scenery(self, stretch: tuple[float, float], rng: np.random.Generator) -> list[Prop]:
        if self.layout == CAR_PARK:
            return car_park_scenery(self.road, stretch, rng)
        return buildings(self.road, self.crossing, stretch, rng)


def lay_out(split: str, duration_s: float, rng: np.random.Generator) -> Place:
    """A place of a split, for a scene of this length."""
    layout = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    pace = _ego_pace(layout, rng)
    travel_m = pace.travelled_m(duration_s)
    at = float(rng.uniform(8.0, 35.0) + 0.5 * travel_m)
    extra = REACH_M + 140.0
    road = Road((-extra, travel_m + extra), _shape(layout, split, at, rng))
    driven = road.xy(np.linspace(0.0, travel_m, 20), np.zeros(20))
    low, high = driven.min(axis=0) - _MARGIN_M, driven.max(axis=0) + _MARGIN_M
    road.shifted(-low)
    crossing = None
    if layout in ("crossing", "roundabout"):
        side = Road((-85.0, 85.0), Shape(float(road.heading(at)) + np.pi / 2))
        side.shifted(road.xy(at, 0.0) - side.xy(0.0, 0.0))
        arms = (-1, 1) if RANGES[split]["arms"] == 2 else (int(rng.choice([-1, 1])),)
        crossing = Crossing(side, at, PAVEMENT_EDGE_M + float(road.parted_m(at)), arms)
    ego_d = -1.7 if layout == CAR_PARK else -float(rng.choice(LANE_OFFSETS_M))
    return Place(layout, road, crossing, ego_d, pace, tuple((high - low).tolist()))


def _shape(layout: str, split: str, at_s_m: float, rng) -> Shape:
    ranges, heading, side = RANGES[split], rng.uniform(-np.pi, np.pi), float(rng.choice([-1, 1]))
    if layout == "winding road":
        return Shape(heading, rng.uniform(*ranges["swing"]), rng.uniform(200.0, 320.0), rng.uniform(0, 2 * np.pi))
    if layout == "curve":
        angle = rng.uniform(*ranges["bend"])
        length = angle * rng.uniform(*ranges["radius_m"])
        return Shape(heading, bend=(at_s_m - rng.uniform(0.2, 0.8) * length, length, side * angle))
    if layout == "roundabout":
        return Shape(heading, island=(at_s_m, _ISLAND_HALF_M, rng.uniform(*ranges["part_m"])))
    if layout == "crossing":
        return Shape(heading, rng.uniform(0.0, 0.12), rng.uniform(200.0, 320.0), rng.uniform(0, 2 * np.pi))
    return Shape(heading)


def _ego_pace(layout: str, rng: np.random.Generator) -> Pace:
    """Standing, driving steadily, or stopping and going."""
    draw, rate, phase = rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0, 2 * np.pi)
    if draw < 0.12:
        return STANDING
    speed = rng.uniform(1.5, 4.0) if layout == CAR_PARK else rng.uniform(3.0, 11.0)
    if draw < 0.3:
        return Pace(0.5 * speed, 0.5 * speed, rate, phase)
    return Pace(speed, rng.uniform(0.0, 0.2) * speed, rate, phase)


def ego_doing(pace: Pace) -> str:
    """The last word of a scene's description."""
    if pace.speed_mps == 0.0:
        return "waiting"
    return "stop and go" if pace.swing_mps >= pace.speed_mps else "driving"
