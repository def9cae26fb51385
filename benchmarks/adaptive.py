"""What exits and fewer tokens really save: ``python benchmarks/adaptive.py [OUT.json]``.

Milliseconds of processor time of one thread (a busy machine does not count), medians of runs in turns in one process,
on random numbers at evaluation. Nothing is extrapolated.

- *exits*: trunk and head of a model, an exit after the first stage, samples leaving or not. ``ours`` is the time
  saved per sample that leaves, ``peer`` the time that a sample spends after that exit; the ratio is at least 0.8.
  *Against no exit*: ``ours`` passes the exit's head and policy, ``peer`` is the same model without them, no bar:
  what an early head costs samples that stay, and what a single sample gains by leaving.
- *tokens*: ``ours`` with fewer tokens, ``peer`` the same layers dense; the ratio must be below 1.

Rows without a bar show small maps and pictures, where it may not pay. Batch 6 of pictures are the views of one sample.
"""

import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import timm  # noqa: E402
import torch  # noqa: E402
from machine import times_in_turn, write_results  # noqa: E402

from fusion.commands.compose import compose, instantiate  # noqa: E402
from fusion.encoders.vit import VitViewEncoder  # noqa: E402
from fusion.encoders.vit_learned import AVit, DynamicVit  # noqa: E402
from fusion.encoders.vit_tokens import Dense, EVit, GuidedKeep, ToMe  # noqa: E402
from fusion.routing.plan import ExecutionTrace  # noqa: E402
from fusion.trunk.exits import EarlyExits  # noqa: E402
from fusion.trunk.exits_head import ExitHead  # noqa: E402
from fusion.trunk.tokens import KeepTokens  # noqa: E402
from fusion.trunk.tokens_windows import KeepWindows  # noqa: E402

SEED = 0


class LeaveFirst:
    """The first ``count`` samples leave."""

    looks_back = False

    def __init__(self, count: int):
        self.count = count

    def __call__(self, history) -> torch.Tensor:
        return (torch.arange(len(history[-1])) < self.count).float()


def medians_ms(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Of each function, in turns."""
    return [statistics.median(own) for own in times_in_turn(functions, repeats)]


def row(name: str, ours: float, peer: float, bar: float | None, at_least: bool = False, **more) -> dict:
    ratio = ours / peer
    holds = None if bar is None else (ratio >= bar if at_least else ratio < bar)
    return {"name": name, "ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(ratio, 3), "bar": bar} | {
        "holds": holds,
        **more,
    }


def exit_rows(config_name: str, num_samples: int, leaving: int, repeats: int) -> list[dict]:
    """Trunk, exit and head of a shipped configuration: what who leaves saves, and what the exit costs the others."""
    trunk, head, exits, bev = _with_exit(config_name, num_samples)
    run = _runs(trunk, head, exits, bev)
    calls = [run(0), run(leaving), run(num_samples), lambda: head(trunk(bev))]
    stay, some, all_leave, without = medians_ms(calls, repeats)
    saved, after = (stay - some) / leaving, (stay - all_leave) / num_samples
    name = f"exit, {config_name}, {leaving} of {num_samples} leave"
    return [
        row(name, saved, after, 0.8, at_least=True, all_stay_ms=round(stay, 1), all_leave_ms=round(all_leave, 1)),
        row(f"exit, {config_name}, {num_samples} stay, against no exit", stay, without, None),
    ]


def single_exit_rows(config_name: str, repeats: int) -> list[dict]:
    """A sample that is alone in its batch. What comes after the exit is timed by itself here: nobody else stays."""
    trunk, head, exits, bev = _with_exit(config_name, 1)
    run, first = _runs(trunk, head, exits, bev), trunk.stages[0](bev)

    def rest():
        levels = [first]
        for stage in trunk.stages[1:]:
            levels.append(stage(levels[-1]))
        return head(trunk.neck(levels))

    stay, leave, without, after = medians_ms([run(0), run(1), lambda: head(trunk(bev)), rest], repeats)
    times = {"stays_ms": round(stay, 1), "leaves_ms": round(leave, 1)}
    return [
        row(f"exit, {config_name}, 1 of 1 leaves", stay - leave, after, None, **times),
        row(f"exit, {config_name}, 1 leaves, against no exit", leave, without, None),
        row(f"exit, {config_name}, 1 stays, against no exit", stay, without, None),
    ]


def _with_exit(config_name: str, num_samples: int):
    """Trunk, head, an exit after the first stage, and merged maps for them."""
    config = compose([f"model={config_name}"]).model
    trunk, merge_channels = instantiate(config.trunk).eval(), config.trunk.in_channels
    head, early = instantiate(config.head).eval(), instantiate(config.head)
    one = ExitHead(0, config.trunk.widths[0], config.head.in_channels, early)
    exits = EarlyExits([one], thresholds=[0.5]).eval()
    shape = head.grid.shape
    exits.attach(trunk, head, merge_channels, shape)
    return trunk, head, exits, torch.randn(num_samples, merge_channels, *shape)


def _runs(trunk, head, exits: EarlyExits, bev: torch.Tensor) -> Callable[[int], Callable[[], object]]:
    """For a number of samples that leave, the pass in which they do."""

    def run(count: int) -> Callable[[], object]:
        def passed():
            exits.policy = LeaveFirst(count)
            walk = exits.start(ExecutionTrace(len(bev)), bev.device, masked=False)
            return exits(bev, trunk, head, walk)

        return passed

    return run


def bev_rows(cells: int, channels: int, num_samples: int, bar: float | None, repeats: int) -> list[dict]:
    """A block over a square BEV: keep 0.5 against all."""
    bev = torch.randn(num_samples, channels, cells, cells)
    rows = []
    for label, make in (("tokens", KeepTokens), ("windows of 8", lambda c, keep: KeepWindows(c, 8, keep=keep))):
        half, dense = make(channels, keep=0.5).eval(), make(channels, keep=1).eval()
        ours, peer = medians_ms([lambda m=half: m(bev), lambda m=dense: m(bev)], repeats)
        rows.append(row(f"BEV {label}, keep 0.5, {cells}x{cells}x{channels}, batch {num_samples}", ours, peer, bar))
    free = KeepTokens(channels).eval()  # rate by the frame: lead over a median of the selector's own
    with torch.no_grad():
        logits = free.selectors[0](bev.flatten(2).transpose(1, 2))
        free.selectors[0].layers[-1].bias[1] -= (logits[..., 1] - logits[..., 0]).median()
    dense = KeepTokens(channels, keep=1).eval()
    ours, peer = medians_ms([lambda: free(bev), lambda: dense(bev)], repeats)
    share = round(float(free.last_use.shares.mean()), 2)
    rows.append(row(f"BEV tokens, free rate {share}, {cells}x{cells}x{channels}, batch {num_samples}", ours, peer, bar))
    return rows


def vit_rows(name: str, size_px: tuple[int, int], num_images: int, bars: bool, repeats: int) -> list[dict]:
    """One ViT with the same weights under every method, neck included."""
    torch.manual_seed(SEED)
    encoder = VitViewEncoder(name, 80, 118, image_size_px=size_px).eval()
    images, dim = torch.rand(num_images, 3, *size_px), encoder.vit.embed_dim
    num_patches = size_px[0] * size_px[1] // encoder.stride**2
    guided, halting = GuidedKeep(0.5), AVit(gamma=0.0, beta=math.log(0.13 / 0.87)).eval()  # all halt after 8 blocks
    guided.scores = torch.rand(num_images, num_patches)
    merged = max(num_patches // 22, 1)
    methods = {
        "EViT 0.7": EVit(),
        f"ToMe {merged}": ToMe(merged),
        "DynamicViT 0.7": DynamicVit(dim).eval(),
        "guided 0.5": guided,
        "A-ViT, 8 of 12 blocks": halting,
    }

    def run(method) -> Callable[[], object]:
        def passed():
            encoder.method = method
            return encoder(images)

        return passed

    # Modules and plain objects take turns in one attribute: the module's slot must not hold either.
    encoder._modules.pop("method", None)
    calls = [run(Dense()), *(run(_plain(method)) for method in methods.values())]
    dense, *times = medians_ms(calls, repeats)
    label = f"{name.split('_patch')[0]}, {size_px[0]}x{size_px[1]}, batch {num_images}"
    barred = ("EViT", "ToMe")
    return [
        row(f"{method}, {label}", ours, dense, 1.0 if bars and method.startswith(barred) else None)
        for method, ours in zip(methods, times, strict=True)
    ]


def _plain(method) -> Callable:
    """Hides that a method is a module."""
    return lambda *given: method(*given)


@torch.no_grad()
def main(out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows = [
        *exit_rows("tiny", 8, 4, 5),
        *single_exit_rows("tiny", 15),
        *exit_rows("base", 4, 2, 5),
        *single_exit_rows("base", 5),
        *bev_rows(64, 256, 1, 1.0, 5),
        *bev_rows(32, 96, 1, None, 15),
        *bev_rows(32, 96, 8, None, 5),
        *vit_rows("vit_small_patch16_224", (256, 704), 1, True, 5),
        *vit_rows("vit_small_patch16_224", (256, 704), 6, True, 2),
        *vit_rows("vit_tiny_patch16_224", (64, 176), 1, False, 15),
        *vit_rows("vit_tiny_patch16_224", (64, 176), 6, False, 9),
    ]
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    machine = {"threads": torch.get_num_threads()}
    write_results(out, machine, versions, seed=SEED, unit="ms of processor time", rows=rows)
    for one in rows:
        verdict = "" if one["holds"] is None else ("holds" if one["holds"] else "FAILS")
        figures = f"{one['ours']:9.1f} {one['peer']:9.1f}  {one['ratio']:6.3f}  {one['bar'] or '':4}"
        print(f"{one['name']:62} {figures} {verdict}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/adaptive.json"))
