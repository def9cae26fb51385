"""Whether a stage of training can change anything of what it trains: asked before training begins, not hours later."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from fusion.heads.losses import LOSS_WEIGHTS
from fusion.model import FusionModel
from fusion.routing.plan import FULL, LITE, SKIP
from fusion.routing.unit_parameters import branches_of
from fusion.stages import BY_ROUTER, LESSONS, Stage, is_below
from sensors.rig import NUM_CAMERAS, UNITS

OF_ANSWERS = (*LOSS_WEIGHTS, "distillation", "exits", "exit_gate", "tokens")
"""Terms whose gradient may reach everything that the route runs; ``depth`` reaches units alone."""
OF_EXITS = ("exits", "exit_gate")


def require_effect(stage: Stage, model: nn.Module, weights: Mapping[str, float]) -> None:
    """That some loss of a stage depends on something that the stage trains.

    Refuses only what is sure: a router that the route does not ask, exits that rest, units that never run, losses that
    all weigh 0. What depends on the data (a sensor that its samples lack), on a custom step, or on a model of another
    class is left to the training step, which refuses a loss without a gradient.

    Args:
        weights: of the task's loss terms in this stage.

    Raises:
        ValueError: none does.
    """
    if stage.route == "custom" or not isinstance(model, FusionModel):
        return
    runs = branches_that_may_run(stage, model.prices().exists())
    reasons: dict[str, None] = {}
    for name, _ in model.named_parameters():
        if stage.trains(name):
            reason = _why_not(name, stage, (model, runs), weights)
            if reason is None:
                return
            reasons[reason] = None
    raise ValueError(
        f"stage '{stage.name}': expected a loss that depends on something that the stage trains, got none, since "
        f"{' and '.join(reasons)}; change its trainable, its route and units, or its losses"
    )


def branches_that_may_run(stage: Stage, exists: Bool[Tensor, "u k"]) -> Bool[Tensor, "u k"]:
    """Branches of units that some sample of the stage may run; SKIP is False.

    Where a random route keeps nothing at all, one unit runs nevertheless (``fusion.stages.random_units``). That is no
    training for a group that is never kept, unless none is.
    """
    runs = exists.clone()
    runs[:, SKIP] = False
    if stage.route not in ("full", "fixed", "random"):
        return runs
    if stage.route == "random":
        views = stage.keep.get("camera", 1.0) * stage.keep.get("view", 1.0)
        kept = torch.tensor([*[views] * NUM_CAMERAS, stage.keep.get("lidar", 1.0), stage.keep.get("radar", 1.0)]) > 0
        if not runs[kept].any():
            kept = torch.ones_like(kept)
    else:
        kept = stage.choice_of(torch.ones(1, len(UNITS), dtype=torch.bool), torch.Generator())[0] != SKIP
    runs[~kept] = False
    has_both = exists[:, LITE] & exists[:, FULL]
    if stage.lite_share == 0.0:
        runs[has_both, LITE] = False
    if stage.lite_share == 1.0:
        runs[has_both, FULL] = False
    return runs


def _why_not(
    name: str, stage: Stage, model_and_runs: tuple[FusionModel, Bool[Tensor, "u k"]], weights: Mapping[str, float]
) -> str | None:
    """Why no loss depends on a parameter that trains; None where one may."""
    model, runs = model_and_runs
    counts = {term for term, weight in weights.items() if weight != 0}
    if is_below(name, "router"):
        if stage.route not in BY_ROUTER:
            return f"route {stage.route} does not ask the router"
        teaches = "router" in counts if stage.route in LESSONS else counts - {"router"}
        return None if teaches else "losses that teach the router weigh 0"
    answers = counts & {*OF_ANSWERS}
    if is_below(name, "exits"):
        is_in_answer = model.exits.combine is not None or model.exits.cascade
        return None if answers & {*OF_EXITS} or (is_in_answer and answers) else "losses of the exits weigh 0"
    branches = branches_of(name)
    if branches and not any(runs[unit, branch] for unit, branch in branches):
        return f"route {stage.route} never runs {name.split('.')[0]}"
    taught = answers or (branches and "depth" in counts)
    return None if taught else f"losses that reach {name.split('.')[0]} weigh 0"
