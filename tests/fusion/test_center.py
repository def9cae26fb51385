import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from fusion.heads.center import CENTERPOINT_GROUPS, ONE_GROUP, CenterHead
from sensors.boxes import DETECTION_NAMES
from sensors.grid import BevGrid

GRID = BevGrid((-4.0, 4.0), (-3.0, 3.0), 1.0)  # 6 rows, 8 columns
MAPS = {"height": 1, "offset": 2, "log_size": 3, "heading": 2, "velocity": 2, "attribute": 8}


def head_of(groups=ONE_GROUP, num_convs=1) -> CenterHead:
    torch.manual_seed(0)
    return CenterHead(12, GRID, channels=16, num_convs=num_convs, class_groups=groups)


@pytest.mark.parametrize("groups", [ONE_GROUP, CENTERPOINT_GROUPS])
@pytest.mark.parametrize("num_convs", [0, 1, 2])
def test_every_map_lies_on_the_grid(groups, num_convs):
    output = head_of(groups, num_convs)(torch.randn(2, 12, 6, 8))
    assert output.heatmap.shape == (2, 10, 6, 8)
    for name, width in MAPS.items():
        assert getattr(output, name).shape == (2, width * len(groups), 6, 8)
    assert len(output) == 2


def test_training_starts_at_a_score_of_a_tenth():
    output = head_of()(torch.randn(2, 12, 6, 8))
    torch.testing.assert_close(output.heatmap.sigmoid().mean(), torch.tensor(0.1), atol=0.01, rtol=0)


def test_groups_put_each_class_in_its_place():
    """The bias of a class's own output channel must move that class's heatmap and no other."""
    head = head_of(CENTERPOINT_GROUPS)
    bev = torch.randn(1, 12, 6, 8)
    before = head(bev).heatmap
    with torch.no_grad():
        head.heatmaps[1][-1].bias[1] += 5.0  # truck, construction_vehicle
    moved = (head(bev).heatmap - before).mean(dim=(0, 2, 3))
    expected = torch.zeros(10)
    expected[DETECTION_NAMES.index("construction_vehicle")] = 5.0
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_at_reads_the_group_of_the_class():
    output = head_of(CENTERPOINT_GROUPS)(torch.randn(2, 12, 6, 8))
    bus, iy, ix = DETECTION_NAMES.index("bus"), 4, 7
    values = output.at(torch.tensor([1]), torch.tensor([bus]), torch.tensor([iy * 8 + ix]))
    for name, width in MAPS.items():  # bus is in the third group
        torch.testing.assert_close(getattr(values, name)[0], getattr(output, name)[1, 2 * width : 3 * width, iy, ix])


@pytest.mark.parametrize("groups", [ONE_GROUP, CENTERPOINT_GROUPS])
def test_samples_do_not_see_each_other(groups):
    head, bev = head_of(groups), torch.randn(3, 12, 6, 8)
    order = torch.tensor([2, 0, 1])
    together, permuted, alone = head(bev).select(order), head(bev[order]), head(bev[2:])
    for name in ("heatmap", *MAPS):
        torch.testing.assert_close(getattr(together, name), getattr(permuted, name))
        torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[0])


def test_no_sample_is_a_batch_too():
    output = head_of()(torch.zeros(0, 12, 6, 8))
    none = torch.zeros(0, dtype=torch.int64)
    assert output.heatmap.shape == (0, 10, 6, 8)
    assert output.at(none, none, none).velocity.shape == (0, 2)


@pytest.mark.parametrize("groups", [ONE_GROUP, CENTERPOINT_GROUPS])
def test_gflops_are_torchs_count_plus_the_normalisations(groups):
    head = head_of(groups)
    with FlopCounterMode(display=False) as counter:
        head(torch.randn(1, 12, 6, 8))
    num_norms = 1 + 2 * len(groups)
    assert head.gflops() * 1e9 == pytest.approx(counter.get_total_flops() + num_norms * 2 * 16 * 48)


def test_autocast_to_bf16():
    with torch.autocast("cpu", torch.bfloat16):
        output = head_of()(torch.randn(1, 12, 6, 8))
    assert output.heatmap.dtype == torch.bfloat16
    assert output.heatmap.isfinite().all()


def test_groups_come_from_yaml_as_lists():
    groups = OmegaConf.create([list(group) for group in CENTERPOINT_GROUPS])
    assert head_of(groups).group_of_class == head_of(CENTERPOINT_GROUPS).group_of_class


def test_wrong_grid_and_wrong_groups_are_named():
    with pytest.raises(ValueError, match=r"\(6, 8\).*\(8, 6\)"):
        head_of()(torch.randn(1, 12, 8, 6))
    with pytest.raises(ValueError, match="each of"):
        CenterHead(12, GRID, class_groups=(("car", "truck"),))
