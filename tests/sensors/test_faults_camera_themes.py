"""What each camera fault is, by its unit: closed forms, shares, and levels that hold one another."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.faults.camera import CAMERA_FAULTS
from sensors.faults.camera_blur import zoom_blur
from sensors.faults.camera_glare import glare, lens_flare
from sensors.faults.camera_lens import lens_drops
from sensors.faults.camera_light import black_body_gains
from sensors.faults.camera_particles import rain_drops, snow_flakes
from sensors.faults.camera_sky import camera_rain, camera_snow, flat_depth_m, rain_extinction, road_share, wet_road
from sensors.faults.noise_fields import plasma, smooth_field, uniform_words, unit_noise
from tests.sensors.toy_frames import toy_image

BY_NAME = {fault.name: fault for fault in CAMERA_FAULTS}
EVERY = pytest.mark.parametrize("fault", CAMERA_FAULTS, ids=lambda fault: fault.name)


def flat(grey, height=90, width=160):
    return np.full((height, width, 3), grey, np.uint8)


def harmed(name, pixels, level, seed=0):
    return BY_NAME[name].effect.function(pixels, level, np.random.default_rng(seed))


def detail(pixels):
    """Mean of the steps between neighbours, in grey levels."""
    return np.abs(np.diff(pixels.astype(float), axis=1)).mean()


# Every fault.


@EVERY
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (2, 40), (40, 2), (7, 9)])
def test_tiny_pictures_keep_shape_and_type_and_are_not_written_to(fault, size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    for level in (fault.levels[0], fault.levels[4], fault.worst):
        changed = fault.effect.function(pixels, level, np.random.default_rng(0))
        assert changed.shape == pixels.shape
        assert changed.dtype == np.uint8


@EVERY
def test_grey_pictures_stay_defined(fault):
    for grey in (0, 1, 128, 255):
        for level in fault.levels[::2]:
            assert fault.effect.function(flat(grey), level, np.random.default_rng(0)).dtype == np.uint8


@EVERY
def test_little_harm_near_the_clean_level(fault):
    pixels = toy_image("CAM_FRONT", 4, 225, 400).pixels
    near = fault.clean + 0.02 * (fault.levels[0] - fault.clean)
    mild, strong = (
        np.mean([cv2.absdiff(pixels, fault.effect.function(pixels, level, np.random.default_rng(k))) for k in range(4)])
        for level in (near, fault.levels[4])
    )
    # A JPEG, the raster of the blocks, and the sun itself are there at once; all else grows from nothing.
    at_once = {"camera_jpeg": 0.35, "camera_pixelate": 0.3, "camera_glare": 0.15}
    assert mild < at_once.get(fault.name, 0.06) * strong


@given(data=st.data())
def test_any_fault_at_any_level_gives_the_same_pixels_twice(data):
    fault = data.draw(st.sampled_from(CAMERA_FAULTS))
    level = data.draw(st.floats(*sorted((fault.clean, fault.levels[4]))))
    height, width, seed = (data.draw(st.integers(1, limit)) for limit in (40, 60, 1000))
    if level == fault.clean:
        return
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    first, again = (fault.effect.function(pixels, level, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, again)


# Noise.


@pytest.mark.parametrize("level", [0.05, 0.15])
def test_shot_noise_is_stated_at_white_in_light_and_falls_with_its_root(level):
    for grey in (120, 160):
        noisy = harmed("camera_shot_noise", flat(grey, 100, 1600), level).astype(float)
        light = (noisy / 255) ** 2.2
        share = (grey / 255) ** 2.2
        assert light.std() == pytest.approx(level * math.sqrt(share), rel=0.07)


def test_impulses_of_a_mild_level_are_among_those_of_a_strong_one():
    mild, strong = (harmed("camera_impulse_noise", flat(100), level) for level in (0.05, 0.3))
    assert (mild != 100).mean() == pytest.approx(0.05, abs=0.006)
    assert (strong[mild != 100] == mild[mild != 100]).all()


def test_speckle_is_a_gain():
    noisy = harmed("camera_speckle_noise", flat(100, 100, 1600), 0.2)
    assert noisy.std() / 100 == pytest.approx(0.2, rel=0.02)


def test_noise_fields_are_normal_uniform_and_between_0_and_1():
    rng = np.random.default_rng(0)
    noise = unit_noise(rng, (200, 300, 3))
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)
    words = uniform_words(rng, (200, 300))
    assert words.mean() == pytest.approx(32767.5, rel=0.01)
    assert words.max() > 65000
    clouds = plasma((9, 20), 2.0, rng)
    assert clouds.shape == (9, 20)
    assert 0 <= clouds.min() < clouds.max() <= 1
    assert plasma((1, 1), 2.0, rng).shape == (1, 1)
    assert smooth_field((50, 100), 5, rng, octaves=3).shape == (50, 100)


# Light and colour.


def test_brightness_adds_that_share_of_white():
    assert (harmed("camera_brightness", flat(100), 0.2) == 151).all()


def test_colour_loss_keeps_the_brightness():
    pixels = toy_image("CAM_FRONT", 4).pixels
    grey = harmed("camera_color_loss", pixels, 1.0)
    assert np.ptp(grey.astype(int), axis=2).max() <= 1
    before, after = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(int) for each in (pixels, grey))
    assert np.abs(before - after).max() <= 1


def test_white_balance_follows_planck():
    # 200 mired below 6500 K is 2826 K. Wien's approximation is good to a few percent there.
    gains = black_body_gains(200.0)
    wien = np.exp(-1.4388e7 * (1 / 2826 - 1 / 6500) * (1 / np.array([610, 550, 465]) - 1 / 550))
    assert gains == pytest.approx(wien, rel=0.04)
    warm_or_cold = {
        tuple(np.sign(np.diff(harmed("camera_white_balance", flat(120), 90.0, k)[0, 0].astype(int)))) for k in range(12)
    }
    assert warm_or_cold == {(-1, -1), (1, 1)}


def test_quantisation_leaves_two_to_the_bits_levels_with_black_and_white():
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for bits in (5, 3, 1):
        assert len(np.unique(harmed("camera_color_quantisation", ramp, float(bits)))) == 2**bits
    assert set(np.unique(harmed("camera_color_quantisation", ramp, 1.0))) == {0, 255}


# Glare.


def test_glare_hides_the_stated_contrast_200_px_from_the_sun():
    for level in (0.2, 0.5):
        away, left = [], []
        for seed in range(6):
            dark, light = (
                glare(flat(grey, 450, 800), level, np.random.default_rng(seed)).astype(float) for grey in (40, 140)
            )
            contrast = (light - dark).mean(axis=2) / 100
            sun = np.random.default_rng(seed).uniform((0.15, 0.05), (0.85, 0.38)) * [800, 450]
            y, x = np.mgrid[:450, :800]
            ring = np.abs(np.hypot(x - sun[0], y - sun[1]) - 100) < 3
            away.append(contrast[ring].mean())
            left.append(contrast.min())
        # Spikes of the aperture hide somewhat more in some directions.
        assert 1 - np.mean(away) == pytest.approx(level, abs=0.06)
        assert max(left) < 0.05


def test_flare_only_adds_light_and_shows_its_ghosts_on_a_line_through_the_middle():
    pixels = toy_image("CAM_FRONT", 4).pixels
    assert (lens_flare(pixels, 0.7, np.random.default_rng(0)) >= pixels).all()
    added = lens_flare(flat(0, 450, 800), 1.0, np.random.default_rng(3)).sum(axis=2).astype(float)
    sun = np.random.default_rng(3).uniform((0.15, 0.05), (0.85, 0.38)) * [800, 450]
    y, x = np.mgrid[:450, :800]
    bright = (added > np.quantile(added, 0.97)) & (np.hypot(x - sun[0], y - sun[1]) > 90)
    direction = (sun - [400, 225]) / np.linalg.norm(sun - [400, 225])
    across = np.abs((x - 400) * direction[1] - (y - 225) * direction[0])[bright]
    assert bright.any()
    assert across.max() < 0.09 * 800


# Blur.


def test_zoom_blur_spreads_by_the_growth_and_leaves_the_middle():
    lines = flat(0, 225, 400)
    lines[:, ::20] = 255
    blurred = zoom_blur(lines, 0.1, np.random.default_rng(0)).astype(float)
    columns = np.abs(np.diff(blurred[100, :, 0]))
    assert columns[180:220].max() > 2 * columns[:40].max()
    ramp = np.linspace(0, 255, 400)[None, :, None].repeat(225, axis=0).repeat(3, axis=2).astype(np.uint8)
    # On a ramp the mean of enlargements by 1 to 1.1 is, to first order, one enlargement by half the growth (in logs).
    middle = 399 * np.random.default_rng(0).uniform(0.45, 0.55, 2)[0]
    expected = middle + (np.array([50.0, 350.0]) - middle) * np.log(1.1) ** -1 * (1 - 1 / 1.1)
    found = zoom_blur(ramp, 0.1, np.random.default_rng(0))[100, [50, 350], 0].astype(float) * 399 / 255
    assert found == pytest.approx(expected, abs=1.5)


def test_all_blurs_take_detail_and_keep_the_mean():
    pixels = toy_image("CAM_FRONT", 4, 225, 400).pixels
    for name in ("camera_motion_blur", "camera_defocus", "camera_zoom_blur"):
        steps = [detail(harmed(name, pixels, level)) for level in BY_NAME[name].levels]
        assert (np.diff([detail(pixels), *steps]) < 0).all(), name
        assert harmed(name, pixels, BY_NAME[name].levels[2]).mean() == pytest.approx(pixels.mean(), rel=0.04)


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
