"""LiDAR faults of beams, points, noise and objects against counts and closed forms."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults.catalogue import fault_named
from sensors.faults.protocol import Draws
from sensors.frame import NoHistory
from tests.sensors.toy_frames import toy_frame

FRAME = toy_frame(height=9, width=16, num_points=12_000)
ONLY = replace(FRAME, cameras={}, radars={})


def applied(name, level, frame=ONLY, token="a"):
    return fault_named(name)(frame, NoHistory(), level, Draws(1, token, name))


def rows(sweep):
    return {row.tobytes() for row in sweep.xyz_m}


@pytest.mark.parametrize(
    ("count", "rings"),
    [(16, set(range(1, 32, 2))), (8, {1, 5, 9, 13, 17, 21, 25, 29}), (4, {1, 9, 17, 25}), (1, {1}), (0, set())],
)
def test_kept_beams_are_evenly_spaced(count, rings):
    for before, after in zip(ONLY.lidar, applied("lidar_beams_kept", float(count)).lidar, strict=True):
        assert set(after.ring.tolist()) == rings
        assert len(after) == np.isin(before.ring, sorted(rings)).sum()


@pytest.mark.parametrize(
    "name",
    [
        *("lidar_beams_kept", "lidar_density_decrease", "lidar_cross_sensor", "lidar_cutout"),
        *("lidar_incomplete_echo", "lidar_object_failure"),
    ],
)
def test_losses_nest(name):
    kept = [rows(applied(name, level).lidar[0]) for level in fault_named(name).levels]
    assert all(more > fewer for more, fewer in zip(kept, kept[1:], strict=False))


def test_density_decrease_takes_the_same_share_of_every_ring_evenly():
    before, after = ONLY.lidar[0], applied("lidar_density_decrease", 0.24).lidar[0]
    counts = [np.bincount(sweep.ring, minlength=32) for sweep in (before, after)]
    assert np.abs(counts[1] / counts[0] - 0.76).max() < 0.02
    # Along the turn no two neighbours are lost: the golden ratio spaces them by three or five (two where azimuths tie).
    ring = before.select(before.ring == 5)
    ring = ring.select(np.argsort(np.arctan2(ring.xyz_m[:, 1], ring.xyz_m[:, 0])))
    lost = ~np.isin(ring.xyz_m[:, 0], after.xyz_m[:, 0])
    assert np.diff(np.flatnonzero(lost)).min() >= 2


def test_cross_sensor_keeps_its_share_of_beams_and_of_firings():
    before, after = ONLY.lidar[0], applied("lidar_cross_sensor", 0.5).lidar[0]
    assert len(set(after.ring.tolist())) == 16
    assert len(after) / len(before) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("num_holes", [2.0, 2.5])
def test_cutouts_are_balls_of_two_percent_each(num_holes):
    before, after = ONLY.lidar[0], applied("lidar_cutout", num_holes).lidar[0]
    lost = before.select(~np.isin(before.xyz_m[:, 0], after.xyz_m[:, 0]))
    assert len(lost) == pytest.approx(num_holes * 240, abs=3) or len(lost) < num_holes * 240
    first = min(lost.xyz_m, key=lambda p: np.sort(np.linalg.norm(lost.xyz_m - p, axis=1))[200])
    near = np.linalg.norm(after.xyz_m - first, axis=1).min()
    assert near > 0.5


def test_noise_is_of_the_asked_size():
    before = ONLY.lidar[0]
    uniform = applied("lidar_uniform_noise", 0.3).lidar[0].xyz_m - before.xyz_m
    assert np.abs(uniform).max() <= 0.3 + 1e-5
    assert uniform.std() == pytest.approx(0.3 / np.sqrt(3), rel=0.03)
    impulse = np.linalg.norm(applied("lidar_impulse_noise", 0.2).lidar[0].xyz_m - before.xyz_m, axis=1)
    assert (impulse > 0.4).mean() == pytest.approx(0.2, abs=0.02)
    assert impulse[impulse > 0.1] == pytest.approx(0.5, abs=1e-3)


def test_crosstalk_keeps_direction_and_glare_stays_near_the_sun():
    before = ONLY.lidar[0]
    false = applied("lidar_crosstalk", 0.1).lidar[0]
    hit = np.abs(false.xyz_m - before.xyz_m).max(axis=1) > 1e-3
    assert hit.mean() == pytest.approx(0.1, abs=0.015)
    unit = [s.xyz_m / np.linalg.norm(s.xyz_m, axis=1, keepdims=True) for s in (before, false)]
    assert unit[0] == pytest.approx(unit[1], abs=1e-5)
    blinded = applied("lidar_glare", 0.03).lidar[0]
    hit = np.abs(blinded.xyz_m - before.xyz_m).max(axis=1) > 0
    assert hit.sum() == int(np.ceil(0.03 * len(before)))
    sun = unit[0][hit].mean(axis=0)
    sun /= np.linalg.norm(sun)
    off_deg = np.rad2deg(np.arccos(np.clip(unit[0][hit] @ sun, -1, 1)))
    assert np.median(off_deg) < 20


def test_azimuth_jitter_turns_about_the_sensor_axis_by_columns():
    before, after = ONLY.lidar[0], applied("lidar_azimuth_jitter", 0.4).lidar[0]
    assert np.array_equal(after.xyz_m[:, 2], before.xyz_m[:, 2])
    assert np.hypot(*after.xyz_m[:, :2].T) == pytest.approx(np.hypot(*before.xyz_m[:, :2].T), rel=1e-5)
    azimuth = [np.rad2deg(np.arctan2(s.xyz_m[:, 1], s.xyz_m[:, 0])) for s in (before, after)]
    turned = (azimuth[1] - azimuth[0] + 180) % 360 - 180
    assert turned.std() == pytest.approx(0.4, rel=0.1)
    column = ((azimuth[0] + 180) / (360 / 1084)).astype(int)
    # float32 coordinates resolve about 1e-5 deg.
    assert all(np.ptp(turned[column == c]) < 1e-3 for c in range(0, 1084, 100))


def test_motion_compensation_moves_segments_rigidly():
    before, after = ONLY.lidar[0], applied("lidar_motion_compensation", 0.1).lidar[0]
    azimuth = np.arctan2(before.xyz_m[:, 1], before.xyz_m[:, 0]) + np.pi
    segment = (azimuth * 100 / (2 * np.pi)).astype(int)
    for k in (3, 50):
        a, b = before.xyz_m[segment == k].astype(float), after.xyz_m[segment == k].astype(float)
        distance = [np.linalg.norm(p - p[0], axis=1) for p in (a, b)]
        assert distance[0] == pytest.approx(distance[1], abs=1e-4)
    assert np.abs(after.xyz_m - before.xyz_m).max() > 0.1


def test_vibration_is_of_the_asked_size():
    before = ONLY.lidar[0]
    sizes = [(applied("lidar_motion_blur", 0.1, token=f"{i}").lidar[0].xyz_m - before.xyz_m).std() for i in range(40)]
    assert np.sqrt(np.mean(np.square(sizes))) == pytest.approx(0.1, rel=0.2)


def test_unseen_objects_lose_all_their_points_and_dark_ones_their_share():
    box = ONLY.boxes.select(np.array([0]))
    for sweep in (ONLY.lidar[0],):
        assert box.count_inside(sweep.to_ego())[0] > 0
    after = applied("lidar_object_failure", 1.0)
    assert ONLY.boxes.count_inside(after.lidar[0].to_ego()).sum() == 0
    counts = [
        frame.boxes.count_inside(frame.lidar[0].to_ego()) for frame in (ONLY, applied("lidar_incomplete_echo", 0.75))
    ]
    dark = np.isin(ONLY.boxes.label, [0, 1, 2, 3, 4, 6, 7])
    assert counts[1][dark].sum() / counts[0][dark].sum() == pytest.approx(0.25, abs=0.06)


def test_moving_objects_are_found_where_they_were_when_the_sweep_was_measured():
    velocity = np.zeros_like(ONLY.boxes.velocity_mps)
    velocity[:, 0], velocity[0] = 400.0, np.nan
    moving = replace(ONLY, boxes=replace(ONLY.boxes, velocity_mps=velocity))
    after = applied("lidar_object_failure", 1.0, moving)
    # The second sweep is 0.05 s older: boxes were 20 m behind. The one of unknown speed stays.
    back = replace(ONLY.boxes, center_m=ONLY.boxes.center_m - np.float32([20, 0, 0]))
    counts = back.count_inside(after.lidar[1].to_ego())
    assert counts[1:].sum() == 0
    assert ONLY.boxes.select(np.array([0])).count_inside(after.lidar[1].to_ego())[0] == 0


@pytest.mark.parametrize("name", ["lidar_incomplete_echo", "lidar_object_failure"])
def test_object_faults_need_labels(name):
    with pytest.raises(ValueError, match=f"expected labels in sample .* for {name}, got none"):
        applied(name, 0.5, replace(ONLY, boxes=None))
