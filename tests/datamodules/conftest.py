"""The hand-made data set, written once; tests that break something work on a copy."""

import shutil

import pytest

from tests.datamodules.small_set import write_small_set


@pytest.fixture(scope="session")
def small_set(tmp_path_factory):
    """Root of the small data set; read only."""
    return write_small_set(tmp_path_factory.mktemp("small"))


@pytest.fixture
def own_small_set(small_set, tmp_path):
    """A copy to break."""
    root = tmp_path / "set"
    shutil.copytree(small_set, root, ignore=shutil.ignore_patterns(".dynfusion-index"))
    return root
