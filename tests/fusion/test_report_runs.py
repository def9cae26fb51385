"""Several runs on one page, calibration under faults and gradient shares: against numbers by hand."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from fusion.cli import main
from fusion.report import samples as pictures
from fusion.report.content import RunContent, read_run
from fusion.report.curves import failover_parts, pareto_chart
from fusion.report.gallery import save_report_samples
from fusion.report.gradients import MOST_POINTS, gradient_charts, read_columns
from fusion.report.html import write_report
from fusion.report.severity import calibration_map, reliability_chart, severity_map
from fusion.robustness.cells import append_cell
from sensors.faults.suites import Scenario
from tests.fusion.test_report import STEP, ToyFrames, cell_of

HARDER = ({**STEP[0], "level": 2.0},)
PAGE_BYTES = 5_000_000


def calibration(error: float | None) -> dict:
    return {"expected_error": error, "num": [4, 6], "confidence": [0.25, 0.75], "hit_rate": [None, 0.5]}


def failover(recall: float) -> dict:
    frame = {"recall_2m": recall, "let_go": 0.0, "harmed": 0.0}
    phases = {"before": {"mean_ap": 0.417, "num_samples": 1}, "after": {"mean_ap": 0.0, "num_samples": 0}}
    frames = [frame, {**frame, "harmed": 1.0}]
    return {"phases": phases, "frames": frames, "react_frames": {"s": 1}, "recover_frames": {"s": None}}


def cells(mild: float, seen: str = "neither", recall: float = 0.5) -> list:
    return [
        cell_of("clean", nds=0.5, calibration=calibration(0.1)),
        cell_of("fog-1", steps=STEP, nds=mild, seen_in_training=seen, calibration=calibration(0.15)),
        cell_of("fog-2", steps=HARDER, nds=0.25, seen_in_training=seen, calibration=calibration(0.6)),
        cell_of("lost", steps=({**STEP[0], "fault": "lidar_lost"},), nds=0.2, failover=failover(recall)),
        cell_of("clean", budget=0.5, nds=0.3, calibration=calibration(0.9)),
    ]


def run_at(folder, *own) -> RunContent:
    for cell in own:
        append_cell(folder / "robustness.jsonl", cell)
    return read_run(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[RunContent]:
    root = tmp_path_factory.mktemp("runs")
    return [run_at(root / "one", *cells(0.4)), run_at(root / "two", *cells(0.45, "fault", recall=0.75))]


def test_every_run_has_a_block_of_severities(runs):
    found = severity_map(runs)
    fog = next(row for row in found["rows"] if row["title"] == "fog")
    kept = [[cell["kept"] for cell in block] for block in fog["blocks"]]
    assert kept == [pytest.approx([0.8, 0.5]), pytest.approx([0.9, 0.5])]
    assert found["widths"] == [2, 2]
    assert (fog["mark"], fog["marks"]) == (None, ["unseen", "seen"])
    assert found["differ"]


def test_calibration_by_scenario_and_severity_clean_first(runs):
    found = calibration_map(runs)
    assert [row["title"] for row in found["rows"]] == ["all sensors", "fog"], "the lost LiDAR has no calibration"
    assert [row["is_clean"] for row in found["rows"]] == [True, False]
    clean, fog = ([cell["text"] for cell in row["blocks"][0]] for row in found["rows"])
    assert (clean, fog) == (["0.100"], ["0.150", "0.600"]), "the largest budget alone"
    assert [cell["share"] for cell in found["rows"][1]["blocks"][0]] == pytest.approx([0.25, 1.0])
    assert found["rows"][1]["blocks"][0][1]["note"].endswith("+0.500 against clean data")


def test_confidence_without_detections_has_no_error(tmp_path):
    run = run_at(tmp_path / "a", cell_of("clean", calibration=calibration(None)))
    assert calibration_map([run])["rows"][0]["blocks"][0][0]["text"] == "–"
    assert "Can its confidence be trusted" in write_report(tmp_path / "a").read_text()


def test_hits_over_confidence_leave_out_empty_bins(runs):
    drawn = str(reliability_chart(runs))
    assert drawn.count("<circle") == 2, "one known bin of clean data for each run"
    assert "<title>two: 0.75, 0.500</title>" in drawn
    assert reliability_chart([replace(runs[0], cells=(cell_of("clean"),))]) is None


def test_time_lines_of_runs_lie_over_one_another(runs):
    (part,) = failover_parts(runs)
    assert str(part["chart"]).count("<polyline") == 4
    assert str(part["chart"]).count('dashed"><polyline') == 2
    assert [row["run"] for row in part["captions"]] == ["one", "two"]
    assert part["captions"][0]["scores"] == {"before": 0.417, "after": None}, "a phase without samples has no score"
    (alone,) = failover_parts(runs[:1])
    assert "recall at 2 m" in alone["chart"]


def test_runs_have_colours_of_their_own(runs):
    legend = str(pareto_chart([*runs, replace(runs[0], path=runs[0].path.parent / "three")])).partition("</svg>")[2]
    colours = re.findall(r'<i class="s(\d)">', legend)
    assert len(set(colours)) == len(colours) == 4


@pytest.fixture(scope="module")
def compared(runs) -> str:
    """Two runs with a sample each."""
    frames = ToyFrames()
    frames.frames, frames.tokens = frames.frames[:1], frames.tokens[:1]
    for run in runs:
        save_report_samples(run.path, frames, (Scenario("clean"),))
    assert main(["report", f"run={runs[0].path},{runs[1].path}", f"out={runs[0].path.parent / 'both.html'}"]) == 0
    return (runs[0].path.parent / "both.html").read_text(encoding="utf-8")


def test_both_runs_are_on_the_page(compared, runs):
    for part in ("Faults by severity", "When a sensor fails on the way", "Samples", "Scores and cost", "Classes"):
        assert part in compared
    gallery = compared[compared.index('id="gallery"') :].partition("</section>")[0]
    for number in (0, 1):
        assert gallery.count(f'class="of-run" data-run="{number}"') == 1, "the sample of each run"
    assert 'id="runs-switch"' in compared
    assert len(compared) < PAGE_BYTES
    single = write_report(runs[0].path).read_text()
    assert 'id="runs-switch"' not in single


def test_pictures_share_out_their_bytes(monkeypatch, runs, compared):
    """Noise compresses worst, and every quality less makes it smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    monkeypatch.setattr(pictures, "views_picture", lambda *_: noise)
    monkeypatch.setattr(pictures, "bev_picture", lambda *_, **__: noise)
    for run in runs:
        (kept,) = run.path.glob("gallery/*/clean.npz")
        kept.with_name("camera+radar.npz").write_bytes(kept.read_bytes())
    both = [replace(run, cells=(*run.cells, cell_of("camera+radar", steps=STEP))) for run in runs]

    def weight() -> int:
        shown = [one for sample in pictures.samples(both) for own in sample["runs"].values() for one in own]
        assert len(shown) == 2 * 2
        return sum(len(one[kind]) for one in shown for kind in ("views", "bev"))

    full = weight()
    monkeypatch.setattr(pictures, "MAX_BYTES", int(0.8 * full))
    assert weight() <= 0.8 * full
    monkeypatch.setattr(pictures, "MAX_PICTURES", 2)
    (sample,) = pictures.samples(both)
    assert {number: len(own) for number, own in sample["runs"].items()} == {0: 1, 1: 1}
    head, _, text = sample["runs"][0][0]["views"].partition("base64,")
    assert head == "data:image/webp;"
    assert base64.b64decode(text)[8:12] == b"WEBP"


def gradients_file(folder, num: int = 3) -> None:
    folder.mkdir(exist_ok=True)
    lines = ["step,share_camera,share_lidar,share_radar,factor_camera,factor_lidar,factor_radar,cosine_0_1"]
    lines += [f"{10 * k},0.75,0.25,0.0,{0.5 if k == 2 else 1.0},1.0,1.0,{-0.5 if k != 1 else ''}" for k in range(num)]
    (folder / "gradients.csv").write_text("\n".join(lines) + "\n")


def test_gradient_shares_over_steps(tmp_path):
    assert gradient_charts(tmp_path) == []
    gradients_file(tmp_path / "a")
    shares, cosines, factors = gradient_charts(tmp_path / "a")
    assert "equal share, 0.50" in shares["chart"], "of the two sensors that learn"
    assert "LiDAR" in shares["chart"]
    assert "radar" not in shares["chart"], "a sensor that the model lacks"
    assert "exits 0 and 1" in cosines["chart"]
    assert "scaled" in factors["title"]
    columns = read_columns(tmp_path / "a" / "gradients.csv")
    assert columns["cosine_0_1"] == [(0.0, -0.5), (10.0, None), (20.0, -0.5)]
    gradients_file(tmp_path / "a", 10 * MOST_POINTS + 7)
    assert len(read_columns(tmp_path / "a" / "gradients.csv")["share_camera"]) <= MOST_POINTS
    append_cell(tmp_path / "a" / "robustness.jsonl", cell_of("clean"))
    assert "Who learns" in write_report(tmp_path / "a").read_text()


def test_a_broken_file_of_gradients_is_one_line(tmp_path, capsys):
    append_cell(tmp_path / "robustness.jsonl", cell_of("clean"))
    (tmp_path / "gradients.csv").write_text("step,share_camera\n1,0.5\n2,x\n")
    assert main(["report", f"run={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "in line 3 of" in line
    assert not (tmp_path / "report.html").exists()


def test_tables_of_text_on_the_command_line(runs, tmp_path, capsys):
    both = f"run={runs[0].path},{runs[1].path}"
    assert main(["report", both, "format=markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run | scenario | budget | mAP | NDS | of clean | GFLOPs |"
    assert "| two | fog 1 | 1 | 0.500 | 0.450 | 90% | 20.00 |" in lines
    out = tmp_path / "deep" / "table.tex"
    assert main(["report", f"run={runs[0].path}", "format=latex", f"out={out}"]) == 0
    latex = out.read_text()
    assert latex.startswith(r"\begin{tabular}{lrrrrr}")
    assert r"fog 2 & 1 & 0.500 & 0.250 & 50\% & 20.00 \\" in latex
    capsys.readouterr()
    assert main(["report", both, "format=pdf"]) == 2
    assert "expected format to be one of html, markdown, latex, got 'pdf'" in capsys.readouterr().err


def test_the_download_names_every_run(compared):
    text = compared.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    content = json.loads(text)
    assert list(content["summaries"]) == ["one", "two"]
    assert {row["run"] for row in content["rows"]} == {"one", "two"}
