"""Who is still there: samples that leave at an exit leave the batch, and all come back in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fusion.heads.center import HeadOutput
from fusion.routing.costs import ALWAYS
from fusion.routing.plan import ExecutionTrace
from fusion.trunk.exits_peaks import Peaks


@dataclass(frozen=True, eq=False)
class ExitRun:
    """What the exits did with B samples; K exits, the last of which is the model's own head.

    Attributes:
        exit_of: where each sample left, 0 to K-1.
        scores: of each exit but the last; NaN where it did not run.
        outputs: the answer of every exit for all samples: in training (unless exits rest) and in masked execution,
            else None.
    """

    exit_of: Int64[Tensor, "b"]
    scores: Float[Tensor, "b e"]
    outputs: tuple[HeadOutput, ...] | None = None


@dataclass
class Walk:
    """The way of one batch through the exits.

    Attributes:
        trace: gets an entry for everything that runs.
        rows: numbers of the samples that are still there.
        numbers: the same on the host: asking the device each time would make it wait.
        scores: as in ExitRun.
        all_stay: nobody leaves (training, masked execution).
        history: peaks of the samples that are still there, per exit so far; None for exits that did not run.
        said: raw outputs of the same.
        answers: what each exit would give out, where all stay.
        left: rows and answers of those that left.
    """

    trace: ExecutionTrace
    rows: Int64[Tensor, "r"]
    numbers: tuple[int, ...]
    scores: Float[Tensor, "b e"]
    all_stay: bool
    history: list[Peaks | None] = field(default_factory=list)
    said: list[HeadOutput | None] = field(default_factory=list)
    answers: list[HeadOutput | None] = field(default_factory=list)
    left: list[tuple[Tensor, HeadOutput, int]] = field(default_factory=list)

    @classmethod
    def start(cls, trace: ExecutionTrace, num_early: int, device: torch.device, all_stay: bool) -> "Walk":
        """Before the first exit of ``num_early``."""
        rows = torch.arange(trace.num_samples, device=device)
        scores = torch.full((len(rows), num_early), torch.nan, device=device)
        return cls(trace, rows, tuple(range(len(rows))), scores, all_stay)

    def record(self, part: str, gflops: float, saved: Sequence[float] | None = None) -> None:
        """An always-on part has run on those that are still there; ``saved``: what it cost each of them less."""
        if saved is None:
            self.trace.add(ALWAYS, part, self.numbers, gflops)
            return
        for row, less in zip(self.numbers, saved, strict=True):
            self.trace.add(ALWAYS, part, (row,), gflops - less)

    def skip(self) -> None:
        """The next exit is not computed; it keeps its number."""
        self.history.append(None)
        self.said.append(None)
        self.answers.append(None)

    def leave(self, leaves: Bool[Tensor, "r"], answer: HeadOutput) -> Int64[Tensor, "s"] | None:
        """Let some of the samples that are still there go with their answers; the one sync of an exit.

        Returns:
            Which of them stay, to gather features by; None where all do.
        """
        on_host = leaves.cpu()
        if not bool(on_host.any()):
            return None
        goes, stays = (torch.nonzero(some)[:, 0].to(leaves.device) for some in (on_host, ~on_host))
        self.numbers = tuple(
            number for number, has_left in zip(self.numbers, on_host.tolist(), strict=True) if not has_left
        )
        self.left.append((self.rows[goes], answer.select(goes), len(self.said) - 1))
        self.rows = self.rows[stays]
        self.history = [None if peaks is None else peaks.select(stays) for peaks in self.history]
        self.said = [None if output is None else output.select(stays) for output in self.said]
        return stays

    def finish(self, last: HeadOutput | None, number: int) -> tuple[HeadOutput, ExitRun]:
        """Everybody's answer, in the order of the batch.

        Args:
            last: of those that are still there, from exit ``number``; None where nobody is.
        """
        parts = [*self.left, *([(self.rows, last, number)] if last is not None else [])]
        order = torch.argsort(torch.cat([rows for rows, _, _ in parts]))
        exit_of = torch.cat([torch.full_like(rows, at) for rows, _, at in parts])[order]
        output = _stacked([answer for _, answer, _ in parts])
        outputs = tuple(self.answers) if self.all_stay and None not in self.answers else None
        return output if len(parts) == 1 else output.select(order), ExitRun(exit_of, self.scores, outputs)


def picked(outputs: Sequence[HeadOutput], exit_of: Int64[Tensor, "b"]) -> HeadOutput:
    """The answer of exit ``exit_of`` for each sample, of answers of all exits for all samples."""
    rows = torch.arange(len(exit_of), device=exit_of.device)
    parts = [(rows[exit_of == number], output) for number, output in enumerate(outputs)]
    order = torch.argsort(torch.cat([own for own, _ in parts]))
    return _stacked([output.select(own) for own, output in parts]).select(order)


def _stacked(parts: Sequence[HeadOutput]) -> HeadOutput:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    maps = [item.name for item in fields(HeadOutput) if item.name != "group_of_class"]
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in maps})
