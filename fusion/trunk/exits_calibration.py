"""From validation data to thresholds: who leaves at them, and what that spends."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.routing.costs import Prices
from fusion.routing.plan import BRANCHES
from fusion.trunk.exits import AFTER_GROUP, EarlyExits
from sensors.rig import NUM_CAMERAS, UNITS

_MOST_COMBINATIONS = 50_000


def exits_of(
    scores: Float[Tensor, "n e"], thresholds: Sequence[float] | Float[Tensor, "m 1 e"]
) -> Int64[Tensor, "*m n"]:
    """Where each sample leaves: the first exit whose score reaches its threshold, else the last.

    Args:
        thresholds: of the early exits; or M combinations of them at once, which gives a row for each.
    """
    limits = torch.as_tensor(thresholds, dtype=scores.dtype, device=scores.device)
    accepts = (scores >= limits) & (limits < math.inf)
    last = accepts.new_ones(*accepts.shape[:-1], 1)
    return torch.cat([accepts, last], dim=-1).int().argmax(dim=-1)


def geometric_shares(ratio: float, num_exits: int) -> list[float]:
    """q_k proportional to ratio^k, summing to 1: the one-parameter family of MSDNet's budgeted batches."""
    powers = [(number + 1) * math.log(ratio) for number in range(num_exits)]
    highest = max(powers)
    weights = [math.exp(power - highest) for power in powers]
    return [weight / sum(weights) for weight in weights]


def budgeted_thresholds(scores: Float[Tensor, "n e"], shares: Sequence[float]) -> list[float]:
    """Thresholds at which a share q_k of all samples leaves at exit k, the surest of those still there first.

    Equal scores leave together. Exits with nothing to take get infinity; NaN never leaves.
    """
    still = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    thresholds = []
    for number, share in enumerate(shares[:-1]):
        column = scores[still, number]
        ranked = column[~column.isnan()].sort(descending=True).values
        count = min(round(share * len(scores)), len(ranked))
        threshold = math.inf if count == 0 else float(ranked[count - 1])
        thresholds.append(threshold)
        still &= ~(scores[:, number] >= threshold)
    return thresholds


def thresholds_for_cost(
    scores: Float[Tensor, "n e"], costs: Float[Tensor, "n k"], mean_cost: float
) -> tuple[list[float], Float[Tensor, "n"]]:
    """Thresholds of the geometric family that spend at most ``mean_cost`` on average, and as much of it as they can.

    Args:
        costs: of each sample if it left at each exit, from ``leaving_gflops``; rising along the exits.

    Returns:
        The thresholds, and what each sample then costs.

    Raises:
        ValueError: no samples, or a cost that no thresholds can keep to.
    """
    if not len(scores):
        raise ValueError("expected samples to calibrate on, got none; choose a split that has samples")

    def spent(thresholds: Sequence[float]) -> Tensor:
        return costs.gather(1, exits_of(scores, thresholds)[:, None])[:, 0]

    everyone = [math.inf] * scores.shape[1]
    if float(spent(everyone).mean()) <= mean_cost:
        return everyone, spent(everyone)
    low, high = -14.0, 14.0  # logarithm of the ratio; the cost rises with it
    best = budgeted_thresholds(scores, geometric_shares(math.exp(low), costs.shape[1]))
    if float(spent(best).mean()) > mean_cost * (1 + 1e-9):
        raise ValueError(
            f"expected a mean cost of at least {float(spent(best).mean()):g} (everybody leaves at the first exit), got "
            f"{mean_cost:g}; ask for more"
        )
    for _ in range(50):
        middle = (low + high) / 2
        tried = budgeted_thresholds(scores, geometric_shares(math.exp(middle), costs.shape[1]))
        if float(spent(tried).mean()) <= mean_cost * (1 + 1e-9):
            low, best = middle, tried
        else:
            high = middle
    return best, spent(best)


def solved_thresholds(
    scores: Float[Tensor, "n e"],
    losses: Float[Tensor, "n k"],
    costs: Float[Tensor, "n k"],
    mean_cost: float,
    worst_cost: float = math.inf,
    num_levels: int = 21,
) -> list[float]:
    """Thresholds of least mean loss under a mean and a worst cost, by trying all on a grid of quantiles.

    Where an exit is the last that some sample can afford, all samples leave there (minus infinity).

    Args:
        losses: of each sample at each exit.
        num_levels: quantiles tried per exit, nobody and everybody among them; fewer with many exits.

    Raises:
        ValueError: no thresholds on the grid keep both costs.
    """
    num_early = scores.shape[1]
    num_levels = min(num_levels, max(int(_MOST_COMBINATIONS ** (1 / num_early)), 3))
    quantiles = torch.linspace(0, 1, num_levels - 1, dtype=torch.float64, device=scores.device)
    columns = []
    for number in range(num_early):
        column = scores[:, number].double()
        finite = column[column.isfinite()]
        levels = [] if not len(finite) else torch.quantile(finite, quantiles[1:-1]).tolist()
        forced = bool((costs[:, number + 1] > worst_cost).any())
        columns.append([-math.inf] if forced else [-math.inf, *levels, math.inf])
    best, least = None, math.inf
    for thresholds in product(*columns):
        left = exits_of(scores.double(), thresholds)[:, None]
        cost = costs.gather(1, left)
        loss = float(losses.gather(1, left).mean())
        if loss < least and float(cost.mean()) <= mean_cost and float(cost.max()) <= worst_cost:
            best, least = list(thresholds), loss
    if best is None:
        raise ValueError(
            f"expected costs that some thresholds can keep, got a mean of {mean_cost:g} and a worst of {worst_cost:g}, "
            f"where the first exit costs {float(costs[:, 0].mean()):g} on average; ask for more"
        )
    return best


def leaving_gflops(
    prices: Prices, exits: EarlyExits, choice: Int64[Tensor, "b u"], with_router: bool = True
) -> Float[Tensor, "b k"]:
    """What each sample would cost if it left at each exit, at the prices of its route; every early head counted."""
    table = torch.tensor([[branches.get(name, 0.0) for name in BRANCHES] for branches in prices.units])
    units = table.double().to(choice.device)[torch.arange(len(UNITS), device=choice.device), choice]  # b u
    is_first = torch.tensor([_sensor_of(unit) in exits.first_group for unit in UNITS], device=choice.device)
    merge, stage, columns = prices.always["merge"], 0, []
    spent = torch.full_like(units[:, 0], merge + (prices.always["router"] if with_router else 0.0))
    spent = spent + (units[:, is_first].sum(dim=1) if exits.first_group else units.sum(dim=1))
    for one, gflops in zip(exits.heads, exits.exit_gflops, strict=True):
        spent = spent + sum(exits.stage_gflops[stage : one.after + 1]) + gflops
        stage = one.after + 1
        columns.append(spent)
        if one.after == AFTER_GROUP:
            spent = spent + units[:, ~is_first].sum(dim=1) + merge
    columns.append(spent + sum(exits.stage_gflops[stage:]) + sum(exits.last_gflops.values()))
    return torch.stack(columns, dim=1).float()


@dataclass(frozen=True)
class CalibratedExits:
    """Thresholds, and where they come from: they belong to one set of weights and one policy.

    Attributes:
        budget: mean share of the full cost that was asked for.
        thresholds, temperatures: of each exit.
        mean_cost, standard_error: what they spend on the calibration set.
        num_samples, data: size and name of that set.
        weights: word of the model's weights (``fusion.robustness.fingerprint.model_word``).
        policy: class of the policy.
    """

    budget: float
    thresholds: tuple[float, ...]
    temperatures: tuple[float, ...]
    mean_cost: float
    standard_error: float
    num_samples: int
    data: str
    weights: str
    policy: str

    def apply(self, exits: EarlyExits, weights: str) -> None:
        """Set them.

        Raises:
            ValueError: they belong to another checkpoint, policy or number of exits.
        """
        if weights != self.weights:
            raise ValueError(
                f"expected thresholds calibrated on this checkpoint ({weights}), got those of {self.weights}; calibrate"
            )
        if type(exits.policy).__name__ != self.policy:
            raise ValueError(
                f"expected thresholds of policy {type(exits.policy).__name__}, got those of {self.policy}; calibrate"
            )
        exits.set_thresholds(self.thresholds, self.temperatures)


def write_calibration(path: str | Path, calibrated: CalibratedExits) -> None:
    """As JSON; the file is whole or not there."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(asdict(calibrated), indent=2) + "\n", encoding="utf-8")
    partial.rename(path)


def read_calibration(path: str | Path) -> CalibratedExits:
    """What ``write_calibration`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected calibrated exits, there are none at {path}; calibrate first")
    values = json.loads(path.read_text(encoding="utf-8"))
    return CalibratedExits(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _sensor_of(unit: str) -> str:
    return "camera" if unit in UNITS[:NUM_CAMERAS] else unit.lower()
