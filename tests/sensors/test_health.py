"""Health statistics against hand arithmetic."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.health import HEALTH_FIELDS, HEALTH_MEANINGS, THUMBNAIL_SIZE_PX, health_of, thumbnails_of
from sensors.rig import CAMERAS, CHANNELS, LIDAR
from tests.sensors.toy_frames import toy_frame

ROW = {channel: i for i, channel in enumerate(CHANNELS)}


def test_every_modality_explains_every_field():
    assert all(len(meaning) == len(HEALTH_FIELDS) for meaning in HEALTH_MEANINGS.values())


def test_camera_of_two_grey_halves():
    frame = toy_frame()
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[:, 80:] = 255
    front = replace(frame.cameras["CAM_FRONT"], pixels=pixels, lag_s=0.04)
    row = health_of(replace(frame, cameras={"CAM_FRONT": front}))[ROW["CAM_FRONT"]]
    assert row == pytest.approx([0.5, 127.5 / 64, 255 / 159 / 16, 0.5, 0.5, 0.4], rel=1e-5)


def test_lidar_beams_and_sectors():
    frame = toy_frame(num_points=3200)
    sweep = frame.lidar[0]
    ahead = sweep.select((sweep.ring < 8) & (sweep.xyz_m[:, 1] > 0))
    row = health_of(replace(frame, lidar=(ahead,)))[ROW[LIDAR]]
    assert row[0] == pytest.approx(np.log10(1 + len(ahead)) / 4)
    assert row[3] == pytest.approx(8 / 32)
    assert row[4] == pytest.approx(18 / 36)


def test_radar_counts_by_hand():
    frame = toy_frame()
    sweep = frame.radars["RADAR_FRONT"][0].select(np.arange(4))
    sweep = replace(
        sweep,
        xyz_m=np.array([[3, 4, 0], [6, 8, 0], [0, 10, 0], [5, 0, 0]], np.float32),
        rcs_dbsm=np.array([16, 16, 0, 0], np.float32),
        dyn_prop=np.array([0, 1, 2, 7], np.int8),
        invalid_state=np.array([0, 3, 0, 0], np.int8),
        lag_s=0.02,
    )
    row = health_of(replace(frame, radars={"RADAR_FRONT": (sweep,)}))[ROW["RADAR_FRONT"]]
    assert row == pytest.approx([np.log10(5) / 2, 0.5, 30 / 4 / 64, 0.5, 0.25, 0.2])


def test_absent_is_zero_and_empty_is_finite():
    frame = toy_frame()
    lost = replace(frame, cameras={}, lidar=(), radars={})
    assert not health_of(lost).any()
    assert not thumbnails_of(lost).any()
    empty = replace(frame, lidar=(frame.lidar[0].select(np.zeros(3200, bool)),))
    assert np.isfinite(health_of(empty)).all()


def test_healthy_values_are_of_order_one():
    rows = health_of(toy_frame(height=225, width=400))
    assert rows.shape == (12, len(HEALTH_FIELDS))
    assert rows.dtype == np.float32
    assert np.abs(rows).max() < 3


@pytest.mark.parametrize("size", [(90, 160), (225, 400), (900, 1600)])
def test_thumbnails_keep_mean_colour(size):
    frame = toy_frame(height=size[0], width=size[1])
    thumbnails = thumbnails_of(frame)
    assert thumbnails.shape == (6, 3, *THUMBNAIL_SIZE_PX)
    for i, channel in enumerate(CAMERAS):
        mean = frame.cameras[channel].pixels.mean(axis=(0, 1)) / 255
        assert thumbnails[i].mean(axis=(1, 2)) == pytest.approx(mean, abs=0.03)
