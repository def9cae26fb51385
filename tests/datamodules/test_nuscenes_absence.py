"""Damaged and missing things: every one ends in one line that names it."""

import warnings

import pytest
from torch.utils.data import DataLoader

from datamodules.datamodule import NuScenesDataModule
from datamodules.index import open_index
from datamodules.nuscenes import NuScenesFrames
from datamodules.sizes import record_sizes
from fusion.cli import main, mistake_of
from tests.datamodules.test_index import edited

VERSION = "v1.0-small"


def frames_of(root, **options):
    return NuScenesFrames(root, VERSION, "small_train", **options)


def without_row(root, *tokens):
    def drop(rows):
        rows[:] = [row for row in rows if row["token"] not in tokens]
        for row in rows:
            row["prev"] = "" if row["prev"] in tokens else row["prev"]

    edited(root, "sample_data", drop)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_keyframe_that_the_tables_lack(own_small_set, place):
    """At the start, in the middle and at the end of a chain, where no token points to the lost row."""
    without_row(own_small_set, f"scene-a-RADAR_FRONT-{place}-0")
    with pytest.raises(ValueError, match=rf"RADAR_FRONT.*scene-a-sample-{place}.*\(1 such keyframes\)") as error:
        frames_of(own_small_set)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="split 'small_train': 1 keyframes are missing") as caught:
        frames = frames_of(own_small_set, missing="absent")
    assert len(caught) == 1
    assert [("RADAR_FRONT" in frames[i].radars) for i in range(4)] == [i != place for i in range(4)]
    assert len(frames_of(own_small_set, radar_sweeps=0)) == 7, "a sensor that is not read may lack anything"


def test_a_scene_without_the_sensor_lacks_nothing(own_small_set):
    names = [f"scene-a-CAM_BACK-{i}-0" for i in range(4)]
    without_row(own_small_set, *names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = frames_of(own_small_set, missing="absent")
    assert ["CAM_BACK" in frames[i].cameras for i in (0, 4)] == [False, True]
    assert len(frames_of(own_small_set)) == 7


def test_the_warning_says_how_many_files(own_small_set):
    for i in (1, 2):
        (own_small_set / f"samples/CAM_BACK/scene-a-CAM_BACK-{i}-0.jpg").unlink()
    with pytest.warns(UserWarning, match="2 of 84 files are missing in .*scene-a-CAM_BACK-1-0.jpg"):
        frames_of(own_small_set, missing="absent")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_picture_in_the_middle_of_a_split(own_small_set, num_workers, damage):
    path = own_small_set / "samples/CAM_BACK/scene-a-CAM_BACK-2-0.jpg"
    encoded = path.read_bytes()
    path.write_bytes({"cut": encoded[: len(encoded) // 2], "other": b"GIF89a" + encoded, "empty": b""}[damage])
    data = NuScenesDataModule(own_small_set, VERSION, "small_train", "small_train", (16, 32), num_workers=num_workers)
    batches = iter(data.evaluation_loader("small_train", batch_size=1))
    assert [next(batches).tokens for _ in range(2)] == [("scene-a-sample-0",), ("scene-a-sample-1",)]
    with pytest.raises(ValueError) as error:
        next(batches)
    line = mistake_of(error.value)
    assert str(path) in line
    assert line.startswith("expected a whole picture")
    assert "\n" not in line


def test_a_cloud_of_no_bytes_is_damaged_and_a_shorter_one_only_by_the_record(own_small_set):
    """20 bytes are a point: a file cut off between two of them is a valid cloud, unless its size was recorded."""
    path = own_small_set / "samples/LIDAR_TOP/scene-a-LIDAR_TOP-1-0.pcd.bin"
    encoded = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="got 0 bytes"):
        frames_of(own_small_set)[1]
    path.write_bytes(encoded[:200])
    assert len(frames_of(own_small_set)[1].lidar[0]) == 10
    path.write_bytes(encoded)
    assert main(["index", f"root={own_small_set}", f"version={VERSION}", "sizes=true"]) == 0
    assert len(frames_of(own_small_set)[1].lidar[0]) == 40
    path.write_bytes(encoded[:200])
    with pytest.raises(ValueError, match=rf"expected {len(encoded)} bytes in .*{path.name}.*got 200") as error:
        frames_of(own_small_set)[1]
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="missing=absent"):
        frames_of(own_small_set)[1]


def test_recorded_sizes_follow_the_index(own_small_set, capsys):
    index = open_index(own_small_set, VERSION)
    (own_small_set / "samples/CAM_BACK/scene-a-CAM_BACK-1-0.jpg").unlink()
    sizes = record_sizes(index, own_small_set)
    assert (sizes < 0).sum() == 1
    for row, name in enumerate(index.measurements.filename.tolist()):
        if sizes[row] >= 0:
            assert sizes[row] == (own_small_set / name.decode()).stat().st_size
    edited(own_small_set, "scene", lambda rows: rows[0].update(description="Fog"))
    assert frames_of(own_small_set)._sizes is None, "other tables, another index"
    main(["index", f"root={own_small_set}", f"version={VERSION}", "sizes=true"])
    assert f"sizes of {len(sizes) - 1:,} of {len(sizes):,} files" in " ".join(capsys.readouterr().out.split())


def test_a_worker_of_another_loader_names_the_file_too(own_small_set):
    """Whoever reads frames with a loader of their own finds the path in the error."""
    path = own_small_set / "samples/RADAR_FRONT/scene-a-RADAR_FRONT-0-0.pcd"
    path.write_bytes(path.read_bytes()[:-60])
    loader = DataLoader(frames_of(own_small_set), batch_size=None, num_workers=1)
    with pytest.raises(ValueError, match=path.name):
        next(iter(loader))
