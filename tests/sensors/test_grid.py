"""The grid: floor, edges, and the way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensors.grid import BevGrid

GRID = BevGrid((-8.0, 8.0), (-4.0, 4.0), 0.5)


def test_rows_are_y_and_columns_x():
    assert GRID.shape == (16, 32)
    iy, ix, inside = GRID.cell_of(np.array([[7.9, -3.9]]))
    assert (iy[0], ix[0], inside[0]) == (0, 31, True)


@given(st.integers(0, 15), st.integers(0, 31))
def test_centers_are_in_their_cells(iy, ix):
    rows, columns, inside = GRID.cell_of(GRID.center_of(np.array([iy]), np.array([ix])))
    assert (rows[0], columns[0], inside[0]) == (iy, ix, True)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_a_point_is_within_half_a_cell_of_its_center(x, y):
    iy, ix, inside = GRID.cell_of(np.array([[x, y]]))
    assert inside[0] == (-8 <= x < 8 and -4 <= y < 4)
    assert np.abs(GRID.center_of(iy, ix)[0] - [x, y]).max() <= 0.25 + 1e-9


def test_points_just_below_the_lower_edge_are_outside():
    """Truncation would pull them into cell 0."""
    iy, ix, inside = GRID.cell_of(np.array([[-8.01, 0.0], [0.0, -4.3], [-8.0, -4.0]]))
    assert inside.tolist() == [False, False, True]
    assert (ix[0], iy[1]) == (-1, -1)
    assert (iy[2], ix[2]) == (0, 0)


def test_upper_edges_are_outside():
    _, _, inside = GRID.cell_of(np.array([[8.0, 0.0], [0.0, 4.0]]))
    assert not inside.any()


def test_coarser_covers_the_same():
    coarse = BevGrid.square(51.2, 0.8).coarser(4)
    assert coarse.shape == (32, 32)
    assert coarse.x_range_m == (-51.2, 51.2)


@pytest.mark.parametrize("ranges", [((0.0, 1.3), (0.0, 1.0)), ((0.0, 1.0), (1.0, 0.0)), ((0.0, 0.0), (0.0, 1.0))])
def test_ranges_must_hold_whole_cells(ranges):
    with pytest.raises(ValueError, match="whole number of cells"):
        BevGrid(*ranges, 0.5)
