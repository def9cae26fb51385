"""What a suite has found: cells that were there before, cells that others wrote, and what is wrong with some."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusion.robustness.axes import Planned
from fusion.robustness.cells import ROUTER, Cell, append_cell, failed, read_cells
from fusion.robustness.run_word import PARTS, changed_parts
from fusion.run_directory import RunDirectory


@dataclass(frozen=True)
class SuiteResult:
    """All cells that were asked for, in order, whether run now or before.

    Attributes:
        num_skipped: cells that were there already.
        left_out: one line about cells in the file that are of another word; empty without any.
    """

    cells: tuple[Cell, ...]
    num_skipped: int
    left_out: str = ""

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells that could not run."""
        return tuple(cell for cell in self.cells if cell.error is not None)

    @property
    def warned(self) -> tuple[Cell, ...]:
        return tuple(cell for cell in self.cells if cell.warning is not None)

    @property
    def exit_code(self) -> int:
        """1 as soon as one cell could not run."""
        return 1 if self.failed else 0


@dataclass(frozen=True)
class Before:
    """What a run's file held before a suite.

    Attributes:
        done: by key, cells of this word that need not run again.
        left_out: as in ``SuiteResult``.
    """

    done: dict[str, Cell]
    left_out: str

    def num_done(self, planned: Sequence[Planned], word: str) -> int:
        """How many cells of a plan need not run."""
        return sum(plan.blank(word).key in self.done for plan in planned)


def cells_before(run_dir: Path, word: str, regret: bool = False) -> Before:
    """The whole cells of a word in a run's ``robustness.jsonl``, and a line about those of other words.

    Args:
        regret: whether the router's cells must hold their regret.
    """
    path = RunDirectory(Path(run_dir)).robustness
    cells = read_cells(path)
    done = {cell.key: cell for cell in cells if cell.run == word and is_whole(cell, regret)}
    others = {cell.key: cell.run for cell in cells if cell.run != word}
    if not others:
        return Before(done, "")
    parts = {part for other in set(others.values()) for part in changed_parts(word, other)}
    differing = ", ".join(part for part in PARTS if part in parts)
    return Before(done, f"{len(others)} cells in {path} are left out here, since they differ in: {differing}")


def is_whole(cell: Cell, regret: bool) -> bool:
    """Whether a cell of the file holds what is asked for."""
    return cell.error is None and (not regret or cell.policy != ROUTER or cell.regret is not None)


def collected(run_dir: Path, word: str, planned: Sequence[Planned], regret: bool = False) -> SuiteResult:
    """The cells that several processes wrote, in the order of the plan, warnings made good.

    A share without clean data cannot tell whether a scenario changed anything; whoever collects can. A cell that is not
    there, or is there from before without the regret that is asked for, is one that could not run.
    """
    path = RunDirectory(Path(run_dir)).robustness
    newest = {cell.key: cell for cell in read_cells(path)}
    cells = []
    for plan in planned:
        blank = plan.blank(word)
        cell = newest.get(blank.key)
        if cell is None or (cell.error is None and not is_whole(cell, regret)):
            cell = failed(blank, "the process that should have run this cell ended before it, or ran other code")
        fixed = warned(cell, cells)
        if fixed is not cell:
            append_cell(path, fixed)
        cells.append(fixed)
    return SuiteResult(tuple(cells), 0)


def warned(cell: Cell, before: Sequence[Cell]) -> Cell:
    """With a warning if the scenario changed nothing on any sample, by the clean cells among those before it."""
    clean = {other.inputs for other in before if other.is_clean and other.inputs}
    if cell.is_clean or cell.error is not None or cell.warning is not None or cell.inputs not in clean:
        return cell
    return replace(cell, warning="the scenario changed nothing on any sample: this is the score of clean data")
