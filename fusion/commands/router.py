"""dynfusion router run=RUN out=RUN2 [faults=training] [split=SPLIT] [samples=400] [steps=1500] [key=value ...]

Teaches the router of a trained run from the start: the encoders run once on each of some samples of the training
split, the losses of some fifty routes are replayed from them, and the router is fitted to the expectation of its loss
at budgets from the least to 1. Nothing else of the model moves. Writes RUN2, a run with the same configuration and the
new router (router.json holds what it was taught from), and prints mean losses on every second scene, fitted to the
others: before, after, of one route for all, and of each sample's best route.

faults=training lets the sensors fail as the plan of the training's faults says at its end, faults=none leaves them
whole, any other name is one of configs/faults (such as mixture). samples=0 takes the whole split. learning_rate=0.003,
seed=0.
"""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    run: str = ""
    out: str = ""
    faults: str = "training"
    split: str = ""
    samples: int = 400
    steps: int = 1500
    learning_rate: float = 3e-3
    seed: int = 0
    device: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.checkpoint import AtomicCheckpointIO, read_checkpoint, with_weights_of
    from fusion.commands.budgets import five_budgets
    from fusion.commands.runs import device_named, open_run
    from fusion.efficiency.router_fit import RouterFit, fit_router, measure_route_losses
    from fusion.routing.configurations import ConfigurationRouter
    from fusion.run_directory import RunDirectory, write_json

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    other = next((one for one in overrides if not one.startswith("data.")), None)
    if other is not None:
        raise ValueError(f"expected settings of the command or of data, got '{other}': the new run keeps all others")
    if not options.run or not options.out or options.samples < 0:
        raise ValueError("expected run=RUN out=NEW_FOLDER [samples=N]; see dynfusion router --help")
    target = RunDirectory(Path(options.out))
    if target.path.exists():
        raise ValueError(f"expected a new folder for the new run, got {target.path}; choose another out")
    settings = RouterFit(options.steps, learning_rate=options.learning_rate, seed=options.seed)
    console = Console()
    opened = open_run(Path(options.run), overrides, options.allow, calibrated=False)
    opened.require_router()
    model = opened.model
    if isinstance(model.router, ConfigurationRouter):
        raise ValueError("expected a router that scores units, got one of configurations; train it by its own stage")
    split = options.split or opened.config.data.train_split
    batches = opened.data.evaluation_loader(split, faults_named(options.faults, opened), batch_size=1)
    batches = evenly(batches, options.samples, opened.data.num_workers)
    with console.status("") as status:
        table = measure_route_losses(
            model,
            batches,
            seed=options.seed,
            device=device_named(options.device),
            progress=lambda done: status.update(f"measuring losses of routes: sample {done} of {len(batches)}"),
        )
        model.cpu()
        status.update("fitting")
        anew = with_new_router(model, opened.config.model, options.seed)
        checks = held_out_check(model, anew, table, settings, five_budgets(model.min_budget))
        fit_router(anew, table, settings)
    checkpoint = read_checkpoint(opened.directory.require_checkpoint())
    router = {f"router.{name}": value for name, value in anew.router.state_dict().items()}
    RunDirectory.create(target.path, opened.directory.config.read_text(encoding="utf-8"))
    AtomicCheckpointIO().save_checkpoint(with_weights_of(checkpoint, router), target.last_checkpoint)
    about = {"run": str(options.run), "split": split, "faults": options.faults, "samples": len(table)}
    write_json(target.path / "router.json", about | asdict(settings) | {"held_out": [asdict(one) for one in checks]})
    console.print(check_table(checks, len(table)))
    console.print(f"wrote {target.path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def faults_named(name: str, opened):
    """The faults of the run's training, none, or those of a file of configs/faults.

    Raises:
        ValueError: a run that was trained without faults.
        hydra.errors.HydraException: no such file.
    """
    from fusion.commands.compose import compose, instantiate

    if name == "none":
        return None
    if name != "training":
        return instantiate(compose([f"faults={name}"]).faults)
    if opened.data.injector is None:
        raise ValueError(
            "expected a run that was trained with faults for faults=training, got one without; give faults=mixture, "
            "another name of configs/faults, or faults=none"
        )
    return opened.data.injector


def evenly(loader, most: int, num_workers: int):
    """A loader of single samples with at most so many of them, evenly spaced; 0 for all. Others are not read."""
    import numpy as np

    from datamodules.loader import sample_loader

    count = len(loader.dataset)
    rows = np.linspace(0, count - 1, min(most, count) if most else count).round().astype(int).tolist()
    return sample_loader(loader.dataset, num_workers, batch_size=1, sampler=rows)


def with_new_router(model, node, seed: int):
    """The model with a router that has learnt nothing.

    A trained one can be so sure of its routes that the losses of others no longer move it.
    """
    import torch

    from fusion.commands.compose import instantiate
    from fusion.ops.pretrained import without_fetching

    with without_fetching(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = instantiate(node).router
    anew = copy.deepcopy(model)
    anew.router = router.eval()
    return anew


def held_out_check(model, anew, table, settings, budgets):
    """Fitted to every second scene, scored on the others."""
    import torch

    from fusion.efficiency.budget_routes import two_folds
    from fusion.efficiency.router_fit import check_fit, fit_router

    second = torch.from_numpy(two_folds(table.scenes))
    fitted, others = (table.select(torch.nonzero(part)[:, 0]) for part in (~second, second))
    trial = copy.deepcopy(anew)
    fit_router(trial, fitted, settings)
    return check_fit(model, trial, fitted, others, budgets)


def check_table(checks, num_samples: int):
    """One row per budget."""
    from rich.table import Table

    table = Table(title=f"mean losses of routes on the scenes held out of a fit, {num_samples} samples in all")
    for heading in ("budget", "before", "after", "one route for all", "best of each sample", "routes"):
        table.add_column(heading, justify="right")
    for one in checks:
        losses = (one.before, one.after, one.static, one.least)
        table.add_row(f"{one.budget:g}", *(f"{loss:.3f}" for loss in losses), str(one.num_routes))
    return table
