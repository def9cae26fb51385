import pytest
import torch

from fusion.routing.budget import RouteTable
from fusion.routing.costs import Prices, conv_gflops, linear_gflops
from fusion.routing.plan import FULL, LITE, SKIP
from sensors.rig import LIDAR_UNIT, RADAR_UNIT, UNITS
from tests.fusion.routing_toys import toy_prices


def test_shares_and_cost_by_hand():
    prices = toy_prices()
    assert prices.full_gflops == pytest.approx(2 + 6 + 4 + 0.5)
    choice = torch.full((3, len(UNITS)), SKIP)
    choice[1, :6], choice[1, LIDAR_UNIT] = LITE, FULL
    choice[2] = FULL
    expected = torch.tensor([2.0, 2 + 6 * 0.25 + 4, 12.5]) / 12.5
    torch.testing.assert_close(prices.cost_of(choice), expected.double())


def test_expected_cost_by_hand():
    prices = toy_prices()
    probs = torch.zeros(1, len(UNITS), 3)
    probs[..., SKIP] = 1
    probs[0, LIDAR_UNIT] = torch.tensor([0.2, 0.5, 0.3])
    probs[0, RADAR_UNIT] = torch.tensor([0.0, 0.0, 1.0])
    expected = (2 + 0.5 * 1 + 0.3 * 4 + 0.5) / 12.5
    torch.testing.assert_close(RouteTable(prices).expected_cost(probs), torch.tensor([expected]))


def test_the_least_budget_is_the_cheapest_unit_or_the_floor():
    prices = toy_prices()
    assert prices.min_budget() == pytest.approx(2.1 / 12.5)
    assert prices.min_budget(("LIDAR", "CAM_FRONT")) == pytest.approx(3.25 / 12.5)
    assert toy_prices(lite_lidar=False).min_budget(("LIDAR",)) == pytest.approx(6 / 12.5)


def test_a_floor_of_units_that_the_model_lacks_is_an_error():
    with pytest.raises(ValueError, match="CAM_FRONT"):
        toy_prices(cameras=False).min_budget(("CAM_FRONT",))


def test_prices_name_known_branches_of_all_units():
    with pytest.raises(ValueError, match="8 units"):
        Prices({}, ({"full": 1.0},))
    with pytest.raises(ValueError, match="huge"):
        Prices({}, ({"huge": 1.0},) * len(UNITS))


def test_formulas_count_two_flops_per_multiplication():
    assert conv_gflops(3, 5, 3, 100) == pytest.approx(2 * 3 * 5 * 9 * 100 / 1e9)
    assert linear_gflops(7, 11, rows=2) == pytest.approx(2 * 7 * 11 * 2 / 1e9)
