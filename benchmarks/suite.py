"""One suite against as many separate evaluations: ``python benchmarks/suite.py [run=RUN] [suite=quick] [budgets=1.0]``.

``out=FILE`` writes the result there. Any other ``key=value`` changes a setting of the run, such as ``data.root=town``.

Both sides evaluate and score the same cells of one trained run in one process and one thread, alternating cell by
cell: separate evaluations read and compute every cell by itself, the suite holds samples in memory and takes encoder
outputs of untouched sensors from earlier cells. Times are CPU seconds, which other work on the machine disturbs
least. Scores are compared before times are believed. Neither side is charged for starting Python or opening the run,
which separate commands would pay again.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from machine import write_results  # noqa: E402

from fusion.cli import mistake_of  # noqa: E402
from fusion.commands.compose import instantiate, parse_options, split_arguments  # noqa: E402
from fusion.commands.robustness import as_list  # noqa: E402
from fusion.commands.runs import open_run  # noqa: E402
from fusion.robustness.axes import planned_cells  # noqa: E402
from fusion.robustness.cell_runner import SuiteOptions  # noqa: E402
from fusion.robustness.reuse import EncoderReuse  # noqa: E402
from fusion.scoring.evaluate import evaluate_model  # noqa: E402
from fusion.scoring.scorer import Scorer  # noqa: E402
from sensors.faults.suites import suite_named  # noqa: E402

BAR = 1.5


@dataclass
class Options:
    run: str = "runs/demo"
    suite: str = "quick"
    budgets: list[float] = field(default_factory=lambda: [1.0])
    out: str = str(ROOT / "benchmarks" / "results" / "suite.json")


def compare(run: str, suite: str, budgets: list[float], overrides: list[str]) -> dict:
    """Seconds of both sides over all cells, and the greatest difference of a score."""
    opened = open_run(Path(run), ["data.num_workers=0", *overrides], [])
    split = opened.config.data.val_split
    scorer = Scorer(opened.config.data.root, opened.config.data.version, split)
    reuse = EncoderReuse()
    data = {"separate": opened.data, "suite": instantiate(opened.config.data)}
    spent, apart, cells = {"separate": 0.0, "suite": 0.0}, 0.0, planned_cells(suite_named(suite), budgets)

    def one(cell, side: str):
        loader = data[side].evaluation_loader(split, cell.scenario if cell.scenario.steps else None)
        shared = reuse if side == "suite" else None
        reuse.lasting = not cell.scenario.steps
        result = evaluate_model(opened.model, loader, cell.budget, plan_source=opened.plan_source, reuse=shared)
        return scorer.score(result.detections)

    one(cells[0], "separate")  # warms up
    with data["suite"].holding(split, SuiteOptions().samples_gb) as held:
        for cell in cells:
            scores = {}
            for side in spent:
                started = time.process_time()
                scores[side] = one(cell, side)
                spent[side] += time.process_time() - started
            apart = max(apart, abs(scores["separate"].nds - scores["suite"].nds))
            apart = max(apart, abs(scores["separate"].mean_ap - scores["suite"].mean_ap))
        held_mb = held.num_bytes / 1e6
    samples = f"{len(cells)} cells of {len(scorer.tokens)} samples"
    ratio = spent["separate"] / spent["suite"]
    parameters = sum(value.numel() for value in opened.model.parameters())
    return {
        "model": f"{opened.directory.path.name}: {parameters / 1e6:.2f} M parameters, "
        f"{float(opened.model.prices().full_gflops):.2f} GFLOPs",
        "name": f"suite {suite}, budgets {', '.join(f'{b:g}' for b in budgets)}: {samples}",
        "ours": round(spent["suite"], 2),
        "peer": round(spent["separate"], 2),
        "ratio": round(ratio, 2),
        "bar": BAR,
        "holds": bool(ratio >= BAR and apart < 1e-6),
        "greatest_difference": apart,
        "rows_taken": reuse.num_taken,
        "rows_computed": reuse.num_computed,
        "samples_held_mb": round(held_mb, 1),
    }


def main(arguments: list[str]) -> int:
    own, overrides = split_arguments(arguments, Options)
    torch.set_num_threads(1)
    try:
        options = parse_options([as_list(word) if word.startswith("budgets=") else word for word in own], Options)
        row = compare(options.run, options.suite, options.budgets, overrides)
    except Exception as error:
        mistake = mistake_of(error)
        if mistake is None:
            raise
        print(f"benchmarks/suite.py: {mistake}", file=sys.stderr)
        return 2
    versions = {name: version(name) for name in ("torch", "numpy")}
    write_results(Path(options.out), {"cores": os.cpu_count()}, versions, seed=0, rows=[row])
    print(row["model"])
    print(f"{row['name']}: suite {row['ours']} s, separate {row['peer']} s, {row['ratio']}x (bar {BAR}x)")
    print(
        f"greatest difference of a score {row['greatest_difference']:.1e}; {row['rows_taken']} rows taken from memory"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
