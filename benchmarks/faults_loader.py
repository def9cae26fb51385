"""What faults cost the training loader: ``python benchmarks/faults_loader.py``.

A small town is written to a temporary folder at two sizes. The same training loader prepares it without faults and
under a training recipe, epoch by epoch in turns in this process (``num_workers=0``). Milliseconds of processor time per
sample; ratio is with faults over without. A training pays the mean over its progress from 0 to 1; the rows ``at the
end`` hold progress at 1, where faults are likeliest and strongest. ``configs/faults/ramped.yaml`` is the default
training mixture.
"""

import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from machine import write_results  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from datamodules.augment import BevAugmentation, ImageAugmentation  # noqa: E402
from datamodules.datamodule import NuScenesDataModule  # noqa: E402
from datamodules.inject import FaultInjector  # noqa: E402
from datamodules.loader import start_worker  # noqa: E402
from datamodules.schedules import Moment  # noqa: E402
from datamodules.town.presets import TownConfig  # noqa: E402
from datamodules.town.writer import VERSION, write_town  # noqa: E402
from sensors.frame import Frame, History  # noqa: E402

SLOWER, SEED, NUM_EPOCHS = 1.25, 0, 12
RECIPES = Path(__file__).parents[1] / "configs" / "faults"
_SIZES = {(64, 176): 0.25, (256, 704): 1.0}
_SIDES = {
    "ramped": "faults=ramped, mean of a training",
    "ramped at the end": "faults=ramped, at the end",
    "mixture": "faults=mixture, mean of a training",
}
_RANGE_M = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


class AtEnd(FaultInjector):
    """An injector for which training is always about to end."""

    def labelled(self, frame: Frame, history: History, moment: Moment):
        return super().labelled(frame, history, replace(moment, progress=1.0))


def recipe(side: str) -> FaultInjector:
    name, _, at_end = side.partition(" ")
    injector = instantiate(OmegaConf.merge(OmegaConf.load(RECIPES / f"{name}.yaml"), {"seed": SEED}))
    return AtEnd(injector.rules, SEED) if at_end else injector


def loader_of(root: Path, size_px: tuple[int, int], injector: FaultInjector | None):
    """The loader of ``configs/data/town.yaml``."""
    data = NuScenesDataModule(
        *(root, VERSION, "town_train", "town_val"),
        image_size_px=size_px,
        lidar_sweeps=3,
        radar_sweeps=3,
        batch_size=2,
        total_epochs=NUM_EPOCHS,
        injector=injector,
        depth_stride=8,
        point_range_m=_RANGE_M,
        image_augmentation=ImageAugmentation((1.0, 1.1), 0.1, 0.0),
        bev_augmentation=BevAugmentation(0.3927, (0.95, 1.05), 0.5, 0.5),
    )
    return data.train_dataloader()


def epoch_ms(loader, epoch: int) -> float:
    """Of one sample, in one epoch."""
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "consumed_batches": 0})
    begun, num_samples = time.process_time(), 0
    for batch in loader:
        num_samples += len(batch.tokens)
    return 1e3 * (time.process_time() - begun) / num_samples


def loader_rows() -> list[dict]:
    """Rows {name, ours, peer, ratio, bar, holds}: ms per sample with faults and without."""
    start_worker(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size_px, image_scale in _SIZES.items():
            root = Path(folder) / str(image_scale)
            write_town(root, TownConfig(2, 1, 4, image_scale, lidar_sweeps=2, radar_sweeps=2, seed=SEED))
            clean, faulty = (
                loader_of(root, size_px, None),
                {side: loader_of(root, size_px, recipe(side)) for side in _SIDES},
            )
            times, clean_ms = {side: [] for side in _SIDES}, []
            epoch_ms(clean, 0)
            for epoch in range(NUM_EPOCHS):
                for side, loader in faulty.items():
                    times[side].append(epoch_ms(loader, epoch))
                if epoch % 2 == 0:
                    clean_ms.append(epoch_ms(clean, epoch))
            where = f"{size_px[0]}x{size_px[1]} of {round(900 * image_scale)}x{round(1600 * image_scale)}"
            rows += [
                _row(f"loader, {where}, {_SIDES[side]}", statistics.mean(ms), statistics.mean(clean_ms))
                for side, ms in times.items()
            ]
    return rows


def _row(name: str, faulty_ms: float, clean_ms: float) -> dict:
    ratio = round(float(faulty_ms / clean_ms), 3)
    shared = {"ours": round(float(faulty_ms), 1), "peer": round(clean_ms, 1), "ratio": ratio}
    return {"name": name, **shared, "bar": f"at most {SLOWER} of clean", "holds": ratio <= SLOWER}


def main(out: Path) -> None:
    rows = loader_rows()
    versions = {"numpy": np.__version__, "torch": torch.__version__}
    write_results(out, {"threads": 1}, versions, seed=SEED, rows=rows)
    for row in rows:
        print(f"{row['name']:66}", "  ".join(f"{key} {row[key]}" for key in ("ours", "peer", "ratio", "bar", "holds")))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/faults_loader.json"))
