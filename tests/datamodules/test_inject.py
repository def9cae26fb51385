"""The injector: rates, schedules, mixtures, determinism, configurations."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.inject import FaultInjector, FaultRule, OneOf, SubsetDropout
from datamodules.schedules import Cosine, Ramp, Steps
from sensors.faults.catalogue import fault_named
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, CHANNELS, LIDAR
from tests.sensors.fault_measures import digest
from tests.sensors.toy_frames import toy_frame

FRAME = toy_frame(height=9, width=16, num_points=64, num_sweeps=1)
CONFIGS = Path(__file__).parents[2] / "configs" / "faults"


def samples(injector, count=400, progress=0.5, epoch=0, frame=FRAME):
    return [injector.apply(replace(frame, token=f"t{i}"), NoHistory(), epoch, progress) for i in range(count)]


def near(share, count):
    return pytest.approx(share, abs=4 * np.sqrt(max(share * (1 - share), 1e-9) / count) + 1e-9)


def modalities_of(frame):
    return tuple(
        name
        for name, present in (("camera", frame.cameras), ("lidar", frame.lidar), ("radar", frame.radars))
        if present
    )


@pytest.mark.parametrize("schedule", [Ramp(0.0, 0.8), Cosine(0.0, 0.8), Steps([0.3], [0.0, 0.6]), 0.25])
@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_probability_follows_its_schedule(schedule, progress):
    injector = FaultInjector([FaultRule("lidar_drop", schedule, severity=1)], seed=2)
    hit = np.mean([not frame.lidar for frame, _ in samples(injector, progress=progress)])
    assert hit == near(schedule if isinstance(schedule, float) else schedule(progress), 400)


def test_common_draws_keep_a_sample_harmed_while_the_probability_rises():
    injector = FaultInjector([FaultRule("lidar_drop", Ramp(0.0, 1.0), severity=1)])
    hits = [{i for i, (_, names) in enumerate(samples(injector, 50, p)) if names} for p in (0.0, 0.2, 0.6, 1.0)]
    assert hits[0] < hits[1] < hits[2] < hits[3]
    assert len(hits[3]) == 50


def test_severity_is_scheduled_drawn_from_a_range_or_from_the_ladder():
    scheduled = FaultInjector([FaultRule("lidar_beam_drop", severity=Ramp(0.2, 0.6))])
    assert scheduled.apply(FRAME, NoHistory(), 0, 0.5)[1] == ("lidar_beam_drop@0.40",)
    ranged = FaultInjector([FaultRule("lidar_beam_drop", severity=[0.3, 0.7])])
    levels = [float(names[0].split("@")[1]) for _, names in samples(ranged, 100)]
    assert 0.3 <= min(levels) < 0.4
    assert 0.6 < max(levels) <= 0.7
    ladder = FaultInjector([FaultRule("lidar_limited_view")])
    levels = [float(names[0].split("@")[1]) for _, names in samples(ladder, 100)]
    assert 45 <= min(levels) < 60
    assert 120 < max(levels) < 180
    lost = FaultInjector([FaultRule("camera_drop")])
    counts = Counter(6 - len(frame.cameras) for frame, _ in samples(lost, 100))
    assert set(counts) == {1, 2, 3, 4, 5, 6}


def test_each_channel_decides_alone():
    injector = FaultInjector([FaultRule("camera_drop", 0.3, severity=1, each="channel")])
    results = samples(injector, 300)
    for channel in CAMERAS:
        assert np.mean([channel not in frame.cameras for frame, _ in results]) == near(0.3, 300)
    lost = np.array([[channel not in frame.cameras for channel in CAMERAS] for frame, _ in results])
    assert abs(np.corrcoef(lost.T) - np.eye(6)).max() < 0.25
    frame, names = results[int(np.argmax(lost.sum(axis=1) == 2))]
    assert sorted(names) == sorted(f"camera_drop[{c}]@1.00" for c in CAMERAS if c not in frame.cameras)


def test_mixture_of_cmt():
    rules = [FaultRule("camera_drop", severity=6), FaultRule("lidar_drop", severity=1)]
    injector = FaultInjector([OneOf(rules, [0.25, 0.25])])
    counts = Counter(modalities_of(frame) for frame, _ in samples(injector, 500))
    assert set(counts) == {("camera", "lidar", "radar"), ("lidar", "radar"), ("camera", "radar")}
    assert counts["camera", "lidar", "radar"] / 500 == near(0.5, 500)
    assert counts["lidar", "radar"] / 500 == near(0.25, 500)


def test_subset_dropout_chooses_all_six_proper_subsets_alike():
    counts = Counter(modalities_of(frame) for frame, _ in samples(FaultInjector([SubsetDropout(0.6)]), 600))
    assert len(counts) == 7
    assert () not in counts
    assert counts["camera", "lidar", "radar"] / 600 == near(0.4, 600)
    for kept, count in counts.items():
        if len(kept) < 3:
            assert count / 600 == near(0.1, 600)
    two = FaultInjector([SubsetDropout(1.0, ("camera", "lidar"))])
    assert {modalities_of(frame) for frame, _ in samples(two, 40)} == {("camera", "radar"), ("lidar", "radar")}


def test_last_sensor_stays_unless_told_so():
    rules = [
        FaultRule(f"{name}_drop", severity=fault_named(f"{name}_drop").worst) for name in ("camera", "radar", "lidar")
    ]
    frame, names = FaultInjector(rules).apply(FRAME, NoHistory(), 0, 0.5)
    assert modalities_of(frame) == ("lidar",)
    assert names == ("camera_drop@6.00", "radar_drop@5.00")
    frame, names = FaultInjector(rules, may_lose_all=True).apply(FRAME, NoHistory(), 0, 0.5)
    assert not any(frame.present(channel) for channel in CHANNELS)
    assert len(names) == 3


def test_absent_sensor_is_passed_over():
    lost = replace(FRAME, lidar=())
    frame, names = FaultInjector([FaultRule("lidar_point_drop", severity=0.5)]).apply(lost, NoHistory(), 0, 0.5)
    assert names == ()
    assert frame is lost


def test_result_depends_on_seed_token_and_epoch_and_not_on_order():
    def injector(seed=0):
        return FaultInjector([SubsetDropout(0.5), FaultRule("lidar_point_drop", 0.5)], seed)

    first = [digest(frame) for frame, _ in samples(injector(), 20)]
    used = injector()
    backwards = [digest(used.apply(replace(FRAME, token=f"t{i}"), NoHistory(), 0, 0.5)[0]) for i in reversed(range(20))]
    assert first == backwards[::-1]
    assert first != [digest(frame) for frame, _ in samples(injector(), 20, epoch=1)]
    assert first != [digest(frame) for frame, _ in samples(injector(), 20, epoch=None)]
    assert first != [digest(frame) for frame, _ in samples(injector(seed=1), 20)]


def test_two_rules_of_one_name_decide_apart():
    rules = [FaultRule("lidar_point_drop", 0.5, 0.2), FaultRule("lidar_point_drop", 0.5, 0.6)]
    hits = [names for _, names in samples(FaultInjector(rules), 200)]
    assert {len(names) for names in hits} == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FaultRule("fogg"), "expected a fault among"),
        (lambda: FaultRule("lidar_drop", 1.2), "expected a probability in \\[0, 1\\] for lidar_drop, got 1.2"),
        (lambda: FaultRule("lidar_drop", Ramp(0, 2)), "expected a probability"),
        (lambda: FaultRule("lidar_beam_drop", severity=Ramp(0, 3)), "expected a level of lidar_beam_drop"),
        (lambda: FaultRule("lidar_beam_drop", severity=(0.1, 0.2, 0.3)), "expected \\(low, high\\)"),
        (lambda: FaultRule("lidar_beam_drop", channels=["CAM_FRONT"]), "expected channels of lidar_beam_drop"),
        (lambda: FaultRule("lidar_beam_drop", each="point"), "'sample' or 'channel'"),
        (lambda: FaultRule("camera_drop", severity=6, each="channel"), "between 0 and 1"),
        (lambda: OneOf([FaultRule("lidar_drop")], [0.5, 0.5]), "one weight per rule"),
        (lambda: OneOf([FaultRule("lidar_drop")] * 2, [0.7, Ramp(0, 0.5)]), "sum to at most 1"),
        (lambda: SubsetDropout(0.5, ["camera"]), "two or three of"),
        (lambda: FaultInjector(["fog"]), "expected rules"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("convert", ["none", "all"])
def test_every_configuration_builds_and_harms(path, convert):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    node = OmegaConf.merge({"seed": 3}, {"faults": OmegaConf.load(path)})
    if path.stem == "none":
        assert node.faults == {"faults": None}
        return
    injector = (
        instantiate(node, _convert_=convert).faults
        if convert == "none"
        else instantiate(node, _convert_="all")["faults"]
    )
    assert isinstance(injector, FaultInjector)
    assert injector.seed == 3
    results = samples(injector, 60, progress=1.0)
    assert any(names for _, names in results)
    assert all(any(frame.present(channel) for channel in CHANNELS) for frame, _ in results)
    if path.stem == "five-of-six":
        assert all(len(frame.cameras) == 5 and frame.present(LIDAR) for frame, _ in results)
