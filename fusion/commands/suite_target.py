"""What a suite runs on: a trained run, or a detector from elsewhere; and what is kept of it at the end."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import compose, instantiate


@dataclass(frozen=True, eq=False)
class Target:
    """What is scored, on what, and where the cells are written."""

    folder: Path
    model: object
    data: object
    scorer: object
    suite: str
    device: object
    plan_source: object = None
    settings: str = ""


def opened_target(options, overrides: list[str], name: str) -> Target:
    """A trained run, or a detector from elsewhere on the data that the overrides name.

    Raises:
        ValueError: a detector that is not allowed by name, or that cannot be built.
    """
    from fusion.commands.runs import device_named, open_run
    from fusion.scoring.scorer import Scorer

    device = device_named(options.device)
    if options.detector:
        config = compose(overrides)
        model, data, plan_source = foreign(options.detector, options.allow), instantiate(config.data), None
        folder = Path(name)
    else:
        opened = open_run(Path(name), overrides, options.allow)
        config, model, data = opened.config, opened.model, opened.data
        plan_source, folder = opened.plan_source, opened.directory.path
    split = options.split or config.data.val_split
    data.frames(split)
    scorer = Scorer(config.data.root, config.data.version, split)
    # Those of the data have an influence by what the data then are: part of what cells are known by, too.
    changed = " ".join(sorted(one for one in overrides if not one.lstrip("+~").startswith("data.")))
    return Target(folder, model.to(device), data, scorer, config.suite, device, plan_source, changed)


def foreign(detector: str, allowed: list[str]):
    """A detector of somebody else's, around which the suite can run.

    Raises:
        ValueError: it is not allowed by name, there is no such class, or it has no ``detect``.
    """
    from fusion.robustness.detector import ForeignModel

    if detector not in allowed:
        raise ValueError(
            f"expected leave to run {detector}, which is code from outside dynfusion; add allow={detector}"
        )
    module, _, name = detector.rpartition(".")
    sys.path.insert(0, "")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"expected a class that can be imported as detector={detector}, got: {error}") from None
    finally:
        sys.path.pop(0)
    return ForeignModel(kind())


def keep(target: Target, result, scenarios, baseline) -> None:
    """Write ``robustness.json`` and the samples that the report shows."""
    from fusion.report.gallery import save_report_samples
    from fusion.robustness.summary import summary_of
    from fusion.run_directory import write_json

    write_json(target.folder / "robustness.json", summary_of(result.cells, baseline))
    save_report_samples(target.folder, target.data.frames(target.scorer.split), scenarios)
