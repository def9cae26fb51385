"""The page: whole, without a request to anywhere, and saying what the run's files say."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from fusion.report.content import read_run
from fusion.report.frame_file import load_frame, save_frame
from fusion.report.gallery import gallery_rows, gallery_scenarios, save_report_samples, save_sample_detections
from fusion.report.html import write_overview_picture, write_report
from fusion.report.pictures import bev_picture, in_ego_frame, overview_picture, views_picture
from fusion.report.plots import Axis
from fusion.robustness.cells import Cell, append_cell
from fusion.scoring.evaluate import EvaluationResult
from fusion.scoring.metrics import TP_ERRORS, Metrics, write_metrics
from fusion.scoring.submission import in_global_frame
from sensors.boxes import DETECTION_NAMES, Boxes
from sensors.camera import project
from sensors.faults.suites import Scenario, suite_named
from sensors.rig import CAMERAS, LIDAR, UNITS
from sensors.transforms import RigidTransform
from tests.fusion.detections import boxes_at
from tests.sensors.toy_frames import ListHistory, toy_frame

AHEAD_M = [[12.0, 0.0, 1.0], [20.0, 6.0, 1.0], [-15.0, 1.0, 1.0]]


def labelled_frame(token: str, seed: int = 0):
    frame = toy_frame(token, seed=seed, num_sweeps=1, num_points=400)
    boxes = boxes_at(AHEAD_M, label=5, num_points=np.array([4, 0, 2]))
    return replace(frame, global_from_ego=RigidTransform.from_yaw(0.5, (300.0, 40.0, 0.0)), boxes=boxes)


class ToyFrames:
    """Three frames of a scene."""

    def __init__(self):
        self.frames = [replace(labelled_frame(f"token-{i}", seed=i), timestamp_us=10 - i) for i in range(3)]
        self.tokens = tuple(frame.token for frame in self.frames)

    def __getitem__(self, i):
        return self.frames[i]

    def history(self, i):
        return ListHistory(self.frames, i)


def metrics_of(mean_ap: float, nds: float) -> Metrics:
    errors = dict.fromkeys(TP_ERRORS, 0.5)
    by_distance = {name: {0.5: 0.1, 1.0: 0.2, 2.0: 0.4, 4.0: 0.5} for name in DETECTION_NAMES}
    counts = dict.fromkeys(DETECTION_NAMES, 7)
    class_ap = dict.fromkeys(DETECTION_NAMES, mean_ap)
    class_errors = {name: {**errors, "vel_err": None} for name in DETECTION_NAMES}
    return Metrics(mean_ap, nds, errors, class_ap, by_distance, class_errors, counts, counts)


def cell_of(scenario: str, budget: float = 1.0, steps=(), mean_ap: float = 0.5, nds: float = 0.4, **values) -> Cell:
    shares = {unit: {"lite": 0.25, "full": 0.5} for unit in UNITS}
    sensors = {"camera": 1.0, "lidar": 0.75, "radar": 0.75}
    return Cell(
        scenario,
        steps,
        0,
        budget,
        "run",
        metrics=metrics_of(mean_ap, nds),
        num_samples=3,
        gflops=20 * budget,
        ms=30.0,
        sensor_shares=sensors,
        branch_shares=shares,
        **values,
    )


STEP = ({"fault": "lidar_drop", "level": 1.0, "unit": "LiDARs", "family": "lost", "channels": None},)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A made-up run with everything in it, also a name that would break a careless page."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    frames = ToyFrames()
    scenarios = (Scenario("clean"), *suite_named("missing-sensors")[1:3])
    cells = [
        cell_of("clean"),
        cell_of("clean", budget=0.4, nds=0.3),
        cell_of("camera+radar", steps=STEP, mean_ap=0.123, nds=0.2, seen_in_training="fault"),
        replace(cell_of("<script>alert(1)</script>", steps=STEP), metrics=None, error="ValueError: a & b"),
    ]
    for cell in cells:
        append_cell(folder / "robustness.jsonl", cell)
    (folder / "config.yaml").write_text("data: {version: v1.0-town, val_split: town_val}\nnote: '<b>'\n")
    write_metrics(folder / "metrics.json", cells[0].metrics, split="town_val", full_gflops=40.0)
    detections = {frame.token: in_global_frame(frame.boxes, frame) for frame in frames.frames}
    branch = np.full((3, len(UNITS)), 2)
    branch[:, 1] = 0
    result = EvaluationResult(
        detections,
        frames.tokens,
        np.full(3, 12.5),
        branch,
        branch > 0,
        np.array([3.0]),
        0.0,
        ((),) * 3,
        (frozenset(),) * 3,
        "inputs",
    )
    for scenario in ("clean", "camera+radar"):
        save_sample_detections(folder, scenario, 1.0, result)
    save_report_samples(folder, frames, scenarios)
    return folder


class _Page(HTMLParser):
    """Collects what matters and checks that tags close."""

    VOID = {"meta", "link", "img", "br", "input", "circle", "line", "polyline"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.links, self.images, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("src", "href", "srcset", "action") if name in attributes]
        if tag == "img":
            self.images.append(attributes["src"])
            assert attributes["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture(scope="module")
def page(run_dir):
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_stands_alone(page):
    parsed = _Page(page)
    assert parsed.open == []
    assert all(link.startswith("data:") for link in parsed.links)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org)", page)
    assert "fetch(" not in page
    assert len(page) < 5e6


def test_the_page_says_what_the_files_say(page):
    text = " ".join(" ".join(_Page(page).text).split())
    assert "They are not nuScenes scores" in text
    assert "not for the control of a vehicle" in text
    assert "v1.0-town · town_val · 3 samples" in text
    for words in ("camera + radar", "0.123", "20.00", "of 40.0 with everything on", "could not run: ValueError: a & b"):
        assert words in text
    assert "alert(1)" in text
    assert "<script>alert" not in page
    assert "note: &#39;&lt;b&gt;&#39;" in page


def test_pictures_are_whole(page):
    images = _Page(page).images
    # Three samples, clean and LiDAR lost and camera+LiDAR; the views and the bird's-eye view of each.
    assert len(images) == 3 * 2 * 2
    for image in images:
        encoded = np.frombuffer(base64.b64decode(image.partition("base64,")[2]), np.uint8)
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.std() > 5


def test_budgets_become_a_plot_and_a_switch(page, run_dir, tmp_path):
    assert 'id="budgets"' in page
    assert '<svg class="plot"' in page
    append_cell(tmp_path / "robustness.jsonl", cell_of("clean"))
    single = write_report(tmp_path).read_text()
    assert 'id="budgets"' not in single
    assert '<svg class="plot"' not in single
    assert "synthetic town" not in single


def test_an_evaluation_alone_makes_a_page(tmp_path):
    write_metrics(
        tmp_path / "metrics.json",
        metrics_of(0.321, 0.3),
        split="val",
        version="v1.0-mini",
        budget=0.5,
        num_samples=81,
        gflops_per_sample=7.25,
        ms_per_sample=11.0,
        sensor_shares={"camera": 1.0, "lidar": 1.0, "radar": 0.0},
        branch_shares={unit: {"lite": 0.0, "full": 1.0} for unit in UNITS},
    )
    text = " ".join(" ".join(_Page(write_report(tmp_path).read_text()).text).split())
    assert "0.321" in text
    assert "7.25" in text
    assert "v1.0-mini · val · 81 samples" in text


def test_a_folder_without_scores_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected scores in"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a run's folder"):
        write_report(tmp_path / "none")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the scores of an evaluation"):
        read_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_frames_come_back_reduced(tmp_path):
    frame = labelled_frame("t")
    wide = {
        name: replace(image, pixels=np.kron(image.pixels, np.ones((8, 8, 1), np.uint8)))
        for name, image in frame.cameras.items()
    }
    for name, image in wide.items():
        scale = np.diag([8.0, 8.0, 1.0])
        wide[name] = replace(image, image_from_camera=scale @ image.image_from_camera)
    lost = replace(frame, cameras={name: wide[name] for name in CAMERAS[:2]}, radars={})
    save_frame(tmp_path / "deep" / "f.npz", lost)
    back = load_frame(tmp_path / "deep" / "f.npz")
    assert (back.token, back.scene, back.conditions) == (frame.token, frame.scene, frame.conditions)
    assert set(back.cameras) == set(CAMERAS[:2])
    assert not back.radars
    assert back.present(LIDAR)
    np.testing.assert_array_equal(back.boxes.center_m, frame.boxes.center_m)
    np.testing.assert_allclose(back.lidar[0].to_ego(), frame.lidar[0].to_ego())
    np.testing.assert_allclose(back.global_from_ego.matrix, frame.global_from_ego.matrix)
    small, big = back.cameras["CAM_FRONT"], wide["CAM_FRONT"]
    assert small.pixels.shape == (360, 640, 3)
    point = np.array([[1.0, 0.5, 9.0]])
    small_px, big_px = (project(point, image.image_from_camera)[0] for image in (small, big))
    np.testing.assert_allclose(small_px + 0.5, (big_px + 0.5) / 2)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="expected a kept frame"):
        load_frame(tmp_path / "bad.npz")


def test_pictures_have_their_size_and_survive_lost_sensors():
    frame = labelled_frame("t")
    blind = replace(frame, cameras={}, lidar=(), radars={}, boxes=None)
    for shown in (frame, blind):
        assert bev_picture(shown, boxes_at(AHEAD_M), size_px=200).shape == (200, 200, 3)
        assert overview_picture(shown, None).shape == (900, 1600, 3)
    assert views_picture(frame, boxes_at(AHEAD_M), width_px=320).shape == (270, 320, 3)
    assert views_picture(blind, Boxes.empty(), {"CAM_FRONT": "skip"}, width_px=320).shape == (270, 320, 3)


def test_a_box_is_drawn_where_it_is():
    """Forward is up, left is left: a lone detection ahead on the left colours the upper left quarter only."""
    frame = replace(labelled_frame("t"), lidar=(), radars={}, boxes=None)
    without, with_box = (bev_picture(frame, boxes, 400) for boxes in (None, boxes_at([[30.0, 20.0, 1.0]])))
    rows, columns = np.nonzero((without != with_box).any(axis=2))
    assert abs(rows.mean() - 200 * (1 - 30 / 52)) < 3
    assert abs(columns.mean() - 200 * (1 - 20 / 52)) < 3


def test_global_detections_come_back_to_the_vehicle():
    frame = labelled_frame("t")
    back = in_ego_frame(in_global_frame(frame.boxes, frame), frame)
    np.testing.assert_allclose(back.center_m, frame.boxes.center_m, atol=1e-9)
    np.testing.assert_allclose(back.yaw_rad, frame.boxes.yaw_rad, atol=1e-9)


def test_the_readmes_picture_comes_from_the_town_only(run_dir, tmp_path):
    picture = write_overview_picture(run_dir, tmp_path / "docs" / "overview.png")
    assert cv2.imread(str(picture)).shape == (900, 1600, 3)
    append_cell(tmp_path / "robustness.jsonl", cell_of("clean"))
    (tmp_path / "config.yaml").write_text("data: {version: v1.0-mini}")
    with pytest.raises(ValueError, match="expected a run on a synthetic town"):
        write_overview_picture(tmp_path, tmp_path / "x.png")


def test_which_samples_and_scenarios_are_shown():
    assert gallery_rows(60) == [7, 22, 37, 52]
    assert gallery_rows(3) == [0, 1, 2]
    assert gallery_rows(0) == []
    names = [scenario.name for scenario in gallery_scenarios(suite_named("demo"))]
    assert names[:2] == ["clean", "camera+radar"]
    assert len(names) == len(set(names)) == 4
    assert [scenario.name for scenario in gallery_scenarios(())] == ["clean"]


def test_kept_files_hold_no_pickle(run_dir):
    for path in run_dir.glob("gallery/*/*.npz"):
        with np.load(path, allow_pickle=False) as stored:
            assert {array.dtype.kind for array in stored.values()} <= set("fiub")
    content = json.loads((run_dir / "detections" / "gallery" / "clean@1.json").read_text())
    assert content["meta"]["ran"]["token-0"]["branches"]["CAM_FRONT_RIGHT"] == "skip"


def test_ticks_are_round():
    assert Axis(0.0, 21.5, 0.0, 100.0).ticks() == [0, 5, 10, 15, 20]
    assert Axis(0.0, 0.66, 0.0, 100.0).ticks() == [0, 0.2, 0.4, 0.6]
    assert Axis(0.0, 0.05, 0.0, 100.0).ticks() == [0, 0.01, 0.02, 0.03, 0.04, 0.05]
