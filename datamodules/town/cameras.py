"""Pictures: one ray per pixel, shaded by sun, sky, lamps and fog, with textures from where the ray hits."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from datamodules.town.caster import Caster, Hits, Moment, turned
from datamodules.town.lens import Shot, exposed
from datamodules.town.light import Light
from datamodules.town.meshes import FOLIAGE, GLASS, GROUND, LAMP, NUM_PARTS, REAR_LAMP, STREET_LAMP, WALL
from datamodules.town.roads import ASPHALT, GRASS, PAINT, PAVING
from datamodules.town.world import World
from sensors.transforms import RigidTransform

_SKY_M = 400.0
"""What is farther away is sky."""
_MIRROR_M = 80.0
_TILE = 512
_GROUND_COLOURS = np.zeros((4, 3), np.float32)
_GROUND_COLOURS[[GRASS, ASPHALT, PAVING, PAINT]] = (
    *((0.16, 0.22, 0.08), (0.13, 0.13, 0.14), (0.34, 0.32, 0.30), (0.75, 0.75, 0.72)),
)
_LAMPS = (LAMP, REAR_LAMP, STREET_LAMP)
_TEXTURE_DEPTH = np.full(NUM_PARTS, 0.12, np.float32)
_TEXTURE_DEPTH[[GROUND, WALL, FOLIAGE]] = (0.45, 0.35, 1.3)
_WINDOW_M, _STOREY_M = 2.6, 3.0


@cache
def _tile() -> Float32[np.ndarray, "512 512"]:
    """Smooth noise of several octaves in [-1, 1], the same in every town."""
    rng = np.random.default_rng(7)
    octaves = [(16, 0.35), (64, 0.3), (256, 0.25), (512, 0.2)]
    noise = sum(
        weight * cv2.resize(rng.random((n, n)).astype(np.float32), (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
        for n, weight in octaves
    )
    return np.clip((noise - noise.mean()) * 3.0, -1.0, 1.0)


def _noise(a: Float32[np.ndarray, "n"], b: Float32[np.ndarray, "n"], cell_m: float) -> Float32[np.ndarray, "n"]:
    scale = np.float32(1.0 / cell_m)
    return _tile()[(a * scale).astype(np.int32) & (_TILE - 1), (b * scale).astype(np.int32) & (_TILE - 1)]


@dataclass(frozen=True, eq=False)
class _Scene:
    """What shading needs to know about the hit pixels."""

    point_m: Float32[np.ndarray, "n 3"]
    hits: Hits
    part: UInt8[np.ndarray, "n"]
    along_m: Float32[np.ndarray, "n"]


class CameraRenderer:
    """Pictures of one world."""

    def __init__(self, world: World, caster: Caster):
        self.world, self.caster = world, caster
        self._directions: dict[str, np.ndarray] = {}
        self._lamp_map = _lamp_map(world) if world.light.night else None

    def render(self, channel: str, time_s: float, rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of one camera at a time of the world's clock."""
        global_from_ego = self.world.ego.transform(time_s)
        global_from_camera = global_from_ego @ self.world.ego_from_sensor[channel]
        direction = turned(global_from_camera.rotation, self._rays(channel))
        origin = global_from_camera.translation_m.astype(np.float32)
        moment = self.caster.at(time_s)
        hits = moment.cast(np.broadcast_to(origin, direction.shape), direction)
        light = self.world.light
        away = np.flatnonzero(hits.range_m >= _SKY_M)
        # Shading what is then painted over as sky costs less than picking the other pixels out and putting them back.
        hits.range_m[away] = _SKY_M
        picture = self._shade(moment, hits, origin + direction * hits.range_m[:, None], global_from_ego)
        if light.rain_mm_h > 0:
            self._reflect(moment, hits, direction, origin, picture)
        if light.fog_density_per_m > 0:
            clear = np.exp(hits.range_m * np.float32(-light.fog_density_per_m))[:, None]
            picture *= clear
            picture += np.array(light.horizon_rgb, np.float32) * (1 - clear)
        picture[away] = _sky(direction[away], light)
        toward_sun = global_from_camera.inverse().vectors(np.array(light.toward_sun))
        shot = Shot(light, toward_sun, self.world.image_from_camera[channel])
        return exposed(picture.reshape(*self.world.image_size_px, 3), shot, rng)

    def _rays(self, channel: str) -> Float32[np.ndarray, "n 3"]:
        """Unit directions through the pixel centres, camera frame."""
        if channel not in self._directions:
            height, width = self.world.image_size_px
            matrix = self.world.image_from_camera[channel]
            u, v = np.meshgrid(np.arange(width), np.arange(height))
            x, y = (u - matrix[0, 2]) / matrix[0, 0], (v - matrix[1, 2]) / matrix[1, 1]
            rays = np.stack([x, y, np.ones_like(x)], axis=-1).reshape(-1, 3)
            self._directions[channel] = (rays / np.linalg.norm(rays, axis=1, keepdims=True)).astype(np.float32)
        return self._directions[channel]

    def _shade(self, moment: Moment, hits: Hits, point, global_from_ego) -> Float32[np.ndarray, "n 3"]:
        normal = hits.normal
        along = np.where(
            np.abs(normal[:, 2]) > 0.7, point[:, 0], point[:, 1] * normal[:, 0] - point[:, 0] * normal[:, 1]
        )
        scene = _Scene(point, hits, moment.surfaces.part[hits.triangle], along)
        albedo, glow = self._albedo(moment, scene)
        irradiance = self._daylight(moment, scene)
        if self.world.light.night:
            irradiance = irradiance + self._lamplight(scene, global_from_ego)
        irradiance *= albedo
        irradiance += glow
        return irradiance

    def _reflect(self, moment: Moment, hits: Hits, direction, origin, picture) -> None:
        """Wet ground mirrors what stands behind it, the more the flatter one looks at it (Schlick), puddles most.

        One ray for every second pixel both ways, shared with its neighbours.
        """
        height, width = self.world.image_size_px
        coarse = (np.arange(0, height, 2)[:, None] * width + np.arange(0, width, 2)).ravel()
        wet = coarse[(moment.surfaces.part[hits.triangle[coarse]] == GROUND) & (hits.range_m[coarse] < _MIRROR_M)]
        if not len(wet):
            return
        point = origin + direction[wet] * hits.range_m[wet, None]
        mirrored = direction[wet] * np.array((1.0, 1.0, -1.0), np.float32)
        seen = moment.cast(point + np.array((0, 0, 0.01), np.float32), mirrored)
        light = self.world.light
        colour = moment.surfaces.colour[seen.triangle] * np.array(light.ambient_rgb, np.float32)
        lit = np.flatnonzero(np.isin(moment.surfaces.part[seen.triangle], _LAMPS))
        colour[lit] = moment.surfaces.colour[seen.triangle[lit]] * 0.8
        away = np.flatnonzero(seen.range_m >= _SKY_M)
        colour[away] = _sky(mirrored[away], light)
        fresnel = 0.04 + 0.96 * (1.0 - np.clip(-direction[wet, 2], 0.0, 1.0)) ** 5
        puddle = np.clip(0.55 + 0.9 * _noise(point[:, 0] + 400.0, point[:, 1] + 400.0, 0.35), 0.1, 1.0)
        kind = self.world.ground.at(point[:, 0], point[:, 1])
        share = np.where(kind == GRASS, 0.0, fresnel * puddle).astype(np.float32)[:, None]
        layer = np.zeros(((height + 1) // 2, (width + 1) // 2, 4), np.float32)
        place = (wet // width // 2, wet % width // 2)
        layer[place] = np.concatenate([colour * share, share], axis=1)
        layer = np.repeat(np.repeat(layer, 2, axis=0), 2, axis=1)[:height, :width].reshape(-1, 4)
        ground = np.flatnonzero((moment.surfaces.part[hits.triangle] == GROUND) & (layer[:, 3] > 0))
        # Water darkens what it wets.
        picture[ground] = picture[ground] * (0.7 * (1.0 - layer[ground, 3:])) + layer[ground, :3]

    def _albedo(self, moment: Moment, scene: _Scene):
        """Colour of the surface, and what it emits by itself."""
        light, part, point = self.world.light, scene.part, scene.point_m
        albedo = moment.surfaces.colour[scene.hits.triangle]
        ground = np.flatnonzero(part == GROUND)
        albedo[ground] = _GROUND_COLOURS[self.world.ground.at(point[ground, 0], point[ground, 1])]
        second = np.where(np.abs(scene.hits.normal[:, 2]) > 0.7, point[:, 1], point[:, 2])
        fade = np.minimum(1.0, 18.0 / np.maximum(scene.hits.range_m, 1.0))
        texture = _noise(scene.along_m, second, 0.045) * fade * _TEXTURE_DEPTH[part]
        albedo *= (1.0 + 0.6 * texture)[:, None]
        glow = np.zeros_like(albedo)
        walls = np.flatnonzero(part == WALL)
        _windows(albedo, glow, walls, scene, light)
        glass = np.flatnonzero(part == GLASS)
        sheen = np.float32(0.15 + 0.2 * np.clip(scene.hits.normal[glass, 2:], 0, 1))
        glow[glass] += sheen * np.array(light.horizon_rgb, np.float32) * 0.8
        lamps = np.flatnonzero((part == LAMP) | (part == REAR_LAMP) | (part == STREET_LAMP))
        glow[lamps] += albedo[lamps] * (2.5 if light.night else 0.6 if light.rain_mm_h > 0 else 0.25)
        return albedo, glow

    def _daylight(self, moment: Moment, scene: _Scene) -> Float32[np.ndarray, "n 3"]:
        light, normal = self.world.light, scene.hits.normal
        sun = np.array(light.toward_sun, np.float32)
        facing = np.clip(normal[:, 0] * sun[0] + normal[:, 1] * sun[1] + normal[:, 2] * sun[2], 0.0, 1.0)
        if light.sunny:
            lit = np.flatnonzero((facing > 0.02) & (scene.hits.range_m < 120.0))
            start = scene.point_m[lit] + normal[lit] * np.float32(0.02)
            facing[lit[moment.blocked(start, np.broadcast_to(sun, start.shape))]] = 0.0
        ambient = 0.7 + 0.3 * normal[:, 2:]
        return facing[:, None] * np.array(light.sun_rgb, np.float32) + ambient * np.array(light.ambient_rgb, np.float32)

    def _lamplight(self, scene: _Scene, global_from_ego: RigidTransform) -> Float32[np.ndarray, "n 3"]:
        point, normal = scene.point_m, scene.hits.normal
        ny, nx = self._lamp_map.shape
        ix = np.clip(point[:, 0].astype(np.int32), 0, nx - 1)
        iy = np.clip(point[:, 1].astype(np.int32), 0, ny - 1)
        street = self._lamp_map[iy, ix] * (0.55 + 0.45 * normal[:, 2]) * np.clip(1.2 - point[:, 2] / 12.0, 0.0, 1.0)
        inverse = global_from_ego.inverse()
        local = turned(inverse.rotation, point) + inverse.translation_m.astype(np.float32)
        ahead, left, up = local[:, 0] - 3.5, local[:, 1], local[:, 2] - 0.7
        squared = ahead * ahead + left * left + up * up
        bearing = left / np.maximum(np.abs(ahead), 0.5)
        beam = np.where(ahead > 0.2, np.exp(-(bearing * bearing) * 4.0), 0.0) * np.clip(1.4 - up / 2.0, 0.0, 1.0)
        rear = np.where(ahead < -4.8, 0.06 * np.exp(-(bearing * bearing)), 0.0)
        head = (beam * 60.0 + rear * 25.0) / (squared + 60.0)
        warm, white = np.array((1.0, 0.78, 0.5), np.float32), np.array((1.0, 0.97, 0.9), np.float32)
        return street[:, None] * warm + head[:, None].astype(np.float32) * white


def _sky(direction: Float32[np.ndarray, "n 3"], light: Light) -> Float32[np.ndarray, "n 3"]:
    up = np.clip(direction[:, 2], 0.0, 1.0)
    share = np.clip(up * 2.2, 0.0, 1.0)[:, None]
    sky = np.array(light.horizon_rgb, np.float32) * (1 - share) + np.array(light.zenith_rgb, np.float32) * share
    if not light.night and light.fog_density_per_m < 0.01:
        scale = 3.0 / (up + 0.15)
        cloud = np.clip(_noise(direction[:, 0] * scale + 40.0, direction[:, 1] * scale + 40.0, 0.04), 0.0, 1.0)
        sky += (cloud * 0.35 * np.clip(up * 6.0, 0.0, 1.0))[:, None]
    return sky.astype(np.float32)


def _windows(albedo, glow, walls, scene: _Scene, light: Light) -> None:
    column, storey = scene.along_m[walls] / _WINDOW_M, scene.point_m[walls, 2] / _STOREY_M
    u, v = column - np.floor(column), storey - np.floor(storey)
    pane = (u > 0.25) & (u < 0.75) & (v > 0.32) & (v < 0.8) & (np.abs(scene.hits.normal[walls, 2]) < 0.5)
    chosen = walls[pane]
    albedo[chosen] = (0.06, 0.07, 0.09)
    glow[chosen] = np.array(light.horizon_rgb, np.float32) * 0.22
    if light.night:
        lit = _noise(np.floor(column[pane]) * 37.0, np.floor(storey[pane]) * 91.0, 1.0) > 0.25
        glow[chosen[lit]] = (0.35, 0.27, 0.14)


def _lamp_map(world: World) -> Float32[np.ndarray, "ny nx"]:
    """Street light on the ground, by square metre."""
    ny, nx = (side // 10 for side in world.ground.kind.shape)
    y, x = np.mgrid[0:ny, 0:nx].astype(np.float32) + 0.5
    light = np.zeros((ny, nx), np.float32)
    for lamp_x, lamp_y, height in world.lamps:
        light += 9.0 * height / ((x - lamp_x) ** 2 + (y - lamp_y) ** 2 + height**2) ** 1.5
    return light
