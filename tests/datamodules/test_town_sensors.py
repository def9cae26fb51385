"""Cameras, LiDAR and radar of the town against closed forms, and how the conditions hurt each of them."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.town import lidar, radar, radar_codes
from datamodules.town.actors import STANDING, Pace
from datamodules.town.cameras import CameraRenderer
from datamodules.town.caster import NOBODY, Caster
from datamodules.town.light import light_of
from datamodules.town.presets import TownConfig
from datamodules.town.sampling import count_inside
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
    assert (sweep.xyz_m[:, 2].min(), len(np.unique(sweep.ring))) > (-4.5, 31)
    assert 20_000 < len(sweep) <= 1080 * 32


def test_lidar_rings_have_the_sensors_elevations(world):
    """Of a vehicle that stands: compensating for its motion changes the elevation of a driving one's points."""
    waiting = replace(world, ego=replace(world.ego, pace=STANDING))
    sweep = lidar.scan(waiting, Caster(waiting), 0.0, np.random.default_rng(0))
    elevation = np.arctan2(sweep.xyz_m[:, 2], np.hypot(sweep.xyz_m[:, 0], sweep.xyz_m[:, 1]))
    np.testing.assert_allclose(elevation, lidar.ELEVATIONS_RAD[sweep.ring], atol=1e-4)


def test_lidar_turns_clockwise_from_the_left(world):
    """The order of nuScenes' files: azimuth from the y axis towards x grows by one turn from about -92 degrees."""
    waiting = replace(world, ego=replace(world.ego, pace=STANDING))
    sweep = lidar.scan(waiting, Caster(waiting), 0.0, np.random.default_rng(0))
    low = sweep.select(sweep.ring == 2)
    azimuth = np.rad2deg(np.unwrap(np.arctan2(low.xyz_m[:, 0], low.xyz_m[:, 1]).astype(float)))
    assert (np.diff(azimuth) > 0).all()
    assert -93.0 < azimuth[0] < -85.0
    assert 350.0 < azimuth[-1] - azimuth[0] < 360.0


def _inside(world, sweep, rows, index, time_s):
    """Number of the chosen points in the box that an actor has at a time."""
    pose = world.ego.transform(SWEEP_TIME_S) @ world.ego_from_sensor[LIDAR]
    points = pose.points(sweep.xyz_m[rows].astype(float))
    actor = world.actors[index]
    size, yaw = np.array([actor.size_lwh_m]), np.array([actor.motion.pose(time_s)[3]])
    return int(count_inside(points, np.array([actor.box_center_m(time_s)]), size, yaw)[0])


SWEEP_TIME_S = 0.3


def test_lidar_is_compensated_for_the_vehicles_own_motion_alone(world, caster):
    """What stands is where it stands though the vehicle drives on; what moves is where it was when the beam met it."""
    fast = replace(world, ego=replace(world.ego, pace=Pace(20.0)))
    movers = [i for i, actor in enumerate(fast.actors) if np.linalg.norm(actor.motion.velocity(SWEEP_TIME_S)) > 3.0]
    caster = Caster(fast)
    sweep = lidar.scan(fast, caster, SWEEP_TIME_S, np.random.default_rng(0))
    height = fast.ego_from_sensor[LIDAR].points(sweep.xyz_m.astype(float))[:, 2]
    assert abs(np.median(height[sweep.ring == 3])) < 0.02
    early = sweep.xyz_m[:, 0] < 0.0
    early &= np.arange(len(sweep)) < len(sweep) // 3
    then, now = lidar.column_times(SWEEP_TIME_S)[lidar.NUM_AZIMUTHS // 6], SWEEP_TIME_S
    assert now - then == pytest.approx(0.05 * 5 / 6, abs=1e-3)
    at_beam = sum(_inside(fast, sweep, early, i, float(then)) for i in movers)
    at_stamp = sum(_inside(fast, sweep, early, i, now) for i in movers)
    assert at_beam > 20
    assert at_beam > at_stamp


def test_glass_and_wet_roads_swallow_beams(world, caster):
    dry, wet = under(world, "day"), under(world, "rain")
    ground, bodies = [], []
    for one in (dry, wet):
        sweep = lidar.scan(one, caster, 0.0, np.random.default_rng(0))
        height = world.ego_from_sensor[LIDAR].points(sweep.xyz_m.astype(float))[:, 2]
        far = np.hypot(*sweep.xyz_m[:, :2].T) > 15.0
        ground.append((far & (np.abs(height) < 0.1)).sum())
        bodies.append((far & (height > 0.4)).sum())
    assert wet.light.rain_mm_h > 0 == dry.light.rain_mm_h
    assert ground[1] < 0.6 * ground[0]
    assert bodies[1] > 0.6 * bodies[0]


def test_compensated_radar_velocity_is_exactly_radial(world, caster):
    for channel in RADARS:
        sweep = radar.measure(world, caster, channel, 0.2, np.random.default_rng(0))
        x, y = sweep.xyz_m[:, 0].astype(float), sweep.xyz_m[:, 1].astype(float)
        cross = x * sweep.velocity_mps[:, 1] - y * sweep.velocity_mps[:, 0]
        assert np.abs(cross / np.hypot(x, y)).max() < 1e-5
        assert 0 < len(sweep) <= 125


def test_raw_radar_velocity_lacks_the_ego_motion(world, caster):
    """All points of one sweep differ by one vector, minus the velocity of the sensor, but for steps of 0.25 m/s."""
    for channel in RADARS:
        sweep = radar.measure(world, caster, channel, 0.2, np.random.default_rng(0))
        pose = world.ego_from_sensor[channel]
        before, after = ((world.ego.transform(0.2 + dt) @ pose).translation_m for dt in (-0.02, 0.02))
        moving = (world.ego.transform(0.2) @ pose).inverse().vectors((after - before) / 0.04)
        difference = sweep.velocity_raw_mps - sweep.velocity_mps
        np.testing.assert_allclose(difference, np.tile(-moving[:2], (len(sweep), 1)), atol=0.125 + 0.02)
        np.testing.assert_allclose(sweep.velocity_raw_mps % 0.25, 0.0, atol=1e-6)


def test_standing_radar_targets_have_no_speed(world):
    """In a world in which nothing but the vehicle moves, compensated speeds are noise (but for moving clutter)."""
    still = replace(world, actors=tuple(actor for actor in world.actors if not actor.motion.moves))
    sweep = radar.measure(still, Caster(still), "RADAR_FRONT", 0.2, np.random.default_rng(0))
    speed = np.hypot(*sweep.velocity_mps.T)
    assert np.median(speed) < 0.15
    assert (speed > 0.5).mean() < 0.1
    assert set(sweep.dyn_prop[speed < 0.3]) <= {1, 3, 4}
    assert (sweep.dyn_prop == 4).mean() < 0.3


def test_large_things_answer_louder(world):
    owners = np.arange(len(world.actors))
    draws = [radar._rcs(world, owners, np.ones(len(owners)), np.random.default_rng(seed)) for seed in range(50)]
    mean = np.mean(draws, axis=0)
    kind = np.array([actor.name for actor in world.actors])
    assert mean[kind == "truck"].mean() > mean[kind == "car"].mean() > mean[kind == "pedestrian"].mean() + 5


def test_radar_detection_follows_swerling_and_the_fourth_power():
    """Pd = Pfa ** (1 / (1 + SNR)): 12 dB less, or twice the distance, is the same; rain takes a little, far away."""

    def rate(rcs_dbsm, range_m, rain_mm_h):
        return float(radar._detection_rate(np.array([rcs_dbsm]), np.array([range_m]), rain_mm_h)[0])

    here, farther, weaker = rate(10.0, 20.0, 0.0), rate(10.0, 40.0, 0.0), rate(10.0 - 40 * np.log10(2), 20.0, 0.0)
    assert farther == pytest.approx(weaker)
    assert here == pytest.approx(1e-3 ** (1 / (1 + 10**2.4)))
    assert rate(-200.0, 20.0, 0.0) == pytest.approx(1e-3)
    assert 0.97 < rate(10.0, 20.0, 30.0) / here < 1.0


def test_status_codes_have_the_shares_of_a_real_file():
    rng = np.random.default_rng(4)
    codes = radar_codes.status_codes(np.zeros(20_000), np.zeros(20_000, bool), rng)
    assert {name: values.dtype for name, values in codes.items()} == dict.fromkeys(codes, np.dtype(np.int8))
    sure = codes["x_rms"] != 0
    assert (~sure).mean() == pytest.approx(11 / 125, abs=0.01)
    assert (codes["invalid_state"][sure] == 0).mean() == pytest.approx(74 / 114, abs=0.015)
    assert (codes["pdh0"][sure] == 3).mean() == pytest.approx(32 / 114, abs=0.015)
    assert set(codes["dyn_prop"]) == {1, 3, 4}
    assert set(codes["ambig_state"][sure]) == {3}
    fast = radar_codes.status_codes(np.full(5000, -3.0), np.zeros(5000, bool), rng)
    assert set(fast["dyn_prop"]) == {2, 4}
    assert set(fast["ambig_state"][fast["x_rms"] != 0]) == {1, 2, 3}


def test_radar_sees_about_as_little_as_a_real_one():
    """Points per box within 50 m beside the whole real mini_val: cars 1.01, people 0.22."""
    counted = {"car": [], "pedestrian": []}
    for index in range(6):
        one = build_world(CONFIG, SceneKey("train", index))
        rays, points = Caster(one), []
        for channel in RADARS:
            sweep = radar.measure(one, rays, channel, 0.0, np.random.default_rng(index))
            points.append((one.ego.transform(0.0) @ one.ego_from_sensor[channel]).points(sweep.xyz_m.astype(float)))
        ego = np.array(one.ego.pose(0.0)[:2])
        for name, counts in counted.items():
            poses = [(a, a.motion.pose(0.0)) for a in one.actors if a.name == name]
            near = [(a, pose) for a, pose in poses if np.hypot(*(np.array(pose[:2]) - ego)) < 50.0]
            centers = np.array([a.box_center_m(0.0) for a, _ in near]).reshape(-1, 3)
            sizes = np.array([a.size_lwh_m for a, _ in near]).reshape(-1, 3)
            counts += count_inside(np.concatenate(points), centers, sizes, np.array([p[3] for _, p in near])).tolist()
    assert 0.5 < np.mean(counted["car"]) < 1.7
    assert 0.02 < np.mean(counted["pedestrian"]) < 0.5


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
