"""The numbers of exit policies that have some (``fusion.trunk.exits_fitted``), from a validation set."""

from collections.abc import Iterable

import torch
from torch import nn

from datamodules.batch import Batch
from fusion.adaptive.allocation import open_all
from fusion.adaptive.reliable import centers_m
from fusion.heads.targets import center_targets
from fusion.trunk.exits_fitted import fitted_part
from fusion.trunk.exits_peaks import find_peaks, joined, match_to_boxes


@torch.inference_mode()
def fit_policy(model: nn.Module, batches: Iterable[Batch]) -> bool:
    """Find the numbers of a model's exit policy, at the full route and at the exits' temperatures.

    Args:
        model: in evaluation mode; left with everything open.
        batches: with labels.

    Returns:
        Whether there were any to find: numbers that the configuration gives are kept.
    """
    policy = None if model.exits is None else fitted_part(model.exits.policy)
    if policy is None or policy.table is not None:
        return False
    exits, grid = model.exits, model.head.grid
    found = [([], []) for _ in exits.heads]
    open_all(model)
    exits.observing = True
    try:
        for batch in batches:
            targets = center_targets(batch.boxes, len(batch), grid)
            answers = model(batch, plan=model.full_plan(batch), is_capped=True).exits.outputs
            for (peaks, truth), answer, temperature in zip(found, answers, exits.temperatures, strict=False):
                peaks.append(find_peaks(answer, grid, exits.num_peaks, temperature))
                truth.append(match_to_boxes(peaks[-1], targets.sample, targets.label, centers_m(targets, grid)))
    finally:
        exits.observing = False
    policy.fit([joined(peaks) for peaks, _ in found], [torch.cat(truth) for _, truth in found])
    return True
