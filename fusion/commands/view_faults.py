"""dynfusion view faults=NAME: the plot of a training schedule of configs/faults."""

from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import compose, instantiate, parse_options


@dataclass
class Options:
    faults: str = ""
    out: str = ""


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.view.schedules import write_schedule

    options = parse_options(arguments, Options)
    injector = instantiate(compose([f"faults={options.faults}"]).faults)
    if injector is None:
        raise ValueError(f"expected a schedule that lets something fail, got faults={options.faults}, which is clean")
    out = Path(options.out or f"faults-{options.faults}.png")
    Console().print(f"schedule: {write_schedule(injector, out, f'faults={options.faults}')}", soft_wrap=True)
    return 0
