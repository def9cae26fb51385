"""Published LiDAR weather against numbers computed from its definitions."""

import numpy as np
import pytest

from sensors.faults import published_weather
from sensors.faults.published_ground import laser_parameters, on_ground, wet_intensities
from sensors.faults.published_lidar import rows_of
from sensors.faults.published_weather import fog_table, published_rain_rate
from tests.sensors.toy_frames import toy_lidar

SWEEP = toy_lidar(1, 6000)
POINTS = rows_of(SWEEP)
RNG = np.random.default_rng


def test_fog_table_agrees_with_a_plain_integral():
    distances, responses = fog_table(0.06)
    for target in (5.0, 50.0):
        best, best_at = 0.0, 0.0
        for at in np.linspace(0, 200, 2000)[:120]:
            if at > target:
                break
            t = np.linspace(0, 4e-8, 4001)
            r = at - 299_792_458.0 * t / 2
            seen = r > 0.9
            value = np.zeros(4001)
            value[seen] = (
                np.sin(np.pi / 4e-8 * t[seen]) ** 2
                * np.exp(-0.12 * r[seen])
                / r[seen] ** 2
                * np.clip((r[seen] - 0.9) / 0.1, 0, 1)
            )
            total = value.sum() * t[1]
            if total > best:
                best, best_at = total, at
        assert responses[round(target * 10)] == pytest.approx(best, rel=2e-3)
        assert distances[round(target * 10)] == pytest.approx(best_at - 299_792_458.0 * 1e-8, abs=0.11)


def test_fog_rounds_faded_targets_and_noise_differs_between_suites():
    range_m = np.linalg.norm(POINTS[:, :3], axis=1)
    mild = published_weather.thu_fog(POINTS, 0.005, RNG(0))
    kept = (mild[:, :3] == POINTS[:, :3]).all(axis=1)
    assert kept.mean() > 0.3
    assert mild[kept, 3] == pytest.approx(np.round(np.exp(-0.01 * range_m[kept]) * POINTS[kept, 3]), abs=1)
    assert published_weather.thu_fog(POINTS, 0.06, RNG(0))[:, 3].max() <= 255
    assert published_weather.multicorrupt_fog(POINTS, 0.02, 0.2, RNG(0))[:, 3].max() > 255


def test_lisa_leaves_lost_points_at_the_origin():
    dim = POINTS.copy()
    dim[:, 3] /= 255
    rain = published_weather.thu_rain(dim, 7.29, RNG(0))
    assert rain.shape == (6000, 6)
    lost = rain[:, 5] == 0
    assert 0 < lost.mean() < 1
    assert (rain[lost] == 0).all()
    range_m = np.linalg.norm(dim[:, :3], axis=1)
    power = dim[:, 3] * np.exp(-2 * 0.00125 * range_m) / range_m**2
    # What is clearly too weak is lost, unless a drop is seen instead.
    assert (rain[power < 0.5 * 0.9 / 120**2, 5] < 2).all()
    assert (rain[power > 2 * 0.9 / 120**2, 5] > 0).all()


def test_published_snow_rates_are_the_listed_ones():
    # Pre-drawn flakes are named by rate and occupancy: 0.5 mm/h at 2 m/s is 2.238, 2.5 at 1.6 is 34.97.
    assert published_rain_rate(0.5, 2.0) == pytest.approx(2.2383844962893775)
    assert published_rain_rate(2.5, 1.6) == pytest.approx(34.97475775452152)
    assert published_weather.occupancy_of(2.5, 1.6) == pytest.approx(4.340277777777777e-06)


def test_wet_ground_never_brightens_and_keeps_all_else():
    rng = RNG(0)
    xy = rng.uniform(-30, 30, (4000, 2))
    z = np.full(4000, -1.84)
    dry = np.column_stack(
        [xy, z, np.maximum(40 - np.hypot(*xy.T), 4) + rng.uniform(0, 5, 4000), np.zeros(4000)]
    ).astype(np.float32)
    ground, cosine = on_ground(dry)
    assert ground.all()
    intensity, threshold = wet_intensities(dry, cosine, 1.2, 0.3)
    assert (intensity <= dry[:, 3]).all()
    some, _ = wet_intensities(dry, cosine, 0.2, 0.3)
    assert (some >= intensity - 1e-6).mean() > 0.9
    power, noise = laser_parameters(dry, cosine, 0.3)
    slope, offset = np.polyfit(np.linalg.norm(dry[:, :3], axis=1), dry[:, 3] / cosine, 1)
    assert power == pytest.approx(15 * (slope * np.linalg.norm(dry[:, :3], axis=1) + offset), rel=1e-4)
    walls = dry.copy()
    walls[:, 2] = 1.0
    both = np.concatenate([dry, walls])
    mask = np.arange(8000) < 4000
    wet = published_weather.robo3d_wet_ground(both, mask, 1.2, 0.3)
    assert np.array_equal(wet[:4000], walls)
    assert len(wet) <= 8000
    assert published_weather.robo3d_wet_ground(both, np.arange(8000) < 900, 1.2, 0.3) is both
