"""Pillars that are left out before the network that each of their points passes: chosen by a score, not by region.

Where the ground is flat a pillar holds many points and says little, and the points are most of what a LiDAR encoder
with many sweeps costs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from datamodules.batch import PointBatch
from fusion.encoders.lidar import LidarEncoder
from fusion.ops.flops import GIGA
from fusion.trunk.tokens_blocks import straight_through
from sensors.grid import BevGrid

SCORES = ("points", "height", "learned")
NUM_STATISTICS = 6
_FLOPS_PER_POINT = 12
"""Sums, extremes and the count of a pillar's points."""
_SPARED_PER_POINT = 20
"""Mean and offsets, of the 30 that PillarEncoder counts; the cell is found for every point."""
_HIDDEN = 16


@dataclass(frozen=True, eq=False)
class ChosenPillars:
    """Pillars that hold points, and which of them go on.

    Attributes:
        number: of each, ``sample * cells + cell``, ascending.
        of_point: which of them each point lies in.
        keep: whether it goes on.
        gate: 1 or 0 like ``keep``, with the gradient of the choice; None where there is none.
    """

    number: Int64[Tensor, "k"]
    of_point: Int64[Tensor, "p"]
    keep: Bool[Tensor, "k"]
    gate: Float[Tensor, "k"] | None


class PillarDrop(nn.Module):
    """Which pillars go on.

    Args:
        keep: share of a sample's points, which are what costs: pillars go on from the best one down as long as their
            points fit into it, one pillar at least. 1 without a threshold is everything.
        score: ``height``, the difference in metres between a pillar's highest and lowest point; ``points``, their
            number; or ``learned``, from two layers over six statistics of its points.
        threshold: score that a pillar has to exceed, too: their number then depends on the frame. None for none.
        target: of the mean share of pillars that goes on in training, for ``token_loss``; for learned scores with a
            threshold.

    Attributes:
        rate: factor on ``keep`` at evaluation.
        last_share: mean share of pillars in the last training pass, with gradients; None where there were none.

    Raises:
        ValueError: a share outside (0, 1], an unknown score, or a target that nothing can reach.
    """

    def __init__(
        self,
        keep: float | int = 0.5,
        score: str = "height",
        threshold: float | int | None = None,
        target: float | None = None,
    ):
        super().__init__()
        for name, share in (("keep", keep), ("target", target)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"expected {name} of the pillars in (0, 1], got {share}")
        if score not in SCORES:
            raise ValueError(f"expected the score of pillars to be one of {', '.join(SCORES)}, got {score!r}")
        if target is not None and (score != "learned" or threshold is None):
            raise ValueError(f"expected a target with score: learned and a threshold, got {score} and {threshold}")
        self.keep, self.score, self.threshold, self.target, self.rate = keep, score, threshold, target, 1.0
        self.last_share: Tensor | None = None
        if score == "learned":
            self.layers = nn.Sequential(nn.Linear(NUM_STATISTICS, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))
            nn.init.constant_(self.layers[2].bias, 2.0 if threshold is None else threshold + 2.0)  # most go on at first

    @property
    def is_open(self) -> bool:
        """Whether every pillar goes on."""
        return self.threshold is None and self.share == 1

    @property
    def share(self) -> float:
        """Largest share of the points that goes on."""
        return self.keep if self.training else self.keep * self.rate

    def forward(
        self, points: Float[Tensor, "p f"], pillars: Int64[Tensor, "p"], num_samples: int, num_cells: int
    ) -> ChosenPillars:
        """
        Args:
            points: columns LIDAR_FIELDS.
            pillars: ``sample * num_cells + cell`` of each.
        """
        counts = torch.bincount(pillars, minlength=num_samples * num_cells)
        number = torch.nonzero(counts)[:, 0]
        place = torch.empty_like(counts)
        place[number] = torch.arange(len(number), device=number.device)
        of_point = place[pillars]
        scores = self.scores(points, of_point, counts[number])
        keep = _best(scores.detach(), number // num_cells, counts[number], num_samples, self.share)
        gate = None
        if self.threshold is not None and self.training and self.score == "learned":
            gate = keep * straight_through(torch.stack([torch.full_like(scores, self.threshold), scores], dim=-1))
            keep = gate.detach() > 0.5
            self.last_share = gate.mean() if len(gate) else None  # of no pillars there is no share
        else:
            keep = keep if self.threshold is None else keep & (scores > self.threshold)
            if self.training and self.score == "learned" and keep.any():
                # Steepest at the cut, where a little more or less decides.
                soft = torch.sigmoid(scores - scores.detach()[keep].min())
                gate = keep.float() + soft - soft.detach()
        return ChosenPillars(number, of_point, keep, gate)

    def scores(
        self, points: Float[Tensor, "p f"], of_point: Int64[Tensor, "p"], counts: Int64[Tensor, "k"]
    ) -> Float[Tensor, "k"]:
        """Of every pillar that holds points."""
        if self.score == "points":
            return counts.float()
        height = points[:, 2].float()
        ends = height.new_full((2, len(counts)), torch.inf)
        low = ends[0].scatter_reduce(0, of_point, height, "amin")
        high = (-ends[1]).scatter_reduce(0, of_point, height, "amax")
        if self.score == "height":
            return high - low
        columns = torch.cat([points[:, 2:4].float(), points[:, :2].float().norm(dim=1, keepdim=True)], dim=1)
        mean = columns.new_zeros(len(counts), 3).index_add(0, of_point, columns) / counts[:, None]
        parts = [high - low, 0.3 * high, 0.3 * mean[:, 0], mean[:, 1], 0.02 * mean[:, 2], counts.float().log1p() / 3.0]
        return self.layers(torch.stack(parts, dim=1).clamp(-8.0, 8.0))[:, 0]

    def token_loss(self) -> Float[Tensor, ""] | None:
        """(share - target)^2 of the last training pass: over the batch, so that frames may differ."""
        if self.target is None or self.last_share is None:
            return None
        return (self.last_share - self.target).square()

    def gflops(self, num_points: float | int, num_pillars: float | int) -> float:
        """Of choosing."""
        layers = 2.0 * _HIDDEN * (NUM_STATISTICS + 1) if self.score == "learned" else 0.0
        return (num_points * _FLOPS_PER_POINT + num_pillars * layers) / GIGA

    def __getstate__(self) -> dict:
        """Copies do not take the last pass along: it may hang on a graph."""
        return {**self.__dict__, "last_share": None}


class DroppingLidarEncoder(LidarEncoder):
    """A LidarEncoder without the pillars that a score leaves out: they are empty, and their points are not worked on.

    Its price is that of all points and of choosing; what was left out is taken off in the trace. With ``keep`` 1 it is
    the LidarEncoder, bit for bit.

    Args:
        drop: which pillars go on.
        options: of ``LidarEncoder``.
    """

    def __init__(self, grid: BevGrid, channels: int, drop: PillarDrop, **options):
        super().__init__(grid, channels, **options)
        self.drop = drop
        self._saved: Tensor | None = None

    def canvas(self, points: PointBatch) -> Float[Tensor, "r c ny nx"]:
        """In training gated where the score is learnt; at evaluation points of other pillars are gone."""
        self._saved = None
        if self.drop.is_open:
            return super().canvas(points)
        num_samples, num_cells = len(points.present), self.grid.shape[0] * self.grid.shape[1]
        fields, pillars = self._on_grid(points)
        chosen = self.drop(fields, pillars, num_samples, num_cells)
        if chosen.gate is not None:
            gates = chosen.gate.new_zeros(num_samples * num_cells).index_copy(0, chosen.number, chosen.gate)
            return self._placed(fields, pillars, num_samples) * gates.view(num_samples, 1, *self.grid.shape)
        stays = torch.nonzero(chosen.keep[chosen.of_point])[:, 0]
        if not self.training:
            self._saved = self._savings(points.sample, pillars, stays, chosen.number, num_samples)
        return self._placed(fields[stays], pillars[stays], num_samples)

    def set_rate(self, rate: float) -> None:
        """Fewer pillars at evaluation: a factor on ``keep``.

        Raises:
            ValueError: a rate outside (0, 1], or below 1 of a drop that is made to leave nothing out.
        """
        if not 0 < rate <= 1 or (rate < 1 and not self._drops):
            raise ValueError(
                f"expected a rate in (0, 1] of a PillarDrop with keep below 1 or a threshold, got {rate:g} of keep "
                f"{self.drop.keep:g}; change the drop"
            )
        self.drop.rate = float(rate)

    def gflops(self, num_points: float | int) -> float:
        """Of one sample with ``num_points`` points, each in a pillar of its own, all of which go on: the most."""
        return super().gflops(num_points) + (self.drop.gflops(num_points, num_points) if self._drops else 0.0)

    @property
    def _drops(self) -> bool:
        return self.drop.keep < 1 or self.drop.threshold is not None

    def saved_gflops(self) -> Float[Tensor, "r"] | None:
        """What each sample of the last pass at evaluation saved of ``gflops``; None for nothing and after training."""
        return self._saved

    def _savings(
        self,
        sample: Int64[Tensor, "n"],
        pillars: Int64[Tensor, "p"],
        stays: Int64[Tensor, "q"],
        number: Int64[Tensor, "k"],
        num_samples: int,
    ) -> Float[Tensor, "r"]:
        """Points whose pillar does not go on pay for choosing alone; a pillar of several points is chosen once."""
        num_cells = self.grid.shape[0] * self.grid.shape[1]

        def per_sample(samples: Tensor) -> Tensor:
            return torch.bincount(samples, minlength=num_samples).double().cpu()

        gone = per_sample(pillars // num_cells) - per_sample(pillars[stays] // num_cells)
        linear = sum(layer[0].in_features * layer[0].out_features for layer in self.points)
        spared = per_sample(sample) - per_sample(number // num_cells)
        return gone * ((2.0 * linear + _SPARED_PER_POINT + self.pillar_channels) / GIGA) + spared * self.drop.gflops(
            0, 1
        )


def _best(
    scores: Float[Tensor, "k"], sample: Int64[Tensor, "k"], counts: Int64[Tensor, "k"], num_samples: int, share: float
) -> Bool[Tensor, "k"]:
    """The best pillars of each sample that hold this share of its points; of equal ones those with the lower number."""
    if share == 1:
        return torch.ones_like(sample, dtype=torch.bool)
    order = scores.argsort(descending=True, stable=True)
    order = order[sample[order].argsort(stable=True)]
    own, total = sample[order], torch.zeros(num_samples, dtype=torch.int64, device=counts.device)
    total = total.index_add(0, sample, counts)
    before = counts[order].cumsum(0) - counts[order] - (total.cumsum(0) - total)[own]
    fits = before + counts[order] <= (share * total.double() + 1e-6)[own]
    return torch.zeros_like(sample, dtype=torch.bool).index_copy(0, order, fits | (before == 0))
