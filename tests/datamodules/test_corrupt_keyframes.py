"""Copies of data sets that hold keyframes alone: without sweeps on the disk, and the real keyframe."""

import shutil

import numpy as np
import pytest

from datamodules.corrupt.writer import write_copy
from datamodules.nuscenes import NuScenesFrames
from fusion.cli import main
from sensors.faults.protocol import Draws
from sensors.faults.suites import suite_named
from sensors.rig import CAMERAS, LIDAR
from tests.datamodules.test_corrupt import VERSION, assert_same_points, contents, request


@pytest.fixture
def keyframes_alone(own_small_set):
    """As a download of the keyframe blobs is: the tables name sweeps too."""
    shutil.rmtree(own_small_set / "sweeps")
    return own_small_set


@pytest.mark.parametrize(
    ("fault", "level"),
    [("lidar_point_drop", 0.5), ("radar_clutter", 20.0), ("lidar_freeze", 1.0), ("lidar_late", 4.0)],
    ids=["points", "radar", "freeze", "late"],
)
def test_keyframes_without_their_sweeps_are_copied_as_an_evaluation_sees_them(fault, level, keyframes_alone, tmp_path):
    asked = request(keyframes_alone, None, fault=fault, level=level, close_m=0.0)
    manifest = write_copy(asked, tmp_path / "copy")
    assert manifest["files"]["sweeps_that_the_source_lacks"] > 0
    with pytest.warns(UserWarning, match="files are missing"):
        clean = NuScenesFrames(asked.root, VERSION, None, 3, 3, close_m=0.0, missing="absent")
    found = NuScenesFrames(tmp_path / "copy", VERSION, None, 1, 1, close_m=0.0)
    assert len(found) == len(clean) == manifest["samples"]
    changed = 0
    for i in range(len(found)):
        harmed, _ = asked.corruptor().apply(clean[i], clean.history(i))
        assert len(harmed.lidar) == 1
        assert_same_points(found[i], harmed)
        changed += not np.array_equal(harmed.lidar[0].xyz_m, clean[i].lidar[0].xyz_m)
    assert changed or "radar" in fault


def test_three_processes_write_the_same_keyframes_as_one(keyframes_alone, tmp_path):
    asked = request(keyframes_alone, None, scenario="quick/fog")
    for workers in (1, 3):
        write_copy(asked, tmp_path / str(workers), num_workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_sensor_that_lacks_some_of_its_sweeps_is_refused_before_writing(own_small_set, tmp_path, capsys):
    lost = sorted((own_small_set / "sweeps" / LIDAR).iterdir())[0]
    lost.unlink()
    code = main(["corrupt", f"root={own_small_set}", f"out={tmp_path / 'copy'}", "fault=lidar_drop", "level=1"])
    told = capsys.readouterr().err
    assert code == 2
    assert told.count("\n") == 1
    assert f"expected the file {lost} that the tables name, found none (1 such files)" in told
    assert not (tmp_path / "copy").exists()


def test_a_lost_keyframe_is_refused_before_writing(keyframes_alone, tmp_path):
    sorted((keyframes_alone / "samples" / "CAM_BACK").iterdir())[0].unlink()
    with pytest.raises(FileNotFoundError, match="CAM_BACK.* and no keyframe"):
        write_copy(request(keyframes_alone, None, fault="lidar_point_drop", level=0.5), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_real_keyframe_is_copied_and_the_devkit_loads_it(nuscenes_real, tmp_path):
    from nuscenes.nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud

    from datamodules.corrupt.request import CopyRequest

    root = nuscenes_real / "frame"
    manifest = write_copy(CopyRequest(root, "v1.0-mini", scenario="quick/fog"), tmp_path / "copy")
    assert manifest["files"]["written"] == 7
    theirs = NuScenes("v1.0-mini", str(tmp_path / "copy"), verbose=False)
    sample = theirs.sample[0]
    path, boxes, _ = theirs.get_sample_data(sample["data"][LIDAR])
    assert len(boxes) == len(sample["anns"]) > 0
    clean = NuScenesFrames(root, "v1.0-mini", None, radar_sweeps=0)
    ((fault, level),) = next(s for s in suite_named("quick") if s.name == "fog").steps
    harmed = fault(clean[0], clean.history(0), level, Draws(0, sample["token"], fault.name))
    expected = np.c_[harmed.lidar[0].xyz_m, harmed.lidar[0].intensity]
    assert np.array_equal(LidarPointCloud.from_file(path).points.T, expected)
    for channel in CAMERAS:
        name = theirs.get("sample_data", sample["data"][channel])["filename"]
        assert (tmp_path / "copy" / name).read_bytes() != (root / name).read_bytes()
