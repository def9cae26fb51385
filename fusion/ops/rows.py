"""Taking chosen rows out of a batch and putting results back."""

from jaxtyping import Float, Int64, Shaped
from torch import Tensor


def gather_rows(values: Shaped[Tensor, "b ..."], rows: Int64[Tensor, "r"]) -> Shaped[Tensor, "r ..."]:
    """The chosen rows, in the order of ``rows``."""
    return values.index_select(0, rows)


def scatter_rows(values: Shaped[Tensor, "r ..."], rows: Int64[Tensor, "r"], num_rows: int) -> Shaped[Tensor, "b ..."]:
    """A batch of ``num_rows`` with ``values`` at ``rows`` (each at most once) and zeros elsewhere."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy(0, rows, values)


def mean_so_far(
    before: Float[Tensor, "*s"] | None, rows_before: int | None, mean: Float[Tensor, "*s"], num_rows: int
) -> tuple[Float[Tensor, "*s"], int]:
    """Mean over the rows of several calls, with the gradients of all, and how many rows these are.

    Args:
        before: of the calls before, over ``rows_before`` rows; None where this is the first one.
        mean: of this call, over ``num_rows``.
    """
    if before is None:
        return mean, num_rows
    total = rows_before + num_rows
    return (before * rows_before + mean * num_rows) / total, total
