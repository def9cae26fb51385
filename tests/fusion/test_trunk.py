"""The BEV trunk: resolutions, independence of samples, FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.trunk.trunk import BevTrunk


def make_trunk(**changes) -> BevTrunk:
    torch.manual_seed(0)
    return BevTrunk(**{"in_channels": 6, "widths": (8, 12, 16), "out_channels": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "size"),
    [({}, 16), ({"out_stride": 2}, 8), ({"upsample": 2}, 32), ({"strides": (2, 2, 2), "out_stride": 2}, 8)],
)
def test_resolutions(changes, size):
    assert make_trunk(**changes)(torch.rand(2, 6, 16, 16)).shape == (2, 10, size, size)


def test_sides_that_are_no_multiple_of_the_strides():
    assert make_trunk()(torch.rand(1, 6, 13, 18)).shape == (1, 10, 13, 18)


def test_samples_do_not_mix():
    trunk, bev = make_trunk(), torch.rand(4, 6, 16, 16)
    order = torch.tensor([3, 1])
    torch.testing.assert_close(trunk(bev[order]), trunk(bev)[order], rtol=1e-4, atol=1e-5)


def test_a_bright_cell_stays_where_it_is():
    trunk, dark = make_trunk(), torch.zeros(1, 6, 32, 32)
    lit = dark.clone()
    lit[0, :, 9, 24] = 5.0
    difference = (trunk(lit) - trunk(dark)).abs().sum(1)[0]
    row, column = divmod(int(difference.argmax()), 32)
    assert abs(row - 9) <= 3
    assert abs(column - 24) <= 3


def test_every_parameter_learns():
    trunk = make_trunk()
    trunk(torch.rand(1, 6, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in trunk.parameters())


def test_flops_agree_with_pytorch():
    trunk = make_trunk(upsample=2)
    with FlopCounterMode(display=False) as counter:
        trunk(torch.rand(1, 6, 16, 24))
    assert trunk.gflops((16, 24)) * 1e9 == counter.get_total_flops()


def test_autocast_and_inference():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert make_trunk()(torch.rand(1, 6, 16, 16)).isfinite().all()


@pytest.mark.parametrize("changes", [{"out_stride": 8}, {"depths": (1, 1)}])
def test_user_mistakes(changes):
    with pytest.raises(ValueError, match="expected"):
        make_trunk(**changes)
