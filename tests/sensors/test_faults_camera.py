"""Camera faults and fog against closed forms."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sensors.camera import CameraImage
from sensors.faults.camera import blurred_along
from sensors.faults.catalogue import fault_named
from sensors.faults.lidar_fog import fog_response
from sensors.faults.protocol import Draws
from sensors.faults.weather import coarse_depth_m
from sensors.frame import NoHistory
from sensors.rig import NUSCENES_RIG
from tests.sensors.toy_frames import toy_frame, toy_image


def frame_of(pixels):
    spec = NUSCENES_RIG["CAM_FRONT"]
    scale = np.diag([pixels.shape[1] / 1600, pixels.shape[0] / 900, 1.0])
    image = CameraImage(pixels, scale @ spec.intrinsics, spec.ego_from_sensor, 0.0)
    return replace(toy_frame(height=9, width=16, num_points=64), cameras={"CAM_FRONT": image})


def grey(value, height=225, width=400):
    return frame_of(np.full((height, width, 3), value, np.uint8))


def applied(name, level, frame, token="a"):
    return fault_named(name)(frame, NoHistory(), level, Draws(1, token, name)).cameras["CAM_FRONT"].pixels


@pytest.mark.parametrize("width", [400, 800])
def test_noise_has_the_stated_deviation_at_1600_columns_and_averages_out_below(width):
    noisy = applied("camera_noise", 40.0, grey(128, width * 9 // 16, width)).astype(float)
    assert noisy.std() == pytest.approx(40.0 * width / 1600, rel=0.03)
    assert noisy.mean() == pytest.approx(128, abs=0.2)
    # Neighbours and colours are independent.
    assert abs(np.corrcoef(noisy[:, 1:, 0].ravel(), noisy[:, :-1, 0].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noisy[..., 0].ravel(), noisy[..., 1].ravel())[0, 1]) < 0.02


def test_no_noise_field_repeats():
    frame = replace(grey(128), cameras=dict.fromkeys(("CAM_FRONT", "CAM_BACK"), grey(128).cameras["CAM_FRONT"]))
    noisy = fault_named("camera_noise")(frame, NoHistory(), 40.0, Draws(1, "a", "camera_noise")).cameras
    assert not np.array_equal(noisy["CAM_FRONT"].pixels, noisy["CAM_BACK"].pixels)
    other = applied("camera_noise", 40.0, grey(128), token="b")
    assert not np.array_equal(noisy["CAM_FRONT"].pixels, other)


@pytest.mark.parametrize("stops", [1.0, 3.0])
def test_dark_halves_the_linear_light_with_every_stop(stops):
    dark = applied("camera_dark", stops, grey(200, 225, 1600))
    assert dark.mean() == pytest.approx(200 * 2 ** (-stops / 2.2), rel=0.02)
    photons = 8000 * (200 / 255) ** 2.2 * 2.0**-stops
    # The encoding turns a relative deviation of light into 1 / 2.2 of it; rounding adds 1/12.
    shot = dark.mean() * np.sqrt(photons + 144) / photons / 2.2
    assert dark.std() == pytest.approx(np.hypot(shot, np.sqrt(1 / 12)), rel=0.1)


def test_overexposure_multiplies_linear_light_and_clips():
    assert applied("camera_overexposed", 1.0, grey(100)).mean() == pytest.approx(100 * 2 ** (1 / 2.2), abs=0.6)
    assert (applied("camera_overexposed", 3.0, grey(150)) == 255).all()


@pytest.mark.parametrize("length_px", [0.5, 3.0, 6.1, 8.0, 12.0, 20.0, 40.0])
@pytest.mark.parametrize("angle_deg", [0.0, 30.0, -45.0])
def test_motion_blur_spreads_a_dot_over_a_centred_path(length_px, angle_deg):
    # A block keeps the sum of a dot above the rounding of its parts.
    dot = np.zeros((101, 101, 3), np.uint8)
    dot[48:53, 48:53] = 255
    blurred = blurred_along(dot, length_px, np.deg2rad(angle_deg))[..., 0].astype(float)
    y, x = np.mgrid[-50:51, -50:51]
    mass = blurred.sum()
    assert mass == pytest.approx(25 * 255, rel=0.1)
    centre = np.array([(blurred * x).sum(), (blurred * y).sum()]) / mass
    assert np.abs(centre).max() < 1.0
    direction = np.deg2rad(angle_deg)
    along = x * np.cos(direction) + y * np.sin(direction)
    across = y * np.cos(direction) - x * np.sin(direction)
    # A path of length L has variance L^2 / 12, on top of the block's own (5^2 - 1) / 12 = 2 on each axis.
    assert (blurred * along**2).sum() / mass == pytest.approx(2 + length_px**2 / 12, rel=0.15, abs=0.6)
    assert (blurred * across**2).sum() / mass == pytest.approx(2, abs=0.8)


@pytest.mark.parametrize("name", ["camera_defocus", "camera_motion_blur"])
def test_blur_of_the_reduced_picture_is_the_reduced_blur(name):
    pixels = toy_image("CAM_FRONT", 2, 900, 1600).pixels
    small = cv2.resize(pixels, (400, 225), interpolation=cv2.INTER_AREA)
    level = fault_named(name).levels[3]
    reduced = cv2.resize(applied(name, level, frame_of(pixels)), (400, 225), interpolation=cv2.INTER_AREA)
    direct = applied(name, level, frame_of(small))
    assert np.abs(reduced.astype(int) - direct).mean() < 0.25 * np.abs(reduced.astype(int) - small).mean()


def test_lens_dirt_hides_the_asked_share_and_grows():
    frame = grey(250)
    hidden = [applied("camera_lens_dirt", level, frame)[..., 0] < 150 for level in (0.05, 0.2, 0.5)]
    assert [mask.mean() for mask in hidden] == pytest.approx([0.05, 0.2, 0.5], abs=0.03)
    assert not (hidden[0] & ~hidden[1]).any()
    assert not (hidden[1] & ~hidden[2]).any()


def test_camera_fog_follows_koschmieder_where_the_depth_is_known():
    # A wall of points 40 m ahead of the front camera, seen by a grey camera with a white sky strip for the airlight.
    frame = grey(60)
    front = frame.cameras["CAM_FRONT"]
    pixels = front.pixels.copy()
    pixels[:50] = 240
    front = replace(front, pixels=pixels)
    y, z = np.meshgrid(np.linspace(-30, 30, 600), np.linspace(-1, 6, 60))
    wall_camera = np.stack([y.ravel(), -z.ravel(), np.full(y.size, 40.0)], axis=1)
    sweep = frame.lidar[0]
    wall = sweep.ego_from_lidar.inverse().points(front.ego_from_camera.points(wall_camera)).astype(np.float32)
    sweep = replace(sweep, xyz_m=wall, intensity=np.full(len(wall), 20, np.float32), ring=np.zeros(len(wall), np.uint8))
    frame = replace(frame, cameras={"CAM_FRONT": front}, lidar=(sweep,))
    depth = coarse_depth_m(front, frame.lidar)
    middle = depth[25:28, 40:60]
    assert middle == pytest.approx(40.0, rel=0.05)
    foggy = np.mean([applied("camera_fog", 0.02, frame, f"t{i}")[105:111, 180:220].mean() for i in range(20)])
    left = np.exp(-0.02 * 40)
    assert foggy == pytest.approx(60 * left + 240 * (1 - left), rel=0.1)


def test_camera_fog_without_lidar_thickens_towards_the_horizon():
    frame = replace(grey(60), lidar=())
    depth = coarse_depth_m(frame.cameras["CAM_FRONT"], ())
    below = depth[30:, 50]
    # Flat ground seen from 1.51 m: the lowest row looks down by atan(450 / 1266), the distance is the slanted one.
    assert below[-1] == pytest.approx(1.511 / np.sin(np.arctan(442 / 1266)), rel=0.05)
    assert (np.diff(below) < 0).all()
    assert (depth[:15] == 300).all()


@pytest.mark.parametrize("alpha", [0.01, 0.03])
def test_lidar_fog_attenuates_by_the_closed_form(alpha):
    frame = toy_frame(height=9, width=16, num_points=8000, num_sweeps=1)
    before = frame.lidar[0]
    after = fault_named("lidar_fog")(frame, NoHistory(), alpha, Draws(1, "a", "lidar_fog")).lidar[0]
    index = {row.tobytes(): i for i, row in enumerate(before.xyz_m)}
    pairs = [(index[row.tobytes()], j) for j, row in enumerate(after.xyz_m) if row.tobytes() in index]
    old, new = np.array(pairs).T
    range_m = np.linalg.norm(before.xyz_m[old], axis=1)
    expected = before.intensity[old] * np.exp(-2 * alpha * range_m)
    assert np.abs(after.intensity[new] - expected).max() <= 0.5 + 1e-3
    assert 0.2 < len(old) / len(before) < 1


def test_fog_response_equals_a_plain_loop():
    alpha, range_m = 0.06, np.array([0.5, 2.0, 4.0, 50.0])
    response, where = fog_response(alpha, range_m)
    best, best_at = 0.0, 0.0
    loop = []
    for at in np.arange(0.9, 30, 0.1):
        total = 0.0
        for i in range(128):
            t = (i + 0.5) * 40e-9 / 128
            source = at - 299_792_458.0 * t / 2
            if source > 0.9:
                overlap = min((source - 0.9) / 0.1, 1.0)
                total += (
                    np.sin(np.pi * t / 40e-9) ** 2 * np.exp(-2 * alpha * source) / source**2 * overlap * 40e-9 / 128
                )
        if total > best:
            best, best_at = total, at
        loop.append((at, best, best_at))
    for k, r in enumerate(range_m[1:], start=1):
        _, expected, expected_at = [entry for entry in loop if entry[0] <= r + 1e-9][-1]
        assert response[k] == pytest.approx(expected, rel=1e-9)
        assert where[k] == pytest.approx(expected_at)
    assert response[0] == 0


def test_fog_hardly_touches_radar_and_uses_one_parameter():
    frame = toy_frame(height=45, width=80, num_points=640)
    both = fault_named("fog")(frame, NoHistory(), 0.03, Draws(1, "a", "fog"))
    camera = fault_named("camera_fog")(frame, NoHistory(), 0.03, Draws(1, "a", "fog"))
    lidar = fault_named("lidar_fog")(frame, NoHistory(), 0.03, Draws(1, "a", "fog"))
    for channel, sweeps in frame.radars.items():
        after = both.radars[channel][0]
        before = sweeps[0].select(np.isin(sweeps[0].track_id, after.track_id))
        # 4.3 dB/km per g/m3 of (0.024 / 0.1 km)^1.54 g/m3, both ways.
        loss_db = 2 * 4.3 * (0.024 * 0.03 / np.log(20) * 1000) ** 1.54 * np.linalg.norm(before.xyz_m, axis=1) / 1000
        assert before.rcs_dbsm - after.rcs_dbsm == pytest.approx(loss_db, abs=1e-4)
        assert len(after) > 0.95 * len(sweeps[0])
    assert np.array_equal(both.cameras["CAM_BACK"].pixels, camera.cameras["CAM_BACK"].pixels)
    assert np.array_equal(both.lidar[0].xyz_m, lidar.lidar[0].xyz_m)
