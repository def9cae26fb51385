"""How far each exit's probabilities are from frequencies, before and after its temperature; and those of the answers.

Leaving selects the sure ones, so a calibrated exit is not yet a calibrated answer: both are measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from fusion.adaptive.allocation import Allocation
from fusion.heads.center import HeadOutput
from fusion.heads.targets import CenterTargets
from fusion.trunk.exits_calibration import exits_of
from fusion.trunk.exits_peaks import NOTHING, find_peaks, match_to_boxes
from fusion.trunk.exits_reliability import Reliability, fit_temperature, reliability
from sensors.grid import BevGrid

NUM_PEAKS = 32
"""Of a sample, for a model without exits."""


@dataclass(frozen=True, eq=False)
class PeakTable:
    """The strongest peaks of N samples at each of K exits, the model's own head last.

    Attributes:
        logits: of each peak's class, at temperature 1.
        truth: 1 where the peak found a box, 0 where it found none, -1 where there is no peak.
    """

    logits: Float32[Tensor, "n k p"]
    truth: Int64[Tensor, "n k p"]

    def select(self, rows: Tensor) -> "PeakTable":
        """Some of the samples."""
        return PeakTable(self.logits[rows], self.truth[rows])

    def of_exit(self, number: int) -> tuple[Float[Tensor, "m"], Tensor]:
        """Logit of every peak of one exit, and whether it found a box."""
        there = self.truth[:, number] >= 0
        return self.logits[:, number][there], self.truth[:, number][there] == 1


def peak_table(answers: Sequence[HeadOutput], targets: CenterTargets, grid: BevGrid, num_peaks: int) -> PeakTable:
    """Of one batch; boxes are those of the targets: on the grid, with points."""
    xy_m = centers_m(targets, grid)
    logits, truth = [], []
    for answer in answers:
        peaks = find_peaks(answer, grid, num_peaks)
        found = match_to_boxes(peaks, targets.sample, targets.label, xy_m)
        logits.append(peaks.logits.gather(-1, peaks.label[..., None])[..., 0])
        truth.append(torch.where(peaks.is_peak, (found != NOTHING).long(), -1))
    return PeakTable(torch.stack(logits, dim=1).float(), torch.stack(truth, dim=1))


def centers_m(targets: CenterTargets, grid: BevGrid) -> Float[Tensor, "m 2"]:
    """Of the boxes, in the frame of the grid."""
    low = torch.tensor([grid.x_range_m[0], grid.y_range_m[0]], device=targets.offset.device)
    place = torch.stack([targets.cell % grid.shape[1], targets.cell // grid.shape[1]], dim=-1)
    return low + (place + targets.offset) * grid.cell_m


@dataclass(frozen=True)
class ExitCalibration:
    """One exit over a set, every sample answered by it.

    Attributes:
        exit: from 0; the last is the model's own head, which no policy asks.
        temperature: of least negative log likelihood on the whole set; 1 where none is best.
        is_fitted: False where its peaks are all right or all wrong.
        before: at temperature 1.
        after: at the temperature fitted on the other half of the scenes; on the same samples without halves.
    """

    exit: int
    temperature: float
    is_fitted: bool
    before: Reliability
    after: Reliability


def calibrate_exits(peaks: PeakTable, folds: Sequence[int] | None) -> list[ExitCalibration]:
    """Of every exit.

    Args:
        folds: 0 or 1 for each sample; None: nothing is held out.
    """
    return [_calibrated(peaks, number, folds) for number in range(peaks.logits.shape[1])]


def _calibrated(peaks: PeakTable, number: int, folds: Sequence[int] | None) -> ExitCalibration:
    logits, correct = peaks.of_exit(number)
    temperature = _fitted(logits, correct)
    cooled, hits = [logits / (temperature or 1.0)], [correct]
    if folds is not None:
        of = torch.tensor(list(folds))
        halves = [peaks.select(torch.nonzero(of == fold)[:, 0]).of_exit(number) for fold in (0, 1)]
        cooled = [own[0] / (_fitted(*other) or 1.0) for own, other in zip(halves, halves[::-1], strict=True)]
        hits = [own[1] for own in halves]
    after = reliability(torch.cat(cooled), torch.cat(hits))
    return ExitCalibration(number, temperature or 1.0, temperature is not None, reliability(logits, correct), after)


def _fitted(logits: Tensor, correct: Tensor) -> float | None:
    """None where no temperature is best."""
    if not bool(correct.any()) or bool(correct.all()):
        return None
    return fit_temperature(logits, correct)


def set_temperatures(model: nn.Module, found: Sequence[ExitCalibration]) -> None:
    """Tell the exits: their policy reads calibrated probabilities from now on."""
    if model.exits is not None:
        temperatures = [one.temperature for one in found[: len(model.exits.heads)]]
        model.exits.set_thresholds(model.exits.thresholds, temperatures)


@dataclass(frozen=True)
class AnswerCalibration:
    """What left at one exit at one budget.

    Attributes:
        budget: asked for.
        exit: as in ExitCalibration.
        num_samples: that left here.
        before, after: of their peaks, at temperature 1 and at the exit's.
    """

    budget: float
    exit: int
    num_samples: int
    before: Reliability
    after: Reliability


def calibrate_answers(
    tables: Mapping[object, tuple[Float[Tensor, "n e"], PeakTable]],
    allocations: Sequence[tuple[object, Allocation]],
    temperatures: Sequence[float],
) -> list[AnswerCalibration]:
    """Of every exit that samples leave at, at every budget.

    Args:
        tables: scores of the early exits and peaks, by setting of router and tokens.
        allocations: with the setting that each belongs to; those of a setting that was not observed are left out.
        temperatures: of all exits, the last one included.
    """
    found = []
    for setting, allocation in allocations:
        if setting not in tables:
            continue
        scores, peaks = tables[setting]
        left = exits_of(scores, allocation.exit_thresholds(scores.shape[1]))
        for number, temperature in enumerate(temperatures):
            rows = torch.nonzero(left == number)[:, 0]
            if len(rows):
                logits, correct = peaks.select(rows).of_exit(number)
                pair = reliability(logits, correct), reliability(logits / temperature, correct)
                found.append(AnswerCalibration(allocation.budget, number, len(rows), *pair))
    return found


def joined_tables(parts: Sequence[PeakTable]) -> PeakTable:
    """Samples of several batches one after the other."""
    return PeakTable(torch.cat([one.logits for one in parts]), torch.cat([one.truth for one in parts]))
