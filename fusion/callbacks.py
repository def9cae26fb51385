"""What happens beside training: the checkpoint to resume from, the table of losses, the progress display."""

import csv
import io
import math
import os
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.utilities import rank_zero_warn
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fusion.routing.diversity import route_diversity
from fusion.routing.plan import NUM_BRANCHES
from fusion.routing.unit_parameters import rest_unused
from fusion.run_directory import write_text
from sensors.rig import UNITS


class LastCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` every N optimiser steps and at the end, over the former one.

    Saved right after a training batch, so a resumed run goes on with the next batch, also in mid-epoch. Where a
    validation follows the batch, the file is written one batch later: Lightning would not repeat that validation.
    """

    def __init__(self, path: Path, every_n_steps: int):
        if every_n_steps < 1:
            raise ValueError(f"expected a checkpoint every 1 or more steps, got {every_n_steps}")
        self.path = path
        self.every_n_steps = every_n_steps
        self._saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        num_due = trainer.global_step // self.every_n_steps - self._saved_step // self.every_n_steps
        accumulating = (batch_idx + 1) % trainer.accumulate_grad_batches != 0
        if num_due > 0 and not accumulating and not self._validates_now(trainer, batch_idx):
            self._save(trainer)

    def _validates_now(self, trainer: pl.Trainer, batch_idx: int) -> bool:
        if trainer.num_training_batches == 1:
            return False
        every = trainer.val_check_batch
        return trainer.is_last_batch or (every not in (None, float("inf")) and (batch_idx + 1) % every == 0)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step = trainer.global_step
        if not trainer.fast_dev_run:
            trainer.save_checkpoint(self.path, weights_only=False)


class StepTable(pl.Callback):
    """``train.csv``: one row per optimiser step, losses to the last bit; ``validation.csv``: one per validation.

    Rows are kept on the device and written together, every ``flush_every`` steps and before each checkpoint, so logging
    does not wait for the device at every step. When a run is resumed, rows after its checkpoint are dropped: the files
    look as if nothing had happened. The first rank writes; all ranks stop together where a loss of any is not finite.
    """

    def __init__(self, folder: Path, flush_every: int = 50):
        self.folder = folder
        self.flush_every = flush_every
        self._pending: list[tuple[dict, dict[str, torch.Tensor]]] = []
        self._last_step = -1
        self._learning_rate = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_step = trainer.global_step
        if trainer.is_global_zero:
            for name in ("train.csv", "validation.csv"):
                drop_rows_after(self.folder / name, trainer.global_step)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self._learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        facts = {
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "stage": pl_module.stage.name,
            "learning_rate": self._learning_rate,
        }
        self._pending.append((facts, dict(pl_module.step_values)))
        if len(self._pending) >= self.flush_every:
            self._flush(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._flush(trainer)
        if not trainer.is_global_zero:
            return
        values = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        append_rows(self.folder / "validation.csv", [{"step": trainer.global_step, **values}])

    def on_save_checkpoint(self, trainer, pl_module, checkpoint: dict) -> None:
        self._flush(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._flush(trainer)

    def _flush(self, trainer: pl.Trainer) -> None:
        """Write what is pending. Every rank has as many rows and comes here at the same steps."""
        if not self._pending:
            return
        columns = [torch.stack([value.float() for value in values.values()]) for _, values in self._pending]
        numbers = iter(torch.cat(columns).tolist())
        rows = [facts | {name: next(numbers) for name in values} for facts, values in self._pending]
        self._pending = []
        if trainer.is_global_zero:
            append_rows(self.folder / "train.csv", rows)
        bad = next((row for row in rows if not math.isfinite(row["loss"])), None)
        # Asked of all ranks: one that stopped alone would leave the others waiting for its gradients.
        if not trainer.strategy.reduce_boolean_decision(bad is None, all=True):
            row = bad or rows[-1]
            raise ValueError(
                f"expected a finite loss, got {row['loss'] if bad else 'none on another rank'} at step {row['step']}: "
                "training diverged; lower the learning rate, clip gradients (trainer.gradient_clip_val) or train in "
                "float32"
            )


class CollapseAlarm(pl.Callback):
    """``routes.csv``: what the router has been deciding while it learns, and a warning when it looks collapsed.

    Distinct routes, entropy of routes, information of the gates about their input and of the route about the scene's
    conditions, and each unit's share, over windows of training steps. Looks only; changes nothing.

    Args:
        every_n_steps: length of a window, in batches of the first rank.
        least_usage: a unit that runs in a smaller share of the samples counts as dead.
        least_information: gates that know less of their input, in nats, count as constant.
    """

    def __init__(
        self, folder: Path, every_n_steps: int = 100, least_usage: float = 0.02, least_information: float = 1e-3
    ):
        self.folder, self.every_n_steps = folder, every_n_steps
        self.least_usage, self.least_information = least_usage, least_information
        self._routes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._conditions: list[frozenset[str]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._routes, self._conditions = [], []
        if trainer.is_global_zero:
            drop_rows_after(self.folder / "routes.csv", trainer.global_step)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if not trainer.is_global_zero or pl_module.stage.route != "learned":
            return
        self._routes += pl_module.step_routes
        self._conditions += batch.conditions
        if len(self._routes) >= self.every_n_steps:
            self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        choice, probs = (torch.cat(columns).cpu() for columns in zip(*self._routes, strict=True))
        found = route_diversity(choice, probs, self._conditions)
        self._routes, self._conditions = [], []
        row = {"step": trainer.global_step, "samples": found.num_samples, "routes": found.num_routes}
        row |= {"entropy": found.entropy, "condition_information": found.condition_information}
        row |= {"gate_information": found.gate_information, **dict(zip(UNITS, found.usage, strict=True))}
        alarms = found.alarms(self.least_usage, self.least_information)
        append_rows(self.folder / "routes.csv", [row | {"alarms": "; ".join(alarms)}])
        for alarm in alarms:
            rank_zero_warn(f"the router may have collapsed by step {trainer.global_step}: {alarm}; see routes.csv")


class RestUnusedUnits(pl.Callback):
    """Units that no row on any rank chose are left alone by the optimiser: no momentum, no weight decay.

    Sparse training in one process has no gradients there anyway; masked execution and DDP may have zeros.

    Attributes:
        updates: optimiser steps that each group of parameters has had, by its prefix.
    """

    def __init__(self):
        self.updates: dict[str, int] = {}
        self._rows = torch.zeros(len(UNITS), NUM_BRANCHES, dtype=torch.int64)

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        for choice, _ in getattr(pl_module, "step_routes", ()):
            self._rows = self._rows.to(choice.device)
            self._rows += torch.nn.functional.one_hot(choice, NUM_BRANCHES).sum(dim=0)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        several = None if trainer.world_size == 1 else lambda rows: trainer.strategy.reduce(rows, reduce_op="sum")
        for prefix, rows in rest_unused(pl_module.model, self._rows, several).items():
            self.updates[prefix] = self.updates.get(prefix, 0) + (rows > 0)
        self._rows = torch.zeros_like(self._rows)


def append_rows(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV file; its header is that of the first row ever written.

    Floats are written so that reading gives back the same bits.
    """
    is_new = not path.is_file() or path.stat().st_size == 0
    header = list(rows[0]) if is_new else path.open(encoding="utf-8", newline="").readline().strip().split(",")
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n", extrasaction="ignore")
    if is_new:
        writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())


def drop_rows_after(path: Path, step: int) -> None:
    """Keep the rows up to a step: what a stopped run wrote after its last checkpoint will be written again."""
    if not path.is_file():
        return
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.split(",", 1)[0].isdigit() and int(line.split(",", 1)[0]) <= step]
    write_text(path, "\n".join([header, *kept]) + "\n")


class TrainingProgress(ProgressBar):
    """A moving bar on a terminal; in a log file, one readable line every ``every_s`` seconds.

    Shows the share done, the step, the stage, the loss, samples per second and the time left.
    """

    def __init__(self, every_s: float = 10.0, console: Console | None = None):
        super().__init__()
        self.every_s = every_s
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._since = (0.0, 0, 0)
        self._start = (0.0, 0)
        self._num_samples = 0
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.monotonic()
        self._start = (now, trainer.global_step)
        self._since = (now, trainer.global_step, 0)
        self._num_samples = 0
        if self._enabled and self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console, refresh_per_second=2)
            self._bar.add_task("training", total=pl_module.num_steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self._num_samples += len(batch) * trainer.world_size
        period_s = 1.0 if self._bar else self.every_s
        now = time.monotonic()
        if self._enabled and now - self._since[0] >= period_s:
            self._show(trainer, pl_module, now)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._enabled and trainer.global_step > self._since[1]:
            self._show(trainer, pl_module, time.monotonic())
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule, now: float) -> None:
        step, total = trainer.global_step, pl_module.num_steps
        samples_per_s = (self._num_samples - self._since[2]) / max(now - self._since[0], 1e-9)
        per_step_s = (now - self._start[0]) / max(step - self._start[1], 1)
        loss = float(pl_module.step_values["loss"])
        text = f"{pl_module.stage.name}  step {step}/{total}  loss {loss:.3f}  {samples_per_s:.1f} samples/s"
        self._since = (now, step, self._num_samples)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, description=text)
        else:
            left_s = per_step_s * max(total - step, 0)
            left = f"{int(left_s // 60)}:{int(left_s % 60):02d} left"
            self.console.print(f"train {step / max(total, 1):4.0%}  {text}  {left}", highlight=False)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
