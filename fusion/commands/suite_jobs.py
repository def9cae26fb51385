"""Who runs the cells of a suite: this process, several on this machine, or jobs of a Hydra launcher."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fusion.commands.compose import config_folder
from fusion.commands.suite_target import Target

LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm", "ray")


@dataclass(frozen=True, eq=False)
class Work:
    """A suite on a target, to be run in one piece or in shares.

    Attributes:
        options: a ``SuiteOptions``; its share is set by whoever runs it.
        console: shows progress.
    """

    target: Target
    scenarios: Sequence
    budgets: tuple[float, ...]
    options: object
    console: object

    @cached_property
    def planned(self) -> list:
        """All its cells, in order."""
        from fusion.robustness.axes import planned_cells

        return planned_cells(self.scenarios, self.budgets, self.options.policies)

    @cached_property
    def word(self) -> str:
        """What its cells are known by."""
        from fusion.robustness.run_word import run_word

        target = self.target
        return run_word(target.model, target.data, target.scorer, target.folder, target.settings)

    def run(self, share=None):
        """All cells, or those of a share, while somebody else holds the folder's lock."""
        from fusion.robustness.suite import run_scenarios

        target, options = self.target, replace(self.options, share=share)
        with progress_bar(self.console) as progress:
            return run_scenarios(
                target.model,
                target.data,
                target.scorer,
                self.scenarios,
                self.budgets,
                target.folder,
                progress,
                options,
            )

    def before(self):
        """What the folder holds already."""
        from fusion.robustness.results import cells_before

        return cells_before(self.target.folder, self.word, self.options.regret)

    def collected(self, before):
        """All cells after the shares have ended; those that were there before count as skipped."""
        from fusion.robustness.results import collected

        result = collected(self.target.folder, self.word, self.planned, self.options.regret)
        return replace(result, num_skipped=before.num_done(self.planned, self.word), left_out=before.left_out)


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
    def device(self):
        """Of this process."""
        return self._fabric.device

    @property
    def rank(self) -> int:
        return self._fabric.global_rank

    def wait(self) -> None:
        """Until all processes are here."""
        self._fabric.barrier()


def on_devices(work: Work, count: int):
    """The suite in ``count`` processes; None in those that only help the first."""
    from fusion.robustness.axes import Share
    from fusion.robustness.lock import only_writer

    before = work.before()
    ranks = Ranks(count, work.target.device)
    work.target.model.to(ranks.device)
    with only_writer(work.target.folder) if ranks.rank == 0 else nullcontext():
        work.run(Share(ranks.rank, count))
        ranks.wait()
        return work.collected(before) if ranks.rank == 0 else None


def launched(work: Work, options, overrides: list[str], name: str):
    """The suite in jobs of a launcher; none is started where all cells are there.

    Raises:
        ValueError: as ``check_launcher``.
    """
    from fusion.robustness.lock import only_writer

    check_launcher(options.launcher, options.jobs)
    with only_writer(work.target.folder):
        before = work.before()
        if before.num_done(work.planned, work.word) < len(work.planned):
            launch(options, overrides, name)
        return work.collected(before)


def check_launcher(launcher: str, num_jobs: int) -> None:
    """Raises ValueError for an unknown launcher, one whose plugin is not installed, or no jobs."""
    if launcher not in LAUNCHERS:
        raise ValueError(f"expected launcher to be one of {', '.join(LAUNCHERS)}, got '{launcher}'")
    if num_jobs < 1:
        raise ValueError(f"expected jobs of at least 1, got {num_jobs}")
    plugin = launcher.partition("_")[0]
    if not has_plugin(plugin):
        raise ValueError(f"expected Hydra's plugin for launcher={launcher}; pip install hydra-{plugin}-launcher")


def launch(options, overrides: list[str], name: str) -> None:
    """Run the shares as jobs of a Hydra launcher and wait for them.

    Hydra prints why a job ended before its time, and would end this process, too: its cells tell of it instead.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    shares = ",".join(f"{number}/{options.jobs}" for number in range(1, options.jobs + 1))
    given = _quoted([*own_words(options, name), *overrides])
    words = ["dynfusion", "--multirun", f"share={shares}", f"jobs={options.jobs}", f"arguments={given}"]
    before, sys.argv = sys.argv, [*words, f"hydra.sweep.dir={_quoted_word(str(Path(name).resolve() / 'jobs'))}"]
    GlobalHydra.instance().clear()
    folder = str(config_folder() / "jobs")
    try:
        hydra.main(version_base="1.3", config_path=folder, config_name=options.launcher)(run_job)()
    except SystemExit:
        pass
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
    return "[" + ",".join(map(_quoted_word, words)) + "]"


def _quoted_word(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'"
