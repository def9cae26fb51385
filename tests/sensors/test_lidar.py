"""LiDAR files against the devkit's reader, and broken ones."""

import numpy as np
import pytest

from sensors.lidar import LidarSweep, chosen_rows, encode_lidar, gathered_points, read_lidar, within, without_close
from sensors.transforms import RigidTransform

EGO_FROM_LIDAR = RigidTransform.from_yaw(-np.pi / 2, (0.9, 0.0, 1.8))


def sweep_of(num, seed=0) -> LidarSweep:
    generator = np.random.default_rng(seed)
    return LidarSweep(
        xyz_m=generator.normal(0, 20, (num, 3)).astype(np.float32),
        intensity=generator.integers(0, 256, num).astype(np.float32),
        ring=generator.integers(0, 32, num).astype(np.uint8),
        lag_s=0.05,
        ego_from_lidar=EGO_FROM_LIDAR,
    )


@pytest.mark.parametrize("num", [0, 1, 1000])
def test_round_trip_is_exact(tmp_path, num):
    sweep, path = sweep_of(num), tmp_path / "x.pcd.bin"
    path.write_bytes(encode_lidar(sweep))
    back = read_lidar(path, 0.05, EGO_FROM_LIDAR)
    for name in ("xyz_m", "intensity", "ring"):
        np.testing.assert_array_equal(getattr(back, name), getattr(sweep, name))
    assert encode_lidar(back) == encode_lidar(sweep)
    assert len(back) == num


def test_the_devkit_reads_the_same(tmp_path):
    from nuscenes.utils.data_classes import LidarPointCloud

    sweep, path = sweep_of(500), tmp_path / "x.pcd.bin"
    path.write_bytes(encode_lidar(sweep))
    points = LidarPointCloud.from_file(str(path)).points
    np.testing.assert_array_equal(points[:3].T, sweep.xyz_m)
    np.testing.assert_array_equal(points[3], sweep.intensity)


def test_a_real_file_comes_back_byte_for_byte(nuscenes_real):
    path = next((nuscenes_real / "frame/samples/LIDAR_TOP").iterdir())
    sweep = read_lidar(path, 0.0, EGO_FROM_LIDAR)
    assert len(sweep) == 34688
    assert sweep.ring.max() == 31
    assert encode_lidar(sweep) == path.read_bytes()


def test_a_cut_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "cut.pcd.bin"
    path.write_bytes(encode_lidar(sweep_of(10))[:-7])
    with pytest.raises(ValueError, match=r"193 bytes.*copy it again") as error:
        read_lidar(path, 0.0, EGO_FROM_LIDAR)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        read_lidar(tmp_path / "none.pcd.bin", 0.0, EGO_FROM_LIDAR)


@pytest.mark.parametrize(("num_bad", "left"), [(1, 9), (5, 5), (6, None), (10, None)])
def test_points_that_are_not_finite(tmp_path, num_bad, left):
    """Some are no returns and left out; most of a file is a broken file."""
    sweep, path = sweep_of(10), tmp_path / "nan.pcd.bin"
    sweep.xyz_m[:num_bad, 1] = [np.nan, np.inf][num_bad % 2]
    path.write_bytes(encode_lidar(sweep))
    if left is None:
        with pytest.raises(ValueError, match=f"{num_bad} of 10") as error:
            read_lidar(path, 0.0, EGO_FROM_LIDAR)
        assert "\n" not in str(error.value)
    else:
        np.testing.assert_array_equal(read_lidar(path, 0.0, EGO_FROM_LIDAR).xyz_m, sweep.xyz_m[num_bad:])


def test_close_points_are_cut_by_a_circle_where_the_devkit_cuts_a_square():
    from nuscenes.utils.data_classes import LidarPointCloud

    points = np.array([[0.9, 0.0, 0.0], [0.9, 0.9, 5.0], [1.1, 0.0, 0.0], [0.0, -0.5, 9.0]], np.float32)
    assert without_close(points, 1.0).tolist() == [False, True, True, False]
    cloud = LidarPointCloud(np.concatenate([points, np.zeros((4, 1), np.float32)], axis=1).T)
    cloud.remove_close(1.0)
    assert cloud.nbr_points() == 1, "the square also loses the point in its corner"


def test_to_ego_and_select():
    sweep = sweep_of(20)
    np.testing.assert_allclose(sweep.to_ego(), EGO_FROM_LIDAR.points(sweep.xyz_m))
    assert len(sweep.select(sweep.ring < 16)) == (sweep.ring < 16).sum()
    np.testing.assert_array_equal(sweep.select(np.array([3, 1])).xyz_m, sweep.xyz_m[[3, 1]])


def test_an_empty_file_is_damaged_and_an_empty_measurement_is_one_nan_point(tmp_path):
    path = tmp_path / "x.pcd.bin"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="got 0 bytes.*cut off"):
        read_lidar(path, 0.0, EGO_FROM_LIDAR)
    path.write_bytes(encode_lidar(sweep_of(0)))
    assert path.stat().st_size == 20
    assert len(read_lidar(path, 0.0, EGO_FROM_LIDAR)) == 0


def test_close_points_are_left_out_while_reading(tmp_path):
    sweep, path = sweep_of(300), tmp_path / "x.pcd.bin"
    sweep.xyz_m[::3, :2] *= 0.001
    path.write_bytes(encode_lidar(sweep))
    kept = without_close(sweep.xyz_m, 1.0)
    assert 0 < kept.sum() < 300
    read = read_lidar(path, 0.0, EGO_FROM_LIDAR, close_m=1.0)
    np.testing.assert_array_equal(read.xyz_m, sweep.xyz_m[kept])
    np.testing.assert_array_equal(read.ring, sweep.ring[kept])


def test_gathered_points_are_the_transformed_ones_in_range():
    """Closed form: every sweep's points through its own transform, in float64; the range cuts the same points."""
    sweeps = [sweep_of(200, seed) for seed in range(3)]
    dst_from_ego = RigidTransform.from_yaw(0.3, (5.0, -2.0, 1.0)).matrix
    exact = []
    for sweep in sweeps:
        moved = dst_from_ego @ sweep.ego_from_lidar.matrix @ np.column_stack([sweep.xyz_m, np.ones(200)]).T
        exact.append(np.column_stack([moved[:3].T, sweep.intensity, np.full(200, sweep.lag_s)]))
    exact = np.concatenate(exact)
    points = gathered_points(sweeps, dst_from_ego)
    np.testing.assert_allclose(points, exact, atol=2e-5)
    range_m = (-10.0, -10.0, -3.0, 10.0, 10.0, 3.0)
    inside = ((exact[:, :3] >= range_m[:3]) & (exact[:, :3] < range_m[3:])).all(axis=1)
    assert 0 < inside.sum() < 600
    np.testing.assert_array_equal(gathered_points(sweeps, dst_from_ego, range_m), points[inside])
    assert gathered_points([], dst_from_ego, range_m).shape == (0, 5)


def test_a_range_holds_its_lower_bound_alone():
    points = np.array([[0, 0, 0, 9, 9], [1, 0, 0, 9, 9], [0, -1, 0, 9, 9], [0.5, 0.5, 0.5, 0, 0]], np.float32)
    kept = within(points, (0.0, 0.0, 0.0, 1.0, 1.0, 1.0))
    assert kept.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(chosen_rows(points, kept), points[kept])
