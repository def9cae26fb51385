"""Writing a copy: any number of processes, interruptions, a full disk, and requests that cannot be."""

import errno
import json
import os
from pathlib import Path

import pytest

from datamodules.corrupt import files
from datamodules.corrupt.writer import write_copy
from fusion.cli import main
from tests.datamodules.test_corrupt import VERSION, contents, request


@pytest.fixture(scope="module")
def mixed(small_set):
    """Changes files of every kind, tables too."""
    return request(small_set, None, scenario="quick/fog", seed=3)


@pytest.fixture(scope="module")
def whole(mixed, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "copy"
    write_copy(mixed, out)
    return contents(out)


def test_three_processes_write_the_same_bytes_as_one(mixed, whole, tmp_path):
    told = []
    write_copy(mixed, tmp_path / "copy", num_workers=3, progress=lambda done, total: told.append((done, total)))
    assert contents(tmp_path / "copy") == whole
    assert told == [(i, 7) for i in range(8)]


def test_an_interrupted_copy_goes_on_and_ends_the_same(mixed, whole, tmp_path):
    class Interruption(Exception):
        pass

    def stop(done, total):
        if done == 3:
            raise Interruption

    with pytest.raises(Interruption):
        write_copy(mixed, tmp_path / "copy", progress=stop)
    assert not (tmp_path / "copy" / "manifest.json").exists()
    half = contents(tmp_path / "copy")
    # A file of a finished sample that was lost meanwhile is written again.
    lost = next(name for name in half if "LIDAR_TOP" in name)
    (tmp_path / "copy" / lost).unlink()
    told = []
    write_copy(mixed, tmp_path / "copy", progress=lambda done, total: told.append(done))
    assert told[0] == 2
    assert contents(tmp_path / "copy") == whole


def test_a_repeat_does_nothing(mixed, tmp_path):
    first = write_copy(mixed, tmp_path / "copy")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*")}
    assert write_copy(mixed, tmp_path / "copy", progress=lambda done, total: pytest.fail("worked again")) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*")} == before


@pytest.mark.parametrize("at", ["blob", "table", "manifest", "link"])
def test_a_full_disk_leaves_whole_files_only_and_one_line(at, mixed, whole, tmp_path, monkeypatch):
    """The disk is full in the middle of one file; once there is room the copy ends as it should."""
    real_write, real_open, real_link = Path.write_bytes, Path.open, os.link
    room = {"blob": 9, "table": 10**9, "manifest": 10**9, "link": 10**9}[at]

    def full():
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(path, content):
        nonlocal room
        room -= 1
        if path.parent.name == "tmp" and (room < 0 or (at == "manifest" and content.startswith(b'{\n "title"'))):
            real_write(path, content[: len(content) // 2])
            raise full()
        return real_write(path, content)

    def open_(path, mode="r", *args, **kwargs):
        if at == "table" and mode == "w" and path.parent.name == "tmp":
            real_write(path, b"[")
            raise full()
        return real_open(path, mode, *args, **kwargs)

    def link(source, target, **kwargs):
        if at == "link" and str(source).endswith("map.json"):
            raise full()
        return real_link(source, target, **kwargs)

    monkeypatch.setattr(Path, "write_bytes", write)
    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(files.os, "link", link)
    with pytest.raises(ValueError, match="No space left on device.*goes on where it stopped") as caught:
        write_copy(mixed, tmp_path / "copy")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    left = contents(tmp_path / "copy")
    own = {name: content for name, content in left.items() if not name.startswith(".corrupt/")}
    assert all(whole[name] == content for name, content in own.items())
    assert "manifest.json" not in own
    assert not any("/tmp/" in name for name in left)
    write_copy(mixed, tmp_path / "copy")
    assert contents(tmp_path / "copy") == whole


def test_without_hard_links_the_bytes_are_copied(mixed, whole, tmp_path, monkeypatch):
    def refuse(source, target, **kwargs):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(files.os, "link", refuse)
    write_copy(mixed, tmp_path / "copy")
    assert contents(tmp_path / "copy") == whole
    assert not (tmp_path / "copy" / VERSION / "map.json").samefile(mixed.root / VERSION / "map.json")


def test_the_source_is_untouched(own_small_set, tmp_path):
    before = contents(own_small_set)
    write_copy(request(own_small_set, scenario="missing-sensors/camera"), tmp_path / "copy")
    assert contents(own_small_set) == before


def test_another_request_into_the_same_folder_is_refused(mixed, small_set, tmp_path):
    write_copy(mixed, tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with pytest.raises(ValueError, match="another seed"):
        write_copy(request(small_set, None, scenario="quick/fog", seed=4), tmp_path / "copy")
    with pytest.raises(ValueError, match="another split"):
        write_copy(request(small_set, split="small_val", scenario="quick/fog", seed=3), tmp_path / "copy")
    assert contents(tmp_path / "copy") == before


def test_a_folder_of_other_things_is_refused(mixed, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="empty or an unfinished copy"):
        write_copy(mixed, tmp_path)
    assert list(contents(tmp_path)) == ["thesis.txt"]


MISTAKES = {
    "no source": ("out=copy scenario=quick/fog", "root=FOLDER"),
    "source that is not there": ("root=/no/such out=copy scenario=quick/fog", "/no/such"),
    "onto itself": ("root={root} out={root} scenario=quick/fog", "apart from the source"),
    "into itself": ("root={root} out={root}/copy scenario=quick/fog", "apart from the source"),
    "unknown suite": ("root={root} out=copy scenario=slow/fog", "missing-sensors"),
    "unknown scenario": ("root={root} out=copy scenario=quick/smog", "cameras-black"),
    "scenario without suite": ("root={root} out=copy scenario=fog", "SUITE/NAME"),
    "unknown fault": ("root={root} out=copy fault=smog level=1", "did you mean fog or snow"),
    "no level": ("root={root} out=copy fault=lidar_point_drop", "share"),
    "level out of range": ("root={root} out=copy fault=lidar_point_drop level=7", "between 0 and"),
    "channel that the rig lacks": ("root={root} out=copy fault=camera_dark level=3 channels=[CAM_UP]", "CAM_FRONT"),
    "both": ("root={root} out=copy fault=camera_dark level=3 scenario=quick/fog", "either scenario"),
    "unknown split": ("root={root} out=copy scenario=quick/fog split=tomorrow", "small_train"),
    "unknown form": ("root={root} out=copy scenario=quick/fog lost=somehow", "missing, empty"),
    "no processes": ("root={root} out=copy scenario=quick/fog workers=-1", "workers"),
}


@pytest.mark.parametrize(("settings", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_nothing_is_written(settings, expected, small_set, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["corrupt", *settings.format(root=small_set).split()]) == 2
    printed = capsys.readouterr().err.strip()
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert not (small_set / "copy").exists()


def test_a_fault_of_a_sensor_that_the_frames_never_have_is_refused_before_writing(own_small_set, tmp_path, capsys):
    """No keyframe of a radar in the tables."""
    table = own_small_set / VERSION / "sample_data.json"
    rows = [row for row in json.loads(table.read_text()) if "RADAR" not in row["filename"]]
    table.write_text(json.dumps(rows))
    out = tmp_path / "copy"
    assert main(["corrupt", f"root={own_small_set}", f"out={out}", "fault=radar_ghosts", "level=0.4"]) == 2
    assert "RADAR_FRONT" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_a_copy_and_says_what_is_in_it(small_set, tmp_path, capsys):
    settings = [f"root={small_set}", f"out={tmp_path / 'copy'}", "scenario=missing-sensors/camera+lidar", "workers=1"]
    assert main(["corrupt", *settings]) == 0
    printed = capsys.readouterr().out
    assert "7 samples" in printed
    assert "missing=absent" in printed
