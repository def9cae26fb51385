"""Same seed, same bytes: with any number of workers, and after any interruption."""

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.town.claim import claimed
from datamodules.town.presets import PRESETS, TownConfig, town_config
from datamodules.town.sampling import SceneSampler
from datamodules.town.world import SceneKey
from datamodules.town.writer import write_town
from fusion.commands.synth import parse, run

SMALL = TownConfig(
    num_train_scenes=1,
    num_val_scenes=1,
    samples_per_scene=2,
    image_scale=0.05,
    num_actors=12,
    lidar_sweeps=1,
    radar_sweeps=1,
)


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("reference") / "town"
    write_town(root, SMALL)
    return root


def test_two_workers_write_the_same_bytes(reference, tmp_path):
    told = []
    write_town(tmp_path / "town", SMALL, num_workers=2, progress=lambda done, total: told.append((done, total)))
    assert hashes(tmp_path / "town") == hashes(reference)
    assert told == [(done, 4) for done in range(5)]


class _Killed(BaseException):
    """Not an Exception: nothing may catch it on the way."""


@pytest.mark.parametrize("survived", [1, 3])
def test_interrupted_and_resumed_is_the_same(reference, tmp_path, survived):
    def stop(done, total):
        if done == survived:
            raise _Killed

    root = tmp_path / "town"
    with pytest.raises(_Killed):
        write_town(root, SMALL, progress=stop)
    assert not (root / "v1.0-town" / "sample.json").exists()
    (root / ".town" / "tmp" / "12345").write_bytes(b"half a fi")
    told = []
    write_town(root, SMALL, progress=lambda done, total: told.append(done))
    assert told[0] == survived
    assert hashes(root) == hashes(reference)


def test_a_damaged_file_is_made_again(reference, tmp_path):
    root = tmp_path / "town"
    shutil.copytree(reference, root)
    victim = next((root / "samples" / "LIDAR_TOP").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    next((root / "sweeps" / "RADAR_FRONT").iterdir()).unlink()
    write_town(root, SMALL)
    assert hashes(root) == hashes(reference)


def test_two_writers_on_one_folder(tmp_path):
    """The second one says so while the first is at work, and goes on once it is gone."""
    with claimed(tmp_path / "town" / ".town"), pytest.raises(ValueError, match="for this process alone") as error:
        write_town(tmp_path / "town", SMALL)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "town").rglob("*")) == [".town", "lock"]


def test_a_full_disk_leaves_nothing_half_written(reference, tmp_path, monkeypatch):
    """The disk fills up in the middle of the third picture; afterwards the rest is made and all bytes are the same."""
    root, room = tmp_path / "town", [3]
    whole = Path.write_bytes

    def cramped(path, content):
        if path.parent.name == "tmp" and content[:2] == b"\xff\xd8":
            room[0] -= 1
            if room[0] < 0:
                whole(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", cramped)
    with pytest.raises(ValueError, match="full disk") as error:
        write_town(root, SMALL)
    assert "\n" not in str(error.value)
    assert not (root / "v1.0-town" / "sample.json").exists()
    assert not list((root / ".town" / "tmp").iterdir())
    for path in (root / "samples").rglob("*.jpg"):
        assert path.read_bytes() == (reference / path.relative_to(root)).read_bytes()
    monkeypatch.undo()
    write_town(root, SMALL)
    assert hashes(root) == hashes(reference)


def test_a_killed_worker_ends_in_one_line_and_is_made_good(reference, tmp_path):
    root, killed = tmp_path / "town", []

    def kill(done, total):
        children = multiprocessing.active_children()
        if done == 1 and not killed and children:
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)

    with pytest.raises(ValueError, match="killed") as error:
        write_town(root, SMALL, num_workers=2, progress=kill)
    assert "\n" not in str(error.value)
    assert not (root / "v1.0-town" / "sample.json").exists()
    write_town(root, SMALL)
    assert hashes(root) == hashes(reference)


def test_camera_sweeps_are_at_twelve_hertz():
    config = replace(SMALL, camera_sweeps=2)
    shots = SceneSampler(config, SceneKey("train", 0)).shots(1)
    times = [shot.timestamp_us for shot in shots if shot.channel == "CAM_BACK"]
    np.testing.assert_allclose(np.diff(times), 1e6 / 12, atol=1500)
    assert [shot.is_key_frame for shot in shots if shot.channel == "CAM_BACK"] == [False, False, True]
    assert shots[0].filename("log").startswith("sweeps/CAM_FRONT/")


def test_another_seed_gives_another_town(reference, tmp_path):
    write_town(tmp_path / "town", replace(SMALL, seed=1, samples_per_scene=1))
    ours, theirs = hashes(tmp_path / "town"), hashes(reference)
    assert not {ours[name] for name in ours if ".bin" in name} & set(theirs.values())


def test_root_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="expected root to be a folder"):
        write_town(tmp_path / "file", SMALL)


def test_root_holds_something_else(reference, tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="choose another root"):
        write_town(tmp_path, SMALL)
    with pytest.raises(ValueError, match="another configuration"):
        write_town(reference, replace(SMALL, seed=5))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_train_scenes": "0"}, "num_train_scenes >= 1, got 0"),
        ({"samples_per_scene": "-1"}, "samples_per_scene >= 1, got -1"),
        ({"image_scale": "3"}, "image_scale in"),
        ({"image_scale": "nan"}, "finite"),
        ({"lidar_sweeps": "10"}, "at most 9"),
        ({"seed": "1.5"}, "whole number"),
        ({"dark_share": "1.5"}, "dark_share in"),
        ({"shuffle_materials": "yes"}, "true or false, got 'yes'"),
        ({"day_weight": "0", "night_weight": "0", "fog_weight": "0", "rain_weight": "0"}, "above 0"),
        ({"camera_sweeps": "6"}, "5 camera sweeps"),
        ({"day_weight": "inf"}, "finite"),
        ({"scenes": "4"}, "got 'scenes'"),
    ],
)
def test_bad_configurations_say_what_to_do(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        town_config("demo", overrides)
    assert "\n" not in str(error.value)


def test_unknown_preset():
    with pytest.raises(ValueError, match="one of tiny, demo"):
        town_config("huge", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "root=FOLDER"),
        (["root"], "key=value"),
        (["root=x", "colour=red"], "num_train_scenes"),
        (["root=x", "workers=0"], "workers"),
        (["root=x", "sheet=perhaps"], "sheet=true"),
        (["root=x", "verify=1"], "verify=true"),
        (["root=x", "workers=many"], "workers"),
        (["root=x", "preset=huge"], "preset"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(arguments)


def test_arguments_become_a_configuration():
    root, workers, config = parse(["root=a/b", "preset=demo", "workers=3", "num_train_scenes=5", "seed=9"])
    assert (root, workers) == (Path("a/b"), 3)
    assert config == replace(PRESETS["demo"], num_train_scenes=5, seed=9)


def test_synth_writes_a_town(tmp_path, capsys):
    arguments = ["preset=tiny", "num_train_scenes=1", "samples_per_scene=1", "image_scale=0.05", "num_actors=5"]
    assert run([f"root={tmp_path / 'town'}", "workers=1", *arguments]) == 0
    assert (tmp_path / "town" / "v1.0-town" / "splits.json").is_file()
    assert "2 samples" in capsys.readouterr().out
    assert run([f"root={tmp_path / 'town'}", "sheet=true"]) == 0
    assert "| boxes per frame, mean |" in capsys.readouterr().out
