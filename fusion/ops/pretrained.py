"""Whether the pretrained weights that an encoder names are fetched: not where a checkpoint brings its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_WITHOUT_FETCHING: ContextVar[bool] = ContextVar("without_fetching", default=False)


@contextmanager
def without_fetching() -> Iterator[None]:
    """Models that are built in here get all weights from a checkpoint afterwards, or only tell their sizes."""
    token = _WITHOUT_FETCHING.set(True)
    try:
        yield
    finally:
        _WITHOUT_FETCHING.reset(token)


def fetches(pretrained: bool) -> bool:
    """Whether an encoder that asks for pretrained weights should get them now."""
    return pretrained and not _WITHOUT_FETCHING.get()
