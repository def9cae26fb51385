"""The injector: rates, schedules, mixtures, determinism, configurations."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.inject import FaultInjector, FaultRule, OneOf, SubsetDropout, Together
from datamodules.mixture import FaultMixture
from datamodules.schedules import Cosine, Moment, Ramp, Steps
from sensors.faults.catalogue import families, fault_named
from sensors.faults.protocol import Draws
from sensors.faults.severity import place_on_ladder
from sensors.faults.suites import Scenario, known_fault
from sensors.faults.time_course import Onset
from sensors.frame import NoHistory
from sensors.rig import CAMERAS, CHANNELS, LIDAR
from tests.sensors.fault_measures import digest
from tests.sensors.labelled_frames import labelled_frame
from tests.sensors.toy_frames import ListHistory, toy_frame

FRAME = toy_frame(height=9, width=16, num_points=64, num_sweeps=1)
MOVING = replace(labelled_frame(height=9, width=16, num_points=64, num_sweeps=1), keyframe=1, num_keyframes=3)
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
        (lambda: FaultRule("fogg"), "expected a fault of the families"),
        (lambda: FaultRule("multicorrupt_fogg"), "did you mean multicorrupt_fog"),
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


def test_together_decides_once_for_a_batch_whatever_the_rank_and_once_for_a_scene():
    rule = OneOf([FaultRule("camera_drop", severity=6), FaultRule("lidar_drop", severity=1)], [0.25, 0.25])
    per_batch = FaultInjector([Together(rule)])

    def lost(injector, token, scene="s", epoch=0, batch=None):
        frame = replace(FRAME, token=token, scene=scene)
        return modalities_of(injector.labelled(frame, NoHistory(), Moment(epoch, 0.5, batch))[0])

    outcomes = [{lost(per_batch, f"{batch}-{i}", batch=batch) for i in range(4)} for batch in range(300)]
    assert all(len(kinds) == 1 for kinds in outcomes)
    counts = Counter(next(iter(kinds)) for kinds in outcomes)
    assert counts["camera", "lidar", "radar"] / 300 == near(0.5, 300)
    assert counts["lidar", "radar"] / 300 == near(0.25, 300)
    epochs = [[lost(per_batch, "t", epoch=epoch, batch=batch) for batch in range(40)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    per_scene = FaultInjector([Together(rule, per="scene")])
    scenes = [{lost(per_scene, f"{k}", scene=f"scene {k}") for _ in range(2)} for k in range(100)]
    assert all(len(kinds) == 1 for kinds in scenes)
    assert len(set().union(*scenes)) == 3
    with pytest.raises(ValueError, match="batch-wise rules act in training only"):
        per_batch.apply(FRAME, NoHistory(), None, 1.0)


def test_labels_say_how_strongly_each_channel_was_harmed():
    rules = [
        FaultRule("camera_drop", severity=1, channels=["CAM_BACK"]),
        FaultRule("lidar_limited_view", severity=75),
        FaultRule("radar_point_drop", severity=0.2, channels=["RADAR_FRONT"]),
        FaultRule("radar_point_drop", severity=0.7, channels=["RADAR_FRONT", "RADAR_BACK_LEFT"]),
    ]
    _, names, severity = FaultInjector(rules).labelled(FRAME, NoHistory(), Moment(0, 0.5, 0))
    assert len(names) == 4
    by_channel = dict(zip(CHANNELS, severity.tolist(), strict=True))
    harmed = {channel: value for channel, value in by_channel.items() if value}
    # 75 deg is the third of five levels of the view, .7 the fourth of the point drop.
    assert harmed == pytest.approx({"CAM_BACK": 1.0, LIDAR: 0.6, "RADAR_FRONT": 0.8, "RADAR_BACK_LEFT": 0.8})


@pytest.mark.parametrize(
    ("name", "level", "place"),
    [
        ("lidar_limited_view", 180.0, 0.0),
        ("lidar_limited_view", 150.0, 0.1),
        ("lidar_limited_view", 45.0, 1.0),
        ("lidar_limited_view", 10.0, 1.0),
        ("lidar_beam_drop", 0.3, 0.3),
        ("camera_drop", 2.0, 1.0),
        ("roburcdet_shift", 1.0, 1.0),
        ("multicorrupt_fog", 2.0, 2 / 3),
    ],
)
def test_place_on_the_ladder(name, level, place):
    assert place_on_ladder(known_fault(name), level) == pytest.approx(place)


def test_resting_fault_is_neither_named_nor_labelled():
    rule = FaultRule(Onset("lidar_drop", begin=0.5, end=1.0), severity=1.0)
    for keyframe, names in ((0, ()), (3, ("lidar_drop@1.00",))):
        frame = replace(FRAME, keyframe=keyframe, num_keyframes=4)
        _, applied, severity = FaultInjector([rule]).labelled(frame, NoHistory(), Moment(0, 0.5, 0))
        assert applied == names
        assert severity.sum() == len(names)


def test_mixture_is_balanced_over_families_and_leaves_out_what_it_is_told():
    mixture = FaultMixture(0.8, 1.0, leave_out=("weather",))
    planned = [mixture.plan(Draws(0, f"t{i}", "x"), 0.5) for i in range(1500)]
    hits = [plan[0][0].family for plan in planned if plan]
    assert len(hits) / 1500 == near(0.8, 1500)
    expected = set(families()) - {"weather", "lost"}
    assert set(hits) == expected
    share = 1 / len(expected)
    counts = Counter(hits)
    assert all(counts[family] / len(hits) == near(share, len(hits)) for family in expected)


def test_mixture_grows_along_its_schedules_and_nests():
    mixture = FaultMixture(Ramp(0.0, 1.0), Ramp(0.2, 1.0))
    plans = [[mixture.plan(Draws(0, f"t{i}", "x"), p) for i in range(200)] for p in (0.0, 0.5, 1.0)]
    assert [sum(map(bool, plan)) / 200 for plan in plans] == [near(p, 200) for p in (0.0, 0.5, 1.0)]
    for mild, strong in zip(plans[1], plans[2], strict=True):
        if mild:
            fault, level = strong[0]
            assert mild[0][0] is fault
            assert place_on_ladder(fault, mild[0][1]) <= place_on_ladder(fault, level) + 1e-9


def test_published_faults_are_known_by_name_in_rules():
    injector = FaultInjector([FaultRule("multicorrupt_points_reducing", severity=2)])
    frame, names = injector.apply(FRAME, NoHistory(), 0, 0.5)
    assert names == ("multicorrupt_points_reducing@2.00",)
    assert len(frame.lidar[0]) == round(0.2 * len(FRAME.lidar[0]))
    drawn = FaultInjector([FaultRule("multicorrupt_points_reducing")])
    levels = {names[0].split("@")[1] for _, names in samples(drawn, 40)}
    assert levels == {"1.00", "2.00", "3.00"}
    with pytest.raises(ValueError, match="expected a fault of the families"):
        FaultRule("multicorrupt_rain")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Together(FaultRule("fog"), per="epoch"), "'batch' or 'scene'"),
        (lambda: Together(Together(FaultRule("fog"))), "expected a rule"),
        (lambda: OneOf([Together(FaultRule("fog"))], [0.5]), "put the OneOf into the Together"),
        (lambda: FaultMixture(0.5, leave_out=["wether"]), "expected families among .*, got wether"),
        (lambda: FaultMixture(0.5, families=["late"], leave_out=["late"]), "a family that is left"),
        (lambda: FaultMixture(1.5), "expected a probability in"),
        (lambda: FaultRule("multicorrupt_fog", channels=["RADAR_FRONT"]), "expected channels of multicorrupt_fog"),
    ],
)
def test_more_mistakes_are_one_line(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def built(name):
    from fusion.commands.compose import compose, instantiate

    return instantiate(compose([f"faults={name}", "seed=3"]).faults)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_configuration_builds_and_harms(name):
    injector = built(name)
    if name == "none":
        assert injector is None
        return
    assert isinstance(injector, FaultInjector)
    assert injector.seed == 3
    pickle.loads(pickle.dumps(injector))
    history = ListHistory([MOVING, MOVING], 1)
    results = [
        injector.labelled(replace(MOVING, token=f"t{i}", scene=f"s{i}"), history, Moment(0, 1.0, i)) for i in range(25)
    ]
    assert any(names for _, names, _ in results)
    assert all(bool(names) == bool(severity.any()) for _, names, severity in results)
    assert all(any(frame.present(channel) for channel in CHANNELS) for frame, _, _ in results)
    if name.startswith("leave-out-"):
        family = name.removeprefix("leave-out-").replace("false-points", "false points")
        mixture = next(rule for rule in injector.rules if isinstance(rule, FaultMixture))
        assert set(mixture.faults) == set(families()) - {family, "lost"}
        assert any(isinstance(rule, SubsetDropout) for rule in injector.rules) == (family != "lost")


def test_every_family_has_its_leave_out_configuration():
    stems = {path.stem.removeprefix("leave-out-") for path in CONFIGS.glob("leave-out-*.yaml")}
    assert stems == {family.replace(" ", "-") for family in families()}


def counted(name, count=400):
    injector = built(name)
    return [injector.labelled(replace(FRAME, token=f"t{i}"), NoHistory(), Moment(0, 1.0, i // 4)) for i in range(count)]


@pytest.mark.parametrize("name", ["cmt", "mome", "unibev"])
def test_published_recipes_drop_half_a_quarter_a_quarter(name):
    kept = [modalities_of(frame) for frame, _, _ in counted(name)]
    counts = Counter(kept)
    assert set(counts) == {("camera", "lidar", "radar"), ("lidar", "radar"), ("camera", "radar")}
    # Batches of four decide together in UniBEV, so there are a quarter as many decisions.
    num = 100 if name == "unibev" else 400
    assert counts["camera", "lidar", "radar"] / 400 == near(0.5, num)
    assert counts["lidar", "radar"] / 400 == near(0.25, num)
    alike = [len(set(kept[i : i + 4])) == 1 for i in range(0, 400, 4)]
    assert all(alike) == (name == "unibev")


def test_recipe_of_lift_splat_shoot_keeps_five_of_six_cameras():
    lost = Counter(
        channel for frame, _, _ in counted("five-of-six", 300) for channel in set(CAMERAS) - set(frame.cameras)
    )
    assert sum(lost.values()) == 300
    assert all(count / 300 == near(1 / 6, 300) for count in lost.values())


def test_recipe_of_roburcdet_is_eight_to_two_with_four_noises_alike():
    names = [name.split("@")[0] for _, names, _ in counted("roburcdet") for name in names]
    assert len(names) / 400 == near(0.2, 400)
    counts = Counter(names)
    assert set(counts) == {f"roburcdet_{kind}" for kind in ("missing", "spurious", "shift", "disturbance")}
    assert all(count / 400 == near(0.05, 400) for count in counts.values())


def test_what_a_run_saw_is_read_from_its_mixture(tmp_path):
    from omegaconf import OmegaConf

    from fusion.commands.compose import compose
    from fusion.robustness.seen import seen_in_training, trained_faults

    def seen(choice, *steps):
        path = tmp_path / "config.yaml"
        OmegaConf.save(compose([f"faults={choice}"]), path)
        return seen_in_training(Scenario("x", steps), trained_faults(path))

    assert seen("mixture", ("fog", 0.02)) == "fault"
    assert seen("leave-out-weather", ("fog", 0.02)) == "neither"
    assert seen("leave-out-weather", ("lidar_drop", 1)) == "fault"
    assert seen("leave-out-lost", ("lidar_drop", 1)) == "neither"
    assert seen("leave-out-weather", (known_fault("multicorrupt_dark"), 2)) == "family"
    assert seen("roburcdet", (known_fault("roburcdet_shift"), 1)) == "fault"
    assert seen("roburcdet", ("radar_doppler_noise", 1.0)) == "family"
    assert seen("bursts", (Onset("camera_blackout"), 6)) == "fault"
