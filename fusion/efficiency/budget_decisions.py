"""Which routes a study of budgets runs: the router's, and those of its controls at the same executed cost."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fusion.efficiency.budget_routes import oracle_columns, random_choice, shuffled_choice, static_columns, two_folds
from fusion.efficiency.budget_study import Measured, StudySettings
from fusion.model import FusionModel
from fusion.routing.calibration import calibrate
from fusion.routing.plan import SKIP
from fusion.routing.policies import priced_choice


def decided_routes(
    model: FusionModel, measured: Measured, settings: StudySettings
) -> dict[tuple[str, int, int], Int64[Tensor, "n u"]]:
    """The routes of every policy, budget and draw."""
    available = torch.stack(measured.available)
    unit_gflops = torch.stack(measured.unit_gflops)
    losses, gflops = np.stack(measured.losses), np.stack(measured.gflops)
    num_candidates = len(measured.candidates)
    second = two_folds(measured.scenes)
    rows = torch.arange(len(available))
    runs = ((measured.candidates != SKIP) & available[:, None]).any(dim=-1).numpy()
    routes: dict[tuple[str, int, int], Tensor] = {}
    for place in range(len(settings.budgets)):
        learned = learned_choice(model, measured, settings, place, second)
        taken = _own(unit_gflops, learned)
        # Under a threshold the route may be another one than that which was measured; what is always on costs the same
        # (with kept tokens: nearly).
        always = gflops[:, num_candidates + place] - _own(unit_gflops, torch.stack(measured.learned)[:, place])
        spent = always + taken
        routes["learned", place, 0] = learned
        static = static_columns(losses[:, :num_candidates], gflops[:, :num_candidates], spent, second, runs)
        routes["static", place, 0] = torch.where(available, measured.candidates[torch.from_numpy(static)], SKIP)
        columns = torch.cat(
            [measured.candidates.expand(len(rows), -1, -1), torch.stack(measured.learned)], dim=1
        )  # n columns u
        best = torch.from_numpy(oracle_columns(losses, gflops, float(spent.mean())))
        routes["oracle", place, 0] = torch.where(available, columns[rows, best], SKIP)
        for draw in range(settings.draws):
            generator = np.random.default_rng([settings.seed, place, draw])
            # Chance needs no router: its price is spent on units.
            wanted = taken + model.prices().always["router"]
            routes["random", place, draw] = random_choice(model.routes, available, unit_gflops, wanted, generator)
            routes["shuffled", place, draw] = shuffled_choice(learned, available, generator)
    return routes


def _own(unit_gflops: Tensor, choice: Tensor) -> Float[np.ndarray, "n"]:
    return unit_gflops.gather(-1, choice[..., None]).sum(dim=(1, 2)).numpy()


def learned_choice(
    model: FusionModel, measured: Measured, settings: StudySettings, place: int, second: np.ndarray
) -> Int64[Tensor, "n u"]:
    """The router's routes at one budget, by the policy of the settings."""
    if settings.policy == "argmax":
        return torch.stack(measured.learned)[:, place]
    logits = torch.stack(measured.logits)[:, place]
    possible = model.routes.possible(torch.stack(measured.available))
    choice = torch.zeros(logits.shape[:2], dtype=torch.int64)
    for fold in (second, ~second):
        given, scored = torch.from_numpy(~fold), torch.from_numpy(fold)
        found = calibrate(logits[given], possible[given], model.routes, [settings.budgets[place]], "other fold")[0]
        wanted = priced_choice(logits[scored], possible[scored], model.routes, found.price)
        choice[scored] = model.routes.capped(wanted, possible[scored], torch.ones(int(scored.sum())))
    return choice
