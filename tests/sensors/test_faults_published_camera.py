"""Published camera corruptions of the suites against numbers worked out from their definitions."""

import math

import numpy as np
import pytest

from sensors.faults import published_blur
from sensors.faults import published_camera as suites
from sensors.faults import published_imagecorruptions as base
from sensors.faults.noise_fields import plasma
from tests.sensors.wide_pictures import clipped_normal, flat, wide


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.06), (2, 0.10), (3, 0.13)])
def test_multicorrupt_motion_blur_is_a_bell_of_100_sigma(severity, sigma):
    # An upright edge: only the way along the rows counts, at each of the 31 steps.
    step = np.zeros((9, 1600, 3), np.uint8)
    step[:, 800:] = 250
    blurred = suites.multicorrupt_motion_blur(step, severity, np.random.default_rng(4))[4, :, 0]
    angle = math.radians(np.random.default_rng(4).uniform(-45, 45))
    bell = [math.exp(-(i**2) / (2 * (100 * sigma) ** 2)) for i in range(31)]
    way = [math.ceil(i * math.cos(angle) - 0.5) for i in range(31)]
    for left in (1, 5, 20, 30, 31):
        reached = sum(weight for weight, dx in zip(bell, way, strict=True) if dx >= left)
        assert blurred[800 - left] == pytest.approx(250 * reached / sum(bell), abs=1.01)


@pytest.mark.parametrize(
    ("function", "severity", "scale", "photons", "sigma"),
    [
        (suites.multicorrupt_dark, 1, 0.6, 250, 0.008),
        (suites.multicorrupt_dark, 3, 0.3, 50, 0.026),
        (suites.robobev_low_light, 2, 0.4, 120, 0.018),
        (suites.robobev_low_light, 4, 0.2, 30, 0.038),
    ],
)
def test_low_light(function, severity, scale, photons, sigma):
    pixels = flat(0, 40)
    pixels[:, ::2], pixels[0, 0] = 180, 255
    dark = function(pixels, severity, np.random.default_rng(0))[1:, ::2].astype(float)
    expected = photons * scale * (180 / 255) ** 2
    mean = square = 0.0
    for count in range(int(expected + 12 * expected**0.5) + 10):
        chance = math.exp(count * math.log(expected) - expected - math.lgamma(count + 1))
        part_mean, part_deviation = clipped_normal(min(255 * count / photons, 255), 255 * sigma)
        mean += chance * part_mean
        square += chance * (part_mean**2 + part_deviation**2)
    assert dark.mean() == pytest.approx(mean, abs=0.15)
    assert dark.std() == pytest.approx(math.sqrt(square - mean**2), rel=0.02)


def test_multicorrupt_fog_thickens_away_from_the_road():
    pixels = flat(0, 900)
    pixels[0, 0] = 255
    plain = []
    foggy = suites.multicorrupt_fog(pixels, 3, np.random.default_rng(1)).astype(float)
    draws = np.random.default_rng(1)
    first, second, third = (plasma((900, 1600), 1.7, draws) for _ in range(3))
    uneven = draws.random((900, 1600), dtype=np.float32)
    for row, column in ((100, 50), (600, 100), (700, 800), (895, 1500), (300, 1599)):
        clouds = first[row, column] * (1 - 0.8 * second[row, column]) * (1 + 0.5 * third[row, column])
        value = math.floor(255 * 4 * clouds * 1 / 5)
        down = max(0, 585 - row, row - 891)
        across = max(0, 160 - column, column - 1360)
        path = 2 * math.hypot(down, across) * (1 + uneven[row, column] / 4) + math.sqrt(1600)
        left = math.exp(-0.002 * path)
        plain.append(value * left + 127.5 * (1 - left))
        assert foggy[row, column, 0] == pytest.approx(math.floor(plain[-1]), abs=1.01)


def test_posterising_keeps_the_highest_bits():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    for severity, bits in enumerate((4, 3, 2), start=1):
        posterised = suites.robobev_color_quant(pixels, severity, np.random.default_rng(0))
        step = 2 ** (8 - bits)
        assert np.array_equal(posterised, pixels // step * step)


def test_uniform_noise():
    for severity, half in enumerate((0.08, 0.12, 0.18, 0.26, 0.38), start=1):
        noise = suites.thu_uniform_noise(flat(128), severity, np.random.default_rng(severity)).astype(float) - 128
        assert noise.min() >= math.floor(-255 * half) - 1
        assert noise.max() <= math.ceil(255 * half)
        assert noise.mean() == pytest.approx(-0.5, abs=4 * 255 * half / math.sqrt(3 * noise.size))
        assert noise.std() == pytest.approx(math.hypot(255 * half / math.sqrt(3), math.sqrt(1 / 12)), rel=0.01)


def test_grey_blend_and_value_of_snow_and_rain():
    assert (suites.greyed(flat(200, 6), 0.3) == int(0.3 * 128 + 0.7 * 200)).all()
    pixels = flat(60, 6)
    pixels[0, 0] = (120, 120, 120)
    lowered = suites.value_at_most(pixels)
    assert lowered[0, 0, 0] == int(256 * 0.7)
    assert lowered[3, 3, 0] == int(60 / 120 * 256 * 0.7)


def test_sun_is_white_where_published_and_hides_points_there():
    pixels = flat(20, 900)
    for severity, radius in ((1, 30), (3, 50), (5, 70)):
        at = np.array([640.0, 300.0])
        sunny = suites.thu_sun(pixels, severity, np.random.default_rng(3), sun_px=at)
        # 1.5 times a bell, cut at 1: white out to radius * sqrt(2 ln 1.5); 0.8 of white at the published reach.
        white = radius * math.sqrt(2 * math.log(1.5))
        assert (sunny[300, 640 : 640 + int(white)] == 255).all()
        reach = suites.thu_sun_radius_px((900, 1600), severity)
        assert reach == pytest.approx(radius * math.sqrt(2 * math.log(1.5 / 0.8)))
        share = 1.5 * math.exp(-(int(reach) ** 2) / (2 * radius**2))
        assert sunny[300, 640 + int(reach), 0] == pytest.approx(255 * share + 20 * (1 - share), abs=1.01)
    places = np.array([suites.thu_sun_px((900, 1600), np.random.default_rng(k)) for k in range(200)])
    assert ((places >= [400, 270]) & (places <= [1200, 405])).all()


def test_side_motion_blur_has_the_published_length_and_only_boxes_are_blurred_of_moving_objects():
    step = np.zeros((20, 1600, 3), np.uint8)
    step[:, 800:] = 250
    for severity in (1, 5):
        blurred = suites.thu_motion_blur_sideways(step, severity, np.random.default_rng(0))[10, :, 0]
        length = int(0.02 * severity * 1600 * 0.5) | 1
        touched = np.flatnonzero((blurred > 0) & (blurred < 250))
        assert length - 4 <= len(touched) <= length
        assert abs(touched.mean() - 799.5) <= 2
    box = np.array([[790.0, 2], [810, 2], [810, 12], [790, 12]])
    moved = suites.thu_moving_object(step, 5, np.random.default_rng(0), corners_px=[box], sideways=True)
    inside = np.zeros((20, 1600), bool)
    inside[2:13, 790:811] = True
    assert np.array_equal(moved[~inside], step[~inside])
    assert (moved[inside] != step[inside]).any()


def test_rain_layer_lightens_dark_and_darkens_light():
    dark = suites.thu_rain(flat(0, 300), 5, np.random.default_rng(0))
    assert dark.mean() > 60
    # The value of the brightest pixel is 0.7 of 256 whatever comes in.
    assert abs(int(dark.max()) - 179) <= 1
    assert suites.thu_rain(wide(300), 5, np.random.default_rng(0)).std() < 0.8 * wide(300).std()


EVERY = sorted(
    [getattr(suites, name) for name in dir(suites) if name.startswith(("multicorrupt_", "robobev_"))]
    + [
        *(suites.thu_gaussian_noise, suites.thu_impulse_noise, suites.thu_uniform_noise, suites.thu_snow),
        *(suites.thu_fog, suites.thu_rain, suites.thu_sun),
        *(suites.thu_motion_blur_front_back, suites.thu_motion_blur_sideways),
        *(
            base.shot_noise,
            base.speckle_noise,
            published_blur.gaussian_blur,
            published_blur.defocus_blur,
            base.saturate,
            base.contrast,
        ),
    ],
    key=lambda function: function.__name__,
)


@pytest.mark.parametrize("function", EVERY, ids=lambda function: function.__name__)
def test_is_pure_repeatable_and_takes_small_and_grey_pictures(function):
    shapes = ((1, 1), (7, 9), (90, 320))
    for height, width in shapes:
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels.flags.writeable = False
        harmed = function(pixels, 2, np.random.default_rng(4))
        assert harmed.shape == pixels.shape
        assert harmed.dtype == np.uint8
        assert np.array_equal(harmed, function(pixels, 2, np.random.default_rng(4)))
    assert (harmed != pixels).any()
    for grey in (0, 128, 255):
        function(np.full((8, 8, 3), grey, np.uint8), 1, np.random.default_rng(0))


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_unknown_severity_is_one_line(severity):
    with pytest.raises(ValueError, match=f"expected a severity from 1 to 5, got {severity}; choose one of these"):
        base.fog(flat(1, 2), severity, np.random.default_rng(0))
