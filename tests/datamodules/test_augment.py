"""Augmentation folds into calibration: what a point shows in the picture, and which box it lies in, stays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.augment import (
    BevAugmentation,
    Crop,
    ImageAugmentation,
    augmented_boxes,
    fitting_crop,
    inverse_of,
    keyed_generator,
    recoloured,
)
from sensors.boxes import Boxes


def blob(height, width, u, v):
    """A picture that holds one soft dot, wide enough to survive resizing."""
    y, x = np.mgrid[:height, :width]
    dot = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 6.0**2))
    return np.repeat((255 * dot)[:, :, None], 3, axis=2).astype(np.uint8)


def center_of(pixels):
    weight = pixels[:, :, 0].astype(np.float64)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]]
    return np.array([(x * weight).sum(), (y * weight).sum()]) / weight.sum()


@pytest.mark.parametrize("mirror", [0.0, 1.0])
@pytest.mark.parametrize("size_px", [(64, 176), (120, 320), (250, 500), (200, 200)])
def test_a_point_stays_on_its_image_content(size_px, mirror):
    """Shrunk, plain, enlarged and taller than wide; to a twentieth of a pixel (the dot is cut off at 8 bits)."""
    u, v = 211.0, 150.0
    pixels = blob(225, 400, u, v)
    augmentation = ImageAugmentation(zoom=(1.0, 1.3), lift=0.3, mirror_probability=mirror)
    for seed in range(4):
        crop = augmentation.draw((225, 400), size_px, np.random.default_rng(seed))
        cropped = crop.apply(pixels)
        assert cropped.shape == (*size_px, 3)
        moved = crop.cropped_from_image @ [u, v, 1.0]
        np.testing.assert_allclose(center_of(cropped), moved[:2], atol=0.05)


def test_plain_crop_keeps_the_width_and_cuts_the_sky():
    crop = fitting_crop((900, 1600), (256, 704))
    assert (crop.left_px, crop.width_px, crop.top_px, crop.height_px) == (0, 1600, 900 - 582, 582)
    corner = crop.cropped_from_image @ [1599.5, 899.5, 1.0]
    np.testing.assert_allclose(corner, [703.5, 255.5, 1.0])
    assert fitting_crop((225, 400), (225, 400)) == Crop(0, 0, 400, 225, (225, 400))
    tall = fitting_crop((225, 400), (225, 200))
    assert (tall.left_px, tall.width_px, tall.height_px) == (100, 200, 225)


@given(seed=st.integers(0, 10**6), height=st.integers(8, 300), width=st.integers(8, 300))
def test_windows_stay_inside_the_picture(seed, height, width):
    augmentation = ImageAugmentation(zoom=(1.0, 2.0), lift=1.0, mirror_probability=0.5)
    crop = augmentation.draw((90, 160), (height, width), np.random.default_rng(seed))
    assert crop.left_px >= 0
    assert crop.top_px >= 0
    assert crop.left_px + crop.width_px <= 160
    assert crop.top_px + crop.height_px <= 90
    assert crop.width_px > 0
    assert crop.height_px > 0


def boxes_and_points(seed, num=12, num_points=3000):
    generator = np.random.default_rng(seed)
    boxes = Boxes(
        center_m=generator.uniform(-20, 20, (num, 3)).astype(np.float32),
        size_lwh_m=generator.uniform(2, 15, (num, 3)).astype(np.float32),
        yaw_rad=generator.uniform(-np.pi, np.pi, num).astype(np.float32),
        velocity_mps=generator.normal(size=(num, 2)).astype(np.float32),
        label=np.zeros(num, np.int64),
        score=np.ones(num, np.float32),
        attribute=np.full(num, -1),
        num_points=np.zeros(num, np.int64),
    )
    return boxes, generator.uniform(-25, 25, (num_points, 3)).astype(np.float32)


@given(seed=st.integers(0, 10**6))
def test_points_stay_in_their_boxes_under_any_bev_augmentation(seed):
    boxes, points = boxes_and_points(seed % 7)
    augmentation = BevAugmentation(yaw_rad=np.pi, scale=(0.5, 2.0))
    aug_from_ego = augmentation.draw(np.random.default_rng(seed))
    counts = augmented_boxes(boxes, aug_from_ego).count_inside(points @ aug_from_ego[:3, :3].T)
    np.testing.assert_allclose(inverse_of(aug_from_ego) @ aug_from_ego, np.eye(4), atol=1e-12)
    # A point on a face may change sides by rounding.
    assert np.abs(counts - boxes.count_inside(points)).max() <= 1
    assert counts.sum() > 0


@given(seed=st.integers(0, 10**6))
def test_a_box_that_drives_along_its_heading_still_does(seed):
    boxes, _ = boxes_and_points(seed % 7)
    ahead = np.stack([np.cos(boxes.yaw_rad), np.sin(boxes.yaw_rad)], axis=1) * 3.0
    boxes = Boxes(**{**vars(boxes), "velocity_mps": ahead.astype(np.float32)})
    aug_from_ego = BevAugmentation(yaw_rad=np.pi, scale=(1.1, 1.1)).draw(np.random.default_rng(seed))
    moved = augmented_boxes(boxes, aug_from_ego)
    heading = np.stack([np.cos(moved.yaw_rad), np.sin(moved.yaw_rad)], axis=1)
    np.testing.assert_allclose(moved.velocity_mps, heading * 3.0 * 1.1, atol=1e-5)
    np.testing.assert_allclose(moved.size_lwh_m, boxes.size_lwh_m * 1.1, rtol=1e-6)


def test_unknown_velocity_stays_unknown():
    boxes, _ = boxes_and_points(0)
    boxes.velocity_mps[3] = np.nan
    moved = augmented_boxes(boxes, BevAugmentation().draw(np.random.default_rng(0)))
    assert np.isnan(moved.velocity_mps).all(axis=1).tolist() == [i == 3 for i in range(12)]


def test_flips_by_hand():
    flipped = BevAugmentation(0.0, (1.0, 1.0), 0.0, 1.0).draw(np.random.default_rng(0))
    np.testing.assert_allclose(np.diag(flipped), [1, -1, 1, 1])
    boxes, _ = boxes_and_points(1)
    np.testing.assert_allclose(augmented_boxes(boxes, flipped).yaw_rad, -boxes.yaw_rad, atol=1e-6)


def test_draws_depend_on_their_key_alone():
    def drawn(*key):
        return keyed_generator(*key).uniform()

    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    first = drawn(0, 1, "a", "bev")
    np.random.seed(2)  # noqa: NPY002
    assert first == drawn(0, 1, "a", "bev")
    others = [drawn(1, 1, "a", "bev"), drawn(0, 2, "a", "bev"), drawn(0, 1, "b", "bev"), drawn(0, 1, "a", "image")]
    assert len({first, *others}) == 5


def test_impossible_settings_are_refused():
    for settings in ({"zoom": (0.9, 1.0)}, {"lift": 2.0}, {"mirror_probability": -0.1}):
        with pytest.raises(ValueError, match="expected"):
            ImageAugmentation(**settings)
    with pytest.raises(ValueError, match="scale"):
        BevAugmentation(scale=(0.0, 1.0))


def test_colours_are_multiplied_and_stay_within_a_byte():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    gains = np.array([0.5, 1.0, 1.9])
    expected = np.clip(np.floor(pixels * gains + 0.5), 0, 255)
    assert np.abs(recoloured(pixels, gains) - expected).max() <= 1  # halves round to even
    assert np.array_equal(recoloured(pixels, np.ones(3)), pixels)


def test_gains_lie_within_what_was_asked_for():
    augmentation = ImageAugmentation(tint=0.2, shade=0.3)
    gains = np.array([augmentation.draw_gains(np.random.default_rng(seed)) for seed in range(500)])
    assert 0.7 * 0.8 <= gains.min() < 0.65
    assert 1.45 < gains.max() <= 1.3 * 1.2
    assert np.ptp(gains, axis=1).max() > 0.2
    with pytest.raises(ValueError, match="tint and shade"):
        ImageAugmentation(tint=1.0)
