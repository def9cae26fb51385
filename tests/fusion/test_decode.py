import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from datamodules.augment import BevAugmentation, augmented_boxes
from datamodules.batch import BoxBatch
from fusion.heads.center import CENTERPOINT_GROUPS, ONE_GROUP, CenterHead, HeadOutput
from fusion.heads.decode import DecodeOptions, _highest_around, circle_nms, decode, to_global
from fusion.heads.targets import CenterTargets, center_targets
from sensors.boxes import DETECTION_NAMES, NO_ATTRIBUTE, Boxes, attributes_of_class
from sensors.grid import BevGrid
from sensors.transforms import RigidTransform, wrap_angle

GRID = BevGrid((-32.0, 32.0), (-16.0, 16.0), 1.0)  # 32 rows, 64 columns
WIDTHS = {"height": 1, "offset": 2, "log_size": 3, "heading": 2, "velocity": 2, "attribute": 8}


def scattered_boxes(num_boxes: int, num_samples: int, seed: int) -> BoxBatch:
    """At most one box per block of 4 x 4 cells and sample, so that none hides another.

    Centres keep 3.3 m apart: more than the largest radius of circle NMS, 3.2 m for buses.
    """
    rng = np.random.default_rng(seed)
    place = rng.permutation(num_samples * 8 * 16)[:num_boxes]
    sample, block = np.sort(place // 128), place[np.argsort(place // 128, kind="stable")] % 128
    corner = np.stack([block % 16 * 4 - 32, block // 16 * 4 - 16], axis=1)
    center_m = np.concatenate([corner + 1 + 0.7 * rng.random((num_boxes, 2)), rng.normal(size=(num_boxes, 1))], axis=1)
    label = rng.integers(0, 10, num_boxes)
    own = [attributes_of_class(DETECTION_NAMES[c]) for c in label]

    def tensor(value, dtype=torch.float32):
        return torch.as_tensor(np.asarray(value), dtype=dtype)

    return BoxBatch(
        center_m=tensor(center_m),
        size_lwh_m=tensor(rng.uniform(0.2, 15, (num_boxes, 3))),
        yaw_rad=tensor(rng.uniform(-math.pi, math.pi, num_boxes)),
        velocity_mps=tensor(rng.normal(size=(num_boxes, 2)) * 5),
        label=tensor(label, torch.int64),
        attribute=tensor([rng.choice(o) if o else NO_ATTRIBUTE for o in own], torch.int64),
        num_points=torch.ones(num_boxes, dtype=torch.int64),
        sample=tensor(sample, torch.int64),
    )


def perfect_output(targets: CenterTargets, groups=ONE_GROUP) -> HeadOutput:
    """The maps of a head that learnt the targets by heart. Other attributes of other classes score even higher."""
    num_samples, _, num_y, num_x = targets.heatmap.shape
    group_of_class = tuple(next(g for g, names in enumerate(groups) if name in names) for name in DETECTION_NAMES)
    maps = {name: torch.zeros(num_samples, len(groups) * k, num_y, num_x) for name, k in WIDTHS.items()}
    for i in range(len(targets.cell)):
        b, cell, label = int(targets.sample[i]), int(targets.cell[i]), int(targets.label[i])
        iy, ix = divmod(cell, num_x)
        own = attributes_of_class(DETECTION_NAMES[label])
        values = {name: getattr(targets, name)[i] for name in WIDTHS if name != "attribute"}
        values["attribute"] = torch.tensor([-1.0 if a in own else 9.0 for a in range(8)])
        if own:
            values["attribute"][targets.attribute[i]] = 0.0
        for name, k in WIDTHS.items():
            first = group_of_class[label] * k
            maps[name][b, first : first + k, iy, ix] = values[name]
    heatmap = torch.logit(targets.heatmap.clamp(1e-4, 1 - 1e-4))
    return HeadOutput(heatmap=heatmap, **maps, group_of_class=group_of_class)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 60), st.integers(0, 10_000), st.sampled_from([ONE_GROUP, CENTERPOINT_GROUPS]))
def test_decoding_perfect_maps_gives_the_labels_back(num_boxes, seed, groups):
    boxes = scattered_boxes(num_boxes, 2, seed)
    targets = center_targets(boxes, 2, GRID)
    decoded = decode(perfect_output(targets, groups), GRID, DecodeOptions(min_score=0.999))
    for sample, found in enumerate(decoded):
        rows = torch.nonzero(boxes.sample == sample)[:, 0].numpy()
        assert len(found) == len(rows)
        if not len(rows):
            continue
        wanted_m = boxes.center_m.numpy()[rows]
        distance = np.linalg.norm(wanted_m[:, None] - found.center_m[None], axis=-1)
        match = distance.argmin(axis=1)
        assert len(set(match)) == len(rows)
        found = found.select(match)
        np.testing.assert_allclose(found.center_m, wanted_m, atol=1e-4)
        np.testing.assert_allclose(found.size_lwh_m, boxes.size_lwh_m.numpy()[rows], rtol=1e-5)
        np.testing.assert_allclose(wrap_angle(found.yaw_rad - boxes.yaw_rad.numpy()[rows]), 0, atol=1e-5)
        np.testing.assert_allclose(found.velocity_mps, boxes.velocity_mps.numpy()[rows], atol=1e-5)
        assert (found.label == boxes.label.numpy()[rows]).all()
        assert (found.attribute == boxes.attribute.numpy()[rows]).all()
        assert (found.num_points == -1).all()


def random_output(num_samples=2, seed=0) -> HeadOutput:
    torch.manual_seed(seed)
    head = CenterHead(4, GRID, channels=8)
    output = head(torch.randn(num_samples, 4, 32, 64))
    return HeadOutput(**{**vars(output), "heatmap": output.heatmap + torch.randn_like(output.heatmap)})


def test_best_first_within_the_limits():
    for found in decode(random_output(), GRID, DecodeOptions(min_score=0.2, max_boxes=20)):
        assert len(found) == 20
        assert (np.diff(found.score) <= 0).all()
        assert found.score[-1] >= 0.2


def test_samples_do_not_see_each_other():
    output = random_output(3)
    together = decode(output, GRID)
    alone = decode(output.select(torch.tensor([2])), GRID)[0]
    np.testing.assert_array_equal(together[2].center_m, alone.center_m)
    np.testing.assert_array_equal(together[2].score, alone.score)


def test_nothing_detected_is_no_boxes():
    output = random_output()
    nothing = HeadOutput(**{**vars(output), "heatmap": torch.full_like(output.heatmap, -9.0)})
    assert [len(found) for found in decode(nothing, GRID)] == [0, 0]
    assert decode(output.select(torch.zeros(0, dtype=torch.int64)), GRID) == []


def test_a_flat_heatmap_is_well_defined():
    output = random_output()
    flat = HeadOutput(**{**vars(output), "heatmap": torch.zeros_like(output.heatmap)})
    for found in decode(flat, GRID):
        assert 0 < len(found) <= 300
        assert (found.score == 0.5).all()


def test_bf16_maps_decode_like_their_float32_values():
    output = random_output()
    maps = {name: m.bfloat16() if isinstance(m, torch.Tensor) else m for name, m in vars(output).items()}
    as_float = {name: m.float() if isinstance(m, torch.Tensor) else m for name, m in maps.items()}
    for rough, exact in zip(decode(HeadOutput(**maps), GRID), decode(HeadOutput(**as_float), GRID), strict=True):
        np.testing.assert_array_equal(rough.center_m, exact.center_m)


@pytest.mark.parametrize("name", ["heatmap", "velocity"])
def test_a_diverged_model_is_an_error_not_an_empty_sky(name):
    output = random_output()
    maps = {**vars(output), name: torch.full_like(getattr(output, name), math.nan)}
    with pytest.raises(ValueError, match="diverged"):
        decode(HeadOutput(**maps), GRID)


def test_attributes_are_the_classes_own():
    for found in decode(random_output(), GRID):
        for label, attribute in zip(found.label, found.attribute, strict=True):
            own = attributes_of_class(DETECTION_NAMES[label])
            assert attribute in own if own else attribute == NO_ATTRIBUTE


def test_peaks_are_those_of_max_pooling():
    maps = torch.randn(2, 3, 9, 11)
    assert torch.equal(_highest_around(maps), functional.max_pool2d(maps, 3, stride=1, padding=1))


def greedy_nms(xy_m, label, radius_m):
    kept = []
    for i in range(len(label)):
        close = (
            math.dist(xy_m[i].tolist(), xy_m[j].tolist()) <= radius_m[label[i]] and label[i] == label[j] for j in kept
        )
        if not any(close):
            kept.append(i)
    return kept


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 80), st.integers(0, 10_000), st.floats(0.5, 20))
def test_circle_nms_is_the_greedy_loop(num_boxes, seed, spread_m):
    rng = np.random.default_rng(seed)
    xy_m = rng.uniform(-spread_m, spread_m, (num_boxes, 2))
    label = rng.integers(0, 3, num_boxes)
    radius_m = np.array([0.4, 1.0, 3.0])
    assert np.flatnonzero(circle_nms(xy_m, label, radius_m)).tolist() == greedy_nms(xy_m, label, radius_m)


def test_circle_nms_by_hand():
    """On a line at 0, 1, 2, 3 m with radius 1: 0 removes 1, so 2 stays and removes 3."""
    xy_m = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0]])
    assert circle_nms(xy_m, np.zeros(4, int), np.array([1.0])).tolist() == [True, False, True, False]


def test_options_name_the_limit():
    with pytest.raises(ValueError, match="500"):
        DecodeOptions(max_boxes=501)
    with pytest.raises(ValueError, match="one per class"):
        DecodeOptions(nms_radius_m=(1.0, 2.0))


def one_box() -> Boxes:
    return Boxes(
        center_m=np.array([[10.0, 2.0, 1.0]], np.float32),
        size_lwh_m=np.array([[4.0, 2.0, 1.5]], np.float32),
        yaw_rad=np.array([0.3], np.float32),
        velocity_mps=np.array([[3.0, 1.0]], np.float32),
        label=np.array([0]),
        score=np.array([0.5], np.float32),
        attribute=np.array([5]),
        num_points=np.array([-1]),
    )


def augmentation(yaw_rad=0.0, scale=1.0, mirror_y=False) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = RigidTransform.from_yaw(yaw_rad).rotation * scale
    if mirror_y:
        matrix[:3, :3] = matrix[:3, :3] @ np.diag([1.0, -1.0, 1.0])
    return matrix


@pytest.mark.parametrize("mirror_y", [False, True])
def test_home_is_where_the_corners_go(mirror_y):
    """The corners, carried as plain points, must be the corners of the carried box (a mirror swaps left and right)."""
    aug, pose = augmentation(0.7, 1.1, mirror_y), RigidTransform.from_yaw(-2.0, (600.0, 1600.0, 3.0)).matrix
    aug[:3, 3] = 0.5, -0.2, 0.1
    home = to_global(one_box(), torch.from_numpy(aug), torch.from_numpy(pose))
    corners = np.c_[one_box().corners()[0].astype(np.float64), np.ones(8)] @ (pose @ aug).T
    order = [1, 0, 3, 2, 5, 4, 7, 6] if mirror_y else list(range(8))
    np.testing.assert_allclose(home.corners()[0], corners[order, :3], atol=1e-4)
    np.testing.assert_allclose(home.velocity_mps[0], ((pose @ aug)[:3, :3] @ [3, 1, 0])[:2], atol=1e-5)


def test_home_undoes_the_augmentation_of_training():
    aug_from_ego = BevAugmentation(flip_x_probability=1.0).draw(np.random.default_rng(3))
    home = to_global(augmented_boxes(one_box(), aug_from_ego), np.linalg.inv(aug_from_ego), np.eye(4))
    for name in ("center_m", "size_lwh_m", "yaw_rad", "velocity_mps"):
        np.testing.assert_allclose(getattr(home, name), getattr(one_box(), name), atol=1e-5)


def test_home_by_hand():
    """A quarter turn left, no augmentation: ego x is global y."""
    home = to_global(one_box(), np.eye(4), RigidTransform.from_yaw(math.pi / 2, (100.0, 200.0, 0.0)).matrix)
    np.testing.assert_allclose(home.center_m, [[98.0, 210.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(home.yaw_rad, [0.3 + math.pi / 2], atol=1e-6)
    np.testing.assert_allclose(home.velocity_mps, [[-1.0, 3.0]], atol=1e-6)
