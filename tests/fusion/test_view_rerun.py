"""What a recording is given, by a stand-in for the library; test_view_recording.py reads files of the library."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from fusion.view.rerun_log import Moment, height_colours, log_moment, record, rgb
from fusion.view.rerun_series import Ran, branches_of, fault_of
from tests.fusion.detections import boxes_at
from tests.sensors.toy_frames import toy_frame


class Archetype:
    """Keeps what it was made of."""

    def __init__(self, kind: str, values, options: dict):
        self.kind, self.values, self.options = kind, values, options


class StandIn:
    """A module whose every name makes an Archetype."""

    def __getattr__(self, kind: str):
        return lambda *values, **options: Archetype(kind, values, options)


class Recording:
    def __init__(self):
        self.logged: dict[str, Archetype] = {}

    def log(self, entity: str, what: Archetype) -> None:
        self.logged[entity] = what


def logged(moment: Moment) -> dict[str, Archetype]:
    recording = Recording()
    log_moment(StandIn(), recording, moment)
    return recording.logged


def test_everything_is_logged_in_its_own_frame():
    frame = toy_frame("t", num_sweeps=1, num_points=50)
    frame = replace(frame, boxes=boxes_at([[10.0, 2.0, 1.0]], num_points=np.array([3]), yaw_rad=np.array([np.pi / 2])))
    route = branches_of([2, 0, 1, 2, 2, 2, 2, 0])
    ran = Ran(route, 1.5, 1, 0.25)
    found = logged(Moment(frame, boxes_at([[9.0, 2.0, 1.0]]), ran, ("fog@0.3",), ("fog@0.3", "rain@1.0")))
    assert found["world/ego/CAM_FRONT/image"].kind == "EncodedImage"
    np.testing.assert_allclose(found["world/ego/LIDAR"].values[0], frame.lidar[0].to_ego())
    arrows = found["world/ego/RADAR_FRONT/doppler"].options
    np.testing.assert_allclose(arrows["vectors"][:, :2], 0.5 * frame.radars["RADAR_FRONT"][0].to_ego()[1])
    assert (arrows["vectors"][:, 2] == 0).all()
    np.testing.assert_allclose(found["world/ego/labels"].options["quaternions"], [[0, 0, 0.5**0.5, 0.5**0.5]])
    assert found["world/ego/detections"].options["colors"] == [rgb("#4cc3ff")]
    assert [found[f"routes/{unit}"].values[0] for unit in ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT")] == [
        1,
        0,
        0.5,
    ]
    curves = {"cost/gflops": 1.5, "exits/number": 1.0, "tokens/kept": 0.25, "faults/fog": 1.0, "faults/rain": 0.0}
    assert {entity: found[entity].values[0] for entity in curves} == curves
    assert found["events"].values[0] == "faults: fog@0.3; exit: 1"


def test_a_fault_of_some_channels_has_a_path():
    assert fault_of("camera_drop[CAM_FRONT+CAM_BACK]@1.00") == "camera_drop-CAM_FRONT-CAM_BACK"
    assert fault_of("lidar_fog@0.03") == "lidar_fog"


def test_what_is_lost_is_cleared():
    frame = replace(toy_frame("t", num_sweeps=1, num_points=5), cameras={}, lidar=(), radars={}, boxes=None)
    found = logged(Moment(frame))
    cleared = {entity for entity, what in found.items() if what.kind == "Clear"}
    assert {"world/ego/CAM_BACK", "world/ego/LIDAR", "world/ego/RADAR_FRONT", "world/ego/detections"} <= cleared
    assert not any(entity.startswith("routes/") for entity in found)


def test_heights_have_colours():
    colours = height_colours(np.array([-5.0, -1.0, 4.0, 9.0]))
    assert colours[0].tolist() == colours[1].tolist() == list(rgb("#3d5a80"))
    assert colours[2].tolist() == colours[3].tolist() == list(rgb("#c9e4ff"))


def test_a_missing_library_is_named_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match=r"pip install 'dynfusion\[view\]'"):
        record([], "a.rrd")
    with pytest.raises(ValueError, match="expected save=FILE.rrd"):
        record([], "a.png")


class Viewer(Recording):
    """A recording that keeps what was asked of it, in order."""

    def __init__(self, title: str):
        super().__init__()
        self.title, self.asked = title, []

    def spawn(self, **options) -> None:
        self.asked.append(("spawn", options))

    def log(self, entity: str, what, static: bool = False) -> None:
        self.asked.append(("log", entity))
        super().log(entity, what)

    def __getattr__(self, name: str):
        return lambda *values, **options: self.asked.append((name, options))


class Library(StandIn):
    """The module, with its layout classes, and one recording."""

    def __init__(self):
        self.blueprint, self.ViewCoordinates, self.opened = StandIn(), StandIn(), []

    def RecordingStream(self, title: str) -> Viewer:
        self.opened.append(Viewer(title))
        return self.opened[-1]


def views_of(part: Archetype) -> list[Archetype]:
    """The views of a layout, wherever they hang."""
    own = [part] if part.kind.endswith("View") else []
    return own + [view for value in part.values for view in views_of(value)]


def test_without_a_file_the_viewer_opens_with_the_layout(monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "rerun", library)
    moments = [Moment(toy_frame(name, number, num_sweeps=1, num_points=5)) for number, name in enumerate("ab")]
    assert record(moments, "", title="a scene", has_model=False) == 2
    (viewer,) = library.opened
    names = [name for name, _ in viewer.asked]
    assert names[0] == "spawn"  # before anything is logged
    assert (names.count("spawn"), names.count("save")) == (1, 0)
    assert names[-1] == "flush"
    assert [options["sequence"] for name, options in viewer.asked if name == "set_time" and "sequence" in options] == [
        moment.frame.keyframe for moment in moments
    ]
    blueprint = viewer.asked[0][1]["default_blueprint"]
    assert blueprint.kind == "Blueprint"
    kinds = [view.kind for view in views_of(blueprint)]
    assert kinds == ["Spatial3DView", *["Spatial2DView"] * 6, "TimeSeriesView", "TextLogView"]
    assert views_of(blueprint)[0].options["name"] == "a scene"
