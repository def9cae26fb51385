"""Tables, charts and measures of the page against hand arithmetic and a second reader."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.report.charts import Line, chart, front
from fusion.report.content import RunContent
from fusion.report.html import write_report
from fusion.report.sections import (
    as_csv,
    as_json,
    comparison,
    measures,
    regret_table,
    severity_map,
    table_rows,
)
from fusion.report.text_tables import text_table
from fusion.robustness.cells import append_cell
from tests.fusion.test_report import STEP, cell_of

HARDER = ({**STEP[0], "level": 2.0},)


def run_of(tmp_path, name: str, version: str = "v1.0-town", **scores) -> RunContent:
    cells = (
        cell_of("clean", nds=0.5),
        cell_of("fog-1", steps=STEP, nds=scores.get("mild", 0.4), seen_in_training="neither"),
        cell_of("fog-2", steps=HARDER, nds=scores.get("hard", 0.25), seen_in_training="neither"),
        cell_of("clean", budget=0.5, nds=0.3, policy="random"),
    )
    return RunContent(tmp_path / name, {"data": {"version": version}}, None, cells)


def test_severities_stand_in_one_row_with_what_is_kept(tmp_path):
    (row,) = severity_map(run_of(tmp_path, "a"))
    assert (row["title"], row["seen"]) == ("fog", "unseen")
    assert [cell["kept"] for cell in row["cells"]] == pytest.approx([0.8, 0.5])


def test_runs_side_by_side_mark_the_best(tmp_path):
    rows = comparison([run_of(tmp_path, "a"), run_of(tmp_path, "b", mild=0.45, hard=0.2)])
    assert [(row["title"], row["values"], row["best"]) for row in rows] == [
        ("all sensors", [0.5, 0.5], 0.5),
        ("fog 1", [0.4, 0.45], 0.45),
        ("fog 2", [0.25, 0.2], 0.25),
    ]
    assert comparison([run_of(tmp_path, "a")]) == []


def test_csv_and_json_hold_every_cell(tmp_path):
    runs = [run_of(tmp_path, 'a "quoted", name'), run_of(tmp_path, "<script>")]
    rows = list(csv.DictReader(io.StringIO(as_csv(table_rows(runs)))))
    assert len(rows) == 8
    assert rows[1]["run"] == 'a "quoted", name'
    assert float(rows[1]["kept"]) == pytest.approx(0.8)
    text = str(as_json(runs))
    assert "<" not in text
    summary = json.loads(text)["summaries"]["<script>"]["at"][0]["nds"]
    assert summary["mRA"] == pytest.approx((0.4 + 0.25) / 2 / 0.5)
    assert summary["mRRA"] == pytest.approx(0)


def test_markdown_and_latex(tmp_path):
    run = run_of(tmp_path, "a")
    lines = text_table([run], "markdown").splitlines()
    assert lines[:3] == [
        "| scenario | budget | mAP | NDS | of clean | GFLOPs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| all sensors | 1 | 0.500 | 0.500 | 100% | 20.00 |",
    ]
    assert lines[4].startswith("| fog 2 | 1 | 0.500 | 0.250 | 50% |")
    assert lines[5].startswith("| all sensors (random) | 0.5 |")
    assert "not nuScenes scores" in lines[-1]
    latex = text_table([run, run_of(tmp_path, "b_c", "v1.0-mini")], "latex")
    assert r"b\_c & fog 2 & 1 & 0.500 & 0.250 & 50\% & 20.00 \\" in latex
    with pytest.raises(ValueError, match="expected format to be one of html, markdown, latex, got 'pdf'"):
        text_table([run], "pdf")


def test_regret_stands_where_it_is_known(tmp_path):
    known = {"router_loss": 0.75, "oracle_loss": 0.5, "router_gflops": 3.0, "oracle_gflops": 2.9, "num_routes": 7}
    cells = (
        cell_of("clean", nds=0.5, regret={"regret": 0.25, **known}),
        cell_of("clean", budget=0.5, nds=0.4, regret={"regret": 0.125, **known}),
        cell_of("fog-1", steps=STEP, nds=0.4, regret={"regret": -0.01, **known}),
    )
    run = RunContent(tmp_path / "a", {"data": {"version": "v1.0-town"}}, None, cells)
    table = regret_table(run)
    assert table["budgets"] == [1.0, 0.5]
    assert [[value and value["text"] for value in row["values"]] for row in table["rows"]] == [
        ["0.250", "0.125"],
        ["-0.010", None],
    ]
    assert [value["share"] for value in table["rows"][0]["values"]] == [1.0, 0.5]
    lines = text_table([run], "markdown").splitlines()
    assert lines[0] == "| scenario | budget | mAP | NDS | of clean | GFLOPs | regret |"
    assert lines[2].endswith("| 20.00 | 0.250 |")
    assert "regret" in text_table([run], "latex")
    assert [row["regret"] for row in table_rows([run])] == [0.25, 0.125, -0.01]
    rows = measures(run, with_regret=True)
    assert [row["values"]["regret"] for row in rows] == ["0.120", "0.125"]
    for cell in cells:
        append_cell(tmp_path / "a" / "robustness.jsonl", cell)
    assert "Regret against the oracle" in write_report(tmp_path / "a").read_text()
    assert regret_table(run_of(tmp_path, "b")) is None


POINTS = st.lists(st.tuples(*[st.integers(0, 9).map(float)] * 2), min_size=1, max_size=20)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points):
    beaten = [a for a in points if any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in points)]
    assert front(points) == sorted(set(points) - set(beaten))


def test_a_gap_breaks_a_line_and_bands_are_drawn():
    drawn = str(chart([Line("<r>", [(0.0, 1.0), (1.0, None), (2.0, 0.5)])], ("x", "y"), bands=[(0.5, 1.5)]))
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 2
    assert drawn.count('class="band"') == 1
    assert "&lt;r&gt;" in drawn
    assert "<r>" not in drawn


def test_a_page_of_two_runs(tmp_path):
    for name in ("a", "b"):
        for cell in run_of(tmp_path, name).cells:
            append_cell(tmp_path / name / "robustness.jsonl", cell)
    page = write_report(tmp_path / "a", [tmp_path / "b"], tmp_path / "both.html").read_text()
    assert "Runs side by side" in page
    assert "Faults by severity" in page
    assert "Against controls" in page
    assert not (tmp_path / "a" / "report.html").exists()
