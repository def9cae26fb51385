"""Camera cells of the published suites against numbers from their definitions, severity by severity."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from sensors.faults.suites import SUITES
from sensors.frame import NoHistory
from tests.sensors.labelled_frames import labelled_frame

HEIGHT, WIDTH = 60, 100
CHANNELS = ("CAM_FRONT", "CAM_FRONT_LEFT")


def flat(value, cameras=CHANNELS):
    """Every picture of one grey."""
    return with_pixels(np.full((HEIGHT, WIDTH, 3), value, np.uint8), cameras)


def with_pixels(pixels, cameras=CHANNELS):
    frame = labelled_frame(height=HEIGHT, width=WIDTH, num_points=64, num_sweeps=1)
    pictures = {c: replace(frame.cameras[c], pixels=pixels) for c in cameras}
    return replace(frame, cameras=pictures, lidar=(), radars={})


RAMP = np.repeat(np.linspace(0, 255, WIDTH).astype(np.uint8)[None], HEIGHT, axis=0)
GREY_RAMP = np.stack([RAMP] * 3, axis=-1)
CHECKS = np.stack([np.where((np.indices((HEIGHT, WIDTH)) // 4).sum(axis=0) % 2, 220, 60).astype(np.uint8)] * 3, axis=-1)


def pixels(suite, name, severity, frame, channel="CAM_FRONT", token="t"):
    scenario = next(s for s in SUITES[suite] if s.name == f"{name}-{severity}")
    return scenario.apply(replace(frame, token=token), NoHistory())[0].cameras[channel].pixels.astype(float)


def severities(*values):
    return pytest.mark.parametrize(("severity", "value"), list(enumerate(values, start=1)), ids=str)


def raised(suite, severity, added):
    colours = (
        np.array([[[200, 40, 20], [10, 10, 10], [0, 90, 60]]], np.uint8).repeat(HEIGHT, 0).repeat(34, 1)[:, :WIDTH]
    )
    out = pixels(suite, "brightness", severity, with_pixels(colours))
    value, was = out.max(axis=2), colours.max(axis=2).astype(float)
    assert value == pytest.approx(np.minimum(was + 255 * added, 255), abs=2)
    # Hue and saturation stay: the channels keep their proportions.
    ratio = out / value[..., None]
    assert ratio == pytest.approx(colours / was[..., None], abs=0.02)


@severities(0.5, 0.6, 0.7)
def test_multicorrupt_brightness(severity, value):
    raised("multicorrupt", severity, value)


@severities(0.2, 0.4, 0.5)
def test_robobev_brightness(severity, value):
    raised("robobev", severity, value)


@pytest.mark.parametrize(
    ("suite", "name", "severity", "row"),
    [
        *(
            ("multicorrupt", "dark", k, r)
            for k, r in enumerate([(0.6, 250, 0.008), (0.4, 120, 0.018), (0.3, 50, 0.026)], 1)
        ),
        # RoboBEV's severities 2, 3 and 4 take the rows after: scale .40 .30 .20, lambda 10 x (12, 5, 3).
        *(
            ("robobev", "low-light", k, r)
            for k, r in enumerate([(0.4, 120, 0.018), (0.3, 50, 0.026), (0.2, 30, 0.038)], 1)
        ),
    ],
)
def test_dark_and_low_light(suite, name, severity, row):
    scale, photons, sigma = row
    out = np.stack([pixels(suite, name, severity, with_pixels(GREY_RAMP), token=f"t{i}") for i in range(4)])
    # Stretched to the full range, squared, scaled; Poisson of that many photons at white, then normal noise.
    expected = 255 * scale * (RAMP / 255.0) ** 2
    columns = slice(60, 90)
    assert out.mean(axis=(0, 1, 3))[columns] == pytest.approx(expected[0, columns], abs=6)
    spread = 255 * np.sqrt(expected[0] / 255 / photons + sigma**2)
    assert out.std(axis=(0, 1, 3))[columns].mean() == pytest.approx(spread[columns].mean(), rel=0.1)


@severities(4, 3, 2)
def test_robobev_color_quant(severity, value):
    out = pixels("robobev", "color-quant", severity, with_pixels(GREY_RAMP))
    step = 256 // 2**value
    assert np.array_equal(out[..., 0], RAMP // step * step)


@pytest.mark.parametrize(
    ("suite", "severity", "kept"),
    [
        # m / (m + c) of the contrast is left; m is the brightest value, 1 here.
        *(("robobev", k, 1 / (1 + c)) for k, c in ((1, 2.0), (2, 2.5), (3, 3.0))),
        *(("multicorrupt", k, 1 / (1 + c)) for k, c in ((1, 2.0), (2, 3.0), (3, 4.0))),
        # Then a share of grey 128 on top.
        *(
            ("thu-nuscenes-c", k, (1 - grey) / (1 + c))
            for k, (c, grey) in enumerate(((1.5, 0.1), (2.0, 0.2), (2.5, 0.3), (2.5, 0.4), (3.0, 0.5)), 1)
        ),
    ],
)
def test_fog_leaves_a_share_of_the_contrast(suite, severity, kept):
    picture = np.where(CHECKS > 100, 255, 55).astype(np.uint8)
    out = pixels(suite, "fog", severity, with_pixels(picture))
    clean, foggy = (im[..., 1] - cv2.blur(im[..., 1].astype(float), (9, 9)) for im in (picture.astype(float), out))
    if suite == "multicorrupt":
        # Its veil grows away from a box on the road; within, it takes exp(-40 beta) for beta .0005 .001 .002.
        clean, foggy = (part[int(0.7 * HEIGHT) : int(0.95 * HEIGHT), 15:80] for part in (clean, foggy))
        kept *= np.exp(-40 * (0.0005, 0.001, 0.002)[severity - 1])
    slope = (clean * foggy).sum() / (clean * clean).sum()
    assert slope == pytest.approx(kept, rel=0.07)
    assert foggy.std() < clean.std()


@pytest.mark.parametrize(
    ("suite", "severity", "mix", "darker"),
    [
        *(("robobev", k, m, 1.0) for k, m in ((1, 0.8), (2, 0.7), (3, 0.7))),
        *(("multicorrupt", k, m, 0.9) for k, m in ((1, 0.9), (2, 0.85), (3, 0.8))),
    ],
)
def test_snow_hazes_by_its_mix_and_adds_flakes(suite, severity, mix, darker):
    out = pixels(suite, "snow", severity, flat(100))
    grey = 100 / 255
    hazed = darker * 255 * (mix * grey + (1 - mix) * max(grey, 1.5 * grey + 0.5))
    assert np.percentile(out, 2) == pytest.approx(hazed, abs=6) or out.min() >= hazed - 3
    assert out.min() >= hazed - 3
    assert out.max() > hazed + 5


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["snow", "rain"])
def test_thu_snow_and_rain_cap_the_value_at_seven_tenths(name, severity):
    out = pixels("thu-nuscenes-c", name, severity, with_pixels(GREY_RAMP))
    assert 0.66 * 255 < out.max() <= 0.71 * 256


@severities(0.08, 0.12, 0.18, 0.26, 0.38)
def test_thu_camera_noise(severity, value):
    normal = pixels("thu-nuscenes-c", "gaussian-camera", severity, flat(128))
    # Clipped at black and white: the mean absolute deviation hardly notices.
    expected = np.abs(np.clip(np.random.default_rng(0).normal(128, 255 * value, 200_000), 0, 255) - 128).mean()
    assert np.abs(normal - 128).mean() == pytest.approx(expected, rel=0.05)
    even = pixels("thu-nuscenes-c", "uniform-camera", severity, flat(128)) - 128
    assert np.abs(even).max() == pytest.approx(255 * value, abs=2)
    assert even.std() == pytest.approx(255 * value / np.sqrt(3), rel=0.05)


@severities(0.03, 0.06, 0.09, 0.17, 0.27)
def test_thu_impulse_camera(severity, value):
    out = pixels("thu-nuscenes-c", "impulse-camera", severity, flat(128))
    for extreme in (0, 255):
        assert (out == extreme).mean() == pytest.approx(value / 2, abs=4 * np.sqrt(value / 2 / out.size) + 0.002)
    assert set(np.unique(out)) <= {0.0, 128.0, 255.0}


@pytest.mark.parametrize(
    ("suite", "severity"), [*(("multicorrupt", k) for k in (1, 2, 3)), *(("robobev", k) for k in (1, 2, 3))]
)
def test_motion_blur_keeps_flat_and_blurs_edges(suite, severity):
    assert pixels(suite, "motion-blur", severity, flat(100)) == pytest.approx(np.full((HEIGHT, WIDTH, 3), 100), abs=1)
    wide = cv2.resize(CHECKS, (1600, 400), interpolation=cv2.INTER_NEAREST)
    blurred = pixels(suite, "motion-blur", severity, with_pixels(wide))
    assert blurred.std() < wide.std()
    if severity > 1:
        assert blurred.std() <= pixels(suite, "motion-blur", severity - 1, with_pixels(wide)).std() + 0.5


@severities(0.02, 0.04, 0.06, 0.08, 0.10)
def test_thu_motion_blur_zooms_ahead_and_smears_sideways(severity, value):
    stripes = np.zeros((HEIGHT, 400, 3), np.uint8)
    stripes[:, 200:] = 200
    frame = with_pixels(stripes)
    side = pixels("thu-nuscenes-c", "motion-blur", severity, frame, "CAM_FRONT_LEFT")
    # An edge is smeared over the kernel's length: c times half of the width.
    smeared = ((side[HEIGHT // 2, :, 0] > 1) & (side[HEIGHT // 2, :, 0] < 199)).sum()
    assert smeared == pytest.approx(value * 400 / 2, abs=3)
    dot = np.zeros((HEIGHT, 400, 3), np.uint8)
    dot[HEIGHT // 2 - 1 : HEIGHT // 2 + 2, 360:363] = 255
    ahead = pixels("thu-nuscenes-c", "motion-blur", severity, with_pixels(dot), "CAM_FRONT")
    # Enlarged about the middle, the dot at 160 px moves out by up to c of that.
    columns = np.flatnonzero(ahead[HEIGHT // 2, :, 0] > 0)
    assert columns.max() == pytest.approx(362 + 160 * value, abs=3)
    assert columns.min() >= 359


@severities(30, 40, 50, 60, 70)
def test_thu_sunlight_glows_in_the_front_camera_and_blinds_the_lidar_behind_it(severity, value):
    frame = labelled_frame(height=90, width=160, num_points=3200, num_sweeps=1)
    scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == f"sunlight-{severity}")
    lit, _ = scenario.apply(frame, NoHistory())
    glow = lit.cameras["CAM_FRONT"].pixels.astype(float).mean(axis=2) - frame.cameras["CAM_FRONT"].pixels.mean(axis=2)
    row, column = np.unravel_index(cv2.blur(glow, (3, 3)).argmax(), glow.shape)
    assert lit.cameras["CAM_BACK"] is frame.cameras["CAM_BACK"]
    assert (glow > 60).any()
    white = lit.cameras["CAM_FRONT"].pixels.min(axis=2) >= 250
    # Of a bell of that radius, at 160 of 1600 columns; white where 1.5 of it are over 1.
    radius_px = value / 10 * np.sqrt(2 * np.log(1.5))
    assert 0.4 * np.pi * radius_px**2 < white.sum() < 2.5 * np.pi * radius_px**2 + 30
    assert len(lit.lidar[0]) < len(frame.lidar[0])
    moved = (np.abs(np.sort(lit.lidar[0].intensity)[:, None]) >= 0).sum()
    assert moved == len(lit.lidar[0])
    assert 0 <= row < 90
    assert 0 <= column < 160


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_thu_moving_object_blurs_inside_projected_boxes_alone(severity):
    picture = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    frame = labelled_frame(height=90, width=160, num_points=64, num_sweeps=1)
    frame = replace(frame, cameras={"CAM_FRONT": replace(frame.cameras["CAM_FRONT"], pixels=picture)})
    out = pixels("thu-nuscenes-c", "moving-object", severity, replace(frame, lidar=(), radars={}))
    changed = (out != picture).any(axis=2)
    image = frame.cameras["CAM_FRONT"]
    corners = image.ego_from_camera.inverse().points(frame.boxes.corners()[:1].reshape(-1, 3).astype(float))
    u, v, w = image.image_from_camera @ corners.T
    rows, columns = np.nonzero(changed)
    assert changed.any()
    assert columns.min() >= (u / w).min() - 2
    assert columns.max() <= (u / w).max() + 2
    assert rows.min() >= (v / w).min() - 2


@severities(0.004, 0.008, 0.012, 0.016, 0.020)
def test_thu_spatial_misalignment_disturbs_the_entries_of_the_matrix(severity, value):
    frame = flat(9)
    entries, shifts = [], []
    scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == f"spatial-misalignment-{severity}")
    for i in range(40):
        harmed, _ = scenario.apply(replace(frame, token=f"t{i}"), NoHistory())
        for channel in CHANNELS:
            was = np.linalg.inv(frame.cameras[channel].ego_from_camera.matrix)
            off = np.linalg.inv(harmed.cameras[channel].ego_from_camera.matrix) - was
            entries.append(off[:3, :3])
            shifts.append(off[:3, 3])
    assert np.std(entries) == pytest.approx(value, rel=4 / np.sqrt(2 * 720))
    assert np.std(shifts) == pytest.approx(10 * value, rel=4 / np.sqrt(2 * 240))


@severities(2, 4, 6, 8, 10)
def test_thu_temporal_misalignment_is_that_many_sweeps_late(severity, value):
    from tests.sensors.fault_measures import drifting_scene
    from tests.sensors.toy_frames import ListHistory

    scene = drifting_scene(4, height=9, width=16, num_points=64, num_sweeps=1)
    scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == f"temporal-misalignment-{severity}")
    old = []
    for i in range(200):
        lidar = scenario.apply(replace(scene[3], token=f"t{i}"), ListHistory(scene, 3))[0].lidar
        old.append(next(k for k in range(4) if lidar[0].xyz_m is scene[3 - k].lidar[0].xyz_m))
    # Keyframes are ten sweeps of 50 ms apart.
    assert np.mean(old) == pytest.approx(value / 10, abs=4 * np.sqrt(0.25 / 200))
