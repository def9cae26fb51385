"""Radar files against the devkit's reader, on a real file and on made ones."""

import numpy as np
import pytest

from sensors.radar import PCD_FIELDS, RadarSweep, encode_radar, read_radar, read_radar_rows
from sensors.transforms import RigidTransform

EGO_FROM_RADAR = RigidTransform.from_yaw(0.7, (3.4, 0.0, 0.5))
CODES = ("dyn_prop", "is_quality_valid", "ambig_state", "invalid_state", "pdh0", "x_rms", "y_rms", "vx_rms", "vy_rms")
ROW_BYTES = 43


def sweep_of(num, seed=0) -> RadarSweep:
    generator = np.random.default_rng(seed)

    def reals(*shape):
        return generator.normal(0, 10, shape).astype(np.float32)

    return RadarSweep(
        xyz_m=reals(num, 3),
        velocity_raw_mps=reals(num, 2),
        velocity_mps=reals(num, 2),
        rcs_dbsm=reals(num),
        track_id=generator.integers(0, 300, num).astype(np.int16),
        **{name: generator.integers(0, 8, num).astype(np.int8) for name in CODES},
        lag_s=0.02,
        ego_from_radar=EGO_FROM_RADAR,
    )


def written(tmp_path, encoded):
    path = tmp_path / "radar.pcd"
    path.write_bytes(encoded)
    return path


def devkit_points(path, unfiltered=True):
    from nuscenes.utils.data_classes import RadarPointCloud

    every = {"invalid_states": list(range(18)), "dynprop_states": list(range(8)), "ambig_states": list(range(8))}
    return RadarPointCloud.from_file(str(path), **(every if unfiltered else {})).points


def as_devkit(sweep):
    """The devkit's 18 rows."""
    columns = {name: getattr(sweep, name) for name in CODES} | {"id": sweep.track_id, "rcs": sweep.rcs_dbsm}
    columns |= dict(zip("xyz", sweep.xyz_m.T, strict=True))
    columns |= {"vx": sweep.velocity_raw_mps[:, 0], "vy": sweep.velocity_raw_mps[:, 1]}
    columns |= {"vx_comp": sweep.velocity_mps[:, 0], "vy_comp": sweep.velocity_mps[:, 1]}
    return np.stack([columns[name] for name, _ in PCD_FIELDS])


@pytest.fixture
def real_file(nuscenes_real):
    return next((nuscenes_real / "radar").glob("*.pcd"))


def test_a_real_file_reads_as_the_devkit_reads_it(real_file):
    sweep = read_radar(real_file, 0.0, EGO_FROM_RADAR)
    assert len(sweep) == 125
    np.testing.assert_array_equal(as_devkit(sweep), devkit_points(real_file))


def test_the_default_filter_is_the_devkits(real_file):
    sweep = read_radar(real_file, 0.0, EGO_FROM_RADAR)
    kept = sweep.select(sweep.passes_default_filter())
    assert len(kept) == 69
    np.testing.assert_array_equal(as_devkit(kept), devkit_points(real_file, unfiltered=False))


@pytest.mark.parametrize(
    ("invalid_states", "dyn_props", "ambig_states"),
    [
        *(([state], range(8), range(8)) for state in (0, 4, 11, 16)),
        *((range(18), [prop], range(8)) for prop in range(8)),
        *((range(18), range(8), [state]) for state in range(5)),
        ([0], range(7), [3]),
        ([0], [0, 2, 6], [3]),
        ([0, 4, 8, 9, 10, 11, 12, 15, 16, 17], range(8), [3]),
        ([1], [5], [1]),
    ],
)
def test_every_filter_keeps_the_points_that_the_devkit_keeps(real_file, invalid_states, dyn_props, ambig_states):
    """Each value of each code by itself, and the sets that people use."""
    from nuscenes.utils.data_classes import RadarPointCloud

    sweep = read_radar(real_file, 0.0, EGO_FROM_RADAR)
    kept = sweep.select(sweep.passes_filter(invalid_states, dyn_props, ambig_states))
    states = {"invalid_states": list(invalid_states), "dynprop_states": list(dyn_props)}
    expected = RadarPointCloud.from_file(str(real_file), **states, ambig_states=list(ambig_states)).points
    np.testing.assert_array_equal(as_devkit(kept), expected)


def test_rows_are_the_files_own_fields(real_file):
    rows = read_radar_rows(real_file)
    assert rows.dtype.names == tuple(name for name, _ in PCD_FIELDS)
    expected = devkit_points(real_file)
    np.testing.assert_array_equal(np.stack([rows[name].astype(float) for name in rows.dtype.names]), expected)


def test_a_header_longer_than_usual_is_read_whole(tmp_path):
    """Files are read in blocks of 16 KiB: 1,000 points need three."""
    sweep = sweep_of(1000)
    path = written(tmp_path, encode_radar(sweep))
    assert path.stat().st_size > 2 * (1 << 14)
    np.testing.assert_array_equal(as_devkit(read_radar(path, 0.02, EGO_FROM_RADAR)), as_devkit(sweep))


def test_a_real_file_is_encoded_byte_for_byte(real_file):
    marker = b"DATA binary\n"
    encoded = encode_radar(read_radar(real_file, 0.0, EGO_FROM_RADAR))
    original = real_file.read_bytes()
    points = slice(0, 125 * ROW_BYTES)
    assert encoded.split(marker, 1)[1][points] == original.split(marker, 1)[1][points]
    assert len(encoded) > len(original.split(marker, 1)[0]) + len(marker) + 125 * ROW_BYTES, (
        "padding, as in the original"
    )
    fields = [
        line for line in original.split(marker, 1)[0].splitlines() if line.startswith((b"FIELDS", b"SIZE", b"TYPE"))
    ]
    assert all(line in encoded.splitlines() for line in fields)


@pytest.mark.parametrize("num", [1, 40])
def test_round_trip_is_exact_and_the_devkit_agrees(tmp_path, num):
    sweep = sweep_of(num)
    path = written(tmp_path, encode_radar(sweep))
    np.testing.assert_array_equal(as_devkit(read_radar(path, 0.02, EGO_FROM_RADAR)), as_devkit(sweep))
    np.testing.assert_array_equal(devkit_points(path), as_devkit(sweep))


def test_an_empty_measurement_is_one_nan_point(tmp_path):
    path = written(tmp_path, encode_radar(sweep_of(0)))
    assert len(read_radar(path, 0.0, EGO_FROM_RADAR)) == 0
    assert devkit_points(path).shape == (18, 0)


def test_a_nan_inside_a_file_is_left_out(tmp_path):
    sweep = sweep_of(10)
    sweep.velocity_mps[4, 0] = np.nan
    assert len(read_radar(written(tmp_path, encode_radar(sweep)), 0.0, EGO_FROM_RADAR)) == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda encoded: encoded[:-10], "cut off"),
        (lambda encoded: encoded[:200], "header"),
        (lambda encoded: b"", "header"),
        (lambda encoded: encoded.replace(b"dyn_prop", b"dynamics"), "radar fields"),
        (lambda encoded: encoded.replace(b"POINTS 10", b"POINTS ten"), "POINTS"),
        (lambda encoded: encoded.replace(b"POINTS 10", b"POINTED 1"), "POINTS"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, change, words):
    path = written(tmp_path, change(encode_radar(sweep_of(10))))
    with pytest.raises(ValueError, match=words) as error:
        read_radar(path, 0.0, EGO_FROM_RADAR)
    assert "\n" not in str(error.value)
    assert "radar.pcd" in str(error.value)


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_radar(tmp_path / "none.pcd", 0.0, EGO_FROM_RADAR)


def test_velocities_turn_with_the_sensor_where_the_devkits_do_not():
    from nuscenes.utils.data_classes import RadarPointCloud

    sweep = sweep_of(5)
    xyz_m, velocity_mps = sweep.to_ego()
    np.testing.assert_allclose(xyz_m, EGO_FROM_RADAR.points(sweep.xyz_m))
    turned = sweep.velocity_mps @ EGO_FROM_RADAR.rotation[:2, :2].T
    np.testing.assert_allclose(velocity_mps, turned, rtol=1e-5)
    cloud = RadarPointCloud(as_devkit(sweep).copy())
    cloud.transform(EGO_FROM_RADAR.matrix)
    np.testing.assert_array_equal(cloud.points[8:10], as_devkit(sweep)[8:10])
