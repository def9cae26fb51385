"""dynfusion view save=FILE.rrd|rerun=true root=FOLDER | run=RUN: a scene as a Rerun recording."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from fusion.commands.compose import parse_options, split_arguments


@dataclass
class Options:
    rerun: bool = False
    save: str = ""
    run: str = ""
    root: str = ""
    version: str = ""
    split: str = ""
    scene: str = ""
    fault: str = ""
    suite: str = ""
    budget: float = 1.0
    device: str = ""
    allow: list[str] = field(default_factory=list)


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.view.rerun_log import record, rerun_module

    own, overrides = split_arguments(arguments, Options)
    options = parse_options(own, Options)
    if bool(options.root) == bool(options.run):
        raise ValueError("expected either root=FOLDER of a data set or run=RUN for a recording, not both or none")
    if overrides and not options.run:
        raise ValueError(f"expected settings of the recording, got '{overrides[0]}'; see dynfusion view --help")
    if options.save and not options.save.endswith(".rrd"):
        raise ValueError(f"expected save=FILE.rrd, got '{options.save}'")
    rerun_module()  # before anything is computed
    moments = _of_run(options, overrides) if options.run else _of_frames(options)
    num = record(moments, options.save, has_model=bool(options.run))
    Console().print(f"{num} keyframes" + (f" written: {options.save}" if options.save else ""), soft_wrap=True)
    return 0


def scenario_of(options: Options):
    """The scenario that is named by suite and name, or a fault of the catalogue at its third level; None for neither.

    Raises:
        ValueError: unknown names.
    """
    from sensors.faults.suites import Scenario, known_fault, suite_named

    if options.suite:
        found = {scenario.name: scenario for scenario in suite_named(options.suite)}
        if options.fault not in found:
            names = ", ".join(found)
            raise ValueError(f"expected fault=NAME of a scenario of {options.suite}: {names}; got '{options.fault}'")
        return found[options.fault]
    if not options.fault:
        return None
    fault = known_fault(options.fault)
    return Scenario(options.fault, ((fault, fault.levels[len(fault.levels) // 2]),))


def _of_frames(options: Options):
    """A data set's scene without a model."""
    from datamodules.nuscenes import NuScenesFrames
    from fusion.commands.corrupt import only_version
    from fusion.view.rerun_log import Moment
    from fusion.view.sample import scene_places

    scenario = scenario_of(options)
    version = options.version or only_version(Path(options.root))
    frames = NuScenesFrames(options.root, version, options.split or None, 1, 1)
    for place in scene_places(frames, options.scene or "0"):
        frame, names = _harmed(frames, int(place), scenario)
        yield Moment(frame, faults=names, may_act=_names_of(scenario))


def _of_run(options: Options, overrides: list[str]):
    """A run's model on a scene of its validation split."""
    import torch

    from datamodules.collate import collate
    from datamodules.prepare import PreparedSamples
    from fusion.commands.runs import device_named, open_run
    from fusion.heads.decode import decode
    from fusion.view.rerun_log import Moment
    from fusion.view.sample import scene_places

    scenario = scenario_of(options)
    opened = open_run(Path(options.run), overrides, options.allow)
    device = device_named(options.device)
    model = opened.model.to(device)
    frames = opened.data.frames(options.split or opened.config.data.val_split)
    samples = PreparedSamples(frames, opened.data.clean_preparation, scenario)
    for place in scene_places(frames, options.scene or "0"):
        sample = samples[int(place)]
        batch = collate([sample]).to(device)
        _forget_tokens(model)
        with torch.inference_mode():
            plan = None if opened.plan_source is None else opened.plan_source(batch)
            output = model(batch, budget=options.budget, plan=plan, execution="sparse")
        boxes = decode(output.head, model.head.grid)[0]
        yield Moment(sample.frame, boxes, _ran(model, output), sample.faults, _names_of(scenario))


def _ran(model, output):
    """What was computed for the one sample of an output."""
    from fusion.adaptive.allocation import tokens_of
    from fusion.scoring.evaluate import executed_branches
    from fusion.view.rerun_series import Ran, branches_of

    tokens = tokens_of(model)
    use = None if tokens is None else tokens.last_use
    return Ran(
        branches_of(executed_branches(output.trace)[0]),
        output.trace.gflops()[0],
        None if output.exits is None else int(output.exits.exit_of[0]),
        None if tokens is None else 0.0 if use is None else float(use.shares.mean()),
    )


def _forget_tokens(model) -> None:
    """A pass that leaves before the tokens must not show those of the pass before."""
    from fusion.adaptive.allocation import tokens_of

    tokens = tokens_of(model)
    if tokens is not None:
        tokens.last_use = None


def _names_of(scenario) -> tuple[str, ...]:
    """Of the faults that may act, with their levels."""
    from sensors.faults.protocol import applied_name

    return () if scenario is None else tuple(applied_name(fault, level) for fault, level in scenario.steps)


def _harmed(frames, place: int, scenario):
    frame = frames[place]
    if scenario is None:
        return frame, ()
    harmed, names = scenario.apply(frame, frames.history(place))
    return replace(harmed, boxes=frame.boxes), names
