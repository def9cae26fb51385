"""What a suite runs on: the opened run or foreign detector, and the processes and jobs that share its cells."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import compose, config_folder, instantiate

LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm", "ray")
nothing = nullcontext


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


@contextmanager
def progress_bar(console) -> Iterator:
    """Shows what runs; yields the function to call."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("robustness", total=None)
        yield lambda label, done, total: bar.update(task, description=label, completed=done, total=total)


def share_named(text: str):
    """``1/4``: the first of four parts.

    Raises:
        ValueError: another text.
    """
    from fusion.robustness.axes import Share

    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"expected share=K/N with K from 1 to N, got '{text}'")
    return Share(int(index) - 1, int(count))


class Ranks:
    """N processes of this command, started by Lightning Fabric; each runs its own cells, no tensors are exchanged.

    Args:
        count: processes, one device each.
        device: of this command; CUDA gives every process its own.
    """

    def __init__(self, count: int, device):
        from lightning_fabric import Fabric

        accelerator = "cuda" if device.type == "cuda" else "cpu"
        self._fabric = Fabric(accelerator=accelerator, devices=count, strategy="ddp")
        self._fabric.launch()

    @property
    def rank(self) -> int:
        return self._fabric.global_rank

    def wait(self) -> None:
        """Until all processes are here."""
        self._fabric.barrier()


def launch(options, overrides: list[str], name: str) -> None:
    """Run the shares as jobs of a Hydra launcher and wait for them.

    Raises:
        ValueError: an unknown launcher; its plugin is not installed.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    if options.launcher not in LAUNCHERS:
        raise ValueError(f"expected launcher to be one of {', '.join(LAUNCHERS)}, got '{options.launcher}'")
    if options.jobs < 1:
        raise ValueError(f"expected jobs of at least 1, got {options.jobs}")
    plugin = options.launcher.partition("_")[0]
    if not has_plugin(plugin):
        raise ValueError(
            f"expected Hydra's plugin for launcher={options.launcher}; pip install hydra-{plugin}-launcher"
        )
    shares = ",".join(f"{number}/{options.jobs}" for number in range(1, options.jobs + 1))
    words = ["dynfusion", "--multirun", f"share={shares}", f"hydra.sweep.dir={Path(name).resolve() / 'jobs'}"]
    given = [*own_words(options, name), *overrides]
    before, sys.argv = sys.argv, [*words, f"arguments={_quoted(given)}"]
    GlobalHydra.instance().clear()
    folder = str(config_folder() / "jobs")
    try:
        hydra.main(version_base="1.3", config_path=folder, config_name=options.launcher)(run_job)()
    finally:
        sys.argv = before


def run_job(job) -> int:
    """One share, in a process of the launcher's."""
    from fusion.commands import robustness

    return robustness.run([*job.arguments, f"share={job.share}"])


def own_words(options, name: str) -> list[str]:
    """The command's settings as words again, for one run and without the sharing out."""
    from dataclasses import fields

    left_out = ("run", "launcher", "jobs", "share", "devices")
    words = [f"run={Path(name).resolve()}"]
    for entry in fields(options):
        value = getattr(options, entry.name)
        if entry.name not in left_out and value not in ("", []):
            words.append(f"{entry.name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return words


def has_plugin(name: str) -> bool:
    """Whether Hydra's launcher of that name can be imported."""
    import importlib.util

    try:
        return importlib.util.find_spec(f"hydra_plugins.hydra_{name}_launcher") is not None
    except ModuleNotFoundError:
        return False


def _quoted(words: list[str]) -> str:
    """A list for Hydra's command line, every word in quotes."""
    return "[" + ",".join("'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in words) + "]"


def keep(target: Target, result, scenarios, baseline) -> None:
    """Write ``robustness.json`` and the samples that the report shows."""
    from fusion.report.gallery import save_report_samples
    from fusion.robustness.summary import summary_of
    from fusion.run_directory import write_json

    write_json(target.folder / "robustness.json", summary_of(result.cells, baseline))
    save_report_samples(target.folder, target.data.frames(target.scorer.split), scenarios)
