"""Milliseconds of the centre head's parts on this machine: ``python benchmarks/heads.py [OUT.json]``.

Two samples with 40 boxes each. Decoding is timed on an untrained head, its worst case: as many peaks as
``DecodeOptions`` lets in.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from machine import write_results

from datamodules.batch import BoxBatch
from fusion.heads.center import CENTERPOINT_GROUPS, ONE_GROUP, CenterHead
from fusion.heads.decode import decode
from fusion.heads.losses import center_loss, weighted_sum
from fusion.heads.targets import center_targets
from sensors.grid import BevGrid

NUM_SAMPLES, NUM_BOXES, IN_CHANNELS = 2, 40, 64
VARIANTS = {
    "64x64, 32 channels": (64, 32, ONE_GROUP),
    "64x64, 64 channels": (64, 64, ONE_GROUP),
    "128x128, 32 channels": (128, 32, ONE_GROUP),
    "128x128, 64 channels, CenterPoint's groups": (128, 64, CENTERPOINT_GROUPS),
}


def median_ms(function, repeats: int = 7) -> float:
    """Of ``repeats`` calls after two to warm up."""
    function(), function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 2)


def random_boxes() -> BoxBatch:
    num = NUM_SAMPLES * NUM_BOXES
    return BoxBatch(
        center_m=(torch.rand(num, 3) - 0.5) * torch.tensor([100.0, 100.0, 2.0]),
        size_lwh_m=torch.rand(num, 3) * 5 + 0.5,
        yaw_rad=torch.rand(num) * 6 - 3,
        velocity_mps=torch.randn(num, 2),
        label=torch.randint(0, 10, (num,)),
        attribute=torch.full((num,), -1),
        num_points=torch.ones(num, dtype=torch.int64),
        sample=torch.arange(NUM_SAMPLES).repeat_interleave(NUM_BOXES),
    )


def measured(num_cells: int, channels: int, class_groups) -> dict[str, float]:
    torch.manual_seed(0)
    grid = BevGrid.square(51.2, 102.4 / num_cells)
    head = CenterHead(IN_CHANNELS, grid, channels, class_groups=class_groups)
    bev = torch.randn(NUM_SAMPLES, IN_CHANNELS, num_cells, num_cells, requires_grad=True)
    boxes = random_boxes()
    targets = center_targets(boxes, NUM_SAMPLES, grid)

    def step() -> None:
        weighted_sum(center_loss(head(bev), targets)).backward()

    with torch.no_grad():
        output = head(bev)
        forward_ms = median_ms(lambda: head(bev))
    return {
        "parameters": sum(parameter.numel() for parameter in head.parameters()),
        "gflops_per_sample": round(head.gflops(), 3),
        "forward_ms": forward_ms,
        "targets_ms": median_ms(lambda: center_targets(boxes, NUM_SAMPLES, grid)),
        "loss_ms": median_ms(lambda: center_loss(output, targets)),
        "forward_loss_backward_ms": median_ms(step),
        "decode_ms": median_ms(lambda: decode(output, grid)),
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    results = {name: measured(*variant) for name, variant in VARIANTS.items()}
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    machine = {"threads": torch.get_num_threads()}
    write_results(out, machine, versions, batch_size=NUM_SAMPLES, results=results)
    for name, row in results.items():
        print(f"{name:45}", "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/heads.json"))
