"""dynfusion report run=RUN [open=true] [picture=FILE.png] [sample=0]

Writes RUN/report.html from the files in the run directory: one page without any outside reference. picture=FILE.png
also writes one sample of a town as a picture: six views and the bird's-eye view with boxes.
"""

from dataclasses import dataclass
from pathlib import Path

from fusion.commands.compose import parse_options
from fusion.run_directory import RunDirectory


@dataclass
class Options:
    run: str = ""
    open: bool = False
    picture: str = ""
    sample: int = 0


def run(arguments: list[str]) -> int:
    from rich.console import Console

    options = parse_options(arguments, Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion report --help")
    directory = RunDirectory.existing(Path(options.run))
    from fusion.report.html import write_overview_picture, write_report

    console = Console()
    page = write_report(directory.path)
    console.print(f"report: {page}", soft_wrap=True)
    if options.picture:
        console.print(f"picture: {write_overview_picture(directory.path, Path(options.picture), options.sample)}")
    if options.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0
