"""Published LiDAR and radar corruptions against numbers computed from their definitions."""

import inspect
from dataclasses import replace

import numpy as np
import pytest

from sensors.faults import published_lidar, published_objects, published_radar, published_weather
from sensors.faults.published_lidar import rows_of, sweep_of
from sensors.transforms import RigidTransform
from tests.sensors.toy_frames import toy_boxes, toy_lidar, toy_radar

SWEEP = toy_lidar(1, 6000)
POINTS = rows_of(SWEEP)
BOXES = toy_boxes(2).moved(SWEEP.ego_from_lidar.inverse())
RNG = np.random.default_rng


def test_rows_lead_there_and_back():
    again = sweep_of(POINTS, SWEEP)
    for name in ("xyz_m", "intensity", "ring"):
        assert np.array_equal(getattr(again, name), getattr(SWEEP, name))
    assert sweep_of(np.c_[POINTS, np.ones(6000)], SWEEP).ring.dtype == np.uint8


CALLS = {
    "multicorrupt_spatial_misalignment": (1.0, 3.0),
    "multicorrupt_beams_reducing": (4,),
    "multicorrupt_points_reducing": (90.0,),
    "multicorrupt_motion_blur": (0.1,),
    "thu_noise_on_points": (0.05, 2.0),
    "thu_density_decrease": (5,),
    "thu_cutout": (10,),
    "thu_gaussian_noise": (0.1,),
    "thu_uniform_noise": (0.1,),
    "thu_impulse_noise": (10,),
    "thu_fov_lost": (45.0,),
    "thu_motion_compensation": (0.1, 0.01),
    "robo3d_motion_blur": (0.2,),
    "robo3d_beam_missing": (24,),
    "robo3d_crosstalk": (0.03,),
    "robo3d_cross_sensor": (24,),
    "adlab_limited_view": (60.0,),
    "d2ice_sector_drop": (90.0, 0.7),
    "thu_local_density": (BOXES, 0.5),
    "thu_local_cutout": (BOXES, 0.7),
    "thu_local_gaussian": (BOXES, 0.1),
    "thu_local_uniform": (BOXES, 0.1),
    "thu_local_impulse": (BOXES, 10),
    "thu_scale": (BOXES, 0.2),
    "thu_shear": (BOXES, 0.25),
    "thu_rotation": (BOXES, 9.0),
    "thu_moving_object": (BOXES, 1.0),
    "robo3d_incomplete_echo": (BOXES, 0.95),
    "adlab_object_failure": (BOXES, 1.0),
    "multicorrupt_fog": (0.06, 0.05),
    "multicorrupt_snow": (1.5, 0.4),
    "thu_fog": (0.06,),
    "thu_rain": (7.29,),
    "thu_snow": (791.4, 3.47e-5),
    "robo3d_fog": (0.2,),
    "robo3d_snow": (2.5, 1.6),
}
MODULES = (published_lidar, published_objects, published_weather)


def called(name, points, arguments=None, seed=0):
    function = next(getattr(module, name) for module in MODULES if hasattr(module, name))
    arguments = CALLS[name] if arguments is None else arguments
    if "rng" not in inspect.signature(function).parameters:
        return function(points, *arguments)
    return function(points, *arguments, rng=RNG(seed))


@pytest.mark.parametrize("name", CALLS)
def test_harms_purely_repeatably_and_survives_hardly_any_points(name):
    before = POINTS.copy()
    harmed = called(name, POINTS)
    assert np.array_equal(POINTS, before)
    assert np.isfinite(harmed).all()
    assert harmed.shape != POINTS.shape or not np.array_equal(harmed, POINTS)
    assert np.array_equal(called(name, POINTS), harmed)
    for count in (0, 1):
        few = called(name, POINTS[:count])
        assert np.isfinite(few).all()
        assert len(few) <= count


def test_every_published_point_corruption_is_called_here():
    defined = {
        n
        for module in MODULES
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__
    }
    prefixes = ("multicorrupt_", "thu_", "robo3d_", "adlab_", "d2ice_")
    others = {"thu_spatial_misalignment", "adlab_extrinsic_noise", "robo3d_wet_ground"}
    assert {n for n in defined if n.startswith(prefixes)} == set(CALLS) | others


def test_multicorrupt_turns_about_x_y_z_and_moves_two_metres():
    moved = called("multicorrupt_spatial_misalignment", POINTS, (1.0, 90.0))
    assert moved[:, :3] == pytest.approx(_by_hand(POINTS[:, :3]), abs=1e-3)
    assert called("multicorrupt_spatial_misalignment", POINTS, (0.0, 3.0)) is POINTS


def _by_hand(xyz):
    """A quarter turn about z, then y, then x, with cosine 0 and sine 1 written out."""
    x = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    y = np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])
    z = np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    return np.array([x @ (y @ (z @ p)) for p in xyz]) + [2, 0, 0]


def test_counts_are_those_of_the_definitions():
    assert len(called("multicorrupt_points_reducing", POINTS, (70.0,))) == 1800
    assert len(called("thu_density_decrease", POINTS, (2,))) == 6000 - 720
    assert len(called("thu_cutout", POINTS, (5,))) == 6000 - 5 * 120
    for name, arguments, changed in (("thu_noise_on_points", (0.05, 2.0), 300), ("thu_impulse_noise", (15,), 400)):
        harmed = called(name, POINTS, arguments)
        assert (harmed != POINTS).any(axis=1).sum() == changed
        assert (harmed[:, 4] != POINTS[:, 4]).sum() == changed
    assert (called("robo3d_crosstalk", POINTS)[:, 4] == POINTS[:, 4]).all()
    mixed = POINTS[RNG(1).permutation(6000)]
    thinned = called("robo3d_cross_sensor", mixed, (16,))
    assert set(thinned[:, 4]) == set(range(0, 32, 2))
    assert len(thinned) == np.ceil((mixed[:, 4] % 2 == 0).sum() / 2)
    left = [32 - len(set(called("robo3d_beam_missing", POINTS, (8,), seed)[:, 4])) for seed in range(200)]
    # 27 (1 - (26 / 27)^8) distinct rings of eight draws.
    assert np.mean(left) == pytest.approx(7.04, abs=0.2)


def test_blur_is_one_offset_and_clipped_jitter():
    for name, shares in (("multicorrupt_motion_blur", (0.15, 0.2, 0.12)), ("robo3d_motion_blur", (0.1, 0.1, 0.05))):
        shift = called(name, POINTS, (0.2,))[:, :3] - POINTS[:, :3]
        assert shift.std(axis=0) == pytest.approx(0.2 * np.array(shares), rel=0.05)


def test_spatial_misalignment_is_no_rotation_and_adlab_turns_by_half_the_named_angle():
    matrix = published_lidar.thu_spatial_misalignment(np.eye(4), 0.2, 0.02, RNG(0))
    assert np.abs(matrix[:3, :3] @ matrix[:3, :3].T - np.eye(3)).max() > 1e-3
    noisy = published_lidar.adlab_extrinsic_noise(RigidTransform.identity(), (4.0, 4.0), (0.01, 0.01), RNG(0))
    assert np.rad2deg(np.arccos((np.trace(noisy.rotation) - 1) / 2)) == pytest.approx(2.0)
    assert np.abs(noisy.translation_m) == pytest.approx(0.01)


def test_objects_change_inside_their_boxes_only():
    inside = published_objects.inside_of(POINTS[:, :3], BOXES).any(axis=0)
    assert np.array_equal(
        published_objects.inside_of(POINTS[:, :3], BOXES).sum(axis=1), BOXES.count_inside(POINTS[:, :3])
    )
    others = {row.tobytes() for row in POINTS[~inside]}
    for name in (
        "thu_scale",
        "thu_shear",
        "thu_rotation",
        "thu_moving_object",
        "thu_local_gaussian",
        "thu_local_density",
    ):
        assert others <= {row.tobytes() for row in called(name, POINTS)}, name
    one = BOXES.select(np.array([4]))
    mine = POINTS[published_objects.inside_of(POINTS[:, :3], one)[0]]
    sheared = published_objects.thu_shear(mine, one, 0.25, RNG(0))
    grown = replace(one, size_lwh_m=one.size_lwh_m * np.float32(1.0001))
    assert published_objects.inside_of(sheared[:, :3], grown).all()
    turned = published_objects.thu_rotation(mine, one, 9.0, RNG(0))
    radius = [np.linalg.norm(p[:, :3] - one.center_m, axis=1) for p in (mine, turned)]
    assert radius[0] == pytest.approx(radius[1], abs=1e-3)


def test_radar_corruptions_of_roburcdet_and_d2ice():
    sweep = toy_radar("RADAR_FRONT", 1, 4000)
    missing = published_radar.roburcdet_missing(sweep, RNG(0))
    assert 4000 - 8 <= len(missing) < 4000
    assert published_radar.roburcdet_missing(sweep.select(np.arange(8)), RNG(0)) is not None
    assert len(published_radar.roburcdet_missing(sweep.select(np.arange(8)), RNG(0))) == 8
    spurious = published_radar.roburcdet_spurious(sweep, 5.0, RNG(0))
    assert len(spurious) == 8000
    assert (spurious.xyz_m[:4000] - sweep.xyz_m).std() == pytest.approx(5.0, rel=0.05)
    assert np.array_equal(spurious.xyz_m[4000:], sweep.xyz_m)
    disturbed = published_radar.roburcdet_disturbance(sweep, 5.0, RNG(0))
    assert (disturbed.rcs_dbsm - sweep.rcs_dbsm).std() == pytest.approx(5.0, rel=0.05)
    assert (disturbed.velocity_mps - sweep.velocity_mps).std() == pytest.approx(5.0, rel=0.05)
    assert np.array_equal(disturbed.velocity_raw_mps, sweep.velocity_raw_mps)
    assert len(published_radar.d2ice_point_drop(sweep, 0.25, RNG(0))) == 3000
    assert published_radar.d2ice_rcs_scale(sweep, 0.5).rcs_dbsm == pytest.approx(sweep.rcs_dbsm / 2)


@pytest.mark.parametrize("entry", [0.05, 0.10, 0.15, 0.20, 0.25])
@pytest.mark.parametrize("yaw_rad", [0.0, 1.1])
def test_shear_adds_shares_of_the_other_axes_to_points_far_from_the_faces(entry, yaw_rad):
    # Nothing is squeezed here, so the matrix of the definition can be read off: x gains y and z, z gains x and y.
    box = replace(
        BOXES.select(np.array([0])),
        center_m=np.array([[5.0, -7.0, 1.0]], np.float32),
        size_lwh_m=np.array([[4.0, 4.0, 4.0]], np.float32),
        yaw_rad=np.array([yaw_rad], np.float32),
    )
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    sensor_from_box = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    inner = RNG(3).uniform(-0.9, 0.9, (60, 3))
    points = np.column_stack([inner @ sensor_from_box.T + box.center_m, np.full((60, 2), 7.0)]).astype(POINTS.dtype)
    for seed in range(5):
        sheared = published_objects.thu_shear(points, box, entry, RNG(seed))
        moved = (sheared[:, :3] - box.center_m) @ sensor_from_box
        gained = np.linalg.lstsq(inner, moved, rcond=None)[0] - np.eye(3)
        shares = np.abs(gained[[0, 1, 1, 2], [2, 0, 2, 0]])
        assert (shares > entry - 0.051).all()
        assert (shares < entry + 0.051).all()
        gained[[0, 1, 1, 2], [2, 0, 2, 0]] = 0
        assert gained == pytest.approx(0, abs=1e-4)
