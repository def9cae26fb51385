"""What an exit is sure of, read from the peaks of its heatmap.

Of ten thousand cells all but a few are empty, and every head, trained or not, soon says so: a mean over cells is near
1 on every frame and tells nothing. A detection is a local maximum. Scores are therefore defined over the strongest
local maxima of a sample, each weighted by its own probability: the mean over the boxes that the exit expects. A frame
with nothing in it has only weak peaks; what counts then is how sure the exit is that they are nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from fusion.heads.center import NUM_CLASSES, HeadOutput
from sensors.grid import BevGrid

NOTHING = NUM_CLASSES
"""Index of the hypothesis that there is no box, after the classes."""


@dataclass(frozen=True, eq=False)
class Peaks:
    """The K strongest local maxima (3x3 cells) of R samples at one exit, over all classes, strongest first.

    Attributes:
        logits: of all classes at the peak's cell, divided by the exit's temperature.
        label: the class whose maximum it is.
        xy_m: centre of the box, in the frame of the grid.
        is_peak: False at the end where a sample has fewer maxima.
    """

    logits: Float[Tensor, "r k 10"]
    label: Int64[Tensor, "r k"]
    xy_m: Float[Tensor, "r k 2"]
    is_peak: Bool[Tensor, "r k"]

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def prob(self) -> Float[Tensor, "r k"]:
        """That there is a box of the class ``label``."""
        return self.logits.gather(-1, self.label[..., None])[..., 0].sigmoid()

    @property
    def weight(self) -> Float[Tensor, "r k"]:
        """Each peak's share of the expected number of boxes; sums to 1."""
        expected = self.prob * self.is_peak
        return expected / expected.sum(dim=1, keepdim=True)

    @property
    def hypotheses(self) -> Float[Tensor, "r k 11"]:
        """Probabilities of the classes and of NOTHING (1 minus the highest class), normalised."""
        classes = self.logits.sigmoid()
        both = torch.cat([classes, 1 - classes.amax(dim=-1, keepdim=True)], dim=-1)
        return both / both.sum(dim=-1, keepdim=True)

    def mean(self, values: Float[Tensor, "r k"]) -> Float[Tensor, "r"]:
        """Over the peaks, by their weights."""
        return torch.where(self.is_peak, values * self.weight, 0.0).sum(dim=1)

    def select(self, rows: Int64[Tensor, "s"]) -> "Peaks":
        return Peaks(*(getattr(self, item.name).index_select(0, rows) for item in fields(self)))


@torch.no_grad()
def find_peaks(output: HeadOutput, grid: BevGrid, num_peaks: int = 32, temperature: float = 1.0) -> Peaks:
    """Peaks of an exit's maps. Where maps hold NaN, so do the scores; such a sample stays in."""
    logits = output.heatmap.float() / temperature
    num_cells = logits.shape[2] * logits.shape[3]
    beaten = _highest_around(logits) > logits
    found, index = logits.masked_fill(beaten, -torch.inf).flatten(1).topk(min(num_peaks, logits[0].numel()), dim=1)
    label, cell = index // num_cells, index % num_cells
    sample = torch.arange(len(logits), device=index.device)[:, None].expand_as(index)
    offset = output.at(sample.flatten(), label.flatten(), cell.flatten()).offset.float().view(*index.shape, 2)
    place = torch.stack([cell % grid.shape[1], cell // grid.shape[1]], dim=-1) + offset
    low = torch.tensor([grid.x_range_m[0], grid.y_range_m[0]], device=place.device)
    at_cell = logits.flatten(2).transpose(1, 2).gather(1, cell[..., None].expand(-1, -1, NUM_CLASSES))
    return Peaks(at_cell, label, low + place * grid.cell_m, ~found.isneginf())


def confidence(peaks: Peaks) -> Float[Tensor, "r k"]:
    """Probability of the likeliest hypothesis, NOTHING among them."""
    return peaks.hypotheses.amax(dim=-1)


def certainty(peaks: Peaks) -> Float[Tensor, "r k"]:
    """1 minus the entropy of the hypotheses over its largest value, ln 11."""
    probs = peaks.hypotheses
    entropy = -torch.special.xlogy(probs, probs).sum(dim=-1)
    return 1 - entropy / torch.log(torch.tensor(float(NUM_CLASSES + 1), device=probs.device))


def margin(peaks: Peaks) -> Float[Tensor, "r k"]:
    """How far the likeliest hypothesis is ahead of the second."""
    best, second = peaks.hypotheses.topk(2, dim=-1).values.unbind(-1)
    return best - second


def energy(peaks: Peaks) -> Float[Tensor, "r k"]:
    """Joint energy of independent classes, sum of log(1 + exp(logit)) (Wang et al., NeurIPS 2021)."""
    return functional.softplus(peaks.logits).sum(dim=-1)


def sharpened_entropy(peaks: Peaks) -> Float[Tensor, "r k"]:
    """Entropy in nats of the squared and renormalised hypotheses (the fourth feature of JEI-DNN)."""
    squared = peaks.hypotheses.square()
    squared = squared / squared.sum(dim=-1, keepdim=True)
    return -torch.special.xlogy(squared, squared).sum(dim=-1)


def matched_shift_m(before: Peaks, now: Peaks, radius_m: float = 2.0) -> Float[Tensor, "r"]:
    """How far the boxes moved from one exit to the next: mean distance to the nearest box of the same class.

    Counted both ways, so a box that vanished costs as much as one that appeared: ``radius_m``, the most that any costs.
    """
    distance = torch.cdist(before.xy_m, now.xy_m, compute_mode="donot_use_mm_for_euclid_dist")
    comparable = (before.label[:, :, None] == now.label[:, None]) & before.is_peak[:, :, None] & now.is_peak[:, None]
    distance = torch.where(comparable, distance, radius_m).clamp(max=radius_m)
    return (before.mean(distance.amin(dim=2)) + now.mean(distance.amin(dim=1))) / 2


def match_to_boxes(
    peaks: Peaks,
    sample: Int64[Tensor, "m"],
    label: Int64[Tensor, "m"],
    xy_m: Float[Tensor, "m 2"],
    radius_m: float = 2.0,
) -> Int64[Tensor, "r k"]:
    """What is true at each peak: the class of the box that it found, else NOTHING; -1 where there is no peak.

    As in the nuScenes metric: peaks take boxes of their class in falling order of score, each box once, the nearest
    first. A peak near a box of another class alone is NOTHING.
    """
    truth = torch.where(peaks.is_peak, NOTHING, -1).cpu()
    labels, centers, there = peaks.label.cpu(), peaks.xy_m.float().cpu(), peaks.is_peak.cpu()
    sample, label, xy_m = sample.cpu(), label.cpu(), xy_m.float().cpu()
    for row in range(len(peaks)):
        own = torch.nonzero(sample == row)[:, 0]
        if not len(own):
            continue
        distance = torch.cdist(centers[row], xy_m[own], compute_mode="donot_use_mm_for_euclid_dist")
        distance[labels[row][:, None] != label[own]] = torch.inf
        for peak in torch.nonzero(there[row])[:, 0].tolist():
            nearest = int(distance[peak].argmin())
            if distance[peak, nearest] < radius_m:
                truth[row, peak] = labels[row, peak]
                distance[:, nearest] = torch.inf
    return truth.to(peaks.label.device)


def gate_features(peaks: Peaks) -> Float[Tensor, "r 4"]:
    """Confidence, certainty, margin and sharpened entropy of each sample: the inputs of a learned gate."""
    named = (confidence, certainty, margin, sharpened_entropy)
    return torch.stack([peaks.mean(one(peaks)) for one in named], dim=1)


def joined(parts: Sequence[Peaks]) -> Peaks:
    """Samples of several batches one after the other."""
    return Peaks(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Peaks)))


def _highest_around(maps: Float[Tensor, "b c ny nx"]) -> Float[Tensor, "b c ny nx"]:
    """The maximum over 3x3 cells, columns then rows: much faster than ``max_pool2d`` on a CPU."""
    wide = functional.pad(maps, (1, 1, 0, 0), value=-torch.inf)
    wide = torch.maximum(torch.maximum(wide[..., :-2], wide[..., 1:-1]), wide[..., 2:])
    tall = functional.pad(wide, (0, 0, 1, 1), value=-torch.inf)
    return torch.maximum(torch.maximum(tall[..., :-2, :], tall[..., 1:-1, :]), tall[..., 2:, :])
