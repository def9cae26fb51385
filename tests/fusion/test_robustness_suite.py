"""The suite with models of real parts: reuse changes nothing, controls spend what they say, strangers fit in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.datamodule import NuScenesDataModule
from fusion.robustness.axes import Share, planned_cells
from fusion.robustness.cell_runner import SuiteOptions
from fusion.robustness.cells import newest_cells, read_cells
from fusion.robustness.detector import ForeignModel
from fusion.robustness.results import collected
from fusion.robustness.reuse import EncoderReuse
from fusion.robustness.run_word import run_word
from fusion.robustness.suite import run_scenarios
from fusion.scoring.evaluate import evaluate_model
from fusion.scoring.scorer import Scorer
from sensors.faults.suites import Scenario, suite_named
from tests.fusion.foreign_detector import Deaf, NearestPoint
from tests.fusion.remembering_model import RememberingModel, scorable_small_set
from tests.fusion.small_model import IMAGE_SIZE_PX, small_batch, small_model
from tests.sensors.toy_frames import toy_frame

SUBSETS = {scenario.name: scenario for scenario in suite_named("missing-sensors")}
WITHOUT_LIDAR = SUBSETS["camera+radar"]
BLACK = Scenario("camera_blackout", (("camera_blackout", 6.0),))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return scorable_small_set(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def scorer(data):
    return Scorer(data.root, data.version, "small_train")


@pytest.fixture(scope="module")
def wide(data):
    """The same with pictures of the size that the small model takes."""
    sweeps = {"lidar_sweeps": 1, "radar_sweeps": 1, "batch_size": 2}
    return NuScenesDataModule(data.root, data.version, "small_train", "small_train", IMAGE_SIZE_PX, **sweeps)


def rows_run(model) -> tuple[dict[str, int], list]:
    """Rows that entered each encoder, counted beneath whatever replaces its ``forward``."""
    counts, handles = {"views": 0, "lidar": 0, "radar": 0}, []
    spied = {"views": model.cameras.encoder.backbone, "lidar": model.lidar.full, "radar": model.radar.full}
    for name, module in spied.items():
        original = module.forward

        def spy(given, name=name, original=original):
            counts[name] += len(given.present) if hasattr(given, "present") else len(given)
            return original(given)

        module.forward = spy
        handles.append(module)
    return counts, handles


def same(one, other) -> None:
    assert one.gflops.tolist() == other.gflops.tolist()
    assert (one.branch == other.branch).all()
    for token, boxes in one.detections.items():
        # The last bits of float32 depend on how many rows are computed together.
        np.testing.assert_allclose(boxes.score, other.detections[token].score, atol=1e-5)
        np.testing.assert_allclose(boxes.center_m, other.detections[token].center_m, atol=1e-3)


def test_what_is_reused_changes_nothing_and_saves_rows():
    model, reuse = small_model().eval(), EncoderReuse(1.0)
    clean = small_batch(3)
    noisy = replace(clean, lidar=replace(clean.lidar, points=clean.lidar.points + 0.25))
    black = replace(clean, camera=replace(clean.camera, images=clean.camera.images * 0))
    full = model.full_plan
    plain = [evaluate_model(model, [batch], plan_source=full) for batch in (clean, noisy, black)]
    before = list(model.state_dict())
    for batch, wanted in zip((clean, noisy, black), plain, strict=True):
        same(wanted, evaluate_model(model, [batch], plan_source=full, reuse=reuse))
    assert list(model.state_dict()) == before
    assert all("forward" not in vars(module) for module in model.modules())
    counts, _ = rows_run(model)
    again = EncoderReuse(1.0)
    evaluate_model(model, [clean], plan_source=full, reuse=again)
    assert counts == {"views": 18, "lidar": 3, "radar": 3}
    evaluate_model(model, [noisy], plan_source=full, reuse=again)
    assert counts == {"views": 18, "lidar": 6, "radar": 3}
    # Eighteen black pictures are one.
    evaluate_model(model, [black], plan_source=full, reuse=again)
    assert counts == {"views": 19, "lidar": 6, "radar": 3}


def test_lost_rows_are_computed_apart_and_put_together_rightly():
    """One sample's LiDAR differs: two come from memory, one is computed, each in its place."""
    model, reuse = small_model().eval(), EncoderReuse(1.0)
    clean = small_batch(3)
    points = clean.lidar.points.clone()
    points[clean.lidar.sample == 1] += 0.25
    mixed = replace(clean, lidar=replace(clean.lidar, points=points))
    evaluate_model(model, [clean], plan_source=model.full_plan, reuse=reuse)
    same(
        evaluate_model(model, [mixed], plan_source=model.full_plan),
        evaluate_model(model, [mixed], plan_source=model.full_plan, reuse=reuse),
    )


def test_measured_depths_are_part_of_what_is_reused():
    """The LiDAR gives the lift its depths: other points, another lift, though the pictures are the same."""
    model, reuse = small_model().eval(), EncoderReuse(1.0)
    model.cameras.depth_from_lidar = True
    clean = small_batch(3)
    points = clean.lidar.points.clone()
    points[clean.lidar.sample == 1, :2] *= 1.5
    noisy = replace(clean, lidar=replace(clean.lidar, points=points))
    wanted = [evaluate_model(model, [batch], plan_source=model.full_plan) for batch in (clean, noisy)]
    model.cameras.depth_from_lidar = False
    without = evaluate_model(model, [clean], plan_source=model.full_plan)
    model.cameras.depth_from_lidar = True
    scores = [np.concatenate([boxes.score for boxes in one.detections.values()]) for one in (wanted[0], without)]
    assert len(scores[0]) != len(scores[1]) or np.abs(scores[0] - scores[1]).max() > 1e-3
    for batch, plain in zip((clean, noisy, clean), (*wanted, wanted[0]), strict=True):
        same(plain, evaluate_model(model, [batch], plan_source=model.full_plan, reuse=reuse))
    assert reuse.num_taken > 0
    # In the second pass only one sample's points were new: its six views' depths, its LiDAR and its lift.
    again = EncoderReuse(1.0)
    evaluate_model(model, [clean], plan_source=model.full_plan, reuse=again)
    before = again.num_computed
    evaluate_model(model, [noisy], plan_source=model.full_plan, reuse=again)
    assert again.num_computed - before == 6 + 1 + 1
    assert "depths_of" not in vars(model.cameras)


def test_encoders_with_more_than_a_picture_are_left_alone():
    model = small_model()
    assert [name for name, _ in EncoderReuse._parts(model)][:2] == ["views", "lift"]
    model.camera_guide = "lidar"
    guided = [name for name, _ in EncoderReuse._parts(model)]
    model.camera_guide = None
    model.cameras.encoder.saved_gflops = lambda: None
    saving = [name for name, _ in EncoderReuse._parts(model)]
    assert guided == saving == ["lidar/1", "lidar/2", "radar/1", "radar/2"]


def test_memory_is_bounded_and_clean_data_stay():
    """Passes in turn through more than memory holds: what is clean is found again, the others come and go."""
    model, reuse = small_model().eval(), EncoderReuse(1.0)
    clean, others = small_batch(2, 0), [small_batch(2, seed) for seed in (1, 2, 3)]

    def taken(batch, lasting: bool) -> int:
        before, reuse.lasting = reuse.num_taken, lasting
        evaluate_model(model, [batch], plan_source=model.full_plan, reuse=reuse)
        assert reuse._num_bytes == sum(kept.num_bytes for kept in reuse._kept.values()) <= reuse.max_gb * 1e9
        assert set(reuse._passing) == {key for key, kept in reuse._kept.items() if not kept.lasts}
        return reuse.num_taken - before

    taken(clean, True)
    rows = len(reuse._kept)
    reuse.max_gb = 1.5 * reuse._num_bytes / 1e9
    for batch in others:
        assert taken(batch, False) == 0
        assert taken(clean, False) >= rows
    assert sum(kept.lasts for kept in reuse._kept.values()) == rows
    full = EncoderReuse(1e-4)
    for seed in range(3):
        evaluate_model(model, [small_batch(2, seed)], plan_source=model.full_plan, reuse=full)
        assert full._num_bytes == sum(kept.num_bytes for kept in full._kept.values()) <= 1e5


def test_a_suite_with_and_without_reuse_gives_the_same_cells(wide, scorer, tmp_path):
    results = []
    for reuse_gb in (0.0, 1.0):
        torch.manual_seed(0)
        model = small_model().eval()
        folder = tmp_path / f"{reuse_gb}"
        plan = SuiteOptions(reuse_gb=reuse_gb, samples_gb=reuse_gb)
        results.append(run_scenarios(model, wide, scorer, (WITHOUT_LIDAR, BLACK), (1.0, 0.7), folder, options=plan))
    for one, other in zip(results[0].cells, results[1].cells, strict=True):
        assert one.error is None
        assert other.error is None
        assert one.key == other.key
        assert one.metrics.nds == pytest.approx(other.metrics.nds, abs=1e-6)
        assert (one.gflops, one.inputs, one.branch_shares) == (other.gflops, other.inputs, other.branch_shares)


def test_controls_are_compared_with_the_router(wide, scorer, tmp_path):
    model = small_model().eval()
    policies = ("router", "random", "static", "full")
    result = run_scenarios(model, wide, scorer, (BLACK,), (0.8,), tmp_path, options=SuiteOptions(policies))
    assert result.exit_code == 0, result.failed
    by_key = {(cell.scenario, cell.policy): cell for cell in result.cells}
    assert model.router.policy is None
    full_gflops = float(model.prices().full_gflops)
    for cell in result.cells:
        assert cell.policy == "random" or cell.gflops <= 0.8 * full_gflops + 1e-9
    static = by_key["clean", "static"]
    assert all(share in (0.0, 1.0) for shares in static.branch_shares.values() for share in shares.values())
    alone = run_scenarios(model, wide, scorer, (), (0.8,), tmp_path / "alone", options=SuiteOptions(("random",)))
    assert "expected the router's own cell before random" in alone.failed[0].error


def test_a_strangers_detector_is_scored_like_everybody(data, scorer, tmp_path):
    model = ForeignModel(NearestPoint())
    result = run_scenarios(model, data, scorer, (WITHOUT_LIDAR, BLACK), (1.0,), tmp_path)
    clean, blind, black = result.cells
    assert result.exit_code == 0, result.failed
    # One box in each of seven frames; in the three of scene b it lies 220 m away, beyond the range of cars.
    assert clean.num_samples == 7
    assert clean.metrics.num_detections == {**dict.fromkeys(clean.metrics.num_detections, 0), "car": 4}
    assert sum(blind.metrics.num_detections.values()) == 0
    assert black.metrics == clean.metrics
    assert black.warning is None
    assert black.inputs != clean.inputs
    with pytest.raises(ValueError, match=r"expected budgets from 1\.000"):
        run_scenarios(model, data, scorer, (), (0.5,), tmp_path)
    with pytest.raises(ValueError, match="a method detect"):
        ForeignModel(Deaf())
    newer = NearestPoint()
    newer.version = "2"
    assert run_word(ForeignModel(newer), data, scorer, tmp_path) != clean.run
    assert run_word(model, data, scorer, tmp_path) == clean.run
    assert run_word(model, data, scorer, tmp_path, "model.merge.fill=0") != clean.run, "another setting, other cells"


def test_shares_of_two_make_the_whole(data, scorer, tmp_path):
    """Two shares in one folder, collected, are the cells of one process; a share that never ran is no clean score."""
    scenarios, lazy = (WITHOUT_LIDAR, BLACK, SUBSETS["lidar"]), SUBSETS["camera+lidar+radar"]
    whole = run_scenarios(RememberingModel(), data, scorer, scenarios, (1.0, 0.3), tmp_path / "one")
    for index in (1, 0):
        options = SuiteOptions(share=Share(index, 2))
        run_scenarios(RememberingModel(), data, scorer, scenarios, (1.0, 0.3), tmp_path / "two", options=options)
    word = run_word(RememberingModel(), data, scorer, tmp_path / "two")
    joined = collected(tmp_path / "two", word, planned_cells((lazy, *scenarios), (1.0, 0.3)))
    assert [cell.metrics for cell in joined.cells] == [cell.metrics for cell in whole.cells]
    assert len(newest_cells(read_cells(tmp_path / "two" / "robustness.jsonl"))) == len(whole.cells)
    missing = collected(tmp_path / "two", word, planned_cells((SUBSETS["radar"],), (1.0,)))
    assert missing.exit_code == 1
    assert "ended before it" in missing.failed[0].error


def test_frames_digests_see_every_sensor():
    from fusion.scoring.input_digest import FrameDigest

    def word(frame) -> str:
        digest = FrameDigest()
        digest.update(frame)
        return digest.word

    frame = toy_frame("t", num_sweeps=1, num_points=20)
    assert word(frame) == word(toy_frame("t", num_sweeps=1, num_points=20))
    camera = next(iter(frame.cameras))
    pixels = frame.cameras[camera].pixels.copy()
    pixels[0, 0, 0] ^= 1
    changed = {**frame.cameras, camera: replace(frame.cameras[camera], pixels=pixels)}
    words = {word(frame), word(replace(frame, lidar=())), word(replace(frame, radars={}))}
    assert len({*words, word(replace(frame, cameras=changed))}) == 4
