"""The controls that a learned router has to beat at equal executed cost, as routes for every sample.

- *random*: for each sample a route drawn from all that cost what the learned one cost on that very sample, router
  included. It spends the same, frame by frame; only what it is spent on is left to chance.
- *shuffled*: the learned router's own routes, dealt out to other samples: the same habits without looking.
- *static*: one route for all, the best of a list within the same mean cost, chosen on one half of the scenes and
  scored on the other, both ways; the next best where nothing of it is present.
- *oracle*: of each sample the route with the least loss among those that were measured, at the same mean cost. It looks
  at the labels: an upper bound, not a router.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from fusion.efficiency.controls import oracle_routes
from fusion.routing.budget import RouteTable
from fusion.routing.plan import FULL, LITE, SKIP
from sensors.rig import CAMERAS, NUM_CAMERAS

_FRONT = [name.startswith("CAM_FRONT") for name in CAMERAS]
_ALONG = ("CAM_FRONT", "CAM_BACK")
_NEAR = 0.01
"""Share of the full cost; more routes would mean more chance, and another cost."""


def candidate_routes(routes: RouteTable) -> Int64[Tensor, "r u"]:
    """Static routes worth trying: sets of views by LiDAR branch by radar, the model's branches and floor kept to.

    Views: none, the front one, front and back, the front three lite or full, all lite, all full. The cheapest route of
    all is always among them.
    """
    sets = [[SKIP] * NUM_CAMERAS, [LITE] * NUM_CAMERAS, [FULL] * NUM_CAMERAS]
    sets += [[branch if front else SKIP for front in _FRONT] for branch in (LITE, FULL)]
    sets += [[FULL if name in names else SKIP for name in CAMERAS] for names in (("CAM_FRONT",), _ALONG)]
    rows = [[*views, lidar, radar] for views, lidar, radar in product(sets, (SKIP, LITE, FULL), (SKIP, FULL))]
    table = torch.tensor(rows)
    possible = routes.possible(routes.prices.exists()[:, LITE:].any(dim=1)[None])[0]
    table = table[possible.expand(len(table), -1, -1).gather(-1, table[..., None])[..., 0].all(dim=1)]
    table = table[(table != SKIP).any(dim=1)]
    scores = -routes.shares(torch.device("cpu"))[None]
    cheapest = routes.best(scores, possible[None], torch.ones(1))
    return torch.unique(torch.cat([table, cheapest]), dim=0)


def two_folds(scenes: Sequence[str]) -> Bool[np.ndarray, "n"]:
    """Every second scene; where there is only one, its second half."""
    names = list(dict.fromkeys(scenes))
    if len(names) == 1:
        return np.arange(len(scenes)) >= len(scenes) // 2
    number = {name: place for place, name in enumerate(names)}
    return np.array([number[scene] % 2 == 1 for scene in scenes])


def random_choice(
    routes: RouteTable,
    available: Bool[Tensor, "n u"],
    unit_gflops: Float64[Tensor, "n u k"],
    wanted_gflops: Float[np.ndarray, "n"],
    generator: np.random.Generator,
) -> Int64[Tensor, "n u"]:
    """Routes that cost what is wanted, each drawn uniformly from those within 1 % of the full cost around it.

    Where there are none, from those that cost as much as the nearest. What a draw costs too much or too little is made
    up for by the next sample, so the means agree. Where only one route costs that much, such as everything on, nothing
    is left to chance.

    Args:
        unit_gflops: executed by each branch of each sample.
        wanted_gflops: of the units alone, without the always-on part.
    """
    table, full = routes.routes(), routes.prices.full_gflops
    one_hot = torch.nn.functional.one_hot(table, unit_gflops.shape[-1]).flatten(1).double()
    some = (table != SKIP).any(dim=1)
    debt, chosen = 0.0, []
    for row in range(len(available)):
        possible = routes.possible(available[row : row + 1])[0]
        can = possible.expand(len(table), -1, -1).gather(-1, table[..., None])[..., 0].all(dim=1) & some
        gflops = (one_hot @ unit_gflops[row].flatten()).numpy()
        away = np.where(can.numpy(), np.abs(gflops - (wanted_gflops[row] + debt)), np.inf)
        near = np.flatnonzero(away <= max(_NEAR * full, away.min() + 1e-9 * full))
        route = int(generator.choice(near))
        # At the ends of the range the debt cannot be paid back: it must not pile up.
        debt = float(np.clip(debt + wanted_gflops[row] - gflops[route], -0.05 * full, 0.05 * full))
        chosen.append(table[route])
    return torch.stack(chosen)


def shuffled_choice(
    learned: Int64[Tensor, "n u"], available: Bool[Tensor, "n u"], generator: np.random.Generator
) -> Int64[Tensor, "n u"]:
    """The learned routes dealt out anew, less what is absent."""
    dealt = learned[torch.from_numpy(generator.permutation(len(learned)))]
    return torch.where(available, dealt, SKIP)


def static_columns(
    losses: Float[np.ndarray, "n r"],
    gflops: Float[np.ndarray, "n r"],
    learned_gflops: Float[np.ndarray, "n"],
    second: Bool[np.ndarray, "n"],
    runs: Bool[np.ndarray, "n r"],
) -> Int[np.ndarray, "n"]:
    """The static route of each sample: the best on the other fold within what the learned router spent there.

    Where none is within it, the cheapest. Where nothing of it is present, the next best of which something is: a
    vehicle that has lost its LiDAR does not sit in the dark with a route of LiDAR alone.

    Args:
        runs: whether anything of a route is present in a sample.
    """
    columns = np.zeros(len(losses), np.int64)
    for fold in (second, ~second):
        given = ~fold
        cost = gflops[given].mean(axis=0)
        fits = cost <= max(learned_gflops[given].mean(), cost.min()) * (1 + 1e-9)
        # Of the routes that are too dear, the cheapest are last in line.
        order = np.lexsort((np.where(fits, losses[given].mean(axis=0), cost), ~fits))
        columns[fold] = order[runs[fold][:, order].argmax(axis=1)]
    return columns


def oracle_columns(
    losses: Float[np.ndarray, "n c"], gflops: Float[np.ndarray, "n c"], mean_gflops: float
) -> Int[np.ndarray, "n"]:
    """The best measured route of each sample at a mean cost within ``mean_gflops`` (at least the cheapest)."""
    return oracle_routes(losses, gflops, max(mean_gflops, float(gflops.min(axis=1).mean())))
