"""dynfusion train [group=choice ...] [key=value ...] [run_dir=FOLDER]
dynfusion train resume=RUN [key=value ...] [allow=[CLASS,...]]

Trains a model on nuScenes or on a synthetic town. Groups (folders of configs/): data, model, faults, stages, trainer,
suite, experiment. Any key of theirs can be set: data.root=/data/nuscenes data.version=v1.0-mini trainer.max_epochs=20
trainer.devices=4 trainer.precision=bf16-mixed. The run directory holds the configuration, checkpoints, losses
(train.csv, validation.csv, tensorboard/); dynfusion evaluate adds the official scores.
start_from={lidar: RUN, camera: RUN} begins with the encoders of other runs, start_from={all: RUN} with all they have.
resume=RUN goes on with a run that stopped, exactly where its last checkpoint was written.
"""

import os
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import compose, instantiate, parse_options, split_arguments
from fusion.commands.runs import load_config
from fusion.run_directory import RunDirectory


@dataclass
class Options:
    resume: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if options.resume:
        directory = RunDirectory.existing(Path(options.resume))
        train(load_config(directory.path, overrides, options.allow), directory.path, resume=True)
    else:
        config = compose(overrides)
        # The environment hands the name down to the processes of the other ranks, which start a moment later.
        default = os.environ.setdefault("DYNFUSION_RUN_DIR", time.strftime("runs/%Y%m%d-%H%M%S"))
        try:
            train(config, Path(config.run_dir or default))
        finally:
            os.environ.pop("DYNFUSION_RUN_DIR", None)
    return 0


def train(config, run_dir: Path, resume: bool = False) -> RunDirectory:
    """Train as the configuration says. The run directory is made once everything in it could be built.

    Raises:
        ValueError, FileNotFoundError: a user's mistake; before the first step nothing is left of a new run.
    """
    import pytorch_lightning as pl
    from omegaconf import OmegaConf
    from pytorch_lightning.utilities import rank_zero_only

    from fusion.ops.pretrained import without_fetching
    from fusion.stage_entry import meet_data

    config = config.copy()
    config.run_dir = str(run_dir)
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.data)
    # A wrong root, version or split is found out before anything is written.
    data.prepare_data()
    for split in (data.train_split, data.val_split):
        data.frames(split)
    with without_fetching() if resume else nullcontext():
        model = instantiate(config.model)
    if not resume:
        begin_with(model, config.get("start_from"))
    plain = OmegaConf.to_container(config, resolve=True)
    task = instantiate(config.stages, _partial_=True)(model=model, seed=config.seed)
    task.run_config = plain
    meet_data(task.curriculum, data)
    # Everything is built before the folder is made: a setting that cannot be leaves nothing behind.
    trainer = instantiate(config.trainer, _partial_=True)(run_dir=run_dir)
    if resume:
        directory = RunDirectory.existing(run_dir)
        checkpoint = str(directory.require_checkpoint())
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint)
        return directory
    # Under DDP Lightning starts this command again for every other rank: the first one has made the folder.
    directory, was_there = RunDirectory(run_dir), run_dir.is_dir()
    is_new = rank_zero_only.rank == 0 and not (was_there and any(run_dir.iterdir()))
    if rank_zero_only.rank == 0:
        RunDirectory.create(run_dir, OmegaConf.to_yaml(config, resolve=True))
    try:
        trainer.fit(task, datamodule=data)
    except (ValueError, FileNotFoundError):
        # Some mistakes are found out by the loaders, or when the number of steps is known.
        if is_new and trainer.global_step == 0:
            shutil.rmtree(run_dir, ignore_errors=True)
            if was_there:
                run_dir.mkdir(exist_ok=True)
        raise
    return directory


def begin_with(model, sources) -> None:
    """Weights of other runs: of everything first, then of single sensors, whatever the order they are named in.

    Raises:
        FileNotFoundError: no such run, or a run without a checkpoint.
        ValueError: ``sources`` is no mapping of parts to runs, or the weights do not fit.
    """
    from omegaconf import DictConfig

    from fusion.checkpoint import start_from

    if sources is None:
        return
    if not isinstance(sources, DictConfig):
        raise ValueError(f"expected start_from={{part: RUN}}, such as {{all: runs/a}}, got '{sources}'")
    for part, run in sorted(sources.items(), key=lambda source: source[0] != "all"):
        start_from(model, str(part), RunDirectory.existing(Path(run)).require_checkpoint())
