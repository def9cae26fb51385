"""Shape annotations are checked while the tests run; fixtures that many tests share."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from jaxtyping import install_import_hook

install_import_hook(["sensors", "datamodules", "fusion"], "beartype.beartype")

# Time limits per example fail on a busy machine and on first imports, not on a slow function.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_REAL = Path(os.environ.get("DYNFUSION_NUSCENES_REAL", Path(__file__).parents[2] / "shared" / "nuscenes-real"))


@pytest.fixture(scope="session")
def nuscenes_real() -> Path:
    """Folder with one real keyframe (``frame``), the real mini_val tables (``minival-tables``) and a radar file."""
    if not _REAL.is_dir():
        pytest.skip(f"no real nuScenes data in {_REAL}: set DYNFUSION_NUSCENES_REAL to check against them")
    return _REAL


@pytest.fixture(scope="session")
def tiny_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small synthetic town (``tests/town_fixture.py``), version ``v1.0-town``; written once per session."""
    from tests.town_fixture import make_tiny_town

    return make_tiny_town(tmp_path_factory)
