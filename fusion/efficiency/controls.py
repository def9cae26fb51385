"""What a learned router is to be compared with at equal executed cost: random routes, the best static one, an oracle.

All work on a table of losses, one row per sample and one column per route, measured by running every route on every
sample; costs are shares of the full cost. Choose static routes on one set of samples and score them on another.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class RouterComparison:
    """Mean losses at one budget.

    Attributes:
        budget: mean cost that was allowed.
        learned, learned_cost: of the router under test.
        random: expected loss of a random router that costs the same as the learned one.
        static: of the best static route within the budget.
        oracle: of the best route of every sample, at a mean cost within the budget.
    """

    budget: float
    learned: float
    learned_cost: float
    random: float
    static: float
    oracle: float

    @property
    def regret(self) -> float:
        """What the learned router loses to the oracle."""
        return self.learned - self.oracle


def best_static(losses: Float[np.ndarray, "n r"], costs: Float[np.ndarray, "r"], budget: float) -> int:
    """The column with the least mean loss among those within the budget.

    Raises:
        ValueError: none is within it.
    """
    fits = costs <= budget + 1e-9
    if not fits.any():
        raise ValueError(f"expected a budget of at least {costs.min():.4f}, the cheapest route, got {budget:.4f}")
    return int(np.where(fits, losses.mean(axis=0), np.inf).argmin())


def oracle_routes(
    losses: Float[np.ndarray, "n r"], costs: Float[np.ndarray, "r"] | Float[np.ndarray, "n r"], budget: float
) -> Int[np.ndarray, "n"]:
    """The route of every sample with the least loss, at a mean cost within the budget.

    argmin of loss + price * cost, with the least price that keeps the budget: the optimum up to one sample's rounding.

    Args:
        costs: of the routes, the same for all samples or of each sample.

    Raises:
        ValueError: not even the cheapest routes are within the budget.
    """
    costs = np.broadcast_to(costs, losses.shape)
    least = costs.min(axis=1).mean()
    if least > budget + 1e-9:
        raise ValueError(f"expected a budget of at least {least:.4f}, the cheapest route, got {budget:.4f}")
    low, high = 0.0, 1.0
    while _spent(losses, costs, high) > budget + 1e-9:
        high *= 2.0
    if _spent(losses, costs, 0.0) <= budget + 1e-9:
        return _priced(losses, costs, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        if _spent(losses, costs, middle) <= budget + 1e-9:
            high = middle
        else:
            low = middle
    return _priced(losses, costs, high)


def _priced(losses: np.ndarray, costs: np.ndarray, price: float) -> Int[np.ndarray, "n"]:
    return (losses + price * costs).argmin(axis=1)


def _spent(losses: np.ndarray, costs: np.ndarray, price: float) -> float:
    """Mean cost at a price."""
    return float(costs[np.arange(len(costs)), _priced(losses, costs, price)].mean())


def random_loss(losses: Float[np.ndarray, "n r"], costs: Float[np.ndarray, "r"], mean_cost: float) -> float:
    """Expected loss of a router that draws routes without looking, from the flattest distribution of that mean cost.

    Probabilities proportional to exp(-t * cost), the maximum-entropy distribution with the given mean.

    Raises:
        ValueError: a cost outside the routes' range.
    """
    if not costs.min() <= mean_cost <= costs.max():
        raise ValueError(f"expected a mean cost in [{costs.min():.4f}, {costs.max():.4f}], got {mean_cost:.4f}")
    low, high = -1e4, 1e4
    for _ in range(100):
        tilt = (low + high) / 2
        if _tilted(costs, tilt) @ costs > mean_cost:
            low = tilt
        else:
            high = tilt
    return float(losses.mean(axis=0) @ _tilted(costs, (low + high) / 2))


def _tilted(costs: np.ndarray, tilt: float) -> np.ndarray:
    weights = -tilt * costs
    weights = np.exp(weights - weights.max())
    return weights / weights.sum()


def compare_router(
    losses: Float[np.ndarray, "n r"],
    costs: Float[np.ndarray, "r"],
    chosen: Int[np.ndarray, "n"],
    budget: float,
    static_losses: Float[np.ndarray, "m r"] | None = None,
) -> RouterComparison:
    """A router's columns beside the controls.

    Args:
        chosen: column of every sample.
        static_losses: of other samples, to choose the static route on; None: the same samples (in its favour).
    """
    learned_cost = float(costs[chosen].mean())
    static = best_static(losses if static_losses is None else static_losses, costs, budget)
    rows = np.arange(len(losses))
    return RouterComparison(
        budget=budget,
        learned=float(losses[rows, chosen].mean()),
        learned_cost=learned_cost,
        random=random_loss(losses, costs, learned_cost),
        static=float(losses[:, static].mean()),
        oracle=float(losses[rows, oracle_routes(losses, costs, budget)].mean()),
    )
