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
from sensors.faults.camera_light import black_body_gains
from sensors.faults.noise_fields import plasma, smooth_field, uniform_words, unit_noise, whole_noise
from tests.sensors.camera_pictures import BY_NAME, detail, flat, harmed
from tests.sensors.toy_frames import toy_image

EVERY = pytest.mark.parametrize("fault", CAMERA_FAULTS, ids=lambda fault: fault.name)


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


@pytest.mark.parametrize("sigma", [1.0, 20.0, 250.0])
def test_whole_noise_is_normal_rounded_and_white(sigma):
    noise = whole_noise(np.random.Generator(np.random.SFC64(1)), (300, 301, 3), sigma, mean=-0.25).astype(float)
    # Rounding adds the variance of a uniform error of one grey level.
    spread = np.hypot(sigma, 12**-0.5)
    assert noise.mean() == pytest.approx(-0.25, abs=4 * spread / noise.size**0.5)
    assert noise.std() == pytest.approx(spread, rel=0.01)
    unit = (noise - noise.mean()) / noise.std()
    assert (unit**4).mean() == pytest.approx(3, abs=0.1)
    assert 3.5 < np.abs(unit).max() < 4.5
    # Neighbours share a byte each: neither their values nor their sizes go together.
    rows = unit.reshape(300, -1)
    for lag in (1, 2, 3, 6):
        for field in (rows, rows**2 - 1):
            assert abs((field[:, lag:] * field[:, :-lag]).mean()) < 0.02
    assert abs((rows[1:] * rows[:-1]).mean()) < 0.01


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
