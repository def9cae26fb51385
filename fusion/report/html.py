"""The page: one file without any request to the network, made from a run's folder alone."""

import base64
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fusion.report import sections
from fusion.report.colours import SHOWN_SCORE
from fusion.report.content import (
    TOWN_NOTICE,
    UNIT_TITLES,
    USE_NOTICE,
    RunContent,
    cards,
    classes,
    quality_points,
    read_run,
    rows,
)
from fusion.report.frame_file import load_frame
from fusion.report.gallery import Found, file_name, gallery_frames, load_sample_detections
from fusion.report.pictures import bev_picture, in_ego_frame, overview_picture, views_picture
from fusion.report.plots import quality_plot
from fusion.robustness.cells import CLEAN
from fusion.run_directory import RunDirectory, write_text
from fusion.scoring.metrics import TP_ERROR_NAMES
from sensors.boxes import DETECTION_NAMES
from sensors.camera import encode_jpeg
from sensors.frame import Frame

_WEBP_QUALITY = 80
MAX_VARIANTS = 4
"""Scenarios shown of a sample: keeps the page below 5 MB."""


def write_report(run_dir: Path, others: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all.

    Reads ``config.yaml``, ``metrics.json``, ``robustness.jsonl`` and the gallery's frames and detections, each where it
    is there.

    Args:
        others: further runs to compare it with.
        out: another place for the page.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no scores, or a file that cannot be read.
    """
    run = read_run(Path(run_dir))
    page = RunDirectory(run.path).report if out is None else out
    write_text(page, _rendered(run, [run, *(read_run(Path(other)) for other in others)]))
    return page


def _rendered(run: RunContent, runs: list[RunContent]) -> str:
    environment = Environment(
        loader=PackageLoader("fusion.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{value:.0%}"
    headline = run.headline
    has_regret = any(cell.regret is not None for each in runs for cell in each.cells)
    lines = quality_points(run.cells)
    return environment.get_template("page.html.j2").render(
        style=_asset("page.css"),
        script=_asset("page.js"),
        run=run,
        name=run.path.resolve().name,
        made=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        notices=[TOWN_NOTICE, USE_NOTICE] if run.is_town else [USE_NOTICE],
        cards=cards(run),
        rows=rows(run),
        run_names=[sections.name_of(each) for each in runs],
        comparison=sections.comparison(runs),
        measures=[
            row | {"run": sections.name_of(each)}
            for each in runs
            for row in sections.measures(each, None if each is run else run, has_regret)
        ],
        severities=sections.severity_map(run),
        controls=sections.controls_chart(run),
        regrets=sections.regret_table(run),
        pareto=sections.pareto_chart(runs),
        failover=sections.failover_parts(run),
        precision_recall=sections.precision_recall_chart(run),
        intervals=sections.interval_rows(run),
        breakdown=sections.breakdown_tables(run),
        data=sections.as_json(runs),
        class_names=[(name, name.replace("_", " ")) for name in DETECTION_NAMES],
        unit_titles=UNIT_TITLES,
        classes=classes(headline) if headline is not None else [],
        errors=list(TP_ERROR_NAMES.values()),
        headline=headline,
        plot=quality_plot(lines) if lines else None,
        gallery=_gallery(run),
        shown_score=SHOWN_SCORE,
        config=RunDirectory(run.path).config.read_text(encoding="utf-8") if run.config else "",
    )


def _asset(name: str) -> Markup:
    """A file beside this one, put into the page as it is."""
    return Markup(resources.files("fusion.report").joinpath(name).read_text(encoding="utf-8"))


def _gallery(run: RunContent) -> list[dict]:
    """By sample, its pictures under each scenario that was kept, at the largest budget."""
    found = load_sample_detections(run.path)
    titles = {cell.scenario: cell.title for cell in run.cells}
    order = list(titles)
    samples = []
    for token, paths in gallery_frames(run.path).items():
        known = [(scenario, paths[file_name(scenario)]) for scenario in order if file_name(scenario) in paths]
        shown = [
            (scenario, path, _found_of(found, scenario, token))
            for scenario, path in known or [(CLEAN, paths.get(CLEAN))]
        ]
        variants = [_variant(titles.get(s, s), load_frame(path), f) for s, path, f in shown[:MAX_VARIANTS] if path]
        if variants:
            samples.append({"token": token, "variants": variants, **variants[0]["facts"]})
    return sorted(samples, key=lambda sample: sample["when"])


def _found_of(found: dict, scenario: str, token: str) -> tuple[Found, float] | None:
    """What was found at the largest budget."""
    budgets = [budget for name, budget in found if name == scenario and token in found[name, budget]]
    return (found[scenario, max(budgets)][token], max(budgets)) if budgets else None


def _variant(title: str, frame: Frame, found: tuple[Found, float] | None) -> dict:
    detections = None if found is None else in_ego_frame(found[0].boxes, frame)
    branches = None if found is None else found[0].branches
    num_labels = 0 if frame.boxes is None else int((frame.boxes.num_points != 0).sum())
    return {
        "title": title,
        "views": _inlined(views_picture(frame, detections, branches)),
        "bev": _inlined(bev_picture(frame, detections, size_px=640)),
        "gflops": None if found is None else found[0].gflops,
        "branches": None if branches is None else [branches[unit] for unit in branches],
        "num_labels": num_labels,
        "num_shown": 0 if detections is None else int((detections.score >= SHOWN_SCORE).sum()),
        "facts": {"scene": frame.scene, "conditions": sorted(frame.conditions), "when": frame.timestamp_us},
    }


def _inlined(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A data URI."""
    options = [cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY]
    done, encoded = cv2.imencode(".webp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if done:
        return "data:image/webp;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(pixels)).decode("ascii")


def write_overview_picture(run_dir: Path, picture: Path, sample: int = 0) -> Path:
    """A PNG of 1600 x 900 for a README: six views with boxes and the bird's-eye view of one kept sample.

    Args:
        sample: which of the gallery's samples, in order of time.

    Raises:
        ValueError: the run is not on a synthetic town (nuScenes is not ours to publish), or has no gallery.
    """
    run = read_run(Path(run_dir))
    if not run.is_town:
        raise ValueError(
            f"expected a run on a synthetic town, got version '{run.version}'; pictures come from the town"
        )
    frames = [load_frame(paths[CLEAN]) for paths in gallery_frames(run.path).values() if CLEAN in paths]
    if not frames:
        raise ValueError(f"expected kept frames in {run.path / 'gallery'}, got none; run dynfusion robustness first")
    frame = sorted(frames, key=lambda kept: kept.timestamp_us)[sample % len(frames)]
    found = _found_of(load_sample_detections(run.path), CLEAN, frame.token)
    detections = None if found is None else in_ego_frame(found[0].boxes, frame)
    pixels = overview_picture(frame, detections, None if found is None else found[0].branches)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV could not encode a PNG from uint8 RGB"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(encoded.tobytes())
    return picture
