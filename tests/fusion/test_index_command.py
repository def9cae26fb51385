"""The index command: what it prints, and a mistake in one line."""

import pytest

from fusion.cli import main
from fusion.commands import index
from tests.datamodules.small_set import write_small_set


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return write_small_set(tmp_path_factory.mktemp("small"))


def test_summary_counts_what_is_there(small_set, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert index.run([f"root={small_set}", "version=v1.0-small"]) == 0
    shown = capsys.readouterr().out
    assert "2 scenes, 7 samples" in shown
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert ["CAM_FRONT", "7", "7"] in rows
    assert ["LIDAR_TOP", "7", "17"] in rows
    assert ["pedestrian", "7", "0", "0"] in rows
    assert ["other categories", "7", "0", "0"] in rows
    assert ".dynfusion-index" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["root=/nowhere", "version=v1.0-mini"], "expected the data set's folder at /nowhere"),
        (["version=v1.0-mini"], "expected root=FOLDER"),
        (["rot=/nowhere"], "got 'rot=/nowhere'"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(capsys, arguments, words):
    assert main(["index", *arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
