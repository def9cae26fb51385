"""What replaying routes saves a study of budgets: ``python benchmarks/budgets.py [OUT.json]``.

One sample, ``tiny`` with random weights, one thread, processor time. *Ours* encodes every unit and branch once and then
runs only lift, merge, trunk and head of each route; *peer* runs the whole model for each route. 24 routes: those that a
study of five budgets measures per sample. The first row compares the maps: greatest difference over all routes, as a
share of the largest value. The last row is the whole study: seconds per sample, over three samples.
"""

import os
import sys
import time
from pathlib import Path

for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from dynamic import STRIDE, built, in_turns, row  # noqa: E402
from machine import write_results  # noqa: E402

from fusion.efficiency.budget_routes import candidate_routes  # noqa: E402
from fusion.efficiency.budget_run import study_budgets  # noqa: E402
from fusion.efficiency.budget_study import StudySettings  # noqa: E402
from fusion.efficiency.replay import EncodedSample  # noqa: E402
from fusion.routing.plan import FULL  # noqa: E402
from tests.fusion.random_batch import random_batch  # noqa: E402

SEED, NUM_POINTS, NUM_ROUTES, NUM_STUDIED = 0, 60_000, 24, 3


def main(out: Path) -> None:
    torch.set_num_threads(1)
    model = built("tiny")
    size_px = model.cameras.sizes_px[FULL]
    batches = [random_batch(1, SEED + i, size_px, STRIDE["tiny"], NUM_POINTS) for i in range(NUM_STUDIED)]
    routes = candidate_routes(model.routes)[:NUM_ROUTES]
    available = model.available(batches[0])

    def plain() -> list:
        return [model(batches[0], plan=model.plan_of(route[None], available)).head.heatmap for route in routes]

    def replayed() -> torch.Tensor:
        return EncodedSample.of(model, batches[0]).run(routes).head.heatmap

    with torch.inference_mode():
        ours, peer = replayed(), torch.cat(plain())
        difference = float((ours - peer).abs().max())
        rows = [row("greatest difference of the maps / largest value", difference, float(peer.abs().max()), 1e-5)]
        rows.append(
            row(f"{NUM_ROUTES} routes of one sample: replayed / plain, ms", *in_turns([replayed, plain], 1), 1.0)
        )
    started = time.process_time()
    settings = StudySettings((0.4, 0.55, 0.7, 0.85, 1.0), num_timed=0)
    study_budgets(model, lambda: batches, settings)
    seconds = (time.process_time() - started) / NUM_STUDIED
    label = "study of 5 budgets x 5 policies, s per sample / 3.6 s (200 samples in six minutes on two cores)"
    rows.append(row(label, seconds, 3.6, 1.0))
    write_results(
        out,
        {"threads": 1, "clock": "processor time"},
        {"torch": torch.__version__, "numpy": np.__version__},
        seed=SEED,
        rows=rows,
    )
    for one in rows:
        print(f"{one['name']}: {one['ours']} / {one['peer']} = {one['ratio']}  bar {one['bar']}  holds {one['holds']}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/budgets.json"))
