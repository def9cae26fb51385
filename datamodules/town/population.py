"""Who and what stands where: traffic on lanes, parked rows, building sites, people and things on the pavements."""

from dataclasses import dataclass, field, replace

import numpy as np

from datamodules.town.actors import STANDING, Actor, Motion, Pace, make_actor
from datamodules.town.roads import (
    BIKE_LANE_OFFSET_M,
    KERB_HEIGHT_M,
    KERB_OFFSET_M,
    LANE_OFFSETS_M,
    PARKING_OFFSET_M,
    Crossing,
    Road,
)
from datamodules.town.scenery import Prop, make_prop

REACH_M = 85.0
"""Roads are populated this far before and behind the ego."""
_USUAL_ACTORS = 72
_LANE_MIX = {
    "car": 0.36,
    "truck": 0.16,
    "bus": 0.14,
    "road_train": 0.14,
    "motorcycle": 0.12,
    "construction_vehicle": 0.08,
}
_PARKING_MIX = {"car": 0.42, "truck": 0.13, "bus": 0.05, "trailer": 0.11, "motorcycle": 0.10, "site": 0.19}
_KERB_MIX = {
    **{"standing": 0.06, "group": 0.03, "sitting": 0.03, "bicycle": 0.10, "motorcycle": 0.05},
    **{"traffic_cone": 0.06, "barrier": 0.09},
    **{"tree": 0.22, "sign": 0.10, "bin": 0.12, "bollard": 0.14},
}


@dataclass(eq=False)
class Population:
    """A world being filled.

    Attributes:
        ego: already placed, its origin the rear axle.
        duration_s: how long the scene lasts; moving traffic is spread so that it surrounds the ego all along.
        spacing: factor on all gaps; 1 gives about 72 actors within 50 m.
    """

    road: Road
    crossing: Crossing | None
    ego: Motion
    duration_s: float
    spacing: float
    rng: np.random.Generator
    actors: list[Actor] = field(default_factory=list)
    props: list[Prop] = field(default_factory=list)

    def pick(self, mix: dict[str, float]) -> str:
        shares = np.array(list(mix.values()))
        return str(self.rng.choice(list(mix), p=shares / shares.sum()))

    def _gap(self, low_m: float, high_m: float) -> float:
        return float(self.rng.uniform(low_m, high_m)) * self.spacing

    def ego_range(self, direction: int = 1, pace: Pace = STANDING) -> tuple[float, float]:
        """Stretch at time 0 whose traffic passes within REACH_M of the ego at some time."""
        relative = self.ego.pace.travelled_m(self.duration_s) - direction * pace.travelled_m(self.duration_s)
        return self.ego.s_m - REACH_M + min(relative, 0.0), self.ego.s_m + REACH_M + max(relative, 0.0)

    def add(self, name: str, stance: str, motion: Motion, category: str = "") -> Actor:
        actor = make_actor(name, stance, motion, self.rng, category)
        self.actors.append(actor)
        return actor

    def made(self, name: str, stance: str, motion: Motion) -> Actor:
        """An actor that is not placed yet: its length decides where."""
        return make_actor(name, stance, motion, self.rng)

    def _along(self, s_m: float, d_m: float, length_m: float) -> float:
        """How much of the centre line a length takes at an offset: more on the inner side of a bend."""
        ends = self.road.heading(np.array([s_m - 4.0, s_m + length_m + 8.0]))
        return length_m / max(1.0 - d_m * float(ends[1] - ends[0]) / (length_m + 12.0), 0.4)

    def _blocked(self, side: int, s_m: float, margin_m: float) -> bool:
        return self.crossing is not None and side in self.crossing.arms and self.crossing.blocks(s_m, margin_m)

    def fill(self) -> None:
        """Everything, street by street."""
        slow = self.ego.pace.speed_mps < 1.0
        for side in (-1, 1):
            for offset in LANE_OFFSETS_M:
                self._fill_lane(side, offset, slow)
            self._fill_bike_lane(side)
            self._fill_parking(side)
            self._fill_kerb(side)
            for d in (12.25, 13.75):
                self._fill_walk(side, d)
        if self.crossing:
            self._fill_queues(self.crossing)

    def _fill_lane(self, side: int, offset_m: float, slow: bool) -> None:
        direction = -side
        own_lane = side * offset_m == self.ego.d_m
        pace = self.ego.pace if own_lane else self._lane_pace(direction, slow)
        s, stop = self.ego_range(direction, pace)
        s += self._gap(0.0, 12.0)
        while s < stop:
            kind = self.pick(_LANE_MIX)
            names = ["truck", "trailer"] if kind == "road_train" else [kind]
            for name in names if direction < 0 else names[::-1]:
                stance = "rider" if name == "motorcycle" else ""
                motion = Motion(self.road, 0.0, side * offset_m + self.rng.uniform(-0.15, 0.15), direction, pace)
                actor = make_actor(name, stance, motion, self.rng)
                length = self._along(s, motion.d_m, actor.size_lwh_m[0])
                if not (own_lane and s - 7.0 < self.ego.s_m < s + length + 9.0):
                    self.add_at(actor, s + length / 2)
                s += length + self._along(s, motion.d_m, 0.8)
            s += 3.0 + self._gap(3.0, 50.0)

    def add_at(self, actor: Actor, s_m: float) -> None:
        self.actors.append(replace(actor, motion=replace(actor.motion, s_m=s_m)))

    def _lane_pace(self, direction: int, slow: bool) -> Pace:
        rng = self.rng
        if rng.random() < (0.5 if slow and direction > 0 else 0.12):
            return STANDING
        speed, rate, phase = rng.uniform(3.0, 12.0), rng.uniform(0.3, 0.8), rng.uniform(0, 2 * np.pi)
        if rng.random() < 0.2:  # stop and go: down to a standstill and on again
            return Pace(0.4 * speed, 0.4 * speed, rate, phase)
        return Pace(speed, rng.uniform(0.0, 0.25) * speed, rate, phase)

    def _fill_bike_lane(self, side: int) -> None:
        speed = self.rng.uniform(2.5, 6.0)
        pace = Pace(speed, 0.15 * speed, 0.7, self.rng.uniform(0, 2 * np.pi))
        s, stop = self.ego_range(-side, pace)
        s += self._gap(0.0, 20.0)
        while s < stop:
            self.add("bicycle", "rider", Motion(self.road, s, side * BIKE_LANE_OFFSET_M, -side, pace))
            s += 3.0 + self._gap(10.0, 120.0)

    def _fill_parking(self, side: int) -> None:
        s, stop = self.ego_range()
        while s < stop:
            kind = self.pick(_PARKING_MIX)
            if kind == "site":
                length = self._along(s, side * PARKING_OFFSET_M, self.rng.uniform(14.5, 20.0))
                if not self._blocked(side, s + length / 2, length / 2 + 6.0):
                    self._building_site(side, s, length)
            else:
                direction = -side if self.rng.random() < 0.9 else side
                turn = self.rng.normal(0.0, 0.04)
                motion = Motion(self.road, 0.0, side * PARKING_OFFSET_M, direction, STANDING, turn)
                actor = make_actor(kind, "" if kind == "motorcycle" else "parked", motion, self.rng)
                length = self._along(s, side * PARKING_OFFSET_M, actor.size_lwh_m[0])
                if not self._blocked(side, s + length / 2, length / 2 + 6.0):
                    self.add_at(actor, s + length / 2)
            s += length + 0.7 + self._gap(0.3, 24.0)

    def _building_site(self, side: int, s_m: float, length_m: float) -> None:
        """A machine between barriers, cones towards the traffic, people at work."""
        rng, road = self.rng, self.road
        middle = s_m + length_m / 2
        turn = rng.normal(0.0, 0.03)
        site_d = side * (PARKING_OFFSET_M + 0.3)
        self.add(
            "construction_vehicle", "parked", Motion(road, middle, site_d, int(rng.choice([-1, 1])), STANDING, turn)
        )
        for s in (s_m + 0.6, s_m + length_m - 0.6):
            self.add("barrier", "", Motion(road, s, site_d, 1, STANDING, rng.normal(0.0, 0.1)))
        for s in np.arange(s_m + 1.8, s_m + length_m - 1.5, rng.uniform(4.0, 6.5)):
            self.add("traffic_cone", "", Motion(road, float(s), side * 7.6, 1, STANDING, rng.uniform(0, np.pi)))
        for s in (middle - 5.2, middle + 5.2):
            if rng.random() < 0.7:
                motion = Motion(road, s, side * rng.uniform(8.6, 10.0), 1, STANDING, rng.uniform(0, 2 * np.pi))
                self.add("pedestrian", "", motion, "human.pedestrian.construction_worker")

    def _fill_kerb(self, side: int) -> None:
        d = side * (KERB_OFFSET_M + 0.55)
        s, stop = self.ego_range()
        while s < stop:
            s += self._gap(2.0, 7.5)
            kind = self.pick(_KERB_MIX)
            if self._blocked(side, s, 4.0):
                continue
            turn = float(self.rng.uniform(0, 2 * np.pi))
            if kind in ("tree", "sign", "bin", "bollard"):
                self.props.append(make_prop(kind, self.road, s, d, self.rng))
            elif kind in ("standing", "traffic_cone"):
                name = "pedestrian" if kind == "standing" else kind
                self.add(name, "", Motion(self.road, s, d, 1, STANDING, turn, KERB_HEIGHT_M))
            elif kind == "group":
                self._add_group(s, d)
                s += 2.8
            elif kind == "sitting":
                self.props.append(make_prop("bench", self.road, s, d, self.rng))
                toward_road = np.pi / 2 if side < 0 else -np.pi / 2
                self.add("pedestrian", "sitting", Motion(self.road, s, d, 1, STANDING, toward_road, KERB_HEIGHT_M))
            else:
                along = np.pi / 2 if kind == "barrier" else 0.0
                turn = along + float(self.rng.normal(0.0, 0.08))
                direction = int(self.rng.choice([-1, 1]))
                self.add(kind, "", Motion(self.road, s, d, direction, STANDING, turn, KERB_HEIGHT_M))
                s += 2.0

    def _add_group(self, s_m: float, d_m: float) -> None:
        """Two or three people who stand and talk."""
        for k in range(int(self.rng.integers(2, 4))):
            place = s_m + k * self._along(s_m, d_m, 0.95)
            turn = (0.0, np.pi, np.pi)[k] + float(self.rng.normal(0.0, 0.4))
            motion = Motion(self.road, place, d_m + self.rng.normal(0.0, 0.1), 1, STANDING, turn, KERB_HEIGHT_M)
            self.add("pedestrian", "", motion)

    def _fill_walk(self, side: int, d_m: float) -> None:
        """People who walk one behind the other, some in pairs, all of one track at one speed; down over side roads."""
        direction = int(self.rng.choice([-1, 1]))
        pace = Pace(self.rng.uniform(0.6, 1.9))
        s, stop = self.ego_range(direction, pace)
        s += self._gap(0.0, 30.0)
        dip = None
        if self.crossing and side in self.crossing.arms:
            dip = (self.crossing.at_s_m - self.crossing.half_width_m, self.crossing.at_s_m + self.crossing.half_width_m)
        while s < stop:
            turn = float(self.rng.normal(0, 0.1))
            for aside in (0.0, 0.75)[: 1 + (self.rng.random() < 0.3)]:
                motion = Motion(self.road, s, side * (d_m + aside), direction, pace, turn, KERB_HEIGHT_M, dip)
                self.add("pedestrian", "walking", motion)
            s += self._along(s, side * d_m, 1.3) + self._gap(14.0, 150.0)

    def _fill_queues(self, crossing: Crossing) -> None:
        """Vehicles that wait on the side road while the main road has green."""
        for arm in crossing.arms:
            s, stop = crossing.start_m + 1.0, abs(crossing.road.s_range_m[1]) - 12.0
            while s < stop:
                name = self.pick({"car": 0.5, "truck": 0.15, "bus": 0.15, "motorcycle": 0.2})
                motion = Motion(crossing.road, 0.0, arm * 2.4, -arm, STANDING)
                actor = make_actor(name, "rider" if name == "motorcycle" else "", motion, self.rng)
                length = actor.size_lwh_m[0]
                self.add_at(actor, arm * (s + length / 2))
                s += length + 1.0 + self._gap(0.5, 9.0)


def spacing_for(num_actors: int) -> float:
    """Factor on the gaps that gives about ``num_actors`` within 50 m."""
    return _USUAL_ACTORS / num_actors
