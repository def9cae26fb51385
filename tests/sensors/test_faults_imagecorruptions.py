"""The corruptions of ``imagecorruptions`` against numbers worked out from their definitions."""

import math

import numpy as np
import pytest

from sensors.faults import published_blur
from sensors.faults import published_imagecorruptions as base
from sensors.faults.noise_fields import plasma
from tests.sensors.toy_frames import toy_image
from tests.sensors.wide_pictures import clipped_normal, flat, wide


@pytest.mark.parametrize(("severity", "sigma"), enumerate((0.08, 0.12, 0.18, 0.26, 0.38), start=1))
def test_gaussian_noise(severity, sigma):
    noisy = base.gaussian_noise(flat(100), severity, np.random.default_rng(severity)).astype(float)
    mean, deviation = clipped_normal(100, 255 * sigma)
    assert noisy.mean() == pytest.approx(mean, abs=4 * deviation / math.sqrt(noisy.size) + 0.05)
    assert noisy.std() == pytest.approx(deviation, rel=0.01)


@pytest.mark.parametrize(("severity", "sigma"), enumerate((0.15, 0.2, 0.35, 0.45, 0.6), start=1))
def test_speckle_noise_scales_with_the_value(severity, sigma):
    for grey in (40, 120):
        noisy = base.speckle_noise(flat(grey), severity, np.random.default_rng(severity)).astype(float)
        mean, deviation = clipped_normal(grey, grey * sigma)
        assert noisy.mean() == pytest.approx(mean, rel=0.01)
        assert noisy.std() == pytest.approx(deviation, rel=0.015)
    assert not base.speckle_noise(flat(0), severity, np.random.default_rng(0)).any()


@pytest.mark.parametrize(("severity", "photons"), enumerate((60, 25, 12, 5, 3), start=1))
def test_shot_noise_is_a_poisson_count(severity, photons):
    grey = 90
    values, counts = np.unique(
        base.shot_noise(flat(grey), severity, np.random.default_rng(severity)), return_counts=True
    )
    expected = photons * grey / 255
    chance = {}
    for count in range(200):
        value = int(min(255 * count / photons + 1e-9, 255))
        log_chance = count * math.log(expected) - expected - math.lgamma(count + 1)
        chance[value] = chance.get(value, 0) + math.exp(log_chance)
    measured = dict(zip(values.tolist(), counts / counts.sum(), strict=True))
    assert set(measured) <= set(chance)
    for value, share in chance.items():
        assert measured.get(value, 0) == pytest.approx(share, abs=0.004), value


@pytest.mark.parametrize(("severity", "share"), enumerate((0.03, 0.06, 0.09, 0.17, 0.27), start=1))
def test_impulse_noise_is_half_salt_half_pepper(severity, share):
    noisy = base.impulse_noise(flat(77), severity, np.random.default_rng(severity))
    assert set(np.unique(noisy)) == {0, 77, 255}
    for value in (0, 255):
        assert (noisy == value).mean() == pytest.approx(share / 2, abs=0.0015)


@pytest.mark.parametrize(("severity", "radius", "sigma"), [(1, 10, 3), (3, 15, 8), (5, 20, 15)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_motion_blur_equals_a_sum_of_moved_pictures(severity, radius, sigma, seed):
    pixels = wide()
    angle = math.radians(np.random.default_rng(seed).uniform(-45, 45))
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * radius + 1)]
    rows, columns = np.arange(60), np.arange(1600)
    total = np.zeros(pixels.shape)
    for i, weight in enumerate(weights):
        dx, dy = math.ceil(i * math.cos(angle) - 0.5), math.ceil(i * math.sin(angle) - 0.5)
        moved = pixels[np.clip(rows + dy, 0, 59)][:, np.clip(columns + dx, 0, 1599)]
        total += weight / sum(weights) * moved
    blurred = published_blur.motion_blur(pixels, severity, np.random.default_rng(seed))
    # Cut to whole levels: at most one off where the sum is nearly whole.
    assert np.abs(blurred - np.floor(total + 1e-9)).max() <= 1
    assert np.abs(blurred - total + 0.5).mean() < 0.3


@pytest.mark.parametrize(("severity", "radius"), [(1, 3), (3, 6), (5, 10)])
def test_defocus_is_a_disk(severity, radius):
    dot = np.zeros((61, 1600, 3), np.uint8)
    dot[30 - 12 : 31 + 12, 800 - 12 : 801 + 12] = 255
    blurred = published_blur.defocus_blur(dot, severity, np.random.default_rng(0))[..., 0].astype(float) / 255
    y, x = np.mgrid[-15:16, -15:16]
    disk = (x**2 + y**2 <= radius**2) / (x**2 + y**2 <= radius**2).sum()
    # Right of the block's right edge by d, along the middle row: the disk's share that reaches over the edge.
    for d in range(1, radius):
        reach = disk[:, x[0] <= -d].sum()
        assert blurred[30, 812 + d] == pytest.approx(reach, abs=0.03)
    assert blurred[30, 812 + radius + 3] == 0


@pytest.mark.parametrize(("severity", "end", "step"), [(1, 1.11, 0.01), (3, 1.21, 0.02), (5, 1.31, 0.03)])
def test_zoom_blur_equals_scipys_zoom(severity, end, step):
    ndimage = pytest.importorskip("scipy.ndimage")
    # The width alone sets no length here: a small picture has the same definition.
    pixels = toy_image("CAM_FRONT", 3, 90, 160).pixels
    total = pixels.astype(float)
    factors = np.arange(1, end, step)
    for factor in factors:
        crop = [math.ceil(length / factor) for length in (90, 160)]
        top, left = (90 - crop[0]) // 2, (160 - crop[1]) // 2
        part = pixels[top : top + crop[0], left : left + crop[1]].astype(float)
        total += ndimage.zoom(part, (factor, factor, 1), order=1)[:90, :160]
    blurred = published_blur.zoom_blur(pixels, severity, np.random.default_rng(0))
    # In its last row and column SciPy's coordinates may step over the edge by rounding, and are then black.
    off = np.abs(blurred - np.floor(total / (len(factors) + 1)))[:-1, :-1]
    assert off.mean() < 0.3
    assert off.max() <= 2


def test_plasma_equals_a_plain_diamond_square():
    side, decay = 16, 1.7
    draws = np.random.default_rng(5)
    heights, width, step = {(0, 0): 0.0}, 100.0, side
    while step > 1:
        n, half = side // step, step // 2
        noise = (draws.random((3, n, n), dtype=np.float32).astype(float) - 0.5) * 2 * width**2
        for i in range(n):
            for j in range(n):
                corners = [(i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)]
                mean = sum(heights[(a % n) * step, (b % n) * step] for a, b in corners) / 4
                heights[i * step + half, j * step + half] = mean + noise[0, i, j]
        for i in range(n):
            for j in range(n):
                y, x = i * step, j * step
                for at, draw in (((y, x + half), noise[1, i, j]), ((y + half, x), noise[2, i, j])):
                    around = [
                        (at[0] - half, at[1]),
                        (at[0] + half, at[1]),
                        (at[0], at[1] - half),
                        (at[0], at[1] + half),
                    ]
                    heights[at] = sum(heights[a % side, b % side] for a, b in around) / 4 + draw
        step, width = half, width / decay
    plain = np.array([[heights[y, x] for x in range(side)] for y in range(side)])
    plain = (plain - plain.min()) / (plain.max() - plain.min())
    assert plasma((9, 16), decay, np.random.default_rng(5)) == pytest.approx(plain[:9], abs=1e-5)


@pytest.mark.parametrize(("severity", "strength", "decay"), [(1, 1.5, 2), (2, 2, 2), (3, 2.5, 1.7), (5, 3, 1.4)])
def test_fog_adds_plasma(severity, strength, decay):
    pixels = wide(30)
    clouds = plasma((30, 1600), decay, np.random.default_rng(9))[..., None]
    brightest = pixels.max() / 255
    plain = (pixels / 255 + strength * clouds) * brightest / (brightest + strength)
    foggy = base.fog(pixels, severity, np.random.default_rng(9))
    assert np.abs(foggy - np.clip(255 * plain - 0.5, 0, 255)).max() < 0.51


@pytest.mark.parametrize(("severity", "added"), enumerate((0.1, 0.2, 0.3, 0.4, 0.5), start=1))
def test_brightness_raises_the_value_of_hsv(severity, added):
    import colorsys

    pixels = np.array([[[0, 0, 0], [255, 255, 255], [10, 200, 90], [130, 20, 21], [77, 77, 77]]], np.uint8)
    brightened = base.brightness(pixels, severity, np.random.default_rng(0))
    for before, after in zip(pixels[0], brightened[0], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1)))
        assert np.abs(after - np.floor(expected + 1e-6)).max() <= 1


@pytest.mark.parametrize(("severity", "factor", "added"), [(1, 0.3, 0), (3, 2, 0), (4, 5, 0.1), (5, 20, 0.2)])
def test_saturate_changes_the_saturation_of_hsv(severity, factor, added):
    import colorsys

    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 3), dtype=np.uint8)
    pixels[0, :3] = [[0, 0, 0], [128, 128, 128], [255, 255, 255]]
    saturated = base.saturate(pixels, severity, np.random.default_rng(0))
    for before, after in zip(pixels.reshape(-1, 3), saturated.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, min(saturation * factor + added, 1), value))
        assert np.abs(after - np.floor(expected + 1e-6)).max() <= 1


@pytest.mark.parametrize(("severity", "kept"), enumerate((0.4, 0.3, 0.2, 0.1, 0.05), start=1))
def test_contrast(severity, kept):
    pixels = wide(12)
    mean = pixels.reshape(-1, 3).mean(axis=0)
    plain = np.floor((pixels - mean) * kept + mean)
    assert np.abs(base.contrast(pixels, severity, np.random.default_rng(0)) - plain).max() <= 1


@pytest.mark.parametrize(("severity", "share"), enumerate((0.6, 0.5, 0.4, 0.3, 0.25), start=1))
def test_pixelate_equals_pillow(severity, share):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    small = image.fromarray(pixels).resize((int(160 * share), int(90 * share)), image.Resampling.BOX)
    blocks = base.pixelate(pixels, severity, np.random.default_rng(0))
    assert np.array_equal(base.box_reduced(pixels, (int(160 * share), int(90 * share))), np.asarray(small))
    # Where a middle falls between two blocks either may be taken.
    plain = np.asarray(small.resize((160, 90), image.Resampling.NEAREST))
    assert (blocks != plain).any(axis=2).mean() < (0.3 if share == 0.4 else 1e-9)


@pytest.mark.parametrize(("severity", "quality"), enumerate((25, 18, 15, 10, 7), start=1))
def test_jpeg_has_the_published_quality(severity, quality):
    image, io = pytest.importorskip("PIL.Image"), pytest.importorskip("io")
    pixels = toy_image("CAM_FRONT", 1, 96, 160).pixels
    stream = io.BytesIO()
    image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    plain = np.asarray(image.open(stream)).astype(int)
    assert np.abs(base.jpeg_compression(pixels, severity, np.random.default_rng(0)) - plain).mean() < 0.5


def test_snow_haze_and_flakes():
    pixels = wide(24)
    grey = pixels @ [0.299, 0.587, 0.114] / 255
    x = pixels / 255
    plain = 0.7 * x + 0.3 * np.maximum(x, 1.5 * grey[..., None] + 0.5)
    assert np.abs(base.snow_haze(pixels, 0.7) - 255 * np.minimum(plain, 1) + 0.5).max() < 1.3
    layer = np.zeros((24, 1600), np.uint8)
    layer[2, 5] = 200
    snowy = base.snowed(flat(100, 24), layer)
    assert snowy[2, 5, 0] == 255
    assert snowy[21, 1594, 0] == 255
    assert (snowy == 100).sum() == snowy.size - 6


def test_snow_layer_covers_what_the_threshold_lets_through():
    # No enlargement, no path: the share of a normal value of mean .55, deviation .3 above .85.
    layer = base.snow_layer((400, 1600), (0.55, 0.3, 1.0, 0.85, 0, 1e-3), np.random.default_rng(2))
    assert (layer > 0).mean() == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=0.004)
    assert layer[layer > 0].min() >= math.floor(0.85 * 255) - 1
