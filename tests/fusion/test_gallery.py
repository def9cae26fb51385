"""Pictures of faults and plots of schedules: one for every fault, and true to what the fault and the rules do."""

import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.inject import FaultInjector, FaultRule, OneOf, SubsetDropout
from datamodules.schedules import Ramp
from fusion.cli import main
from fusion.view.gallery import Shown, fault_picture, shown_levels, write_gallery
from fusion.view.gallery_panels import BEV_HEIGHT_PX, VIEW_HEIGHT_PX, WIDTH_PX
from fusion.view.schedules import ladder_place, schedule_curves, write_schedule
from sensors.faults.catalogue import CATALOGUE, fault_named
from sensors.faults.protocol import Draws
from sensors.frame import NoHistory
from sensors.rig import RADARS
from tests.sensors.test_adapters import cars
from tests.sensors.toy_frames import ListHistory, toy_frame


@pytest.fixture(scope="module")
def shown() -> Shown:
    """The last of three keyframes, with labels."""
    frames = [
        replace(toy_frame(f"token-{i}", seed=9 * i, height=45, width=80, num_points=640), keyframe=i) for i in range(3)
    ]
    boxes = replace(cars(), num_points=np.full(3, 5))
    frames = [replace(frame, boxes=boxes, num_keyframes=3) for frame in frames]
    return Shown(frames[2], ListHistory(frames, 2))


def panels_of(name: str, shown: Shown) -> np.ndarray:
    fault = fault_named(name)
    harmed = [fault(shown.frame, shown.history, level, Draws(0, "t", name)) for level in shown_levels(fault)]
    return fault_picture(shown.frame, harmed, ["clean", "1", "3", "5"], fault)


@pytest.mark.parametrize(
    ("name", "height"),
    [
        ("camera_dark", VIEW_HEIGHT_PX),
        ("camera_drop", VIEW_HEIGHT_PX),
        ("lidar_point_drop", BEV_HEIGHT_PX),
        ("lidar_blackout", BEV_HEIGHT_PX),
        ("lidar_intensity_noise", BEV_HEIGHT_PX),
        ("radar_drop", BEV_HEIGHT_PX),
        ("camera_misalignment", VIEW_HEIGHT_PX),
        ("fog", VIEW_HEIGHT_PX + BEV_HEIGHT_PX),
    ],
)
def test_a_row_of_four_panels_for_every_sensor_that_is_harmed_and_they_differ(name, height, shown):
    picture = panels_of(name, shown)
    assert picture.shape[1:] == (4 * WIDTH_PX, 3)
    assert picture.shape[0] in (height, height + BEV_HEIGHT_PX)
    without_captions = picture[24:]
    panels = [without_captions[:, k * WIDTH_PX : (k + 1) * WIDTH_PX] for k in range(4)]
    assert not np.array_equal(panels[0], panels[3])


def test_a_lost_camera_is_seen_among_six_and_the_others_are_as_they_were(shown):
    """Level 1 loses one camera: five tiles of the second panel equal those of the first."""
    picture = panels_of("camera_drop", shown)
    tiles = []
    for panel in (0, 1):
        part = picture[:, panel * WIDTH_PX : (panel + 1) * WIDTH_PX]
        columns = [part[:, k * 160 : (k + 1) * 160] for k in range(3)]
        tiles.append([half for column in columns for half in (column[24:135], column[135:])])
    assert sum(np.array_equal(a, b) for a, b in zip(*tiles, strict=True)) == 5


def test_the_gallery_has_a_picture_for_every_fault_and_names_those_it_cannot_draw(shown, tmp_path):
    faults = [fault_named(name) for name in ("camera_dark", "lidar_beam_drop", "radar_ghosts", "fog")]
    blind = Shown(replace(shown.frame, radars={}), NoHistory())
    entries = write_gallery(blind, faults, tmp_path, ["a notice"])
    assert [entry.name for entry in entries if entry.problem] == ["radar_ghosts"]
    page = (tmp_path / "index.html").read_text()
    pictures = re.findall(r'src="([^"]+)"', page)
    assert pictures == ["camera_dark.png", "lidar_beam_drop.png", "fog.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*pictures, "index.html"])
    assert all(cv2.imread(str(tmp_path / name)).shape[1] == 4 * WIDTH_PX for name in pictures)
    assert "a notice" in page
    assert "http" not in page
    for fault in faults:
        assert ", ".join(f"{level:g}" for level in fault.levels) in page


class ThreeSteps:
    """A fault as the published suites have them, with three severities."""

    name, family, modality, unit = "three_steps", "light", "camera", "step"
    levels, clean, worst, channels = (1.0, 2.0, 3.0), 0.0, 3.0, None

    def __call__(self, frame, history, level, draws):
        return fault_named("camera_dark")(frame, history, level, draws)


def test_three_levels_of_five_and_all_of_three():
    assert shown_levels(ThreeSteps()) == (1.0, 2.0, 3.0)
    assert shown_levels(fault_named("camera_dark")) == (1.0, 3.0, 5.0)
    assert all(len(shown_levels(fault)) == 3 for fault in CATALOGUE)


def test_curves_of_a_schedule_are_its_closed_form():
    """A ramp of the probability, a fixed severity, channels that decide alone, subsets and a mixture."""
    rule = FaultRule("lidar_point_drop", Ramp(0.0, 0.8), 0.5)
    curves = schedule_curves(FaultInjector([rule]), num_samples=250, num_steps=3)
    found = curves.probability["lidar"]["lidar_point_drop"]
    assert np.allclose(found, np.linspace(0, 0.8, 3), atol=0.08)
    assert (np.diff(found) > 0).all()
    assert np.allclose(curves.severity["lidar"]["lidar_point_drop"][1:], 3 / 5)
    assert set(curves.probability["camera"]) == {"any fault"}

    rule = FaultRule("radar_drop", 0.1, 1.0, each="channel")
    curves = schedule_curves(FaultInjector([rule]), num_samples=250, num_steps=2)
    assert np.allclose(curves.probability["radar"]["any fault"], 1 - 0.9 ** len(RADARS), atol=0.08)

    curves = schedule_curves(FaultInjector([SubsetDropout(0.6)]), num_samples=250, num_steps=2)
    for sensor in ("camera", "lidar", "radar"):
        # Each sensor is in three of the six sets that lose something.
        assert np.allclose(curves.probability[sensor][f"{sensor}_drop"], 0.3, atol=0.08)
        assert np.allclose(curves.severity[sensor][f"{sensor}_drop"], 1.0)

    either = OneOf([FaultRule("fog", 1.0, 0.02), FaultRule("camera_dark", 1.0, 5.0)], [0.25, 0.5])
    curves = schedule_curves(FaultInjector([either]), num_samples=250, num_steps=2)
    assert np.allclose(curves.probability["camera"]["any fault"], 0.75, atol=0.08)
    assert np.allclose(curves.probability["lidar"]["fog"], 0.25, atol=0.08)


def test_the_place_on_a_ladder():
    rising, falling = fault_named("lidar_point_drop"), fault_named("camera_jpeg")
    assert [ladder_place(rising, level) for level in (0.0, *rising.levels)] == pytest.approx(np.arange(6) / 5)
    assert [ladder_place(falling, level) for level in (falling.clean, *falling.levels)] == pytest.approx(
        np.arange(6) / 5
    )
    assert ladder_place(rising, 0.2) == pytest.approx(1.5 / 5)


def test_a_schedule_is_drawn_whole_or_not_at_all(tmp_path):
    injector = FaultInjector([FaultRule("lidar_point_drop", Ramp(0.0, 0.8), 0.5)])
    picture = cv2.imread(str(write_schedule(injector, tmp_path / "a.png", "a title", num_samples=10)))
    assert picture.shape == (640, 1300, 3)
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf"):
        write_schedule(injector, tmp_path / "a.docx", "a title")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_commands_draw_what_is_asked_for(tiny_town, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = [
        "view",
        "gallery",
        f"root={tiny_town}",
        "split=town_val",
        "out=pictures",
        "faults=[camera_noise,radar_clutter]",
    ]
    assert main(asked) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "camera_noise.png",
        "index.html",
        "radar_clutter.png",
    ]
    assert main(["view", "faults=cmt", "out=cmt.png"]) == 0
    assert (tmp_path / "cmt.png").is_file()
    capsys.readouterr()
    for mistake, expected in {
        "faults=[camera_smog]": "did you mean camera_fog",
        "suite=none": "missing-sensors",
        "sample=99": "from 0 to",
        "colour=red": "keys out",
    }.items():
        assert main(["view", "gallery", f"root={tiny_town}", "split=town_val", "out=other", mistake]) == 2
        assert expected in capsys.readouterr().err
    assert main(["view", "faults=nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main(["view", "faults=none"]) == 2
    assert "clean" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
