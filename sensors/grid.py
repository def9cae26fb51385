"""The bird's-eye-view grid: metres to cells and back, by floor."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class BevGrid:
    """A rectangle of square cells in the ego frame, stored as ``[..., iy, ix]``.

    x (forward) runs along the columns, y (left) along the rows, so cell (0, 0) is the rear right corner.

    Attributes:
        x_range_m, y_range_m: lower edge (inside) and upper edge (outside).
        cell_m: side of a cell.
    """

    x_range_m: tuple[float, float]
    y_range_m: tuple[float, float]
    cell_m: float

    def __post_init__(self):
        for name, (low, high) in (("x_range_m", self.x_range_m), ("y_range_m", self.y_range_m)):
            cells = (high - low) / self.cell_m
            if high <= low or abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"expected {name} to hold a whole number of cells of {self.cell_m} m, got {(low, high)}; "
                    "change the range or cell_m"
                )

    @staticmethod
    def square(half_m: float, cell_m: float) -> "BevGrid":
        return BevGrid((-half_m, half_m), (-half_m, half_m), cell_m)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (y) and columns (x)."""
        num_y = round((self.y_range_m[1] - self.y_range_m[0]) / self.cell_m)
        num_x = round((self.x_range_m[1] - self.x_range_m[0]) / self.cell_m)
        return num_y, num_x

    def is_same(self, other: "BevGrid") -> bool:
        """Whether the cells are the same, whatever sequence types a configuration gave."""
        ranges = [(tuple(grid.x_range_m), tuple(grid.y_range_m), grid.cell_m) for grid in (self, other)]
        return ranges[0] == ranges[1]

    def coarser(self, stride: int) -> "BevGrid":
        """The same rectangle in cells ``stride`` times as wide."""
        return BevGrid(self.x_range_m, self.y_range_m, self.cell_m * stride)

    def cell_of(
        self, xy_m: Float[np.ndarray, "n 2"]
    ) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Row, column and whether the point is on the grid.

        By floor: truncation would pull points just below the lower edge into cell 0.
        """
        ix = np.floor((xy_m[:, 0] - self.x_range_m[0]) / self.cell_m).astype(np.int64)
        iy = np.floor((xy_m[:, 1] - self.y_range_m[0]) / self.cell_m).astype(np.int64)
        num_y, num_x = self.shape
        inside = (ix >= 0) & (ix < num_x) & (iy >= 0) & (iy < num_y)
        return iy, ix, inside

    def center_of(self, iy: Int[np.ndarray, "n"], ix: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
        """x and y of cell centres in metres."""
        x_m = self.x_range_m[0] + (ix + 0.5) * self.cell_m
        y_m = self.y_range_m[0] + (iy + 0.5) * self.cell_m
        return np.stack([x_m, y_m], axis=-1)
