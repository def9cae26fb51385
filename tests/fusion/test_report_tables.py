"""Tables, charts and measures of the page against hand arithmetic and a second reader."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.report.charts import Line, chart, front
from fusion.report.content import RunContent, read_run
from fusion.report.curves import precision_recall_chart
from fusion.report.export import as_csv, as_json, table_rows
from fusion.report.html import write_report
from fusion.report.severity import severity_map
from fusion.report.tables import comparison, interval_rows, measures, regret_table
from fusion.report.text_tables import text_table
from fusion.robustness.cells import append_cell
from fusion.robustness.table import comparison_table
from fusion.scoring.metrics import write_metrics
from tests.fusion.test_report import STEP, cell_of, metrics_of

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
    (row,) = severity_map([run_of(tmp_path, "a")])["rows"]
    assert (row["title"], row["mark"]) == ("fog", "unseen")
    assert [cell["kept"] for cell in row["blocks"][0]] == pytest.approx([0.8, 0.5])


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
    measures = page[page.index("Robustness measures") :].partition("</table>")[0]
    assert "<th>run</th>" in measures
    assert all(f'<th scope="row">{name}</th>' in measures for name in ("a", "b"))
    alone = write_report(tmp_path / "a", [], tmp_path / "one.html").read_text()
    assert "<th>run</th>" not in alone[alone.index("Robustness measures") :].partition("</table>")[0]


def test_a_page_with_time_lines_curves_and_intervals(tmp_path):
    """Numbers that stand in the files stand on the page: by hand, each once and where it belongs."""
    frame = {"recall_2m": 0.5, "let_go": 0.0, "harmed": 0.0}
    frames = [frame, {**frame, "harmed": 1.0, "recall_2m": 0.25}, {**frame, "harmed": 1.0, "let_go": 1.0}, frame]
    phases = {"before": {"mean_ap": 0.417}, "during": {"mean_ap": 0.128}, "after": {"mean_ap": None}}
    failover = {"phases": phases, "frames": frames, "react_frames": {"s": 1}, "recover_frames": {"s": None}}
    lost = cell_of("lidar-lost-midway", steps=STEP, failover=failover)
    for cell in (cell_of("clean"), lost, replace(lost, budget=0.4)):
        append_cell(tmp_path / "robustness.jsonl", cell)
    part = {"num_labels": 31, "recall_2m": 0.613, "recall_4m": 0.708, "nds": 0.222, "mean_ap": 0.345}
    shares = {"camera": 0.88, "lidar": 0.77, "radar": 0.66}
    breakdown = {
        "precision_recall": {"car": {"2": [1.0] * 41 + [0.0] * 60}, "bus": {"2": [0.0] * 101}},
        "by_distance": {"0-20 m": {**part, "mean_ap_of_labelled": 0.456}},
        "by_view": {"CAM_BACK skipped": part},
        "by_road_user": {"pedestrian": part},
    }
    write_metrics(
        tmp_path / "metrics.json",
        metrics_of(0.5, 0.4),
        breakdown=breakdown,
        intervals={"nds": {"low": 0.391, "high": 0.409}, "car": {"low": None, "high": None}},
        routes_by_condition={"night": {"num_samples": 17, "sensor_shares": shares, "gflops": 2.34}},
    )
    page = write_report(tmp_path).read_text()
    line = page[page.index("When a sensor fails on the way") :].partition("</section>")[0]
    assert line.count("<figure") == 1, "the largest budget alone"
    assert "mAP before 0.417, during 0.128, after –; keyframes to react 1, to recover never or no end" in line
    assert line.count("recall at 2 m") >= 1
    for numbers in (
        ("0-20 m", "31", "0.456", "0.222"),
        ("CAM_BACK skipped", "31", "0.613", "0.708"),
        ("pedestrian", "31", "0.345", "0.613"),
        ("night", "17", "88%", "77%", "66%", "2.34"),
    ):
        assert re.search(r"[^<]*<.*?".join(f">{re.escape(number)}<" for number in numbers), page, re.S), numbers
    run = read_run(tmp_path)
    assert [(row["title"], row["low"], row["high"]) for row in interval_rows(run)] == [("NDS", 0.391, 0.409)]
    assert "0.391" in page
    assert "0.409" in page
    curves = precision_recall_chart(run)
    assert "car" in curves
    assert "bus" not in curves, "a class that found nothing has no curve"
    assert str(curves) in page


def test_runs_compared_on_the_command_line_have_a_column_each():
    from rich.console import Console

    better = [cell_of("clean", nds=0.5), cell_of("fog", steps=STEP, nds=0.456)]
    worse = [cell_of("clean", nds=0.4), replace(cell_of("fog", steps=STEP), metrics=None, error="ValueError: no fog")]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(comparison_table({"runs/one": better, "runs/two": worse}))
    text = console.export_text()
    assert "runs/one" in text
    assert "runs/two" in text
    (fog,) = [line for line in text.splitlines() if "fog" in line]
    assert "0.456" in fog
    assert "failed" in fog
