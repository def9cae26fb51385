"""What faults cost the training loader: ``python benchmarks/faults_loader.py``.

A small town is written to a temporary folder at two sizes. The same training loader prepares it without faults and
under a training recipe, epoch by epoch in turns in this process (``num_workers=0``), with training progress going from
0 to 1. Milliseconds of processor time per sample; ratio is with faults over without. ``configs/faults/mixture.yaml`` is
the default mixture, over the whole catalogue; ``ramped.yaml`` harms more pictures.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from heads import cpu_name  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402

from datamodules.augment import BevAugmentation, ImageAugmentation  # noqa: E402
from datamodules.datamodule import NuScenesDataModule  # noqa: E402
from datamodules.inject import FaultInjector  # noqa: E402
from datamodules.loader import start_worker  # noqa: E402
from datamodules.town.presets import TownConfig  # noqa: E402
from datamodules.town.writer import VERSION, write_town  # noqa: E402

SLOWER, SEED, NUM_EPOCHS = 1.25, 0, 10
RECIPES = Path(__file__).parents[1] / "configs" / "faults"
_SIZES = {(64, 176): 0.25, (256, 704): 1.0}
_RANGE_M = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


def recipe(name: str) -> FaultInjector:
    return instantiate(OmegaConf.merge(OmegaConf.load(RECIPES / f"{name}.yaml"), {"seed": SEED}))


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


def loader_rows(recipes: tuple[str, ...] = ("ramped", "mixture"), rounds: int = 2) -> list[dict]:
    """Rows {name, ours, peer, ratio, bar, holds}: ms per sample with faults and without."""
    start_worker(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size_px, image_scale in _SIZES.items():
            root = Path(folder) / str(image_scale)
            write_town(root, TownConfig(2, 1, 4, image_scale, lidar_sweeps=2, radar_sweeps=2, seed=SEED))
            sides = {name: loader_of(root, size_px, recipe(name)) for name in recipes}
            sides["clean"] = loader_of(root, size_px, None)
            times = {name: [] for name in sides}
            epoch_ms(sides["clean"], 0)
            for epoch in rounds * list(range(NUM_EPOCHS)):
                for name, loader in sides.items():
                    times[name].append(epoch_ms(loader, epoch))
            clean = statistics.mean(times.pop("clean"))
            where = f"{size_px[0]}x{size_px[1]} of {round(900 * image_scale)}x{round(1600 * image_scale)}"
            rows += [_row(f"loader, {where}, faults={name}", np.mean(ms), clean) for name, ms in times.items()]
    return rows


def _row(name: str, faulty_ms: float, clean_ms: float) -> dict:
    ratio = round(float(faulty_ms / clean_ms), 3)
    shared = {"ours": round(float(faulty_ms), 1), "peer": round(clean_ms, 1), "ratio": ratio}
    return {"name": name, **shared, "bar": f"at most {SLOWER} of clean", "holds": ratio <= SLOWER}


def main(out: Path) -> None:
    result = {
        "machine": {"cpu": cpu_name(), "threads": 1, "load": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "seed": SEED,
        "date": date.today().isoformat(),
        "rows": loader_rows(),
    }
    part = out.with_suffix(".part")
    part.write_text(json.dumps(result, indent=2) + "\n")
    part.replace(out)
    for row in result["rows"]:
        print(f"{row['name']:52}", "  ".join(f"{key} {row[key]}" for key in ("ours", "peer", "ratio", "bar", "holds")))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/faults_loader.json"))
