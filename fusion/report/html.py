"""The page: one file without any request to the network, made from a run's folder alone."""

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

import cv2
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fusion.report import curves, severity, tables
from fusion.report.colours import CLASS_COLOURS, SHOWN_SCORE
from fusion.report.content import (
    TOWN_NOTICE,
    UNIT_TITLES,
    USE_NOTICE,
    RunContent,
    cards,
    classes,
    names_of,
    quality_points,
    read_run,
    rows,
)
from fusion.report.export import as_json
from fusion.report.frame_file import load_frame
from fusion.report.gallery import gallery_frames, load_sample_detections
from fusion.report.gradients import gradient_charts
from fusion.report.pictures import in_ego_frame, overview_picture
from fusion.report.plots import quality_plot
from fusion.report.samples import found_of, samples
from fusion.robustness.cells import CLEAN
from fusion.run_directory import RunDirectory, write_text
from fusion.scoring.metrics import TP_ERROR_NAMES
from sensors.boxes import DETECTION_NAMES


def write_report(run_dir: Path, others: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all.

    Reads ``config.yaml``, ``metrics.json``, ``robustness.jsonl``, ``gradients.csv`` and the gallery's frames and
    detections, each where it is there.

    Args:
        others: further runs to compare it with.
        out: another place for the page.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no scores, or a file that cannot be read.
    """
    run = read_run(Path(run_dir))
    page = RunDirectory(run.path).report if out is None else out
    write_text(page, _rendered([run, *(read_run(Path(other)) for other in others)]))
    return page


def _rendered(runs: list[RunContent]) -> str:
    environment = Environment(
        loader=PackageLoader("fusion.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: f"{value:.0%}"
    environment.filters["number"] = lambda value, digits=3: "–" if value is None else f"{value:.{digits}f}"
    run, names = runs[0], names_of(runs)
    has_regret = any(cell.regret is not None for each in runs for cell in each.cells)
    is_town = any(each.is_town for each in runs)
    return environment.get_template("page.html.j2").render(
        style=_asset("page.css"),
        script=_asset("page.js"),
        run=run,
        name=run.path.resolve().name,
        command=f"dynfusion report run={','.join(str(each.path) for each in runs)}",
        made=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        notices=[TOWN_NOTICE, USE_NOTICE] if is_town else [USE_NOTICE],
        names=names,
        views=[_view(each, name, number) for number, (each, name) in enumerate(zip(runs, names, strict=True))],
        budgets=sorted({budget for each in runs for budget in each.budgets}, reverse=True),
        comparison=tables.comparison(runs),
        measures=[
            row | {"run": name}
            for each, name in zip(runs, names, strict=True)
            for row in tables.measures(each, None if each is run else run, has_regret)
        ],
        maps={"severity": severity.severity_map(runs), "calibration": severity.calibration_map(runs)},
        reliability=severity.reliability_chart(runs),
        pareto=curves.pareto_chart(runs),
        failover=curves.failover_parts(runs),
        data=as_json(runs),
        class_names=[(name, name.replace("_", " ")) for name in DETECTION_NAMES],
        class_colours={name.replace("_", " "): colour for name, colour in CLASS_COLOURS.items()},
        unit_titles=UNIT_TITLES,
        errors=list(TP_ERROR_NAMES.values()),
        samples=samples(runs),
        shown_score=SHOWN_SCORE,
    )


def _view(run: RunContent, name: str, number: int) -> dict:
    """What the page shows of one run by itself, one run at a time."""
    headline, lines, table = run.headline, quality_points(run.cells), rows(run)
    return {
        "number": number,
        "name": name,
        "headline": headline,
        "cards": cards(run),
        "rows": table,
        "scored": [row for row in table if not row["error"]],
        "many_budgets": len(run.budgets) > 1,
        "regrets": tables.regret_table(run),
        "controls": curves.controls_chart(run),
        "plot": quality_plot(lines) if lines else None,
        "gradients": gradient_charts(run.path),
        "classes": classes(headline) if headline is not None else [],
        "precision_recall": curves.precision_recall_chart(run),
        "intervals": tables.interval_rows(run),
        "breakdown": tables.breakdown_tables(run),
        "config": RunDirectory(run.path).config.read_text(encoding="utf-8") if run.config else "",
    }


def _asset(name: str) -> Markup:
    """A file beside this one, put into the page as it is."""
    return Markup(resources.files("fusion.report").joinpath(name).read_text(encoding="utf-8"))


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
    found = found_of(load_sample_detections(run.path), CLEAN, frame.token)
    detections = None if found is None else in_ego_frame(found[0].boxes, frame)
    pixels = overview_picture(frame, detections, None if found is None else found[0].branches)
    done, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert done, "OpenCV could not encode a PNG from uint8 RGB"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(encoded.tobytes())
    return picture
