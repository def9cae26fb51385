"""Those who leave their lane or pavement: people who cross, vehicles that change lanes, vehicles that turn off.

Each is tried against the tracks of all others and left out (or left in its lane) where it would come too close.
"""

from dataclasses import replace

import numpy as np

from datamodules.town.actors import Motion, Pace
from datamodules.town.clearance import Clearance
from datamodules.town.population import Population
from datamodules.town.roads import KERB_HEIGHT_M, KERB_OFFSET_M, LANE_OFFSETS_M, PAVEMENT_EDGE_M, Crossing, Road, Shape

_MOST_CROSSING, _MOST_TURNING = 5, 3
_TRIES = 5
_CHANGING_SHARE = 0.35
_ROOM_WALKING_M, _ROOM_CHANGING_M, _ROOM_TURNING_M = (0.6, 0.6), (2.0, 0.3), (1.0, 0.4)
"""At the ends and at the sides."""
_SIDE_LANE_M = 2.4
_ZEBRA_M = 4.0
"""Middle of a zebra crossing from the edge of the junction."""


def admit_all(town: Population, car_park: bool) -> None:
    """Take out whoever stands in somebody else, then add those who wander."""
    clearance = Clearance(town.ego, town.duration_s)
    town.actors = clearance.admit(town.actors)
    if not car_park:
        _change_lanes(town, clearance)
        if town.crossing and not town.road.shape.island[2]:
            _turn_off(town, town.crossing, clearance)
    _walk_across(town, clearance, car_park)


def _change_lanes(town: Population, clearance: Clearance) -> None:
    """Some of those who drive in one lane of two move over to the other."""
    inner, outer = LANE_OFFSETS_M
    for index, actor in enumerate(town.actors):
        motion = actor.motion
        on_road = motion.road is town.road and motion.moves and actor.name in ("car", "truck", "bus", "motorcycle")
        lane = next((d for d in LANE_OFFSETS_M if abs(abs(motion.d_m) - d) < 0.2), None)
        if not on_road or lane is None or town.rng.random() > _CHANGING_SHARE:
            continue
        moved = swerving(motion, np.sign(motion.d_m) * (inner + outer - lane), _swerve_at(town, motion), town.rng)
        if clearance.is_free(moved, actor.size_lwh_m[:2], _ROOM_CHANGING_M, but=index + 1):
            clearance.move(index + 1, moved)
            town.actors[index] = replace(actor, motion=moved)


def _swerve_at(town: Population, motion: Motion) -> float:
    """Where the middle of a change lies, so that some of it happens during the scene."""
    travelled = motion.direction * motion.pace.travelled_m(town.duration_s)
    return motion.s_m + float(town.rng.uniform(-0.2, 1.2)) * travelled


def swerving(motion: Motion, to_d_m: float, middle_s_m: float, rng: np.random.Generator) -> Motion:
    """The same motion, moving over to another offset about a place."""
    length = float(rng.uniform(22.0, 40.0))
    first, last = (motion.d_m, to_d_m) if motion.direction > 0 else (to_d_m, motion.d_m)
    return replace(motion, d_m=first, swerve=(middle_s_m - length / 2, length, last - first))


def _turn_off(town: Population, crossing: Crossing, clearance: Clearance) -> None:
    """Vehicles that turn at a constant rate from the main road into an arm of the side road."""
    rng, added = town.rng, 0
    wanted = int(rng.integers(1, _MOST_TURNING + 1))
    for _ in range(_TRIES * wanted):
        direction, arm = int(rng.choice([-1, 1])), int(rng.choice(crossing.arms))
        path = turning_path(town.road, crossing, direction, arm, float(rng.uniform(8.0, 12.0)))
        speed = float(rng.uniform(3.0, 6.0))
        start = float(rng.uniform(-speed * town.duration_s - 4.0, 12.0))
        name = town.pick({"car": 0.6, "truck": 0.2, "motorcycle": 0.2})
        stance = "rider" if name == "motorcycle" else ""
        actor = town.made(name, stance, Motion(path, start, 0.0, 1, Pace(speed)))
        if added < wanted and clearance.is_free(actor.motion, actor.size_lwh_m[:2], _ROOM_TURNING_M):
            clearance.add(actor.motion, actor.size_lwh_m[:2])
            town.actors.append(actor)
            added += 1


def turning_path(road: Road, crossing: Crossing, direction: int, arm: int, radius_m: float) -> Road:
    """Along the main road, a quarter of a circle from s = 0 on, and away along the arm.

    Args:
        direction: of travel on the main road before.
        arm: the side road's; those who drive with the main road turn left into the arm 1.
    """
    left = direction * arm
    lane = -LANE_OFFSETS_M[0] if left > 0 else -LANE_OFFSETS_M[1]
    heading = float(road.heading(crossing.at_s_m)) + (np.pi if direction < 0 else 0.0)
    path = Road((-90.0, 140.0), Shape(heading, bend=(0.0, radius_m * np.pi / 2, left * np.pi / 2)))
    ahead = np.array([np.cos(heading), np.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]])
    start = road.xy(crossing.at_s_m, 0.0) + ahead * (left * _SIDE_LANE_M - radius_m) + aside * lane
    path.shifted(start - path.xy(0.0, 0.0))
    return path


def _walk_across(town: Population, clearance: Clearance, car_park: bool) -> None:
    """People on the way to the other side, at a zebra crossing where there is one, but not all of them."""
    rng, added = town.rng, 0
    wanted = round(float(rng.integers(0, _MOST_CROSSING + 1)) / town.spacing)
    for _ in range(_TRIES * wanted):
        s = town.ego.s_m + float(rng.uniform(-35.0, 45.0)) + town.ego.pace.travelled_m(town.duration_s) / 2
        if town.crossing and rng.random() < 0.7:
            reach = town.crossing.half_width_m + 2.0 + float(rng.normal(0.0, 0.8)) / 2
            s = town.crossing.at_s_m + float(rng.choice([-1, 1])) * (reach + _ZEBRA_M / 2)
        actor = town.made("pedestrian", "walking", _across(town, s, car_park))
        if added < wanted and clearance.is_free(actor.motion, actor.size_lwh_m[:2], _ROOM_WALKING_M):
            clearance.add(actor.motion, actor.size_lwh_m[:2])
            town.actors.append(actor)
            added += 1


def _across(town: Population, s_m: float, car_park: bool) -> Motion:
    """A straight way over the road at a place; down at one kerb, up at the other."""
    rng = town.rng
    kerb = KERB_OFFSET_M + float(town.road.parted_m(s_m))
    edge = kerb + PAVEMENT_EDGE_M - KERB_OFFSET_M
    path = Road((-edge, edge), Shape(float(town.road.heading(s_m)) + np.pi / 2 + float(rng.normal(0.0, 0.08))))
    path.shifted(town.road.xy(s_m, 0.0) - path.xy(0.0, 0.0))
    pace, direction = Pace(float(rng.uniform(0.7, 1.9))), int(rng.choice([-1, 1]))
    start = float(rng.uniform(-kerb, kerb)) - direction * pace.travelled_m(town.duration_s) / 2
    start = float(np.clip(start, 0.5 - edge, edge - 0.5))
    if car_park:
        return Motion(path, start, 0.0, direction, pace)
    return Motion(path, start, 0.0, direction, pace, 0.0, KERB_HEIGHT_M, (-kerb, kerb))
