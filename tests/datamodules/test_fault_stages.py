"""Stages that take a share of the fault plan: what acts on a sample at each place in training, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from datamodules.datamodule import NuScenesDataModule
from datamodules.dose import FaultDose, milder
from datamodules.fault_stages import FaultStage, StagedFaults
from datamodules.inject import FaultInjector, FaultRule, SubsetDropout, Together
from datamodules.schedules import Moment, Ramp
from sensors.faults.catalogue import CATALOGUE
from sensors.faults.protocol import Draws, check_level
from sensors.faults.severity import place_on_ladder
from sensors.faults.suites import Scenario, known_fault
from sensors.faults.time_course import Burst
from sensors.frame import NoHistory
from tests.datamodules.small_set import write_small_set
from tests.sensors.toy_frames import toy_frame

FRAME = toy_frame(height=9, width=16, num_points=64, num_sweeps=1)
STAGES = (
    FaultStage.of("clean", 0.25, "none"),
    FaultStage.of("mild", 0.5, {"severity": [0.2, 0.6]}),
    FaultStage.of("seldom", 0.75, {"share": 0.5, "severity": 0.75}),
    FaultStage.of("all", 1.0, "all"),
)


def planned(rule, dose=None, count=400):
    """What a rule plans for each of some samples and a dose leaves of it: fault, channels and level."""
    plans = []
    for i in range(count):
        draws = Draws(3, f"t{i}", "rule", 0)
        left = rule.plan(draws, 0.5) if dose is None else dose.of(rule.plan(draws, 0.5), draws)
        plans.append([(fault.name, fault.channels, level) for fault, level in left])
    return plans


def test_the_dose_follows_the_stage_of_the_batch():
    """Four batches an epoch, two epochs: batch 3 is at 3/8, half-way through the second of four equal stages."""
    staged = StagedFaults(FaultInjector([]), STAGES, num_batches=4, total_epochs=2)
    expected = [(0, 1), (0, 1), (1, 0.2), (1, 0.4), (0.5, 0.75), (0.5, 0.75), (1, 1), (1, 1)]
    for done, (share, severity) in enumerate(expected):
        epoch, batch = divmod(done, 4)
        # The samples' own progress runs ahead of the batch's within a batch.
        dose = staged.dose(Moment(epoch, (done + 0.9) / 8, batch))
        assert (dose.share, dose.severity) == pytest.approx((share, severity)), done
    assert staged.dose(Moment(0, 0.375)).severity == pytest.approx(0.4), "without batches, by the sample's progress"
    assert staged.dose(Moment(None, 1.0)) == FaultDose(), "outside training all of the plan acts"
    assert staged.dose(Moment(7, 1.0, 3)) == FaultDose(1.0, 1.0), "training beyond its end stays in the last stage"


def test_what_acts_by_hand():
    """A beam drop that grows from .2 to .6 of the beams over training, beside the factors of the stages."""
    injector = FaultInjector([FaultRule("lidar_beam_drop", severity=Ramp(0.2, 0.6))])
    staged = StagedFaults(injector, STAGES, num_batches=8, total_epochs=1)

    def names(batch):
        return staged.labelled(FRAME, NoHistory(), Moment(0, batch / 8, batch))[1]

    assert names(0) == names(1) == ()
    assert names(2) == ("lidar_beam_drop@0.06",)  # (.2 + .4 * 2/8) * .2
    assert names(3) == ("lidar_beam_drop@0.14",)  # (.2 + .4 * 3/8) * .4
    assert names(6) == ("lidar_beam_drop@0.50",)
    assert staged.apply(FRAME, NoHistory(), None, 1.0)[1] == ("lidar_beam_drop@0.60",)


def test_half_the_share_acts_half_as_often_on_the_same_samples():
    rule = FaultRule("lidar_beam_drop", 0.8, 0.4)
    shares = {share: [bool(left) for left in planned(rule, FaultDose(share))] for share in (0, 0.5, 1)}
    assert not any(shares[0])
    assert shares[1] == [bool(left) for left in planned(rule)]
    # 0.8 * 0.5, not less: the dose does not draw what the rule has drawn already.
    assert np.mean(shares[0.5]) == pytest.approx(0.4, abs=4 * np.sqrt(0.24 / 400))
    assert not any(half and not whole for half, whole in zip(shares[0.5], shares[1], strict=True)), "nested"


def test_modalities_go_together_and_channels_one_by_one():
    subsets, full = planned(SubsetDropout(1.0), FaultDose(0.5), 80), planned(SubsetDropout(1.0), count=80)
    assert all(left in ([], whole) for left, whole in zip(subsets, full, strict=True))
    assert {len(left) for left in subsets} == {0, 1, 2}
    single = planned(FaultRule("camera_drop", 1.0, 1.0, each="channel"), FaultDose(0.5), 40)
    assert len({len(left) for left in single}) > 3
    together = FaultInjector([Together(FaultRule("radar_drop", severity=5.0))])
    for batch in range(12):
        frames = [replace(FRAME, token=f"t{i}") for i in range(3)]
        moment = Moment(0, 0.5, batch)
        kinds = {together.labelled(frame, NoHistory(), moment, FaultDose(0.5))[1] for frame in frames}
        assert len(kinds) == 1, "a decision for a batch stays one"


@pytest.mark.parametrize("fault", CATALOGUE, ids=lambda fault: fault.name)
def test_milder_levels_exist_and_nest(fault):
    for top in (fault.levels[0], fault.levels[4], fault.worst):
        found = [milder(fault, top, factor) for factor in (0.0, 0.3, 0.7, 1.0)]
        for level in found:
            check_level(fault, level)
        assert found[0] == fault.clean
        assert found[-1] == top
        places = [abs(level - fault.clean) for level in found]
        assert places == sorted(places)
        assert place_on_ladder(fault, found[1]) <= place_on_ladder(fault, found[2])


def test_published_severities_stay_whole():
    fault = known_fault("thu_fog")
    assert [milder(fault, 5.0, factor) for factor in (0.0, 0.1, 0.2, 0.5, 0.6, 1.0)] == [0, 1, 1, 3, 3, 5]
    wrapped = Burst(known_fault("multicorrupt_fog"))
    assert milder(wrapped, 3.0, 0.5) == 2.0


def test_half_a_lidar_is_lost_in_half_of_the_samples_and_reported_where_it_is():
    injector = FaultInjector([FaultRule("lidar_drop", severity=1.0)], seed=1)
    frames = [replace(FRAME, token=f"t{i}") for i in range(100)]
    done = [injector.labelled(frame, NoHistory(), Moment(0, 0.5, 0), FaultDose(severity=0.5)) for frame in frames]
    assert np.mean([not frame.lidar for frame, _, _ in done]) == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 100))
    assert all(bool(names) == (not frame.lidar) for frame, names, _ in done)


def test_all_of_the_plan_is_the_plan():
    injector = FaultInjector([SubsetDropout(0.5), FaultRule("camera_dark", 0.7), FaultRule("lidar_late", 0.7, 2.0)])
    for i in range(8):
        frame, moment = replace(FRAME, token=f"t{i}"), Moment(1, 0.3, 2)
        without, whole = (injector.labelled(frame, NoHistory(), moment, *dose) for dose in ((), (FaultDose(),)))
        assert without[1] == whole[1]
        assert without[2].tolist() == whole[2].tolist()


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("some", "all or none, or a mapping of share and severity"),
        (["share"], "all or none"),
        ({"strength": 1.0}, "all or none"),
        ({"share": 1.5}, r"share of its faults as a number in \[0, 1\] or a pair"),
        ({"severity": [0.1, 0.2, 0.3]}, "a pair of them"),
        ({"severity": "low"}, "a pair of them"),
    ],
)
def test_wrong_faults_of_a_stage_are_one_line(faults, message):
    with pytest.raises(ValueError, match=f"stage 'odd': .*{message}") as error:
        FaultStage.of("odd", 1.0, faults)
    assert "\n" not in str(error.value)


def module(root, injector, **options) -> NuScenesDataModule:
    sizes = {"image_size_px": None, "lidar_sweeps": 1, "radar_sweeps": 1, "batch_size": 2, "total_epochs": 2}
    return NuScenesDataModule(root, "v1.0-small", "small_train", "small_val", injector=injector, **{**sizes, **options})


def test_the_loader_applies_the_dose_of_each_batch_whatever_the_workers(tmp_path):
    """Seven samples in batches of two: four batches an epoch, of which the last has one sample."""
    root = write_small_set(tmp_path)
    found = {}
    for num_workers in (0, 2):
        data = module(root, FaultInjector([FaultRule("lidar_beam_drop", severity=0.8)]), num_workers=num_workers)
        data.set_fault_stages(STAGES)
        loader = data.train_dataloader()
        found[num_workers] = [batch.faults for _ in range(2) for batch in loader]
        assert data.val_dataloader().dataset.corruptor is None
    levels = [None, None, "0.16", "0.32", "0.60", "0.60", "0.80", "0.80"]
    for number, (batch, level) in enumerate(zip(found[0], levels, strict=True)):
        assert len(batch) == (1 if number % 4 == 3 else 2)
        acting = {names for names in batch if names}
        assert acting <= {(f"lidar_beam_drop@{level}",)}
        if number not in (0, 1, 4, 5):  # nothing acts in the first stage, half of the plan in the third
            assert all(batch)
    assert found[2] == found[0]


def test_stages_that_want_faults_of_data_without_any_are_one_line(tmp_path):
    root = write_small_set(tmp_path)
    # Without faults a clean stage has what it wants; a corruptor that knows no stages acts in it all the same.
    for injector, first, got in (
        (None, "mild", "got none"),
        (Scenario("fog", (("fog", 0.02),)), "clean", "got Scenario"),
    ):
        with pytest.raises(ValueError, match=f"stage '{first}': expected data with a plan of faults.*{got}") as error:
            module(root, injector).set_fault_stages(STAGES)
        assert "\n" not in str(error.value)
    module(root, None).set_fault_stages([FaultStage.of("a", 0.5, "none"), FaultStage.of("b", 1.0, "all")])
