"""A small training in a process of its own, to be killed: python -m tests.fusion.train_toy FOLDER [key=value]."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch

from datamodules.augment import BevAugmentation, ImageAugmentation
from datamodules.datamodule import NuScenesDataModule
from datamodules.inject import FaultInjector, FaultRule, SubsetDropout
from datamodules.schedules import Ramp
from fusion.optim import OptimizerSettings
from fusion.routing.nested_gates import HardConcrete
from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from tests.fusion.toy_data import ToyData
from tests.fusion.toy_model import ToyModel

STAGES = (
    Stage("points", 0.25, route="fixed", units=("LIDAR", "RADAR"), trainable=("lidar", "radar", "trunk", "head")),
    Stage("random", 0.5, route="random", keep={"lidar": 0.6, "camera": 0.8}, lite_share=0.5),
    Stage("learned", 1.0, route="learned", budget=(0.4, 1.0), temperature=(2.0, 0.5)),
)
EPOCHS, BATCHES = 4, 6
LEARNING = OptimizerSettings(learning_rate=1e-2, router_learning_rate=2e-2, warm_up_steps=3)


class KillAt(pl.Callback):
    """Ends the process as ``kill -9`` does, in a hook after a step."""

    def __init__(self, step: int, hook: str):
        self.step = step
        setattr(self, hook, self._end)

    def _end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class DivergeAt(pl.Callback):
    """Spoils a weight of the last rank before a step."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            next(pl_module.model.head.parameters()).data.fill_(torch.nan)


def toy_task(stages: tuple[Stage, ...] = STAGES) -> FusionTask:
    torch.manual_seed(3)
    return FusionTask(ToyModel(), stages, LEARNING, seed=11)


def faulty_stages() -> tuple[Stage, ...]:
    """The same stages, each with its part of the data's faults, the last one with a relaxation of its own."""
    points, random, learned = STAGES
    return (
        replace(points, faults={"share": [0.0, 1.0]}),
        replace(random, faults={"share": 0.7, "severity": [0.3, 0.9]}),
        replace(learned, relaxation=HardConcrete(), faults={"severity": [0.5, 1.0]}),
    )


def faulty_data(root: Path, num_workers: int, total_epochs: int) -> NuScenesDataModule:
    """Seven batches an epoch as a real run has them: augmented, with faults that grow more frequent."""
    rules = [
        SubsetDropout(Ramp(0.1, 0.6)),
        FaultRule("lidar_beam_drop", probability=0.5),
        FaultRule("camera_dark", probability=Ramp(0.0, 1.0), each="channel"),
    ]
    return NuScenesDataModule(
        root,
        "v1.0-small",
        "small_train",
        "small_val",
        image_size_px=(32, 64),
        lidar_sweeps=2,
        radar_sweeps=2,
        batch_size=1,
        num_workers=num_workers,
        seed=5,
        total_epochs=total_epochs,
        injector=FaultInjector(rules, seed=7),
        image_augmentation=ImageAugmentation(),
        bev_augmentation=BevAugmentation(),
    )


def train(
    folder: Path,
    kill_at: int | None = None,
    kill_in: str = "on_train_batch_end",
    resume: bool = False,
    num_workers: int = 0,
    data_root: Path | None = None,
    diverge_at: int | None = None,
    **lightning,
) -> pl.Trainer:
    """Train on random batches, or on the small set in ``data_root``; or go on from a checkpoint in ``folder``."""
    task = toy_task() if data_root is None else toy_task(faulty_stages())
    if resume:
        torch.manual_seed(999)  # nothing may depend on what was drawn before
    callbacks = [] if kill_at is None else [KillAt(kill_at, kill_in)]
    callbacks += [] if diverge_at is None else [DivergeAt(diverge_at)]
    options = {"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, "gradient_clip_val": 10.0} | lightning
    trainer = build_trainer(
        folder,
        average_decay=0.9,
        checkpoint_every_n_steps=4,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    if data_root is None:
        data = ToyData(BATCHES, num_workers=num_workers)
    else:
        data = faulty_data(data_root, num_workers, options["max_epochs"])
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
    return trainer


if __name__ == "__main__":
    settings = dict(word.split("=") for word in sys.argv[2:])
    numbers = {key: int(value) for key, value in settings.items() if value.lstrip("-").isdigit()}
    trained = train(Path(sys.argv[1]), **(settings | numbers))
    torch.save(trained.lightning_module.model.state_dict(), Path(sys.argv[1]) / f"rank-{trained.global_rank}.pt")
