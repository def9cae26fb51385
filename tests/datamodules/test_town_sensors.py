"""Cameras, LiDAR and radar of the town against closed forms, and how the conditions hurt each of them."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.town import lidar, radar
from datamodules.town.cameras import CameraRenderer
from datamodules.town.caster import NOBODY, Caster
from datamodules.town.light import light_of
from datamodules.town.presets import TownConfig
from datamodules.town.world import SceneKey, build_world
from sensors.rig import CAMERAS, LIDAR, RADARS

CONFIG = TownConfig(samples_per_scene=2, image_scale=0.1)


@pytest.fixture(scope="module")
def world():
    """A training scene in which the vehicle drives."""
    worlds = (build_world(CONFIG, SceneKey("train", index)) for index in range(5))
    return next(world for world in worlds if world.ego.moves)


@pytest.fixture(scope="module")
def caster(world):
    return Caster(world)


def under(world, condition):
    return replace(world, light=light_of(condition, np.random.default_rng(0)), condition=condition)


def test_lidar_ground_points_lie_on_the_ground(world, caster):
    sweep = lidar.scan(world, caster, 0.0, np.random.default_rng(0))
    lowest = sweep.select(sweep.ring == 0)
    height = world.ego_from_sensor[LIDAR].points(lowest.xyz_m.astype(float))[:, 2]
    assert abs(np.median(height)) < 0.02
    assert (sweep.xyz_m[:, 2].min(), len(np.unique(sweep.ring))) > (-3.0, 31)
    assert 20_000 < len(sweep) <= 1080 * 32


def test_lidar_rings_have_the_sensors_elevations(world, caster):
    sweep = lidar.scan(world, caster, 0.0, np.random.default_rng(0))
    elevation = np.arctan2(sweep.xyz_m[:, 2], np.hypot(sweep.xyz_m[:, 0], sweep.xyz_m[:, 1]))
    np.testing.assert_allclose(elevation, lidar.ELEVATIONS_RAD[sweep.ring], atol=1e-5)


def test_compensated_radar_velocity_is_exactly_radial(world, caster):
    for channel in RADARS:
        sweep = radar.measure(world, caster, channel, 0.2, np.random.default_rng(0))
        x, y = sweep.xyz_m[:, 0].astype(float), sweep.xyz_m[:, 1].astype(float)
        cross = x * sweep.velocity_mps[:, 1] - y * sweep.velocity_mps[:, 0]
        assert np.abs(cross / np.hypot(x, y)).max() < 1e-5
        assert 0 < len(sweep) <= 125


def test_raw_radar_velocity_lacks_the_ego_motion(world, caster):
    """All points of one sweep differ by one vector: minus the velocity of the sensor, in its own frame."""
    for channel in RADARS:
        sweep = radar.measure(world, caster, channel, 0.2, np.random.default_rng(0))
        pose = world.ego_from_sensor[channel]
        before, after = ((world.ego.transform(0.2 + dt) @ pose).translation_m for dt in (-0.02, 0.02))
        moving = (world.ego.transform(0.2) @ pose).inverse().vectors((after - before) / 0.04)
        difference = sweep.velocity_raw_mps - sweep.velocity_mps
        np.testing.assert_allclose(difference, np.tile(-moving[:2], (len(sweep), 1)), atol=0.02)


def test_standing_radar_targets_have_no_speed(world):
    """In a world in which nothing but the vehicle moves, compensated speeds are noise (but for moving clutter)."""
    still = replace(world, actors=tuple(actor for actor in world.actors if not actor.motion.moves))
    sweep = radar.measure(still, Caster(still), "RADAR_FRONT", 0.2, np.random.default_rng(0))
    speed = np.hypot(*sweep.velocity_mps.T)
    assert np.median(speed) < 0.12
    assert (speed > 0.5).mean() < 0.1
    assert set(sweep.dyn_prop[speed < 0.3]) <= {1, 3}


def test_large_things_answer_louder(world):
    owners = np.arange(len(world.actors))
    rcs = radar._rcs(world, np.repeat(owners, 50), np.ones(50 * len(owners)), np.random.default_rng(0))
    mean = rcs.reshape(len(owners), 50).mean(axis=1)
    kind = np.array([actor.name for actor in world.actors])
    assert mean[kind == "truck"].mean() > mean[kind == "car"].mean() > mean[kind == "pedestrian"].mean() + 5


def test_fog_shortens_lidar_and_leaves_radar(world, caster):
    clear, fog = under(world, "day"), under(world, "fog")
    far = []
    for one in (clear, fog):
        sweep = lidar.scan(one, caster, 0.0, np.random.default_rng(0))
        far.append((np.linalg.norm(sweep.xyz_m, axis=1) > 45.0).sum())
    assert far[1] < 0.2 * far[0]
    sweeps = [radar.measure(one, caster, "RADAR_FRONT", 0.0, np.random.default_rng(0)) for one in (clear, fog)]
    np.testing.assert_array_equal(sweeps[0].xyz_m, sweeps[1].xyz_m)


def test_night_darkens_cameras_and_leaves_lidar(world, caster):
    pictures, clouds = [], []
    for condition in ("day", "night"):
        one = under(world, condition)
        pictures.append(CameraRenderer(one, caster).render("CAM_BACK", 0.0, np.random.default_rng(0)).astype(float))
        clouds.append(lidar.scan(one, caster, 0.0, np.random.default_rng(0)))
    assert pictures[1].mean() < 0.5 * pictures[0].mean()
    counts = [len(cloud) for cloud in clouds]
    assert abs(counts[0] - counts[1]) < 0.03 * counts[0]


def test_fog_takes_contrast(world, caster):
    spread = {}
    for condition in ("day", "fog"):
        renderer = CameraRenderer(under(world, condition), caster)
        spread[condition] = np.mean(
            [renderer.render(channel, 0.0, np.random.default_rng(0)).std() for channel in CAMERAS]
        )
    assert spread["fog"] < 0.8 * spread["day"]


def test_pictures_show_what_rays_hit(world, caster):
    """The pixel nearest to an actor's middle belongs to the actor that a ray to it hits first."""
    renderer = CameraRenderer(world, caster)
    moment = caster.at(0.0)
    pose = world.ego.transform(0.0) @ world.ego_from_sensor["CAM_FRONT"]
    matrix = world.image_from_camera["CAM_FRONT"]
    height, width = world.image_size_px
    found = 0
    rays = renderer._rays("CAM_FRONT").reshape(height, width, 3)
    for index, actor in enumerate(world.actors):
        local = pose.inverse().points(np.array(actor.box_center_m(0.0)))
        if local[2] < 2.0:
            continue
        u, v = (matrix @ local)[:2] / local[2]
        if 0 <= round(u) < width and 0 <= round(v) < height:
            direction = pose.vectors(rays[round(v), round(u)][None].astype(np.float32))
            origin = pose.translation_m.astype(np.float32)[None]
            hit = moment.cast(origin, direction)
            owner = moment.surfaces.owner[hit.triangle[0]]
            found += owner == index
            assert owner != index or abs(hit.range_m[0] - np.linalg.norm(local)) < max(actor.size_lwh_m)
            assert owner == NOBODY or 0 <= owner < len(world.actors)
    assert found >= 2
