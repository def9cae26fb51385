"""Labelled objects and how they move."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from datamodules.town.bodies import body_of, size_of
from datamodules.town.liveries import livery, random_reflectivity
from datamodules.town.meshes import Mesh
from datamodules.town.roads import Road
from sensors.transforms import RigidTransform

MOVING_MPS = 0.2
"""Slower than this counts as standing, for attributes."""
_BOX_LIFT_M = 0.03
_BODY_SHARE = np.array([0.98, 0.98, 0.99])


@dataclass(frozen=True)
class Pace:
    """Distance over time at a speed that swings gently around its mean; all of one lane share one, so none collide."""

    speed_mps: float
    swing_mps: float = 0.0
    rate_rad_s: float = 0.5
    phase_rad: float = 0.0

    def travelled_m(self, time_s: float) -> float:
        """Since time 0; negative before."""
        wave = math.cos(self.phase_rad) - math.cos(self.rate_rad_s * time_s + self.phase_rad)
        return self.speed_mps * time_s + self.swing_mps / self.rate_rad_s * wave

    def speed_at(self, time_s: float) -> float:
        return self.speed_mps + self.swing_mps * math.sin(self.rate_rad_s * time_s + self.phase_rad)


STANDING = Pace(0.0)


@dataclass(frozen=True)
class Motion:
    """A place on a road and how it changes.

    Attributes:
        s_m, d_m: along the centre line at time 0, and to its left.
        direction: +1 with the road, -1 against it.
        turn_rad: heading relative to the direction of travel.
        z_m: height of the ground there.
        dip_m: stretch of s where the ground is at 0 instead: a side road's mouth between two pavements.
        swerve: from which s on, over which length and by how much d changes: a change of lanes; None for none.
    """

    road: Road
    s_m: float
    d_m: float
    direction: int = 1
    pace: Pace = STANDING
    turn_rad: float = 0.0
    z_m: float = 0.0
    dip_m: tuple[float, float] | None = None
    swerve: tuple[float, float, float] | None = None

    def pose(self, time_s: float) -> tuple[float, float, float, float]:
        """x, y, z in metres and yaw in radians, global frame."""
        s = self.s_m + self.direction * self.pace.travelled_m(time_s)
        d, drift = self._offset(s) if self.swerve else (self.d_m, 0.0)
        x, y, heading = self.road.place(s, d)
        z = 0.0 if self.dip_m and self.dip_m[0] < s < self.dip_m[1] else self.z_m
        return x, y, z, heading + drift + self.turn_rad + (math.pi if self.direction < 0 else 0.0)

    def _offset(self, s_m: float) -> tuple[float, float]:
        """d within a swerve, and the heading there relative to the road's; half a period of a cosine."""
        start, length, aside = self.swerve
        angle = math.pi * min(max((s_m - start) / length, 0.0), 1.0)
        slope = aside * 0.5 * math.pi / length * math.sin(angle)
        return self.d_m + aside * 0.5 * (1.0 - math.cos(angle)), math.atan(slope)

    def transform(self, time_s: float) -> RigidTransform:
        """global_from_body."""
        x, y, z, yaw = self.pose(time_s)
        return RigidTransform.from_yaw(yaw, (x, y, z))

    def velocity(self, time_s: float, half_step_s: float = 0.02) -> Float[np.ndarray, "3"]:
        """Global x, y, z in m/s, by a central difference."""
        if not self.moves:
            return np.zeros(3)
        before, after = self.pose(time_s - half_step_s), self.pose(time_s + half_step_s)
        return (np.array(after[:3]) - np.array(before[:3])) / (2 * half_step_s)

    def yaw_rate(self, time_s: float, half_step_s: float = 0.02) -> float:
        """rad/s about +z."""
        before, after = self.pose(time_s - half_step_s), self.pose(time_s + half_step_s)
        return float((after[3] - before[3]) / (2 * half_step_s))

    @property
    def moves(self) -> bool:
        return self.pace.speed_mps != 0.0 or self.pace.swing_mps != 0.0


@dataclass(frozen=True, eq=False)
class Actor:
    """One labelled object.

    Attributes:
        name: detection class.
        category: nuScenes category.
        stance: ``parked`` (vehicles off the lanes), ``rider`` (cycles), ``sitting`` or ``walking`` (people), or empty.
        body: standing on z = 0 around its own origin, heading +x.
        colours: RGB in [0, 1] of the primary parts, the secondary ones, and of skin.
        reflectivity: for LiDAR, of the primary and secondary parts; drawn alike for every class.
    """

    name: str
    category: str
    stance: str
    size_lwh_m: tuple[float, float, float]
    motion: Motion
    body: Mesh
    colours: Float[np.ndarray, "3 3"]
    reflectivity: Float[np.ndarray, "2"]

    def box_center_m(self, time_s: float) -> tuple[float, float, float]:
        """Centre of the label in the global frame; a little above the ground, so that ground points stay outside."""
        x, y, z, _ = self.motion.pose(time_s)
        return x, y, z + self.size_lwh_m[2] / 2 + _BOX_LIFT_M

    def attribute(self, time_s: float) -> str:
        """nuScenes attribute name that follows from motion and stance; empty for cones and barriers."""
        moving = abs(self.motion.pace.speed_at(time_s)) > MOVING_MPS
        if self.name in ("traffic_cone", "barrier"):
            return ""
        if self.name == "pedestrian":
            if self.stance == "sitting":
                return "pedestrian.sitting_lying_down"
            return "pedestrian.moving" if moving else "pedestrian.standing"
        if self.name in ("bicycle", "motorcycle"):
            return "cycle.with_rider" if self.stance == "rider" else "cycle.without_rider"
        if self.stance == "parked":
            return "vehicle.parked"
        return "vehicle.moving" if moving else "vehicle.stopped"


def make_actor(name: str, stance: str, motion: Motion, rng: np.random.Generator, category: str = "") -> Actor:
    """An instance of random size, shape and colours."""
    category = category or _category(name, rng)
    size = np.array(size_of(name, stance, rng))
    if category == "human.pedestrian.child":
        size *= 0.72
    body = body_of(name, tuple(size * _BODY_SHARE), stance, rng)
    colours, reflectivity = livery(name, category, rng), random_reflectivity(rng)
    return Actor(name, category, stance, tuple(size.tolist()), motion, body, colours, reflectivity)


def _category(name: str, rng: np.random.Generator) -> str:
    draw = rng.random()
    if name == "pedestrian":
        return "human.pedestrian." + ("adult" if draw < 0.86 else "child" if draw < 0.96 else "police_officer")
    if name == "bus":
        return "vehicle.bus.rigid" if draw < 0.85 else "vehicle.bus.bendy"
    return {
        "construction_vehicle": "vehicle.construction",
        "traffic_cone": "movable_object.trafficcone",
        "barrier": "movable_object.barrier",
    }.get(name, f"vehicle.{name}")
