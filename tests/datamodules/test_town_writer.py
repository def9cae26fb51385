"""Same seed, same bytes: with any number of workers, and after any interruption."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.town.presets import PRESETS, TownConfig, town_config
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
