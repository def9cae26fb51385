"""Recordings written by the library itself, without a window, and read back with its own reader."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion.cli import main
from fusion.view.rerun_log import Moment, record
from fusion.view.rerun_series import Ran, branches_of
from sensors.rig import CAMERAS, RADARS, UNITS
from tests.fusion.detections import boxes_at
from tests.fusion.remembering_model import scorable_small_set
from tests.fusion.routed_run import SMALL_SET, write_routed_run
from tests.sensors.toy_frames import toy_frame

NEVER = "+model.exits.thresholds=[2.0,2.0]"
pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'dynfusion[view]'")


class Read:
    """A recording by the library's reader: one row per keyframe."""

    def __init__(self, path: Path):
        import rerun.dataframe

        self.loaded = rerun.dataframe.load_recording(path)
        self.table = self.loaded.view(index="keyframe", contents="/**").select().read_all()
        self.entities = {column.entity_path for column in self.loaded.schema().component_columns()}

    def column(self, entity: str, component: str) -> list:
        """A component at every keyframe; None where nothing was logged."""
        return self.table.column(f"/{entity}:{component}").to_pylist()

    def curve(self, entity: str) -> list[float | None]:
        """A series' values."""
        return [None if value is None else value[0] for value in self.column(entity, "Scalar")]


def moments() -> list[Moment]:
    """Three keyframes: sound, with fog on the LiDAR while the router skips it and leaves early, sound without radar."""
    labels = boxes_at([[10.0, 2.0, 1.0], [20.0, 2.0, 1.0]], num_points=np.array([3, 0]))
    frames = [replace(toy_frame(f"t{k}", k, num_sweeps=1, num_points=50), boxes=labels) for k in range(3)]
    frames = [replace(frame, keyframe=k, timestamp_us=500_000 * (k + 1)) for k, frame in enumerate(frames)]
    frames[2] = replace(frames[2], radars={}, cameras={})
    found = boxes_at([[9.0, 2.0, 1.0], [9.0, 9.0, 1.0]], score=np.array([0.9, 0.1]))
    early = branches_of([2] * 6 + [0, 1])
    everything = branches_of([2] * 8)
    rans = [Ran(everything, 9.0, 2, 0.75), Ran(early, 4.0, 0, 0.0), Ran(everything, 9.0, 2, 0.5)]
    acting = [(), ("lidar_fog@0.03",), ()]
    return [
        Moment(frame, found, ran, names, ("lidar_fog@0.03",))
        for frame, ran, names in zip(frames, rans, acting, strict=True)
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, Read]:
    path = tmp_path_factory.mktemp("recording") / "deep" / "scene.rrd"
    assert record(moments(), str(path), "a scene") == 3
    assert [file.name for file in path.parent.iterdir()] == ["scene.rrd"]
    return path, Read(path)


def test_the_file_is_sound(written):
    """The library's own check; it is the command line tool that comes with the package."""
    command = [sys.executable, "-m", "rerun", "rrd", "verify", str(written[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "verified without error" in done.stdout + done.stderr


def test_sensors_are_there_keyframe_by_keyframe(written):
    _, read = written
    assert len(read.table) == 3
    for channel in CAMERAS:
        pictures = read.column(f"world/ego/{channel}/image", "Blob")
        assert [picture is not None for picture in pictures] == [True, True, False]
        assert bytes(pictures[0][0][:2]) == b"\xff\xd8", "a JPEG"
        assert read.column(f"world/ego/{channel}/image", "PinholeProjection")[0] is not None
    frame = moments()[0].frame
    points = np.array(read.column("world/ego/LIDAR", "Position3D")[0])
    np.testing.assert_allclose(points, frame.lidar[0].to_ego(), atol=1e-5)
    for channel in RADARS:
        places, velocity_mps = frame.radars[channel][0].to_ego()
        arrows = read.column(f"world/ego/{channel}/doppler", "Vector3D")
        np.testing.assert_allclose(np.array(arrows[0])[:, :2], 0.5 * velocity_mps, atol=1e-5)
        np.testing.assert_allclose(read.column(f"world/ego/{channel}/points", "Position3D")[0], places, atol=1e-5)
        assert not arrows[2], "a lost radar"


def test_boxes_of_both_kinds_are_there(written):
    _, read = written
    (label,) = read.column("world/ego/labels", "PoseTranslation3D")[0]
    assert label == pytest.approx([10.0, 2.0, 1.0]), "the one with points"
    (found,) = read.column("world/ego/detections", "PoseTranslation3D")[0]
    assert found == pytest.approx([9.0, 2.0, 1.0]), "the one with a score that is drawn"
    assert read.column("world/ego/detections", "Text")[0] == ["car 0.90"]


def test_routes_exits_tokens_and_faults_are_curves(written):
    _, read = written
    assert {f"/routes/{unit}" for unit in UNITS} <= read.entities
    assert read.curve("routes/LIDAR") == [1.0, 0.0, 1.0]
    assert read.curve("routes/RADAR") == [1.0, 0.5, 1.0]
    assert read.curve("exits/number") == [2.0, 0.0, 2.0]
    assert read.curve("tokens/kept") == [0.75, 0.0, 0.5]
    assert read.curve("cost/gflops") == [9.0, 4.0, 9.0]
    assert read.curve("faults/lidar_fog") == [0.0, 1.0, 0.0]
    texts = [text for (text,) in read.column("events", "Text")]
    assert texts == ["faults: none; exit: 2", "faults: lidar_fog@0.03; exit: 0", "faults: none; exit: 2"]
    assert [level for (level,) in read.column("events", "TextLogLevel")] == ["INFO", "WARN", "INFO"]


def test_nothing_half_written_stays(tmp_path):
    def failing():
        yield moments()[0]
        raise ValueError("expected a LiDAR")

    with pytest.raises(ValueError, match="expected a LiDAR"):
        record(failing(), str(tmp_path / "a.rrd"))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("command")
    scorable_small_set(root / "set")
    return root


@pytest.fixture(scope="module")
def run(folder) -> Path:
    """With routes, exits and tokens; nobody leaves early: a probability does not reach 2."""
    return write_routed_run(folder / "run", folder / "set", *SMALL_SET, "model=tiny_adaptive", NEVER)


def test_a_run_with_routes_exits_and_tokens_on_the_command_line(run, folder, capsys):
    out = folder / "run.rrd"
    settings = [f"run={run}", "device=cpu", f"save={out}", "suite=failover", "fault=lidar-lost-and-back"]
    assert main(["view", *settings]) == 0
    assert "keyframes written" in capsys.readouterr().out
    read = Read(out)
    num = len(read.table)
    assert num > 1
    for unit in UNITS:
        assert set(read.curve(f"routes/{unit}")) <= {0.0, 0.5, 1.0}
    assert set(read.curve("exits/number")) == {2.0}, "nobody leaves early"
    assert all(0 < share <= 1 for share in read.curve("tokens/kept"))
    assert all(cost > 0 for cost in read.curve("cost/gflops"))
    (fault,) = [entity for entity in read.entities if entity.startswith("/faults/")]
    acts = read.curve(fault.removeprefix("/"))
    assert len(acts) == num
    assert set(acts) == {0.0, 1.0}, "midway: it rests, then acts"
    lidar = [bool(points) for points in read.column("world/ego/LIDAR", "Position3D")]
    assert lidar == [value == 0.0 for value in acts], "lost where the fault acts"


def test_a_pass_that_never_reaches_the_tokens_keeps_none(run, folder):
    out = folder / "early.rrd"
    settings = [f"run={run}", "device=cpu", f"save={out}", "scene=1", "model.exits.thresholds=[0.0,0.0]"]
    assert main(["view", *settings]) == 0
    read = Read(out)
    assert set(read.curve("exits/number")) == {0.0}
    assert set(read.curve("tokens/kept")) == {0.0}


def test_a_data_set_alone_on_the_command_line(folder):
    out = folder / "data.rrd"
    assert main(["view", f"root={folder / 'set'}", f"save={out}", "fault=camera_dark"]) == 0
    read = Read(out)
    assert set(read.curve("faults/camera_dark")) == {1.0}
    assert not any(entity.startswith("/routes/") for entity in read.entities)
