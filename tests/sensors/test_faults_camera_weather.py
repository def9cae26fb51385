"""What sits on the lens, what is lost on the way, rain and snow: shares, closed forms, levels that hold one another."""

import math

import cv2
import numpy as np
import pytest

from sensors.faults.camera_lens import lens_drops
from sensors.faults.camera_particles import rain_drops, snow_flakes
from sensors.faults.camera_sky import camera_rain, camera_snow, flat_depth_m, rain_extinction, road_share, wet_road
from tests.sensors.camera_pictures import BY_NAME, flat, harmed
from tests.sensors.toy_frames import toy_image

# Lens, and what is lost on the way.


@pytest.mark.parametrize(
    ("name", "tolerance"), [("camera_occlusion", 0.02), ("camera_frost", 0.05), ("camera_lens_drops", 0.05)]
)
def test_stated_share_of_the_view_is_covered_and_grows(name, tolerance):
    # Fine stripes: whatever covers the lens makes them vanish.
    stripes = flat(0, 450, 800)
    stripes[:, ::2] = 255
    kept = []
    for level in BY_NAME[name].levels:
        shares, masks = [], []
        for seed in range(3):
            seen = harmed(name, stripes, level, seed)[..., 1].astype(int)
            masks.append(np.abs(np.diff(seen, axis=1)) > 128)
            shares.append(1 - masks[-1].mean())
        assert np.mean(shares) == pytest.approx(level, abs=tolerance + 0.1 * level)
        kept.append(masks)
    for milder, stronger in zip(kept, kept[1:], strict=False):
        for before, after in zip(milder, stronger, strict=True):
            assert (after & ~before).mean() < 0.005


def test_drops_show_the_scene_upside_down():
    pixels = flat(40, 450, 800)
    pixels[:225] = 220
    drops = harmed("camera_lens_drops", pixels, 0.32, 2).astype(int)
    # The sky appears below the horizon and the ground above it.
    assert (drops[230:330] > 120).mean() > 0.01
    assert (drops[120:220] < 150).mean() > 0.01


@pytest.mark.parametrize("level", BY_NAME["camera_row_loss"].levels)
def test_row_loss_takes_that_share_of_rows(level):
    pixels = np.random.default_rng(0).integers(1, 256, (900, 8, 3), dtype=np.uint8)
    lost = (harmed("camera_row_loss", pixels, level, 3) != pixels).any(axis=(1, 2))
    assert lost.mean() == pytest.approx(level, abs=0.01)
    less = (harmed("camera_row_loss", pixels, 0.5 * level, 3) != pixels).any(axis=(1, 2))
    assert not (less & ~lost).any()


def test_packet_loss_takes_about_that_share_and_holds_the_milder_one():
    pixels = np.random.default_rng(0).integers(0, 256, (900, 160, 3), dtype=np.uint8)
    lost = [
        np.mean([(harmed("camera_packet_loss", pixels, level, k) != pixels).any(axis=2) for k in range(10)], axis=0)
        for level in (0.1, 0.4)
    ]
    assert lost[0].mean() == pytest.approx(0.1, abs=0.03)
    assert lost[1].mean() == pytest.approx(0.4, abs=0.04)
    assert (lost[0] <= lost[1]).all()


def test_jpeg_and_pixelation_have_blocks():
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    blocks = harmed("camera_pixelate", cv2.resize(noise, (1600, 900)), 18.0)
    steps = np.flatnonzero((np.diff(blocks.astype(int), axis=1) != 0).any(axis=(0, 2)))
    assert np.diff(steps).min() >= 17
    assert np.diff(steps).max() <= 19


# Rain and snow.


def test_rain_and_snow_of_nothing_are_nothing():
    pixels = toy_image("CAM_FRONT", 4).pixels
    for weather in (camera_rain, camera_snow):
        assert weather(pixels, 0.0, np.random.default_rng(0)) is pixels


@pytest.mark.parametrize(
    ("weather", "rates"), [(camera_rain, (2.5, 5, 10, 25, 50)), (camera_snow, (0.5, 1, 2.5, 5, 10))]
)
def test_weather_takes_contrast_from_rate_to_rate(weather, rates):
    pixels = toy_image("CAM_FRONT", 4, 225, 400).pixels
    contrast = [pixels.std()] + [
        np.mean([weather(pixels, float(rate), np.random.default_rng(k)).std() for k in range(4)]) for rate in rates
    ]
    assert (np.diff(contrast) < 0).all(), contrast


def test_rain_extinction_is_that_of_the_itu():
    # 1.076 R^0.67 dB/km: at 25 mm/h 9.3 dB/km.
    assert 10 * math.log10(math.e) * 1000 * rain_extinction(25.0) == pytest.approx(1.076 * 25**0.67)
    assert 10 * math.log10(math.e) * 1000 * rain_extinction(25.0) == pytest.approx(9.30, abs=0.01)


def test_more_rain_holds_the_same_drops_and_more():
    fewer, more = (rain_drops(rate, np.random.default_rng(3)) for rate in (5.0, 50.0))
    assert {row.tobytes() for row in fewer.middle} < {row.tobytes() for row in more.middle}
    fewer, more = (snow_flakes(rate, np.random.default_rng(3)) for rate in (1.0, 5.0))
    assert np.array_equal(fewer.middle, more.middle[: len(fewer)])
    assert len(more) == 5 * len(fewer)


def test_drops_follow_marshall_and_palmer():
    # Of the drops thicker than 2 mm at one depth, e^(-slope x 1 mm) are thicker than 3 mm; slope 4.1 R^-0.21.
    drops = rain_drops(25.0, np.random.default_rng(1))
    speed = np.linalg.norm(drops.path, axis=1) / drops.width
    # Path over width is v T / D, which falls with D: 2 mm at 6.55 m/s, 3 mm at 7.95 m/s in 4 ms.
    over_2, over_3 = (speed < 6.55 * 0.004 / 0.002).sum(), (speed < 7.95 * 0.004 / 0.003).sum()
    assert over_3 / over_2 == pytest.approx(math.exp(-4.1 * 25**-0.21), rel=0.2)


def test_flat_ground_depth_and_wet_road():
    depth = flat_depth_m(900 / 1600)
    # The lowest row looks down by 0.466 of the height, 419 px at a focal length of 1266.
    assert depth[-1, 0] == pytest.approx(1.5 / math.sin(math.atan(419 / 1266)), rel=0.02)
    assert depth[0, 0] == 60
    pixels = flat(90, 225, 400)
    pixels[:119] = 230
    road = road_share(pixels)
    assert road[:55].max() == 0
    assert road[80:].min() > 0.9
    wet = wet_road(pixels, 1.0).astype(float)
    assert np.array_equal(wet[:110], pixels[:110])
    # 0.55 of the light, behind the mirrored sky: by Schlick 0.16 of it near the car and 0.55, the most, at the horizon.
    sine = math.sin(math.atan((222.5 / 225 - 0.53) * 0.5625 / (1266 / 1600)))
    mirror = 0.02 + 0.98 * (1 - sine) ** 5
    assert wet[-3].mean() == pytest.approx(mirror * 230 + (1 - mirror) * 90 * 0.55 ** (1 / 2.2), abs=2)
    assert wet[130].mean() > 120


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("share", [5e-324, 1e-200, 1e-12, 1e-6])
def test_drops_of_hardly_any_size_leave_the_picture(share):
    # A radius of zero has no direction: its NaN used to reach the picture.
    pixels = np.full((45, 80, 3), 120, np.uint8)
    assert np.array_equal(lens_drops(pixels, share, np.random.default_rng(0)), pixels)
