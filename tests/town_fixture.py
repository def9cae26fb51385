"""A very small town for tests that need a dataset."""

from pathlib import Path

import pytest

from datamodules.town.presets import TownConfig
from datamodules.town.writer import write_town

TINY_TOWN = TownConfig(
    num_train_scenes=2, num_val_scenes=1, samples_per_scene=3, image_scale=0.1, lidar_sweeps=1, radar_sweeps=1
)
"""Two training scenes and one for validation, three samples each, one extra LiDAR and radar sweep; 160x90 pictures."""


def make_tiny_town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write TINY_TOWN into a temporary folder and return its root."""
    root = tmp_path_factory.mktemp("town") / "tiny"
    write_town(root, TINY_TOWN)
    return root
