"""Policies with a memory: rows of the batch are lanes of time. ``reset`` at the start of every scene.

A batch with another number of rows than the last one starts afresh, too.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fusion.routing.budget import RouteTable
from fusion.routing.plan import SKIP
from fusion.routing.policies import Policy, Proposal, decided


class ThrottlePolicy:
    """The budget from outside: utilisation 0 asks for the least budget, 1 for everything.

    Attributes:
        utilisation: in [0, 1]; set by a governor (temperature, battery, load) between frames.
    """

    def __init__(self, inner: Policy, utilisation: float = 1.0):
        self.inner, self.utilisation = inner, utilisation

    @property
    def cap(self) -> float | None:
        return self.inner.cap

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        if not 0 <= self.utilisation <= 1:
            raise ValueError(f"expected a utilisation in [0, 1], got {self.utilisation}")
        least = routes.min_budget
        throttled = least + self.utilisation * (1 - least)
        return decided(self.inner, replace(proposal, budget=proposal.budget.clamp_max(throttled)), routes)

    def reset(self) -> None:
        self.inner.reset()


class HysteresisPolicy:
    """Keeps the last route until another one is better by ``margin``, or the last one is no longer possible.

    Switching sensors costs wake-up time, and a route that flickers makes detections flicker. A route is also kept for
    at least ``hold`` frames.

    Args:
        inner: proposes.
        margin: gain in total score that a switch must bring.
        hold: frames that a new route lasts at least.
    """

    def __init__(self, inner: Policy, margin: float = 0.5, hold: int = 1):
        if not (margin >= 0 and hold >= 1):
            raise ValueError(f"expected margin >= 0 and hold >= 1, got {margin} and {hold}")
        self.inner, self.margin, self.hold, self.cap = inner, margin, hold, inner.cap
        self._last: Tensor | None = None
        self._age: Tensor | None = None

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        wanted = decided(self.inner, proposal, routes)
        if self._last is None or self._last.shape != wanted.shape:
            self._last, self._age = wanted, torch.ones(len(wanted), dtype=torch.int64, device=wanted.device)
            return wanted
        cap = proposal.budget if self.cap is None else proposal.budget.clamp_min(self.cap)
        still = (routes.capped(self._last, proposal.possible, cap) == self._last).all(dim=1)
        gain = total_score(proposal, wanted) - total_score(proposal, self._last)
        keeps = still & ((gain < self.margin) | (self._age < self.hold))
        chosen = torch.where(keeps[:, None], self._last, wanted)
        self._age = torch.where((chosen == self._last).all(dim=1), self._age + 1, 1)
        self._last = chosen
        return chosen

    def reset(self) -> None:
        self._last = self._age = None
        self.inner.reset()


def total_score(proposal: Proposal, choice: Int64[Tensor, "b u"]) -> Float64[Tensor, "b"]:
    """Of given routes; impossible branches count as hopeless."""
    scores = proposal.scores.double().nan_to_num(0.0, neginf=-1e6, posinf=1e6)
    return scores.gather(-1, choice[..., None]).sum(dim=(1, 2))


class TokenBucketPolicy:
    """A hard bound on the cost of every stretch of time: any T consecutive frames cost at most burst + rate * T.

    A bucket of cost fills by ``rate`` per frame up to ``burst + rate``; a frame may spend what is in it. What the inner
    policy wants is held to that, so an attack that makes every frame look hard cannot drain more.

    Args:
        inner: proposes.
        rate: mean share of the full cost per frame; at least the least budget, else some frame could not run at all.
        burst: savings that may be spent at once, as a share of the full cost.

    Attributes:
        level: what each lane may spend on its next frame.
    """

    def __init__(self, inner: Policy, rate: float, burst: float = 1.0):
        if not (0 < rate <= 1 and burst >= 0):
            raise ValueError(f"expected rate in (0, 1] and burst >= 0, got {rate} and {burst}")
        self.inner, self.rate, self.burst = inner, rate, burst
        self.cap = 1.0
        self.level: Float[Tensor, "b"] | None = None

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        if self.rate < routes.min_budget:
            raise ValueError(f"expected a rate of at least the least budget, {routes.min_budget:.4f}, got {self.rate}")
        if self.level is None or self.level.shape != proposal.budget.shape:
            self.level = torch.full_like(proposal.budget.double(), self.rate + self.burst)
        allowed = self.level.clamp_max(1.0)
        wanted = self.inner(replace(proposal, budget=allowed), routes)
        choice = routes.capped(wanted, proposal.possible, allowed)
        spent = routes.prices.cost_of(choice).to(self.level)
        self.level = (self.level - spent + self.rate).clamp_max(self.rate + self.burst)
        return choice

    def reset(self) -> None:
        self.level = None
        self.inner.reset()


class StaticPolicy:
    """The same route for every sample, less what is absent.

    Args:
        route: branch of each unit.
    """

    def __init__(self, route: list[int], cap: float | None = None):
        self.route, self.cap = list(route), cap

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        named = torch.tensor(self.route, device=proposal.scores.device).expand(proposal.possible.shape[:2])
        return torch.where(proposal.possible.gather(-1, named[..., None])[..., 0], named, SKIP)

    def reset(self) -> None: ...


class RandomPolicy:
    """A random router of a given mean cost: the control that a learned one has to beat.

    Branches in random order are added while they fit ``mean_cost``; the first that does not is added with the
    probability that makes the expected cost ``mean_cost`` exactly. Where all fit, units are raised to their dearest
    branch in the same way, so that nothing is left but what cannot be spent. The same seed and order of samples give
    the same routes.

    Args:
        mean_cost: share of the full cost: what the router to compare with really spent.
        seed: of the draws.
    """

    cap = 1.0

    def __init__(self, mean_cost: float, seed: int = 0):
        self.mean_cost, self.seed = mean_cost, seed
        self.reset()

    def __call__(self, proposal: Proposal, routes: RouteTable) -> Int64[Tensor, "b u"]:
        rows = [
            self._one(proposal.possible[row].cpu(), routes.shares(torch.device("cpu")), routes.prices.always_share)
            for row in range(len(proposal.possible))
        ]
        return torch.stack(rows).to(proposal.scores.device)

    def _one(self, possible: Tensor, shares: Tensor, always: float) -> Int64[Tensor, "u"]:
        """One branch drawn per unit; units in random order until the money is gone."""
        open_branches = possible.clone().float()
        open_branches[:, SKIP] = 0
        runs = open_branches.any(dim=1)
        open_branches[~runs, SKIP] = 1
        branch = torch.multinomial(open_branches, 1, generator=self._generator)[:, 0]
        choice = torch.full((len(possible),), SKIP)
        left = self.mean_cost - always
        dearest = torch.where(possible, shares, -1.0).argmax(dim=1)
        for wanted in (branch, dearest):
            for unit in torch.randperm(len(possible), generator=self._generator).tolist():
                if not runs[unit]:
                    continue
                cost = float(shares[unit, wanted[unit]] - shares[unit, choice[unit]])
                if cost <= left:
                    choice[unit], left = wanted[unit], left - cost
                    continue
                if float(torch.rand((), generator=self._generator)) < left / cost:
                    choice[unit] = wanted[unit]
                return choice
        return choice

    def reset(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
