"""Measuring a latency table: milliseconds of every unit, branch and number of rows on this device."""

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from datamodules.batch import Batch
from fusion.model import FusionModel
from fusion.routing.dispatch import Dispatch, run_points, run_views
from fusion.routing.latency import ALWAYS_PART, CAMERA_PART, DISPATCH_PART, LatencyTable
from fusion.routing.plan import BRANCHES, SKIP
from fusion.routing.router import glance_of
from sensors.rig import LIDAR_UNIT, NUM_CAMERAS, RADAR_UNIT, UNITS


@torch.inference_mode()
def measure_latency(
    model: FusionModel, batch: Batch, view_rows: Sequence[int] = (1, 2, 4, 6), repeats: int = 5
) -> LatencyTable:
    """Medians on the device that model and batch are on; one warm-up run each.

    Args:
        model: in evaluation mode.
        batch: of at least one sample with every sensor of the model; rows are taken from its first samples.
        view_rows: numbers of camera rows to measure; at most 6 times the samples.
    """
    model = model.eval()
    parts: dict[str, dict[int, float]] = {ALWAYS_PART: {}, DISPATCH_PART: {}}
    available = model.available(batch)
    num_samples = len(batch)

    def of_choice(choice: torch.Tensor) -> Dispatch:
        return Dispatch.of(model.plan_of(choice, available), available, model.prices().exists(), "sparse")

    nothing = torch.full(available.shape, SKIP, dtype=torch.int64, device=available.device)
    empty = model.plan_of(nothing, available)
    parts[ALWAYS_PART][num_samples] = median_ms(lambda: model(batch, plan=empty), repeats, available.device)
    glance = glance_of(batch, available)
    parts[DISPATCH_PART][num_samples] = median_ms(
        lambda: Dispatch.of(model.router(glance, model.routes), available, model.prices().exists(), "sparse"),
        repeats,
        available.device,
    )
    for branch in range(1, len(BRANCHES)):
        name = BRANCHES[branch]
        for rows in view_rows if model.cameras is not None and branch in model.cameras.sizes_px else ():
            choice = nothing.clone()
            views = torch.arange(num_samples * NUM_CAMERAS, device=choice.device) < rows
            choice[:, :NUM_CAMERAS] = torch.where(views, branch, SKIP).view(-1, NUM_CAMERAS)
            dispatch = of_choice(choice)
            run = lambda given=dispatch: run_views(model.cameras, batch.camera, given)  # noqa: E731
            parts.setdefault(f"{CAMERA_PART}/{name}", {})[rows] = median_ms(run, repeats, available.device)
        for unit, encoders, points in (
            (LIDAR_UNIT, model.lidar, batch.lidar),
            (RADAR_UNIT, model.radar, batch.radar),
        ):
            if encoders is None or branch not in encoders.encoders():
                continue
            choice = nothing.clone()
            choice[:, unit] = branch
            dispatch = of_choice(choice)
            run = lambda u=unit, e=encoders, p=points, d=dispatch: run_points(UNITS[u], e, p, d)  # noqa: E731
            parts[f"{UNITS[unit]}/{name}"] = {num_samples: median_ms(run, repeats, available.device)}
    return LatencyTable(
        device=device_name(available.device),
        date=datetime.date.today().isoformat(),
        threads=torch.get_num_threads(),
        parts=parts,
    )


def median_ms(function: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Of ``repeats`` calls, after one that warms up; waits for the device before and after each."""
    function()
    times = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def device_name(device: torch.device) -> str:
    """Of the accelerator, or of the processor as Linux calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
