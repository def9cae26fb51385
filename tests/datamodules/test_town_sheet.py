"""The sheet's real figures are those of the real tables; its arithmetic is checked on a dataset of three boxes."""

import json

import numpy as np
import pytest

from datamodules.town.sheet import REAL, figures_of, sheet


def _small(root):
    tables = {
        "category": [{"token": "c", "name": "vehicle.car"}, {"token": "a", "name": "animal"}],
        "sensor": [{"token": "s", "channel": "LIDAR_TOP"}],
        "calibrated_sensor": [{"token": "m", "sensor_token": "s"}],
        "sample_data": [
            {"sample_token": k, "ego_pose_token": "e", "calibrated_sensor_token": "m", "is_key_frame": True}
            for k in ("one", "two")
        ],
        "ego_pose": [{"token": "e", "translation": [100.0, 0.0, 0.0]}],
        "instance": [{"token": "i", "category_token": "c"}, {"token": "x", "category_token": "a"}],
        "sample_annotation": [
            _box("one", "i", 115.0, 10, 2, "4"),
            _box("one", "i", 135.0, 3, 0, "1"),
            _box("two", "i", 155.0, 0, 5, "4"),
            _box("two", "x", 101.0, 9, 9, "4"),
        ],
    }
    (root / "v").mkdir(parents=True)
    for name, rows in tables.items():
        (root / "v" / f"{name}.json").write_text(json.dumps(rows))
    return root


def _box(sample, instance, x, lidar, radar, visibility):
    return {
        **{"sample_token": sample, "instance_token": instance, "translation": [x, 0.0, 1.0], "size": [1.8, 4.5, 1.6]},
        **{"num_lidar_pts": lidar, "num_radar_pts": radar, "visibility_token": visibility},
    }


def test_figures_by_hand(tmp_path):
    figures = figures_of(_small(tmp_path), "v")
    assert figures.boxes_per_frame[0] == 1.5
    assert figures.range_shares == pytest.approx((0, 1 / 3, 0, 1 / 3, 0, 1 / 3, 0))
    assert figures.point_shares == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0, 0, 0))
    assert figures.classes == {"car": pytest.approx((1.0, 6.5, 1.0, 0.5))}
    assert figures.sizes_lwh_m == {"car": pytest.approx((4.5, 1.8, 1.6))}
    assert figures.visibility == pytest.approx((1 / 3, 0, 0, 2 / 3))
    text = sheet(figures)
    assert "| car | 100.0% | 57.8% | 6.5 | 64.8 | 1.00 | 1.01 | 50% | 42% |" in text
    assert "| range, m, 10 to 19 | 33.3% | 25.8% |" in text


def test_real_figures_are_those_of_the_tables(nuscenes_real):
    figures = figures_of(nuscenes_real / "minival-tables", "v1.0-mini")
    np.testing.assert_allclose(figures.boxes_per_frame, REAL.boxes_per_frame, atol=0.06)
    np.testing.assert_allclose(figures.range_shares, REAL.range_shares, atol=0.0006)
    np.testing.assert_allclose(figures.point_shares, REAL.point_shares, atol=0.0006)
    assert figures.classes.keys() == REAL.classes.keys()
    for name, row in REAL.classes.items():
        np.testing.assert_allclose(figures.classes[name], row, atol=0.06)
        np.testing.assert_allclose(figures.sizes_lwh_m[name], REAL.sizes_lwh_m[name], atol=0.006)


def test_no_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match="write the town first"):
        figures_of(tmp_path, "v1.0-town")
