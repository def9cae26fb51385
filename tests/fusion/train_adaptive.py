"""A short training of a model with router, exits and tokens in three stages: ``python -m tests.fusion.train_adaptive
FOLDER [key=value ...]``.
"""

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from fusion.stages import Stage
from fusion.task import FusionTask
from fusion.trainer import build_trainer
from fusion.trunk.exits_losses import DistillationLoss
from tests.fusion.adaptive_toys import adaptive_model
from tests.fusion.small_model import IMAGE_SIZE_PX, small_batch
from tests.fusion.toy_data import ToyData
from tests.fusion.train_toy import LEARNING, KillAt

STAGES = (
    Stage("points", 0.34, route="random", keep={"camera": 0.0, "lidar": 0.7}),
    Stage("exits", 0.67, route="random", keep={"camera": 0.6}, trainable=("exits", "trunk", "head")),
    Stage("all", 1.0, route="paired", budget=("least", 1.0), trainable=("router", "exits")),
)


def train(folder: Path, kill_at: int | None = None, resume: bool = False, **lightning) -> pl.Trainer:
    """Two epochs of six steps; the middle stage begins and ends in mid-epoch."""
    model = adaptive_model().train()
    if resume:
        torch.manual_seed(999)  # nothing may depend on what was drawn before
    task = FusionTask(model, STAGES, LEARNING, seed=11, exit_loss=DistillationLoss(share=0.3, with_last=False))
    options = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "gradient_clip_val": 10.0} | lightning
    trainer = build_trainer(
        folder,
        average_decay=0.9,
        checkpoint_every_n_steps=2,
        gradients_every_n_steps=1,
        modality_balance=0.5,
        callbacks=[] if kill_at is None else [KillAt(kill_at, "on_train_batch_end")],
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **options,
    )
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    trainer.fit(task, datamodule=ToyData(6, image_size_px=IMAGE_SIZE_PX, depth_stride=8), ckpt_path=checkpoint)
    return trainer


def leaving(model: torch.nn.Module, rank: int) -> dict:
    """Where two samples of a rank's own leave, and what they are answered, at thresholds that let some go."""
    model.eval()
    model.exits.set_thresholds((0.0, 0.0) if rank else (torch.inf, torch.inf))
    with torch.inference_mode():
        output = model(small_batch(2, seed=rank), budget=1.0)
    return {"exit_of": output.exits.exit_of, "heatmap": output.head.heatmap, "gflops": output.trace.gflops()}


if __name__ == "__main__":
    settings = dict(word.split("=") for word in sys.argv[2:])
    numbers = {key: int(value) for key, value in settings.items() if value.lstrip("-").isdigit()}
    trained = train(Path(sys.argv[1]), **(settings | numbers))
    learnt, rank = trained.lightning_module.model, trained.global_rank
    torch.save(learnt.state_dict(), Path(sys.argv[1]) / f"rank-{rank}.pt")
    routes = trained.lightning_module.step_routes[0][0]
    torch.save({"routes": routes, **leaving(learnt, rank)}, Path(sys.argv[1]) / f"left-{rank}.pt")
