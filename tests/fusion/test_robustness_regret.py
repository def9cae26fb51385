"""Regret of the router: a hand-worked table, every assignment tried, and the study of budgets as a second reckoning."""

from itertools import product

import numpy as np
import pytest
import torch

from datamodules.datamodule import NuScenesDataModule
from fusion.efficiency.budget_run import study_budgets
from fusion.efficiency.budget_study import Measured, StudySettings
from fusion.robustness.cell_runner import SuiteOptions
from fusion.robustness.cells import read_cells
from fusion.robustness.regret import Regrets, route_regret
from fusion.robustness.suite import run_scenarios
from fusion.robustness.summary import summary_of
from fusion.scoring.scorer import Scorer
from sensors.faults.suites import Scenario
from tests.fusion.remembering_model import RememberingModel, scorable_small_set
from tests.fusion.small_model import IMAGE_SIZE_PX, small_model

BLACK = Scenario("camera_blackout", (("camera_blackout", 6.0),))


def measured_of(losses, gflops, num_candidates: int) -> Measured:
    measured = Measured(torch.zeros(num_candidates, 8, dtype=torch.int64))
    measured.losses, measured.gflops = [np.array(row, float) for row in losses], [np.array(row) for row in gflops]
    measured.num_boxes = [2] * len(losses)
    return measured


def test_a_table_by_hand():
    """Two candidates of 1 and 3 GFLOPs, and the router, which spends 2 on average but on the wrong sample."""
    losses = [[4.0, 3.0, 3.0], [6.0, 1.0, 6.0]]
    gflops = [[1.0, 3.0, 3.0], [1.0, 3.0, 1.0]]
    found = route_regret(measured_of(losses, gflops, 2), 0)
    # The oracle runs the cheap one on the first sample (4) and the dear one on the second (1): 5 instead of 9.
    assert found == {
        "regret": 1.0,
        "router_loss": 9 / 4,
        "oracle_loss": 5 / 4,
        "router_gflops": 2.0,
        "oracle_gflops": 2.0,
        "num_routes": 3,
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_oracle_is_the_best_of_all_assignments_but_for_one_sample(seed):
    generator = np.random.default_rng(seed)
    losses, gflops = generator.uniform(0, 5, (5, 4)), generator.uniform(1, 4, (5, 4))
    found = route_regret(measured_of(losses, gflops, 3), 0)
    spent, rows = gflops[:, 3].mean(), np.arange(5)
    best = min(
        losses[rows, list(columns)].sum()
        for columns in product(range(4), repeat=5)
        if gflops[rows, list(columns)].mean() <= spent + 1e-9
    )
    assert found["oracle_gflops"] <= found["router_gflops"] + 1e-9
    assert best / 10 - 1e-9 <= found["oracle_loss"] <= best / 10 + np.ptp(losses, axis=1).max() / 10
    assert found["regret"] == pytest.approx(losses[:, 3].sum() / 10 - found["oracle_loss"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    small = scorable_small_set(tmp_path_factory.mktemp("small"))
    options = {"lidar_sweeps": 1, "radar_sweeps": 1, "batch_size": 2}
    return NuScenesDataModule(small.root, small.version, "small_train", "small_train", IMAGE_SIZE_PX, **options)


def test_a_suite_knows_the_regret_of_every_cell(data, tmp_path):
    model, scorer = small_model().eval(), Scorer(data.root, data.version, "small_train")
    budgets = (1.0, 0.7)
    plain = run_scenarios(model, data, scorer, (BLACK,), budgets, tmp_path)
    assert all(cell.regret is None for cell in plain.cells)
    options = SuiteOptions(("router", "full"), regret=True)
    result = run_scenarios(model, data, scorer, (BLACK,), budgets, tmp_path, options=options)
    assert result.exit_code == 0, result.failed
    assert result.num_skipped == 0
    for one in plain.cells:
        other = next(cell for cell in result.cells if cell.key == one.key)
        assert (one.gflops, one.inputs, one.branch_shares) == (other.gflops, other.inputs, other.branch_shares)
        assert one.metrics.nds == pytest.approx(other.metrics.nds, abs=1e-6)
    study = study_budgets(
        model, lambda: data.evaluation_loader("small_train", BLACK, batch_size=1), StudySettings(budgets, num_timed=0)
    )
    for place, budget in enumerate(budgets):
        cell = next(c for c in result.cells if not c.is_clean and (c.budget, c.policy) == (budget, "router"))
        losses = {name: sum(study.outcomes[name, place, 0].losses) for name in ("learned", "oracle")}
        num_boxes = sum(study.measured.num_boxes)
        assert cell.regret["regret"] == pytest.approx((losses["learned"] - losses["oracle"]) / num_boxes, abs=1e-4)
        assert cell.regret["router_gflops"] == pytest.approx(np.mean(study.outcomes["learned", place, 0].gflops))
    assert all((cell.regret is None) == (cell.policy == "full") for cell in result.cells)
    # What is whole is not run again, with or without the wish; the file keeps what was known.
    for again in (options, SuiteOptions(("router", "full"))):
        repeated = run_scenarios(model, data, scorer, (BLACK,), budgets, tmp_path, options=again)
        assert repeated.num_skipped == len(repeated.cells)
    assert [cell.regret for cell in repeated.cells] == [cell.regret for cell in result.cells]
    part = summary_of(result.cells)["at"][0]
    assert part["mean_regret"] == pytest.approx(np.mean([c["regret"] for c in part["regret"].values()]))
    assert len(read_cells(tmp_path / "robustness.jsonl")) == len(plain.cells) + len(result.cells)


def test_regret_needs_a_router(data):
    with pytest.raises(ValueError, match="expected a model with a router for regret=true"):
        Regrets(RememberingModel(), data, "small_train", (1.0,))
