"""A run directory with random weights, as a training would have left it: what the commands about routes open."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from fusion.checkpoint import AtomicCheckpointIO
from fusion.commands.compose import compose, instantiate
from fusion.run_directory import RunDirectory

SMALL_SET = ("data.version=v1.0-small", "data.train_split=small_train", "data.val_split=small_train")
"""Overrides for ``scorable_small_set``: seven samples of two scenes."""


def budget_of(model, share: float) -> float:
    """Between the least budget (0) and everything (1), short enough to be written on a command line."""
    return round(model.min_budget + 1e-3 + share * (1 - model.min_budget - 1e-3), 4)


def write_routed_run(folder: Path, town: Path, *overrides: str, seed: int = 0) -> Path:
    """A ``tiny`` model on 32x64 pictures whose router has strong, arbitrary opinions."""
    config = compose(
        [
            f"data.root={town}",
            "data.num_workers=0",
            "data.lidar_sweeps=2",
            "data.radar_sweeps=2",
            "model.cameras.image_size_px=[32,64]",
            *overrides,
        ]
    )
    torch.manual_seed(seed)
    model = instantiate(config.model)
    with torch.no_grad():
        model.router.score.weight.normal_(std=1.0)
        for name, parameter in model.named_parameters():
            if not name.startswith("router"):
                parameter += 0.05 * torch.randn(parameter.shape)
    run = RunDirectory.create(folder, OmegaConf.to_yaml(config, resolve=True))
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": state}, run.last_checkpoint)
    return folder
