"""Robustness formulas against published tables, recomputed from their published cells, and against hand arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.robustness import metrics
from fusion.robustness.cells import Cell
from fusion.scoring.calibration import calibration_of
from fusion.scoring.metrics import Metrics

# MultiCorrupt (Beemelmanns et al., IV 2024), its repository's tables: BEVFusion, NDS at three severities, clean .7144.
BEVFUSION_CLEAN = 0.7144
BEVFUSION = {
    "temporal": (0.6341, 0.5471, 0.4085),
    "spatial": (0.5903, 0.4943, 0.4266),
    "beams": (0.6396, 0.4899, 0.3199),
    "fog": (0.6555, 0.5981, 0.3584),
    "snow": (0.5782, 0.5572, 0.5233),
    "missing camera": (0.7038, 0.6961, 0.6873),
}
# Published RA of the same model: the six types above, then the four whose cells are not quoted.
BEVFUSION_RA = {
    **{"temporal": 0.742, "spatial": 0.705, "beams": 0.676, "fog": 0.752, "snow": 0.774, "missing camera": 0.974},
    **{"brightness": 0.967, "dark": 0.969, "motion": 0.866, "points": 0.872},
}
CMT_RA = (0.786, 0.937, 0.948, 0.806, 0.974, 0.841, 0.925, 0.833, 0.809, 0.788)

# RoboBEV (Xie et al.): NDS, mean over three severities.
DETR3D_CLEAN, FUSION_CLEAN = 0.4224, 0.7138
DETR3D = {
    **{"crash": [0.2859], "lost": [0.2604], "quant": [0.3177], "motion": [0.2661]},
    **{"bright": [0.4002], "low light": [0.2786], "fog": [0.3912], "snow": [0.1913]},
}
FUSION = {
    **{"crash": [0.6963], "lost": [0.6931], "quant": [0.7044]},
    **{"motion": [0.6977], "bright": [0.7018], "low light": [0.6787]},
}
# Robo3D (Kong et al., ICCV 2023): CenterPoint on nuScenes-C, NDS.
CENTERPOINT_CLEAN = 0.4599
CENTERPOINT = {
    **{"fog": [0.3501], "wet": [0.4541], "snow": [0.3123], "motion": [0.4179]},
    **{"beam": [0.3516], "cross-talk": [0.3522], "echo": [0.3253], "cross-sensor": [0.2578]},
}


def test_published_resistance_from_published_cells():
    abilities = metrics.resistance_ability(BEVFUSION, BEVFUSION_CLEAN)
    assert abilities == pytest.approx({name: BEVFUSION_RA[name] for name in BEVFUSION}, abs=5.1e-4)
    assert metrics.mean_over({**BEVFUSION_RA, **abilities}) == pytest.approx(0.830, abs=5e-4)
    cmt = {str(row): ability for row, ability in enumerate(CMT_RA)}
    assert metrics.mean_over(cmt) == pytest.approx(0.865, abs=5e-4)


def test_published_corruption_errors_and_resilience_rates():
    """DETR3D is the baseline, so its own mCE is 100; the fused model was published on six of the eight corruptions."""
    assert metrics.mean_over(metrics.corruption_error(DETR3D, DETR3D)) == pytest.approx(100)
    assert metrics.mean_over(metrics.resilience_rate(DETR3D, DETR3D_CLEAN)) == pytest.approx(70.77, abs=0.01)
    assert metrics.mean_over(metrics.corruption_error(FUSION, DETR3D)) == pytest.approx(43.80, abs=0.01)
    assert metrics.mean_over(metrics.resilience_rate(FUSION, FUSION_CLEAN)) == pytest.approx(97.41, abs=0.01)
    assert metrics.mean_over(metrics.resilience_rate(CENTERPOINT, CENTERPOINT_CLEAN)) == pytest.approx(76.68, abs=0.01)


def test_a_table_by_hand():
    scores, baseline = {"fog": (0.5, 0.3), "snow": (0.4, 0.2)}, {"fog": (0.4, 0.4), "snow": (0.3, 0.2)}
    assert metrics.resistance_ability(scores, 0.8) == pytest.approx({"fog": 0.5, "snow": 0.375})
    assert metrics.relative_resistance(scores, baseline) == pytest.approx({"fog": 0.0, "snow": 20.0})
    assert metrics.mean_over(metrics.relative_resistance(scores, baseline)) == pytest.approx(10)
    # (0.5 + 0.7) / (0.6 + 0.6), (0.6 + 0.8) / (0.7 + 0.8)
    assert metrics.corruption_error(scores, baseline) == pytest.approx({"fog": 100, "snow": 100 * 1.4 / 1.5})
    assert metrics.resilience_rate(scores, 0.8) == pytest.approx({"fog": 50, "snow": 37.5})
    assert metrics.corrupted_ap(scores) == pytest.approx(0.35)
    errors = metrics.relative_corruption_error(scores, 0.8)
    assert errors["fog"] == pytest.approx((0.375, 0.625))
    assert errors["snow"] == pytest.approx((0.5, 0.75))


def test_what_cannot_be_divided_or_compared_is_refused():
    with pytest.raises(ValueError, match="clean score above 0"):
        metrics.resistance_ability({"fog": (0.5,)}, 0.0)
    with pytest.raises(ValueError, match="baseline's scores of fog"):
        metrics.relative_resistance({"fog": (0.5, 0.4)}, {"fog": (0.5,)})
    with pytest.raises(ValueError, match="baseline's scores of snow"):
        metrics.corruption_error({"snow": (0.5,)}, {"fog": (0.5,)})
    assert math.isnan(metrics.mean_over({"fog": 0.5, "broken": math.nan}))
    assert math.isnan(metrics.mean_over({}))


def test_area_under_the_budget_curve():
    # Trapezia: 0.25 wide and 0.3 high, 0.5 wide and 0.6 high, over 0.75.
    area = metrics.budget_curve_area((1.0, 0.25, 0.5), (0.8, 0.2, 0.4))
    assert area == pytest.approx((0.25 * 0.3 + 0.5 * 0.6) / 0.75)
    assert metrics.budget_curve_area((0.3, 1.0), (0.5, 0.5)) == pytest.approx(0.5)
    for budgets, scores in (((1.0,), (0.5,)), ((1.0, 1.0), (0.5, 0.5)), ((0.5, 1.0), (0.5,))):
        with pytest.raises(ValueError, match="two or more budgets"):
            metrics.budget_curve_area(budgets, scores)


def cell(scenario: str, nds: float | None, gflops: float, budget: float = 1.0) -> Cell:
    steps = () if scenario == "clean" else ({"fault": scenario, "level": 2.0},)
    scores = None if nds is None else Metrics(0.0, nds, {}, {}, {}, {}, {}, {})
    return Cell(scenario, steps, 0, budget, "run", metrics=scores, gflops=gflops)


def test_surface_of_quality_and_compute():
    cells = [cell("clean", 0.5, 10.0), cell("fog", 0.4, 12.0), cell("broken", None, 0.0), cell("fog", 0.3, 6.0, 0.5)]
    surface = metrics.quality_compute_surface(cells)
    assert [row["scenario"] for row in surface] == ["clean", "fog", "fog"]
    assert surface[1] == {
        **{"scenario": "fog", "levels": [2.0], "budget": 1.0, "gflops": 12.0, "nds": 0.4},
        **{"kept": pytest.approx(0.8), "compute_inflation": pytest.approx(1.2)},
    }
    assert math.isnan(surface[2]["compute_inflation"])
    assert math.isnan(metrics.compute_inflation(cells[2], cells))


def test_gate_auroc_by_hand():
    weight = np.array([0.1, 0.4, 0.4, 0.9])
    failed = np.array([True, True, False, False])
    # Pairs failed-sound: (.1, .4) 1, (.1, .9) 1, (.4, .4) 0.5, (.4, .9) 1.
    assert metrics.gate_auroc(weight, failed) == pytest.approx(3.5 / 4)
    assert metrics.gate_auroc(weight, ~failed) == pytest.approx(0.5 / 4)
    assert math.isnan(metrics.gate_auroc(weight, np.ones(4, bool)))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.booleans()), min_size=2, max_size=30))
def test_gate_auroc_is_the_share_of_ordered_pairs(drawn):
    weight, failed = np.array([value for value, _ in drawn]), np.array([flag for _, flag in drawn])
    pairs = [(a < b) + 0.5 * (a == b) for a in weight[failed] for b in weight[~failed]]
    if pairs:
        assert metrics.gate_auroc(weight, failed) == pytest.approx(np.mean(pairs))


def test_calibration_by_hand():
    confidence = np.array([0.05, 0.05, 0.55, 0.65, 1.0])
    came_true = np.array([False, True, True, False, True])
    calibration = calibration_of(confidence, came_true)
    assert calibration.num.tolist() == [2, 0, 0, 0, 0, 1, 1, 0, 0, 1]
    assert calibration.expected_error == pytest.approx((2 * 0.45 + 0.45 + 0.65 + 0.0) / 5)
    assert math.isnan(calibration.hit_rate[1])
    assert math.isnan(calibration_of(np.zeros(0), np.zeros(0, bool)).expected_error)
    assert metrics.gate_calibration(confidence, came_true).expected_error == calibration.expected_error


def test_frames_to_react():
    let_go = np.array([False, False, True, False, True, True, True])
    assert metrics.frames_until(let_go, start=1) == 1
    assert metrics.frames_until(let_go, start=1, hold=2) == 3
    assert metrics.frames_until(let_go, start=4, hold=3) == 0
    assert metrics.frames_until(let_go, start=5, hold=3) is None
