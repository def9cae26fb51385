"""dynfusion evaluate run=RUN [budget=1.0] [split=SPLIT] [allow=[CLASS,...]] [key=value ...]
dynfusion evaluate submission=FILE data.root=FOLDER data.version=VERSION split=SPLIT [out=FILE]

Scores a trained run, or anybody's submission file, with the official nuScenes detection metrics. For a run it writes
metrics.json and detections/SPLIT.json (nuScenes' submission format) into the run directory. budget is the share of the
full compute that the router may spend on a sample. Keys of the run's configuration can be set: data.root=...

Both kinds: official=true lets the nuScenes devkit itself compute the scores, which are the same to 1e-9 and take it
minutes. draws=200 is the number of draws of scenes for the 95 % intervals, 0 for none. out=FILE writes the scores of a
submission as JSON: by class, distance, condition, visibility and road user, calibration, precision over recall.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    submission: str = ""
    budget: float = 1.0
    split: str = ""
    device: str = ""
    official: bool = False
    draws: int = 200
    out: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    console = Console()
    if options.submission and options.run:
        raise ValueError("expected run=RUN or submission=FILE, got both; leave one out")
    if options.submission:
        metrics, parts = score_submission(options, overrides)
        title = options.submission
    elif options.run:
        (metrics, parts), title = score_run(options, overrides, console), options.run
    else:
        raise ValueError("expected run=RUN or submission=FILE, got neither; see dynfusion evaluate --help")
    console.print(metrics_table(metrics, title, parts))
    return 0


def score_submission(options: Options, overrides: list[str]):
    """Metrics of a submission file against the labels of a data set, and the scores of its parts."""
    from fusion.commands.compose import compose
    from fusion.scoring.metrics import write_metrics

    path = Path(options.submission)
    if not path.is_file():
        raise FileNotFoundError(f"expected a submission file, there is none at {path}; give submission=FILE")
    data = compose(overrides).data
    split = options.split or data.val_split
    scorer = scorer_named(options.official)(data.root, data.version, split)
    scored = scorer.evaluate_file(path)
    metrics = scorer.score_file(path) if options.official else scored.metrics
    parts = scores_of_parts(scored, options.draws)
    if options.out:
        where = {"split": split, "version": data.version, "submission": path.name, "official": options.official}
        write_metrics(Path(options.out), metrics, **where, **parts)
    return metrics, parts


def scorer_named(official: bool):
    """The class that scores: ours, or the devkit."""
    if official:
        from fusion.scoring.devkit import DevkitScorer

        return DevkitScorer
    from fusion.scoring.scorer import Scorer

    return Scorer


def scores_of_parts(scored, num_draws: int) -> dict:
    """What ``metrics.json`` holds beside the scores: those of parts, and intervals where there are scenes to draw."""
    from dataclasses import asdict

    from fusion.scoring.bootstrap import bootstrap_intervals
    from fusion.scoring.breakdown import breakdown

    if num_draws < 0:
        raise ValueError(f"expected draws=0 (no intervals) or more, got {num_draws}")
    parts = {"breakdown": breakdown(scored), "intervals": None}
    if num_draws and len(scored.split.scene_names) > 1:
        intervals = bootstrap_intervals(scored, num_draws)
        parts["intervals"] = {name: asdict(interval) for name, interval in intervals.items()}
    return parts


def score_run(options: Options, overrides: list[str], console):
    """Metrics of a run's newest weights at one budget, and of parts; writes metrics.json and the detections."""
    from fusion.commands.runs import device_named, open_run
    from fusion.report.gallery import save_report_samples, save_sample_detections
    from fusion.robustness.cells import CLEAN
    from fusion.routing.budget import checked_budget
    from fusion.scoring.evaluate import evaluate_model
    from fusion.scoring.metrics import write_metrics
    from fusion.scoring.routes import by_view, routes_by_condition
    from fusion.scoring.submission import SubmissionMeta, write_submission

    opened = open_run(Path(options.run), overrides, options.allow)
    checked_budget(options.budget, 1, opened.model.min_budget)  # also where the run's route does not look at it
    split = options.split or opened.config.data.val_split
    device = device_named(options.device)
    loader = opened.data.evaluation_loader(split)
    scorer = scorer_named(options.official)(opened.config.data.root, opened.config.data.version, split)
    with console.status("") as status:
        result = evaluate_model(
            opened.model,
            loader,
            budget=options.budget,
            device=device,
            plan_source=opened.plan_source,
            progress=lambda done, total: status.update(f"evaluating {split}: batch {done} of {total}"),
        )
        status.update("scoring")
        scored = scorer.evaluate(result.detections)
        metrics = scorer.score(result.detections) if options.official else scored.metrics
        parts = scores_of_parts(scored, options.draws)
        parts["breakdown"]["by_view"] = by_view(scored, result)
        parts["routes_by_condition"] = routes_by_condition(result)
        save_sample_detections(opened.directory.path, CLEAN, options.budget, result)
        save_report_samples(opened.directory.path, opened.data.frames(split))
    model = opened.model
    meta = SubmissionMeta(model.cameras is not None, model.lidar is not None, model.radar is not None)
    write_submission(opened.directory.detections / f"{split}.json", result.detections, scorer.tokens, meta)
    write_metrics(
        opened.directory.metrics,
        metrics,
        split=split,
        version=opened.config.data.version,
        budget=options.budget,
        num_samples=len(result.tokens),
        gflops_per_sample=result.mean_gflops,
        full_gflops=float(model.prices().full_gflops),
        ms_per_sample=result.median_ms,
        device=str(device),
        sensor_shares=result.sensor_shares(),
        branch_shares=result.branch_shares(),
        official=options.official,
        **result.went_without(),
        **parts,
    )
    return metrics, parts


def metrics_table(metrics, title: str, parts: dict | None = None):
    """Headline scores with their intervals, then one row per class."""
    from rich.table import Table

    from fusion.scoring.metrics import TP_ERROR_NAMES

    intervals = (parts or {}).get("intervals") or {}

    def within(name: str) -> str:
        return f" [{intervals[name]['low']:.3f}, {intervals[name]['high']:.3f}]" if name in intervals else ""

    errors = "  ".join(f"{short} {metrics.tp_errors[name]:.3f}" for name, short in TP_ERROR_NAMES.items())
    caption = f"mAP {metrics.mean_ap:.3f}{within('mean_ap')}  NDS {metrics.nds:.3f}{within('nds')}  {errors}"
    table = Table(title=title, caption=caption.replace("[", "\\["))
    for heading in ("class", "AP", "labels", "detections"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, ap in metrics.class_ap.items():
        score = f"{ap:.3f}{within(name)}".replace("[", "\\[")
        table.add_row(name, score, str(metrics.num_labels[name]), str(metrics.num_detections[name]))
    return table
