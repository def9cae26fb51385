"""dynfusion report run=RUN [open=false]

Writes RUN/report.html from the files in the run directory: one page without any outside reference.
"""

from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import parse_options
from fusion.run_directory import RunDirectory


@dataclass
class Options:
    run: str = ""
    open: bool = False


def run(arguments: list[str]) -> int:
    from rich.console import Console

    options = parse_options(arguments, Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion report --help")
    directory = RunDirectory.existing(Path(options.run))
    from fusion.report.html import write_report

    page = write_report(directory.path)
    Console().print(f"report: {page}", soft_wrap=True)
    if options.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0
