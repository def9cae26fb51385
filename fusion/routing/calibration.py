"""Thresholds that spend a budget on average, found on a validation set, and kept with what they were found on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fusion.routing.budget import RouteTable
from fusion.routing.policies import ThresholdPolicy, priced_choice


@dataclass(frozen=True)
class CalibratedThreshold:
    """One price, and where it comes from. A threshold does not carry over to other data by itself: see ``OnlinePrice``.

    Attributes:
        budget: share of the full cost that was asked for, on average.
        price: score per share of the full cost.
        mean_cost: what the price spends on the calibration set.
        standard_error: of that mean.
        num_samples: in the calibration set.
        data: name of the calibration set.
    """

    budget: float
    price: float
    mean_cost: float
    standard_error: float
    num_samples: int
    data: str

    def policy(self, cap: float = 1.0) -> ThresholdPolicy:
        return ThresholdPolicy(self.price, cap)


def calibrate(
    scores: Float[Tensor, "n u k"],
    possible: Bool[Tensor, "n u k"],
    routes: RouteTable,
    budgets: Sequence[float],
    data: str,
    cap: float = 1.0,
) -> list[CalibratedThreshold]:
    """The least price whose mean cost over the samples is within each budget.

    Mean cost falls in steps as the price rises, a step at each score-per-cost between two branches of a unit of a
    sample. Those quotients are the candidates; the quantile is found by bisection over them.

    Args:
        scores: of a validation set, as the router gives them at evaluation.
        data: name of that set.
        cap: hard cap on each sample, as the policy will have it.

    Raises:
        ValueError: no samples, or a budget outside [least, 1].
    """
    if not len(scores):
        raise ValueError(f"expected samples to calibrate on, got none from '{data}'; choose a split that has samples")
    for budget in budgets:
        if not routes.min_budget - 1e-6 <= budget <= 1 + 1e-6:
            raise ValueError(f"expected budgets in [{routes.min_budget:.4f}, 1], got {budget:g}")
    candidates = candidate_prices(scores, possible, routes)
    return [_calibrated(scores, possible, routes, budget, candidates, data, cap) for budget in budgets]


def candidate_prices(
    scores: Float[Tensor, "n u k"], possible: Bool[Tensor, "n u k"], routes: RouteTable
) -> Float[Tensor, "q"]:
    """Every price at which some unit of some sample changes its branch, ascending, with one below and one above."""
    shares = routes.shares(scores.device)
    clean = scores.detach().double().nan_to_num(0.0)
    gain = clean[..., :, None] - clean[..., None, :]
    cost = shares[:, :, None] - shares[:, None, :]
    usable = possible[..., :, None] & possible[..., None, :] & (cost > 0)
    quotients = (gain / torch.where(cost > 0, cost, 1.0))[usable]
    ends = quotients.new_tensor([0.0]) if not len(quotients) else torch.stack([quotients.min(), quotients.max()])
    return torch.unique(torch.cat([ends[:1] - 1, quotients, ends[-1:] + 1]))


def _calibrated(scores, possible, routes, budget, candidates, data, cap) -> CalibratedThreshold:
    caps = torch.full((len(scores),), cap, dtype=torch.float64)

    def costs(price: float) -> Tensor:
        wanted = priced_choice(scores, possible, routes, price)
        return routes.prices.cost_of(routes.capped(wanted, possible, caps.to(wanted.device)))

    low, high = 0, len(candidates) - 1  # the highest price is affordable wherever any is
    while low < high:
        middle = (low + high) // 2
        if float(costs(_above(candidates, middle)).mean()) <= budget + 1e-9:
            high = middle
        else:
            low = middle + 1
    price = _above(candidates, high)
    spent = costs(price)
    error = float(spent.std() / len(spent) ** 0.5) if len(spent) > 1 else float("nan")
    return CalibratedThreshold(float(budget), price, float(spent.mean()), error, len(spent), data)


def _above(candidates: Float[Tensor, "q"], index: int) -> float:
    """Between a candidate and the next one, so that rounding does not decide."""
    after = candidates[min(index + 1, len(candidates) - 1)]
    return float((candidates[index] + after) / 2) if index + 1 < len(candidates) else float(candidates[index] + 1)


class OnlinePrice:
    """Follows a budget on data that shift: the price rises after frames that cost too much and falls after cheap ones.

    price += step * (cost - budget): stochastic approximation of the same quantile.

    Attributes:
        policy: whose price is moved.
    """

    def __init__(self, policy: ThresholdPolicy, budget: float, step: float):
        if not step > 0:
            raise ValueError(f"expected a step above 0, got {step}")
        self.policy, self.budget, self.step = policy, budget, step

    def observe(self, costs: Float[Tensor, "b"]) -> None:
        """Executed cost shares of the samples just done."""
        self.policy.price += self.step * float((costs - self.budget).sum())


def write_thresholds(path: str | Path, thresholds: Sequence[CalibratedThreshold]) -> None:
    """As JSON; the file is whole or not there."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps([asdict(one) for one in thresholds], indent=2) + "\n", encoding="utf-8")
    partial.rename(path)


def read_thresholds(path: str | Path) -> list[CalibratedThreshold]:
    """What ``write_thresholds`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"expected calibrated thresholds, there are none at {path}; calibrate first")
    return [CalibratedThreshold(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


@dataclass(frozen=True)
class Calibration:
    """The thresholds of one checkpoint, of no use to any other.

    Attributes:
        checkpoint: word of the weights that the scores came from.
        data: name of the calibration set.
        thresholds: one per budget.
        held_out_cost: what each threshold, found on one half of the scenes, spent on the other half.
        held_out_error: standard error of that mean.
    """

    checkpoint: str
    data: str
    thresholds: tuple[CalibratedThreshold, ...]
    held_out_cost: tuple[float, ...]
    held_out_error: tuple[float, ...]

    def policy(self, budget: float, cap: float = 1.0) -> ThresholdPolicy:
        """The policy that spends the budget on average.

        Raises:
            ValueError: no threshold was calibrated for this budget.
        """
        found = [one for one in self.thresholds if abs(one.budget - budget) < 1e-6]
        if not found:
            known = ", ".join(f"{one.budget:g}" for one in self.thresholds)
            raise ValueError(f"expected one of the calibrated budgets {known}, got {budget:g}; calibrate for it too")
        return found[0].policy(cap)

    def write(self, path: str | Path) -> None:
        """As JSON; the file is whole or not there."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        partial.rename(path)

    @classmethod
    def read_for(cls, path: str | Path, checkpoint: str) -> "Calibration":
        """What ``write`` wrote, if it belongs to this checkpoint.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it was made from other weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"expected calibrated thresholds at {path}, there are none; run dynfusion calibrate run=... first"
            )
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["checkpoint"] != checkpoint:
            raise ValueError(
                f"expected thresholds of the checkpoint {checkpoint}, got those of {fields['checkpoint']} in {path}; "
                "calibrate again: dynfusion calibrate run=..."
            )
        thresholds = tuple(CalibratedThreshold(**one) for one in fields.pop("thresholds"))
        numbers = {name: tuple(fields.pop(name)) for name in ("held_out_cost", "held_out_error")}
        return cls(thresholds=thresholds, **numbers, **fields)


def held_out_costs(
    scores: Float[Tensor, "n u k"],
    possible: Bool[Tensor, "n u k"],
    routes: RouteTable,
    budget: float,
    second: Bool[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """Cost of every sample under the threshold that was found on the other fold.

    Args:
        second: which fold each sample belongs to; both must have samples.
    """
    costs = torch.zeros(len(scores), dtype=torch.float64)
    for fold in (second, ~second):
        found = calibrate(scores[~fold], possible[~fold], routes, [budget], "the other fold")[0]
        wanted = priced_choice(scores[fold], possible[fold], routes, found.price)
        ones = torch.ones(int(fold.sum()), dtype=torch.float64)
        costs[fold] = routes.prices.cost_of(routes.capped(wanted, possible[fold], ones))
    return costs
