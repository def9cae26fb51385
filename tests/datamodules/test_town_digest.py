"""A town's digest: what it covers, what it says of a changed byte, and the committed one of preset ``tiny``."""

import hashlib
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from datamodules.town import digest
from datamodules.town.digest import PARTS, commit_reference, digest_of, preset_of, reference_of, verdict
from datamodules.town.presets import PRESETS, TownConfig
from datamodules.town.writer import WORLD_VERSION, write_town
from fusion.cli import main
from sensors.rig import CHANNELS

SMALL = TownConfig(num_train_scenes=1, num_val_scenes=1, samples_per_scene=1, image_scale=0.05, num_actors=8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("digest") / "tiny"
    write_town(root, PRESETS["tiny"])
    return root


def _changed(path):
    """Flip one bit in the middle, and say how to undo it."""
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    return lambda: path.write_bytes(whole)


ARITHMETIC = "bdbccf756e429d86"
"""Digest of what this world computes with, on the machine that wrote the committed references."""


def arithmetic() -> str:
    """Digest of sines, exponentials, roots and products in both precisions, and of a resized, blurred JPEG."""
    whole = hashlib.sha256()
    for kind in (np.float32, np.float64):
        x = np.linspace(0.01, 7, 1001, dtype=kind)
        for values in (np.sin(x), np.cos(x), np.exp(-x), np.log(x), np.sqrt(x), np.arctan2(x, x[::-1]), x**1.7):
            whole.update(values.tobytes())
        whole.update((x[:900].reshape(30, 30) @ x[100:1000].reshape(30, 30)).tobytes())
    picture = (np.add.outer(np.arange(90) ** 2, 3 * np.arange(160)) % 256).astype(np.uint8)
    picture = cv2.GaussianBlur(cv2.resize(picture, (100, 60), interpolation=cv2.INTER_AREA), (0, 0), 1.3)
    whole.update(cv2.imencode(".jpg", picture)[1].tobytes())
    return whole.hexdigest()[:16]


def test_the_tiny_town_is_the_committed_one(tiny):
    same, text = verdict(tiny)
    if not same and arithmetic() != ARITHMETIC:
        pytest.skip(f"this machine computes other last bits than the one of the references: {text.splitlines()[-1]}")
    assert same, text


def test_the_references_are_of_this_world_and_whole():
    told = json.loads(digest.REFERENCES.read_text())
    assert told["world"] == WORLD_VERSION
    assert {"tiny", "bench"} <= set(told["presets"])
    for parts in told["presets"].values():
        assert set(parts) == set(PARTS)
        assert all(len(bytes.fromhex(value)) == 32 for value in parts.values())
    assert reference_of("demo") is None


def test_the_digest_is_that_of_a_list_of_files(tiny):
    """What ``sha256sum`` prints for the files in the order of their names, hashed again."""
    files = sorted(path.relative_to(tiny).as_posix() for path in (tiny / "samples").rglob("*.jpg"))
    lines = [f"{hashlib.sha256((tiny / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    assert digest_of(tiny)["cameras"] == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("v1.0-town/scene.json", "tables"),
        ("maps/*.png", "maps"),
        *((f"samples/{channel}/*", {"C": "cameras", "L": "lidar", "R": "radars"}[channel[0]]) for channel in CHANNELS),
    ],
)
def test_one_bit_anywhere_is_noticed_and_its_part_is_named(tiny, pattern, part):
    undo = _changed(sorted(tiny.glob(pattern))[-1])
    same, text = verdict(tiny)
    undo()
    assert same is False
    assert text.endswith(f"of preset tiny, world version {WORLD_VERSION}, in: {part}")


def test_verify_says_so_and_sets_the_status(tiny, capsys):
    assert main(["synth", "preset=tiny", f"root={tiny}", "verify=true"]) == 0
    assert f"equals the committed reference of preset tiny, world version {WORLD_VERSION}" in capsys.readouterr().out
    undo = _changed(next((tiny / "samples" / "LIDAR_TOP").iterdir()))
    assert main(["synth", "preset=tiny", f"root={tiny}", "verify=true"]) == 1
    undo()
    assert "in: lidar" in capsys.readouterr().out


def test_a_town_of_its_own_has_nothing_to_compare_with(tmp_path, capsys, monkeypatch):
    write_town(tmp_path / "town", SMALL)
    assert preset_of(tmp_path / "town") is None
    assert main(["synth", f"root={tmp_path / 'town'}", "verify=true"]) == 0
    assert "no committed digest" in capsys.readouterr().out
    with pytest.raises(ValueError, match="town of a preset"):
        commit_reference(tmp_path / "town")
    monkeypatch.setitem(PRESETS, "small", SMALL)
    monkeypatch.setattr(digest, "REFERENCES", tmp_path / "digests.json")
    commit_reference(tmp_path / "town")
    assert verdict(tmp_path / "town")[0] is True
    monkeypatch.setattr(digest, "WORLD_VERSION", WORLD_VERSION + 1)
    assert verdict(tmp_path / "town")[0] is None


def test_shuffled_materials_keep_everything_but_what_is_seen_of_them(tmp_path):
    for name, on in (("plain", False), ("shuffled", True)):
        write_town(tmp_path / name, replace(SMALL, shuffle_materials=on))
    plain, shuffled = (digest_of(tmp_path / name) for name in ("plain", "shuffled"))
    assert [part for part in PARTS if plain[part] == shuffled[part]][-2:] == ["maps", "radars"]
    assert plain["cameras"] != shuffled["cameras"]
    assert plain["lidar"] != shuffled["lidar"]
    rows = [
        [(row["token"], row["translation"], row["rotation"], row["size"]) for row in json.loads(path.read_text())]
        for path in (tmp_path / name / "v1.0-town" / "sample_annotation.json" for name in ("plain", "shuffled"))
    ]
    both = {row[0] for row in rows[0]} & {row[0] for row in rows[1]}
    assert len(both) > 0.7 * len(rows[0])  # who is met by no beam at all has no label
    assert [row for row in rows[0] if row[0] in both] == [row for row in rows[1] if row[0] in both]


@pytest.mark.parametrize("missing", ["v1.0-town/splits.json", "town"])
def test_an_unfinished_town_has_no_digest(tmp_path, capsys, missing):
    assert main(["synth", f"root={tmp_path / missing}", "verify=true"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
