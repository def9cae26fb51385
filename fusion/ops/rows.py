"""Taking chosen rows out of a batch and putting results back."""

from jaxtyping import Int64, Shaped
from torch import Tensor


def gather_rows(values: Shaped[Tensor, "b ..."], rows: Int64[Tensor, "r"]) -> Shaped[Tensor, "r ..."]:
    """The chosen rows, in the order of ``rows``."""
    return values.index_select(0, rows)


def scatter_rows(values: Shaped[Tensor, "r ..."], rows: Int64[Tensor, "r"], num_rows: int) -> Shaped[Tensor, "b ..."]:
    """A batch of ``num_rows`` with ``values`` at ``rows`` (each at most once) and zeros elsewhere."""
    return values.new_zeros(num_rows, *values.shape[1:]).index_copy(0, rows, values)
