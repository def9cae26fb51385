"""The index: tokens resolved to rows, kept and renewed, and every mistake told in one line."""

import json
import pickle

import numpy as np
import pytest

from datamodules import columns, index, tables
from datamodules.index import open_index
from datamodules.splits import custom_splits, scenes_of_split
from tests.datamodules.small_set import PEDESTRIAN_MPS, SCENES

VERSION = "v1.0-small"


def edited(root, table, change):
    """Rewrite one table."""
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_samples_are_in_scene_order_with_all_keyframes(small_set):
    samples = open_index(small_set, VERSION).samples
    expected = [f"{name}-sample-{i}".encode() for name, _, count in SCENES for i in range(count)]
    assert samples.token.tolist() == expected
    assert (samples.keyframes >= 0).all()


def test_chain_stops_at_the_start_of_its_scene(small_set):
    opened = open_index(small_set, VERSION)
    for row, first in ((0, True), (3, False), (4, True)):
        lidar = opened.samples.keyframes[row, 6]
        assert (opened.measurements.previous[lidar] < 0) == first


def test_previous_from_another_scene_is_not_followed(own_small_set):
    def join_scenes(rows):
        by_token = {row["token"]: row for row in rows}
        by_token["scene-b-LIDAR_TOP-0-0"]["prev"] = "scene-a-LIDAR_TOP-3-0"

    edited(own_small_set, "sample_data", join_scenes)
    opened = open_index(own_small_set, VERSION)
    assert opened.measurements.previous[opened.samples.keyframes[4, 6]] == -1


def test_velocity_is_the_difference_over_the_neighbours(small_set):
    annotations = open_index(small_set, VERSION).annotations
    walking = annotations.label == 5
    np.testing.assert_allclose(annotations.velocity_mps[walking], np.tile(PEDESTRIAN_MPS, (7, 1)), atol=1e-6)
    np.testing.assert_array_equal(annotations.velocity_mps[annotations.label == 0], 0)


def test_velocity_over_a_long_gap_is_unknown(own_small_set):
    def stretch(rows):
        for row in rows:
            if row["token"].startswith("scene-a-sample"):
                row["timestamp"] += 1_200_000 * int(row["token"][-1])

    edited(own_small_set, "sample", stretch)
    annotations = open_index(own_small_set, VERSION).annotations
    ends = [b"scene-a-human.pedestrian.adult-0", b"scene-a-human.pedestrian.adult-3"]
    walking = np.flatnonzero([token.startswith(b"scene-a-human") for token in annotations.token])
    # One side: 1.7 s, more than 1.5 s. Two sides: 3.4 s, more than 3 s.
    assert np.isnan(annotations.velocity_mps[walking]).all()
    assert set(ends) <= set(annotations.token[walking].tolist())


def test_kept_index_is_opened_not_built(small_set, monkeypatch):
    open_index(small_set, VERSION)
    monkeypatch.setattr(index, "build_index", None)
    assert len(open_index(small_set, VERSION).samples.token) == 7


def test_stale_index_is_built_again(own_small_set):
    before = open_index(own_small_set, VERSION).folder
    edited(own_small_set, "scene", lambda rows: rows[0].update(description="Fog"))
    opened = open_index(own_small_set, VERSION)
    assert opened.scenes.description[0] == b"Fog"
    assert [folder.name for folder in opened.folder.parent.iterdir()] == [opened.folder.name] != [before.name]


def test_read_only_data_set_is_indexed_in_the_cache(own_small_set, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (own_small_set / VERSION / ".dynfusion-index").write_text("in the way")
    opened = open_index(own_small_set, VERSION)
    assert tmp_path / "cache" in opened.folder.parents
    assert open_index(own_small_set, VERSION).folder == opened.folder


def test_failed_build_leaves_nothing(own_small_set):
    edited(own_small_set, "log", lambda rows: rows.clear())
    with pytest.raises(ValueError, match="log"):
        open_index(own_small_set, VERSION)
    assert not (own_small_set / VERSION / ".dynfusion-index").exists()


def test_pickles_as_its_folder(small_set):
    opened = open_index(small_set, VERSION)
    frozen = pickle.dumps(opened)
    assert len(frozen) < 1000
    assert pickle.loads(frozen).samples.token.tolist() == opened.samples.token.tolist()


def test_long_columns_are_mapped(small_set, monkeypatch):
    monkeypatch.setattr(columns, "_IN_MEMORY_BYTES", 0)
    opened = open_index(small_set, VERSION)
    assert isinstance(opened.measurements.pose_m, np.memmap)


@pytest.mark.parametrize("chunk", [17, 64, 1000])
def test_tables_are_read_across_chunks(small_set, monkeypatch, chunk):
    whole = tables.read_columns(small_set / VERSION, "sample_annotation")
    monkeypatch.setattr(tables, "_CHUNK", max(chunk, 400))
    monkeypatch.setattr(tables, "_BLOCK", 3)
    parts = tables.read_columns(small_set / VERSION, "sample_annotation")
    for name, column in whole.items():
        np.testing.assert_array_equal(parts[name], column)


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("sample_data", lambda rows: rows[3].update(ego_pose_token="gone"), ("gone", "ego_pose.json")),
        ("sample_data", lambda rows: rows[3].update(prev="gone"), ("gone", "sample_data.prev")),
        ("sample_annotation", lambda rows: rows[0].update(sample_token="gone"), ("gone", "sample.json")),
        ("instance", lambda rows: rows.pop(), ("instance.json", "instance_token")),
        ("ego_pose", lambda rows: rows.append(rows[0]), ("twice", "ego_pose.json")),
        ("ego_pose", lambda rows: rows[2].update(translation=[1.0, float("nan"), 2.0]), ("record 2", "finite")),
        ("ego_pose", lambda rows: rows[2].update(rotation=[1.0]), ("record 2", "rotation")),
        ("sample", lambda rows: rows[1].pop("timestamp"), ("record 1", "timestamp")),
        ("sample", lambda rows: rows[1].update(timestamp=None), ("record 1", "timestamp")),
        ("scene", lambda rows: rows[1].update(name=7), ("record 1", "'name'")),
    ],
)
def test_broken_tables_are_named_in_one_line(own_small_set, table, change, words):
    edited(own_small_set, table, change)
    with pytest.raises(ValueError) as error:
        open_index(own_small_set, VERSION)
    text = one_line(error)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("text", ["", "{}", "[{", '[{"token": "a"} {"token"', "[{]", "\xff\xfe"])
def test_malformed_json_is_told_in_one_line(own_small_set, text):
    (own_small_set / VERSION / "sample.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="copy the table again") as error:
        open_index(own_small_set, VERSION)
    assert "sample.json" in one_line(error)


def test_missing_things_are_named(own_small_set):
    with pytest.raises(FileNotFoundError, match="root=") as error:
        open_index(own_small_set / "nowhere", VERSION)
    one_line(error)
    with pytest.raises(FileNotFoundError, match=VERSION) as error:
        open_index(own_small_set, "v1.0-mini")
    one_line(error)
    (own_small_set / VERSION / "map.json").unlink()
    with pytest.raises(FileNotFoundError, match="map") as error:
        open_index(own_small_set, VERSION)
    one_line(error)


def test_splits(small_set):
    from nuscenes.utils.splits import create_splits_scenes

    assert scenes_of_split(small_set, VERSION, "small_val") == ("scene-b",)
    assert list(scenes_of_split(small_set, VERSION, "mini_val")) == create_splits_scenes()["mini_val"]
    assert custom_splits(small_set, "no-version") == {}
    with pytest.raises(ValueError, match="small_train, small_val") as error:
        scenes_of_split(small_set, VERSION, "tran")
    one_line(error)


@pytest.mark.parametrize("text", ["[", '["a"]', '{"a": "b"}'])
def test_broken_splits_are_told(own_small_set, text):
    (own_small_set / VERSION / "splits.json").write_text(text)
    with pytest.raises(ValueError, match="splits.json") as error:
        scenes_of_split(own_small_set, VERSION, "small_val")
    one_line(error)
