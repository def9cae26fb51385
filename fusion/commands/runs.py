"""A run's configuration brought back to life: model with weights, data module."""

from dataclasses import dataclass, replace
from pathlib import Path

from fusion.commands.compose import foreign_targets, instantiate
from fusion.run_directory import RunDirectory


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A trained run, ready to be evaluated.

    Attributes:
        config: OmegaConf node, overrides applied.
        model: in evaluation mode, averaged weights where training kept an average.
        data: the data module of its validation split.
        plan_source: the route that the run was trained for, where that is not its router's.
    """

    directory: RunDirectory
    config: object
    model: object
    data: object
    plan_source: object = None

    def corruptor(self, wanted: bool):
        """The faults of the run's training where they are wanted, else None.

        Raises:
            ValueError: it was trained without.
        """
        if wanted and self.data.injector is None:
            raise ValueError(
                "expected a run that was trained with faults for faults=true, got one without; leave it out"
            )
        return self.data.injector if wanted else None

    def data_name(self, split: str, faults: bool) -> str:
        """What a table says of the data that it was made from."""
        return f"{self.config.data.version}/{split}{' with the faults of training' if faults else ''}"

    def require_router(self) -> None:
        """That the last stage of training was routed by the router.

        Raises:
            ValueError: it was not.
        """
        if self.plan_source is not None:
            raise ValueError(
                f"expected a run whose router was trained, got {self.directory.path}, which ends with another route"
            )


def load_config(path: Path, overrides: list[str], allowed_targets: list[str]):
    """The configuration of a run directory with dotted overrides on top.

    A configuration names classes to call, so it is code: only classes of our own packages are instantiated unless the
    user allows more by name.

    Raises:
        FileNotFoundError: no run there.
        ValueError: a key that the configuration does not have, or a foreign class.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    directory = RunDirectory.existing(path)
    config = OmegaConf.load(directory.config)
    for override in overrides:
        key, equals, value = override.partition("=")
        missing = object()
        if not equals or OmegaConf.select(config, key, default=missing) is missing:
            raise ValueError(f"expected key=value with a key of {directory.config}, got '{override}'")
        try:
            OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
        except OmegaConfBaseException as error:
            raise ValueError(f"cannot set '{override}': {str(error).splitlines()[0]}") from error
    foreign = foreign_targets(config, tuple(allowed_targets))
    if foreign:
        raise ValueError(
            f"{directory.config} wants to call {', '.join(sorted(set(foreign)))} from outside dynfusion; "
            f"if you trust it, add allow=[{','.join(sorted(set(foreign)))}]"
        )
    return config


def open_run(path: Path, overrides: list[str], allowed_targets: list[str], calibrated: bool = True) -> OpenRun:
    """Build the model of a run and load its newest checkpoint.

    Args:
        calibrated: whether router, exits and tokens share a budget as ``dynfusion adaptive`` found, where it did.
    """
    from fusion.adaptive.files import FILE, read_shared_budget
    from fusion.checkpoint import load_model
    from fusion.ops.pretrained import without_fetching
    from fusion.robustness.fingerprint import model_word

    directory = RunDirectory.existing(path)
    checkpoint = directory.require_checkpoint()
    config = load_config(path, overrides, allowed_targets)
    with without_fetching():
        model = instantiate(config.model)
    load_model(checkpoint, model)
    model.eval()
    if calibrated and (directory.path / FILE).is_file():
        model.shared_budget = read_shared_budget(directory.path / FILE)
        model.shared_budget.check(model, model_word(model))
    data = instantiate(config.data)
    return OpenRun(directory, config, model, data, trained_route(config, model))


def trained_route(config, model):
    """None where the last stage of training was routed by the router; else a function from a batch to its plan.

    A router that was never trained would run units that never learnt. The one of ``model`` gets the relaxation and the
    temperature of the last stage, by which it was validated.
    """
    from fusion.draws import keyed_generator
    from fusion.stages import BY_ROUTER

    task = instantiate(config.stages, _partial_=True)(model=model)
    task.stage_entry.settle()
    stage = task.curriculum.stages[-1]
    if stage.route in BY_ROUTER:
        return None
    route = replace(stage, route="fixed" if stage.route == "fixed" else "full", lite_share=0.0)
    return lambda batch: task.plan_of(route, batch, keyed_generator("evaluation"))


def device_named(name: str):
    """The torch device of that name; CUDA where there is one for the empty name.

    Raises:
        ValueError: no such device here.
    """
    import torch

    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"expected device=cpu or device=cuda, got '{name}'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for device=cuda, this machine has none; use device=cpu")
    return device
