"""One checkpoint at several budgets beside its controls: two passes over a split, encoders once per sample and pass.

The first pass measures the losses of the candidate routes and of the router's own; the second runs what was decided.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.batch import Batch
from fusion.efficiency.budget_decisions import decided_routes
from fusion.efficiency.budget_routes import candidate_routes
from fusion.efficiency.budget_study import Measured, Outcome, Study, StudySettings
from fusion.efficiency.replay import EncodedSample, at_rest
from fusion.heads.center import HeadOutput
from fusion.heads.decode import DecodeOptions, decode, to_global
from fusion.heads.losses import LOSS_WEIGHTS, center_loss
from fusion.heads.targets import CenterTargets, center_targets
from fusion.model import FusionModel
from fusion.routing.plan import SKIP
from fusion.routing.router import Glance, glance_of

Loader = Callable[[], Iterable[Batch]]
Progress = Callable[[str, int], None]


@torch.no_grad()
def study_budgets(
    model: FusionModel,
    loader: Loader,
    settings: StudySettings,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Study:
    """The router and its controls on a split; exits and tokens, where the model has some, are at rest.

    Args:
        loader: gives a pass over the split, one sample per batch, always the same ones.
        progress: told the pass and how many samples of it are done.

    Raises:
        ValueError: settings that do not fit the model, or a split without labels or samples.
    """
    settings.check(model)
    with at_rest(model.to(device).eval()):
        return _studied(model, loader, settings, torch.device(device), progress)


@torch.no_grad()
def measured_routes(
    model: FusionModel, batches: Iterable[Batch], settings: StudySettings, device: torch.device | str = "cpu"
) -> Measured:
    """The first pass alone: losses and costs of the candidate routes and of the router's own at every budget.

    Args:
        batches: of one sample each.

    Raises:
        ValueError: settings that do not fit the model, or a split without labels or samples.
    """
    settings.check(model)
    with at_rest(model.to(device).eval()):
        return _measured(model, batches, settings, torch.device(device), None)


def _measured(
    model: FusionModel,
    batches: Iterable[Batch],
    settings: StudySettings,
    device: torch.device,
    progress: Progress | None,
) -> Measured:
    measured = Measured(candidate_routes(model.routes))
    for number, batch in enumerate(batches):
        _measure(model, batch.to(device), settings, measured)
        if progress is not None:
            progress("measuring losses of routes", number + 1)
    if not measured.learned:
        raise ValueError("expected samples to study, got an empty split; choose another")
    return measured


def _studied(
    model: FusionModel, loader: Loader, settings: StudySettings, device: torch.device, progress: Progress | None
) -> Study:
    """Both passes."""
    measured = _measured(model, loader(), settings, device, progress)
    outcomes = {key: Outcome(choice) for key, choice in decided_routes(model, measured, settings).items()}
    timed = set(np.linspace(0, len(measured.learned) - 1, settings.num_timed).round().astype(int).tolist())
    for number, batch in enumerate(loader()):
        batch = batch.to(device)
        run_sample(model, batch, number, outcomes)
        if number in timed:
            _time(model, batch, number, outcomes, settings)
        if progress is not None:
            progress("running what was decided", number + 1)
    return Study(settings, measured, outcomes)


def _measure(model: FusionModel, batch: Batch, settings: StudySettings, measured: Measured) -> None:
    """Losses and costs of the candidates and of the router's routes on one sample."""
    if batch.boxes is None:
        raise ValueError("expected labels to choose static routes by, got a split without any; choose another")
    available = model.available(batch)
    many = repeated_glance(glance_of(batch, available), len(settings.budgets))
    budgets = torch.tensor(settings.budgets, dtype=torch.float64)
    learned = model.router(many, model.routes, budgets).choice.cpu()
    if settings.policy == "threshold":
        measured.logits.append(model.router.logits(many, model.routes, budgets.float().to(available.device)).cpu())
    encoded = EncodedSample.of(model, batch)
    candidates = torch.where(available.cpu(), measured.candidates, SKIP)
    different, which = torch.unique(torch.cat([candidates, learned]), dim=0, return_inverse=True)
    targets = center_targets(batch.boxes, 1, model.head.grid)
    replayed = encoded.run(different)
    losses = route_losses(replayed.head, targets).numpy()
    gflops = replayed.gflops[which].numpy()
    gflops[len(candidates) :] += model.prices().always["router"]
    if bool((candidates == SKIP).all(dim=1).any()):
        # Nothing of a candidate is there: it answers nothing and must not be what looks cheapest.
        empty = np.append((candidates == SKIP).all(dim=1).numpy(), np.zeros(len(learned), bool))
        losses = np.where(empty, losses[which].max(), losses[which])
    else:
        losses = losses[which]
    measured.learned.append(learned)
    measured.losses.append(losses)
    measured.gflops.append(gflops)
    measured.unit_gflops.append(encoded.unit_gflops)
    measured.available.append(available[0].cpu())
    measured.num_boxes.append(len(targets.sample))
    measured.scenes += batch.scenes
    measured.conditions += batch.conditions
    measured.faults += batch.faults


def run_sample(model: FusionModel, batch: Batch, number: int, outcomes: dict[tuple[str, int, int], Outcome]) -> None:
    """All that was decided for one sample, noted in ``outcomes``; equal routes run once."""
    encoded = EncodedSample.of(model, batch)
    wanted = torch.stack([outcome.choice[number] for outcome in outcomes.values()])
    different, which = torch.unique(wanted, dim=0, return_inverse=True)
    replayed = encoded.run(different)
    losses = route_losses(replayed.head, center_targets(batch.boxes, 1, model.head.grid)).tolist()
    aug, pose = batch.ego_from_ego_aug[0].cpu(), batch.global_from_ego[0].cpu()
    boxes = [to_global(found, aug, pose) for found in decode(replayed.head, model.head.grid)]
    gflops, router = replayed.gflops.tolist(), model.prices().always["router"]
    for (policy, _, _), outcome, row in zip(outcomes, outcomes.values(), which.tolist(), strict=True):
        outcome.detections[batch.tokens[0]] = boxes[row]
        outcome.losses.append(losses[row])
        outcome.gflops.append(gflops[row] + (router if policy == "learned" else 0.0))


def _time(
    model: FusionModel,
    batch: Batch,
    number: int,
    outcomes: dict[tuple[str, int, int], Outcome],
    settings: StudySettings,
) -> None:
    """Milliseconds of the plain path (glance to boxes) for every policy in turns; the first round warms up."""
    available, options = model.available(batch), DecodeOptions()
    device = available.device
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for counts in (False, True):
            for (policy, place, draw), outcome in outcomes.items():
                if draw or (not counts and place):
                    continue
                plan = model.plan_of(outcome.choice[number : number + 1].to(device), available)
                budget = settings.budgets[place] if policy == "learned" else None
                started = clock_ms(device)
                if budget is not None and settings.policy == "argmax":
                    output = model(batch, budget=budget)
                else:
                    if budget is not None:
                        model.router(glance_of(batch, available), model.routes, budget)
                    output = model(batch, plan=plan)
                decode(output.head, model.head.grid, options)
                passed = clock_ms(device) - started
                if counts:
                    outcome.ms.append(passed)
    finally:
        torch.set_num_threads(threads)


def clock_ms(device: torch.device) -> float:
    """Processor time on a CPU (a busy machine does not count), wall time after the device is done elsewhere."""
    if device.type == "cpu":
        return 1e3 * time.process_time()
    torch.cuda.synchronize(device)
    return 1e3 * time.perf_counter()


def route_losses(output: HeadOutput, targets: CenterTargets) -> Float[Tensor, "r"]:
    """Detection loss of one sample under each of R routes, summed over its boxes (not their mean).

    Args:
        targets: of the one sample.
    """
    num_routes, num_boxes = len(output), len(targets.sample)
    row = torch.arange(num_routes, device=targets.sample.device).repeat_interleave(num_boxes)
    per_box = ("label", "cell", "height", "offset", "log_size", "heading", "velocity", "attribute")
    many = replace(
        targets,
        heatmap=targets.heatmap.expand(num_routes, -1, -1, -1),
        spared=targets.spared.expand(num_routes, -1, -1, -1),
        sample=row,
        **{name: torch.cat([getattr(targets, name)] * num_routes) for name in per_box},
    )
    terms = center_loss(output, many, per_sample=True)
    total = torch.stack([LOSS_WEIGHTS[name] * terms[name] for name in LOSS_WEIGHTS]).sum(dim=0)
    return (total * max(len(row), 1)).double().cpu()


def repeated_glance(glance: Glance, times: int) -> Glance:
    """The same glance in several rows."""
    return Glance(**{name: value.expand(times, *value.shape[1:]) for name, value in vars(glance).items()})
