"""dynfusion evaluate run=RUN [budget=1.0] [split=SPLIT] [allow=[CLASS,...]] [key=value ...]
dynfusion evaluate submission=FILE data.root=FOLDER data.version=VERSION split=SPLIT

Scores a trained run, or anybody's submission file, with the official nuScenes detection metrics. For a run it writes
metrics.json and detections/SPLIT.json (nuScenes' submission format) into the run directory. budget is the share of the
full compute that the router may spend on a sample. Keys of the run's configuration can be set: data.root=...
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
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    console = Console()
    if options.submission:
        metrics = score_submission(options, overrides)
        title = options.submission
    elif options.run:
        metrics, title = score_run(options, overrides, console), options.run
    else:
        raise ValueError("expected run=RUN or submission=FILE, got neither; see dynfusion evaluate --help")
    console.print(metrics_table(metrics, title))
    return 0


def score_submission(options: Options, overrides: list[str]):
    """Metrics of a submission file against the labels of a data set."""
    from fusion.commands.compose import compose
    from fusion.scoring.devkit import Scorer
    from fusion.scoring.submission import read_submission

    path = Path(options.submission)
    if not path.is_file():
        raise FileNotFoundError(f"expected a submission file, there is none at {path}; give submission=FILE")
    data = compose(overrides).data
    scorer = Scorer(data.root, data.version, options.split or data.val_split)
    detections, _ = read_submission(path)
    return scorer.score(detections)


def score_run(options: Options, overrides: list[str], console):
    """Metrics of a run's newest weights at one budget; writes metrics.json and the detections."""
    from fusion.commands.runs import device_named, open_run
    from fusion.report.gallery import save_report_samples, save_sample_detections
    from fusion.robustness.cells import CLEAN
    from fusion.scoring.devkit import Scorer
    from fusion.scoring.evaluate import evaluate_model
    from fusion.scoring.metrics import write_metrics
    from fusion.scoring.submission import SubmissionMeta, write_submission

    opened = open_run(Path(options.run), overrides, options.allow)
    split = options.split or opened.config.data.val_split
    device = device_named(options.device)
    loader = opened.data.evaluation_loader(split)
    scorer = Scorer(opened.config.data.root, opened.config.data.version, split)
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
        metrics = scorer.score(result.detections)
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
    )
    return metrics


def metrics_table(metrics, title: str):
    """Headline scores, then one row per class."""
    from rich.table import Table

    from fusion.scoring.metrics import TP_ERROR_NAMES

    errors = "  ".join(f"{short} {metrics.tp_errors[name]:.3f}" for name, short in TP_ERROR_NAMES.items())
    table = Table(title=title, caption=f"mAP {metrics.mean_ap:.3f}  NDS {metrics.nds:.3f}  {errors}")
    for heading in ("class", "AP", "labels", "detections"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for name, ap in metrics.class_ap.items():
        table.add_row(name, f"{ap:.3f}", str(metrics.num_labels[name]), str(metrics.num_detections[name]))
    return table
