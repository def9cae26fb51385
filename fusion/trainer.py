"""Lightning's Trainer with what every run needs: atomic checkpoints, averages, tables, a readable progress display."""

import inspect
import logging
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import TensorBoardLogger

from fusion.callbacks import CollapseAlarm, LastCheckpoint, RestUnusedUnits, StepTable, TrainingProgress
from fusion.checkpoint import AtomicCheckpointIO
from fusion.ema import WeightAverage
from fusion.gradient_report import GradientReport
from fusion.run_directory import RunDirectory

PRECISIONS = ("32", "32-true", "bf16-mixed", "16-mixed")
"""The batch stays in float32: in bfloat16 two positions at 50 m are the same or a quarter of a metre apart."""


def build_trainer(
    run_dir: str | Path,
    average_decay: float | None = 0.99,
    checkpoint_every_n_steps: int = 100,
    progress_every_s: float = 10.0,
    max_minutes: float | None = None,
    gradients_every_n_steps: int | None = None,
    modality_balance: float = 0.0,
    callbacks: Sequence[pl.Callback] = (),
    **lightning: Any,
) -> pl.Trainer:
    """A Trainer that writes into one run directory.

    ``tensorboard/`` for TensorBoard, ``train.csv`` and ``validation.csv`` for everybody else, ``routes.csv`` of what a
    learning router decides, ``checkpoints/last.ckpt`` to resume from.

    Args:
        average_decay: of the weights' running average; None for none.
        checkpoint_every_n_steps: optimiser steps between two checkpoints.
        progress_every_s: seconds between two lines of progress in a log file.
        max_minutes: stop after so long. The schedule does not know of it: a run that is cut off has not cooled down.
            Prefer fewer epochs.
        gradients_every_n_steps: steps between two rows of ``gradients.csv``, each sensor's share of the gradient and
            how far the exits agree; None for none.
        modality_balance: how strongly sensors that get most of the gradient are held back, see
            ``fusion.gradient_report.GradientReport``; 0 does not.
        callbacks: further ones.
        lightning: arguments of ``pytorch_lightning.Trainer`` (max_epochs, devices, strategy, precision, ...).

    Raises:
        ValueError: a precision that is not in PRECISIONS, or an argument that Lightning's Trainer does not have.
    """
    unknown = sorted(set(lightning) - set(inspect.signature(pl.Trainer.__init__).parameters))
    if unknown:
        raise ValueError(f"expected arguments of pytorch_lightning.Trainer, got {', '.join(unknown)}; remove them")
    precision = str(lightning.get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise ValueError(f"expected precision to be one of {', '.join(PRECISIONS)}, got '{precision}'")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore", ".*(LeafSpec|does not have many workers|smaller than the logging interval|is not resumable).*"
    )
    run = RunDirectory(Path(run_dir))
    chosen = [StepTable(run.path), TrainingProgress(progress_every_s), RestUnusedUnits(), CollapseAlarm(run.path)]
    if gradients_every_n_steps or modality_balance:
        # Before the average: it must see the weights as they are after the balance.
        chosen.append(GradientReport(run.path, gradients_every_n_steps, modality_balance))
    if average_decay is not None:
        chosen.append(WeightAverage(average_decay))
    if max_minutes is not None:
        chosen.append(Timer(duration=timedelta(minutes=max_minutes), interval="step", verbose=False))
    # The table writes its rows into the file before the checkpoint that follows them is written.
    chosen += [*callbacks, LastCheckpoint(run.last_checkpoint, checkpoint_every_n_steps)]
    return pl.Trainer(
        default_root_dir=run.path,
        logger=TensorBoardLogger(run.path, name="", version="tensorboard"),
        callbacks=chosen,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=True,
        use_distributed_sampler=False,
        enable_model_summary=False,
        **lightning,
    )
