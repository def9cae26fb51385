"""Whether leaving out LiDAR pillars pays: ``python benchmarks/pillar_drop.py [OUT.json]``.

Milliseconds of processor time of one thread (a busy machine does not count), the best of several turns in one process:
the LiDAR encoders of ``tiny`` and ``base`` on as many points as these are priced for. ``ours`` works on half of the
points, from the best pillar down, choosing included; ``peer`` on all of them. Scans are 32 beams over flat ground with
upright boxes; every further sweep is the same one, shaken.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import torch  # noqa: E402
from machine import times_in_turn, write_results  # noqa: E402

from datamodules.batch import PointBatch  # noqa: E402
from fusion.commands.compose import compose, instantiate  # noqa: E402
from fusion.encoders.pillar_drop import DroppingLidarEncoder, PillarDrop  # noqa: E402

SEED = 0
KEEP = 0.5
HEIGHT_M = 1.84
"""Of the scanner."""


def scan(num_points: int) -> PointBatch:
    """One sample; the last column, the age, is the sweep's."""
    generator = torch.Generator().manual_seed(SEED)
    sweep = _sweep(generator)
    parts = []
    for number in range(-(-num_points // len(sweep))):
        shaken = sweep + (number > 0) * torch.tensor([0.3, 0.3, 0.02, 0.0]) * torch.randn(
            sweep.shape, generator=generator
        )
        parts.append(torch.cat([shaken, torch.full((len(sweep), 1), 0.05 * number)], dim=1))
    points = torch.cat(parts)[:num_points]
    return PointBatch(points, torch.zeros(len(points), dtype=torch.int64), torch.ones(1, dtype=torch.bool))


def _sweep(generator: torch.Generator) -> torch.Tensor:
    """x, y, z, intensity of 32 beams of 1,080 directions: on the ground, or on the box that stands in the way."""
    elevation = torch.deg2rad(torch.linspace(-30.67, 10.67, 32))[:, None].expand(-1, 1080)
    azimuth = torch.linspace(0, 2 * torch.pi, 1081)[None, :-1].expand(32, -1)
    ground_m = torch.where(elevation < 0, HEIGHT_M / -torch.tan(elevation.clamp(max=-1e-3)), torch.inf)
    walls_m = (5 + 65 * torch.rand(60, generator=generator)).repeat_interleave(18)[
        None
    ]  # one in each sector of 6 degrees
    reach_m = torch.minimum(ground_m, walls_m)
    z_m = HEIGHT_M + reach_m * torch.tan(elevation)
    hit = (reach_m < 70) & (z_m < 4)
    x_m, y_m = reach_m * torch.cos(azimuth), reach_m * torch.sin(azimuth)
    return torch.stack([x_m, y_m, z_m, torch.rand(x_m.shape, generator=generator)], dim=-1)[hit]


def best_ms(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Of each function, in turns."""
    return [min(own) for own in times_in_turn(functions, repeats)]


def rows_of(model: str, branch: str, num_points: int, repeats: int) -> list[dict]:
    """One shipped encoder under every score, with its own weights."""
    node = compose([f"model={model}"]).model.lidar[branch]
    plain, points = instantiate(node).eval(), scan(num_points)
    options = {"point_channels": list(node.point_channels), "stages": [list(stage) for stage in node.stages]}
    encoders = [plain]
    for score in ("height", "points", "learned"):
        encoders.append(DroppingLidarEncoder(plain.grid, plain.channels, PillarDrop(KEEP, score), **options).eval())
        encoders[-1].load_state_dict(plain.state_dict(), strict=False)
    dense, *times = best_ms([lambda one=one: one(points) for one in encoders], repeats)
    canvas = best_ms([lambda: plain.canvas(points)], repeats)[0]
    rows = []
    for encoder, ours in zip(encoders[1:], times, strict=True):
        saved = float(encoder.saved_gflops()[0]) / plain.gflops(num_points)
        name = f"{model} {branch}, {num_points} points, score {encoder.drop.score}"
        more = {"bar": None, "holds": None, "gflops_saved": round(saved, 3), "points_ms": round(canvas, 1)}
        rows.append(
            {"name": name, "ours": round(ours, 1), "peer": round(dense, 1), "ratio": round(ours / dense, 3)} | more
        )
    return rows


@torch.no_grad()
def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows = [
        *rows_of("tiny", "full", 100_000, 7),
        *rows_of("tiny", "lite", 35_000, 7),
        *rows_of("base", "full", 300_000, 3),
        *rows_of("base", "lite", 50_000, 5),
    ]
    versions = {"torch": torch.__version__}
    write_results(out, {"threads": 1}, versions, seed=SEED, unit="ms of processor time", rows=rows)
    for one in rows:
        print(f"{one['name']:50} {one['ours']:8.1f} {one['peer']:8.1f} {one['ratio']:6.2f} {one['points_ms']:8.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/pillar_drop.json"))
