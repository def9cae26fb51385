"""Pictures: whole ones are read, broken ones refused; projection against the devkit."""

import cv2
import numpy as np
import pytest

from sensors.camera import decode_pixels, encode_jpeg, project, read_pixels


@pytest.fixture
def pixels():
    y, x = np.mgrid[:90, :160]
    return np.stack([x, 2 * y, 255 - x], axis=-1).astype(np.uint8)


def test_jpeg_round_trip_keeps_the_order_of_colours(pixels):
    back = decode_pixels(encode_jpeg(pixels, 95), "x")
    assert np.abs(back.astype(int) - pixels).mean() < 2


def test_png_round_trip_is_exact(tmp_path, pixels):
    cv2.imwrite(str(tmp_path / "x.png"), cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(read_pixels(tmp_path / "x.png"), pixels)


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, -2])
def test_truncated_pictures_are_refused_in_one_line(tmp_path, pixels, left):
    encoded = encode_jpeg(pixels)
    size = int(len(encoded) * left) if isinstance(left, float) else left
    (tmp_path / "cut.jpg").write_bytes(encoded[:size])
    with pytest.raises(ValueError, match=r"cut\.jpg.*copy the file again") as error:
        read_pixels(tmp_path / "cut.jpg")
    assert "\n" not in str(error.value)


def test_a_missing_picture_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pixels(tmp_path / "none.jpg")


def test_projection_is_the_devkits():
    from nuscenes.utils.geometry_utils import view_points

    matrix = np.array([[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]])
    points = np.random.default_rng(0).uniform([-10, -5, 0.5], [10, 5, 60], (200, 3))
    uv, depth_m = project(points, matrix)
    np.testing.assert_allclose(uv, view_points(points.T, matrix, normalize=True)[:2].T, atol=1e-9)
    np.testing.assert_array_equal(depth_m, points[:, 2])


def test_points_behind_have_no_pixel():
    uv, depth_m = project(np.array([[0.0, 0.0, -5.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]), np.eye(3))
    assert np.isnan(uv[:, 0]).tolist() == [True, True, False]
    assert depth_m.tolist() == [-5, 0, 2]
