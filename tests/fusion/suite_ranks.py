"""A suite in two processes that Fabric starts: python -m tests.fusion.suite_ranks ROOT OUT."""

import sys
from pathlib import Path

import torch

from datamodules.datamodule import NuScenesDataModule
from fusion.commands.suite_jobs import Ranks
from fusion.robustness.axes import Share
from fusion.robustness.cell_runner import SuiteOptions
from fusion.robustness.suite import run_scenarios
from fusion.scoring.scorer import Scorer
from sensors.faults.suites import Scenario, suite_named
from tests.fusion.remembering_model import RememberingModel

SCENARIOS = (*suite_named("missing-sensors")[1:3], Scenario("camera_blackout", (("camera_blackout", 6.0),)))
BUDGETS = (1.0, 0.3)


def set_in(root: Path) -> NuScenesDataModule:
    """The hand-made data set that a test has written there."""
    sweeps = {"lidar_sweeps": 1, "radar_sweeps": 1, "batch_size": 2}
    return NuScenesDataModule(root, "v1.0-small", "small_train", "small_train", image_size_px=(18, 32), **sweeps)


def main(root: Path, out: Path) -> None:
    ranks = Ranks(2, torch.device("cpu"))
    data = set_in(root)
    options = SuiteOptions(share=Share(ranks.rank, 2))
    scorer = Scorer(root, data.version, "small_train")
    run_scenarios(RememberingModel(), data, scorer, SCENARIOS, BUDGETS, out, options=options)
    ranks.wait()
    (out / f"rank-{ranks.rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
