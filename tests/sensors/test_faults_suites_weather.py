"""Weather and blur cells of the published suites against integrals, edges and counts worked out here."""

from dataclasses import replace

import numpy as np
import pytest

from sensors.faults import published_camera
from sensors.faults.protocol import Draws
from sensors.faults.suites import SUITES
from sensors.frame import NoHistory
from sensors.lidar import LidarSweep
from sensors.rig import LIDAR, NUSCENES_RIG
from tests.sensors.labelled_frames import labelled_frame

FRAME = labelled_frame(height=9, width=16, num_points=64, num_sweeps=1)
LIGHT_MPS = 299_792_458.0


def ring_of_points(range_m, num, intensity):
    """At one height and range, all around: no ground among them."""
    angle = np.linspace(0, 2 * np.pi, num, endpoint=False)
    xyz_m = range_m * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    ring = np.full(num, 15, np.uint8)
    return LidarSweep(
        xyz_m.astype(np.float32), np.full(num, intensity, np.float32), ring, 0.0, NUSCENES_RIG[LIDAR].ego_from_sensor
    )


def swept(suite, name, severity, sweep, token="t"):
    scenario = next(s for s in SUITES[suite] if s.name == f"{name}-{severity}")
    frame = replace(FRAME, token=token, cameras={}, radars={}, lidar=(sweep,))
    return scenario.apply(frame, NoHistory())[0].lidar[0]


def fog_power(alpha, range_m):
    """The largest echo of the fog before a target, by a plain sum: pulse of 40 ns, exp(-2 alpha r) / r^2."""
    time_s, best = np.linspace(0, 4e-8, 4001), 0.0
    for at_m in np.linspace(0, 200, 2000):
        if at_m > range_m:
            return best
        r = np.maximum(at_m - LIGHT_MPS * time_s / 2, 0.9)
        seen = np.clip((at_m - LIGHT_MPS * time_s / 2 - 0.9) / 0.1, 0, 1)
        total = (np.sin(np.pi / 4e-8 * time_s) ** 2 * np.exp(-2 * alpha * r) / r**2 * seen).sum() * time_s[1]
        best = max(best, total)
    return best


FOG = [
    *(("multicorrupt", k, a, b, 10.0) for k, (a, b) in enumerate(((0.02, 0.008), (0.03, 0.008), (0.06, 0.05)), 1)),
    *(("robo3d", k, 0.06, b, 10.0) for k, b in enumerate((0.008, 0.05, 0.2), 1)),
    *(("thu-nuscenes-c", k, a, 0.046 * a / np.log(20), 1.0) for k, a in enumerate((0.005, 0.01, 0.02, 0.03, 0.06), 1)),
]


@pytest.mark.parametrize(("suite", "severity", "alpha", "beta", "noise_m"), FOG)
def test_lidar_fog_answers_with_its_own_beta(suite, severity, alpha, beta, noise_m):
    range_m, intensity = 60.0, 40.0
    foggy = swept(suite, "fog", severity, ring_of_points(range_m, 3000, intensity))
    hard = round(intensity * np.exp(-2 * alpha * range_m))
    soft = fog_power(alpha, range_m) * intensity * range_m**2 * beta / (1e-6 / np.pi)
    soft = min(soft, 255.0) if suite == "thu-nuscenes-c" else soft
    assert np.unique(np.round(foggy.intensity, 2)).size == 1
    assert foggy.intensity[0] == pytest.approx(max(hard, soft), rel=0.01)
    moved_m = np.linalg.norm(foggy.xyz_m, axis=1)
    if soft > hard:
        # r0 / U(r0 - n, r0 + n): the same factor at both ends of one distance.
        assert moved_m.max() / moved_m.min() == pytest.approx((range_m + noise_m) / (range_m - noise_m), rel=0.02)
    else:
        assert moved_m == pytest.approx(np.full(3000, range_m), rel=1e-5)


def snow_of(snowfall_mmph, velocity_mps):
    """The published names of pre-drawn flakes: rain rate, and the share of the air that flakes fill."""
    rate = np.sqrt((snowfall_mmph / (487 * 0.1 * 0.003 * velocity_mps)) ** 3)
    return rate, snowfall_mmph / (3.6e6 * 0.1 * velocity_mps)


SNOW = [
    *(("multicorrupt", k, *snow_of(*row)) for k, row in enumerate(((0.5, 1.2), (2.5, 1.6), (1.5, 0.4)), 1)),
    *(("robo3d", k, *snow_of(*row)) for k, row in enumerate(((0.5, 2.0), (1.0, 1.6), (2.5, 1.6)), 1)),
    *(
        ("thu-nuscenes-c", k, *row)
        for k, row in enumerate(((2.62, 7.7e-7), (42.7, 5e-6), (200, 1.4e-5), (368, 2.1e-5), (791, 3.5e-5)), 1)
    ),
]


@pytest.mark.parametrize(("suite", "severity", "rate", "occupancy"), SNOW)
def test_lidar_snow_has_the_flakes_of_its_rate_and_occupancy(suite, severity, rate, occupancy):
    range_m, num = 15.0, 4000
    sweep = ring_of_points(range_m, num, 77.0)
    snowy = swept(suite, "snow", severity, sweep)
    there = {row.tobytes() for row in np.column_stack([sweep.xyz_m, sweep.intensity])}
    untouched = sum(row.tobytes() in there for row in np.column_stack([snowy.xyz_m, snowy.intensity]))
    # Disks of mean diameter E in a plane, touched by a wedge of 3 mrad: Poisson with n (t R^2 / 2 + 2 E[r] R).
    slope = 2550 * rate**-0.48
    mean_area = np.pi / 4 * 2 / slope**2 * 2 / 3
    per_m2 = occupancy / mean_area
    expected = np.exp(-per_m2 * (3e-3 * range_m**2 / 2 + 2 * (np.pi / 4) / (2 * slope) * range_m))
    assert untouched / num == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / num) + 0.003)


BLUR = [
    *(("multicorrupt", k, 15, 100 * sigma) for k, sigma in enumerate((0.06, 0.10, 0.13), 1)),
    *(("robobev", k, *row) for k, row in enumerate(((15, 5), (15, 12), (20, 15)), 1)),
]


@pytest.mark.parametrize(("suite", "severity", "radius", "sigma"), BLUR)
def test_camera_motion_blur_smears_an_edge_by_its_bell(suite, severity, radius, sigma):
    step = np.zeros((9, 1600, 3), np.uint8)
    step[:, 800:] = 250
    frame = replace(
        FRAME, token="t", lidar=(), radars={}, cameras={"CAM_FRONT": replace(FRAME.cameras["CAM_FRONT"], pixels=step)}
    )
    scenario = next(s for s in SUITES[suite] if s.name == f"motion-blur-{severity}")
    blurred = scenario.apply(frame, NoHistory())[0].cameras["CAM_FRONT"].pixels[4, :, 0]
    draws = Draws(0, "t", f"{suite}_motion_blur").generator("CAM_FRONT")
    angle = np.deg2rad(draws.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    bell = np.exp(-(steps**2) / (2 * sigma**2))
    way = np.ceil(steps * np.cos(angle) - 0.5)
    for left in (1, 3, 8, 15, 25):
        assert blurred[800 - left] == pytest.approx(250 * bell[way >= left].sum() / bell.sum(), abs=1.01)


@pytest.mark.parametrize(
    ("severity", "flakes", "mix"),
    [
        (1, (0.1, 0.5), 0.8),
        (2, (0.2, 0.5), 0.7),
        (3, (0.55, 0.9), 0.7),
        (4, (0.55, 0.85), 0.65),
        (5, (0.55, 0.85), 0.55),
    ],
)
def test_thu_camera_snow_is_hazed_by_its_mix_greyed_and_dimmed(severity, flakes, mix):
    grey = np.full((180, 320, 3), 60, np.uint8)
    frame = replace(FRAME, lidar=(), radars={}, cameras={"CAM_FRONT": replace(FRAME.cameras["CAM_FRONT"], pixels=grey)})
    scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == f"snow-{severity}")
    out = scenario.apply(frame, NoHistory())[0].cameras["CAM_FRONT"].pixels.astype(float)
    # mix x + (1 - mix) max(x, 1.5 grey + .5), then .3 of grey 128, then the brightest becomes .7 of 256.
    hazed = mix * 60 + (1 - mix) * (1.5 * 60 + 127.5)
    lowest, brightest = 0.3 * 128 + 0.7 * hazed, 0.3 * 128 + 0.7 * 255
    assert out.max() == pytest.approx(0.7 * 256, abs=2)
    if severity < 5:
        # Somewhere no flake covers the haze, and somewhere they are white.
        assert out.min() == pytest.approx(lowest / brightest * 0.7 * 256, rel=0.08)
    else:
        assert out.min() >= lowest / brightest * 0.7 * 256 - 2


@pytest.mark.parametrize(
    ("severity", "low", "high"),
    [(1, 0.01, 0.06), (2, 0.06, 0.10), (3, 0.10, 0.15), (4, 0.15, 0.20), (5, 0.20, 0.25)],
)
def test_thu_camera_rain_draws_its_density(severity, low, high, monkeypatch):
    drawn = []
    monkeypatch.setattr(published_camera, "rain_layer", lambda pixels, density, rng: drawn.append(density) or pixels)
    scenario = next(s for s in SUITES["thu-nuscenes-c"] if s.name == f"rain-{severity}")
    for i in range(60):
        camera = replace(FRAME.cameras["CAM_FRONT"], pixels=np.zeros((9, 16, 3), np.uint8))
        frame = replace(FRAME, token=f"t{i}", lidar=(), radars={}, cameras={"CAM_FRONT": camera})
        scenario.apply(frame, NoHistory())
    assert low <= min(drawn) < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < max(drawn) <= high


@pytest.mark.parametrize("density", [0.05, 0.15])
def test_rain_layer_covers_by_its_density(density):
    shares = []
    for i in range(20):
        black, white = (np.full((180, 320, 3), value, np.uint8) for value in (0, 255))
        wet = [published_camera.rain_layer(p, density, np.random.default_rng(i)).astype(float) for p in (black, white)]
        shares.append(1 - (wet[1] - wet[0]).mean() / 255)
    # 1.3 times salt of mean (1 + 2 / pi) / 2 on that share of pixels, thinned by Beta(1, 1 - U(.8, 1)) of mean .91;
    # the cubic enlargement, cut at 0, adds up to a quarter.
    expected = 1.3 * density * (1 + 2 / np.pi) / 2 * 0.912
    assert expected < np.mean(shares) < 1.25 * expected


@pytest.mark.parametrize(("severity", "water_mm", "floor"), [(1, 0.2, 0.2), (2, 1.0, 0.3), (3, 1.2, 0.7)])
def test_robo3d_wet_ground_loses_the_echoes_below_its_floor(severity, water_mm, floor):
    rng = np.random.default_rng(2)
    xy = rng.uniform(-40, 40, (6000, 2))
    xy = xy[np.hypot(*xy.T) > 4]
    xyz_m = np.column_stack([xy, np.full(len(xy), -1.84)]).astype(np.float32)
    range_m = np.linalg.norm(xyz_m, axis=1)
    cosine = 1.84 / range_m
    # Of one reflectivity: intensity over cosine falls in a straight line, as the published regression takes it to.
    intensity = ((60 - 0.5 * range_m) * cosine).astype(np.float32)
    sweep = LidarSweep(xyz_m, intensity, np.zeros(len(xyz_m), np.uint8), 0.0, NUSCENES_RIG[LIDAR].ego_from_sensor)
    wet = swept("robo3d", "wet-ground", severity, sweep)
    # Power is 15 times that line, so that rho is 1 / 15; water of index 1.33, the larger polarisation, over the angle.
    theta = np.arccos(cosine)
    inner = np.arcsin(np.sin(theta) * 1.0003 / 1.33)
    shown = []
    for a, b in (((1.0003, 1.33), (1.33, 1.0003)), ((1.33, 1.0003), (1.0003, 1.33))):
        into = ((a[0] * np.cos(theta) - a[1] * np.cos(inner)) / (a[0] * np.cos(theta) + a[1] * np.cos(inner))) ** 2
        out = ((b[0] * np.cos(inner) - b[1] * np.cos(theta)) / (b[0] * np.cos(inner) + b[1] * np.cos(theta))) ** 2
        shown.append((1 - into) * (1 / 15) * (1 - out) / (1 - (1 / 15) * out))
    covered = min(water_mm / 1.2, 1.0)
    expected = np.minimum(
        15 * (60 - 0.5 * range_m) * cosine * ((1 - covered) / 15 + covered * max_of(shown) / theta), intensity
    )
    seen = expected > floor * (60 - 0.5 * range_m) * cosine
    assert len(wet) == pytest.approx(seen.sum(), abs=0.03 * len(xyz_m))
    left = {row.tobytes(): value for row, value in zip(wet.xyz_m, wet.intensity, strict=True)}
    pairs = [(left[row.tobytes()], value) for row, value in zip(xyz_m, expected, strict=True) if row.tobytes() in left]
    if pairs:
        found, by_hand = np.array(pairs).T
        assert found == pytest.approx(by_hand, rel=0.06, abs=0.3)


def max_of(parts):
    return np.maximum(*parts)
