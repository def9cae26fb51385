"""dynfusion calibrate run=RUN [budgets=[0.4,0.55,0.7,1.0]] [split=SPLIT] [faults=false] [key=value ...]

Finds, for every budget, the price of computing at which the run's router spends that budget on average over a split,
and writes thresholds.json beside the checkpoint's configuration with a word of the weights: other weights refuse it.
Also shows what thresholds found on one half of the scenes spend on the other half. Only the router runs.
budgets=[] takes five from the model's least budget to 1. faults=true calibrates under the sensor failures of the end of
training.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    budgets: list[float] = field(default_factory=list)
    split: str = ""
    faults: bool = False
    device: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion calibrate --help")
    console = Console()
    calibration = calibrated(options, overrides, console)
    console.print(calibration_table(calibration))
    return 0


def calibrated(options: Options, overrides: list[str], console):
    """Calibrate and write ``thresholds.json``."""
    import torch

    from fusion.commands.budgets import five_budgets
    from fusion.commands.runs import device_named, open_run
    from fusion.efficiency.budget_routes import two_folds
    from fusion.robustness.fingerprint import model_word
    from fusion.routing.calibration import Calibration, calibrate, held_out_costs
    from fusion.routing.configurations import ConfigurationRouter
    from fusion.routing.scores import scores_of_split

    opened = open_run(Path(options.run), overrides, options.allow, calibrated=False)
    opened.require_router()
    model = opened.model
    if isinstance(model.router, ConfigurationRouter):
        raise ValueError("expected a router that scores units, got one of configurations; it needs no threshold")
    split = options.split or opened.config.data.val_split
    loader = opened.data.evaluation_loader(split, opened.corruptor(options.faults))
    name = opened.data_name(split, options.faults)
    budgets = options.budgets or five_budgets(model.min_budget)
    with console.status("scoring"):
        found = scores_of_split(model, loader, budgets, device_named(options.device))
    second = torch.from_numpy(two_folds(found.scenes))
    thresholds, costs = [], []
    for place, budget in enumerate(budgets):
        scores = found.scores[:, place]
        thresholds += calibrate(scores, found.possible, model.routes, [budget], name)
        held_out = held_out_costs(scores, found.possible, model.routes, budget, second)
        costs.append((float(held_out.mean()), float(held_out.std() / len(held_out) ** 0.5)))
    means, errors = zip(*costs, strict=True)
    calibration = Calibration(model_word(model), name, tuple(thresholds), means, errors)
    calibration.write(opened.directory.path / "thresholds.json")
    return calibration


def calibration_table(calibration):
    """One row per budget."""
    from rich.table import Table

    table = Table(title=f"thresholds, {calibration.data}, {calibration.thresholds[0].num_samples} samples")
    for heading in ("budget", "price", "spent", "spent on the other half"):
        table.add_column(heading, justify="right")
    rows = zip(calibration.thresholds, calibration.held_out_cost, calibration.held_out_error, strict=True)
    for one, cost, error in rows:
        spent = f"{one.mean_cost:.4f} ± {one.standard_error:.4f}"
        table.add_row(f"{one.budget:g}", f"{one.price:.4f}", spent, f"{cost:.4f} ± {error:.4f}")
    return table
