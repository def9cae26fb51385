"""dynfusion report run=RUN[,RUN...] [format=html|markdown|latex] [out=FILE] [open=true] [picture=FILE.png] [sample=0]

Writes RUN/report.html from the files in the run directory: one page without any outside reference. Several runs are
compared on the page of the first. format=markdown and format=latex print a table of all cells, or write it to out=FILE.
picture=FILE.png also writes one sample of a town as a picture: six views and the bird's-eye view with boxes.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fusion.commands.compose import parse_options
from fusion.run_directory import write_text


@dataclass
class Options:
    run: list[str] = field(default_factory=list)
    format: str = "html"
    out: str = ""
    open: bool = False
    picture: str = ""
    sample: int = 0


def run(arguments: list[str]) -> int:
    from rich.console import Console

    from fusion.commands.robustness import as_list

    options = parse_options([as_list(argument) for argument in arguments], Options)
    if not options.run:
        raise ValueError("expected run=RUN, the folder of a trained run; see dynfusion report --help")
    paths = [Path(name) for name in options.run]  # a detector from elsewhere has scores, and no config.yaml
    console = Console()
    if options.format != "html":
        return text_report(paths, options, console)
    from fusion.report.html import write_overview_picture, write_report

    page = write_report(paths[0], paths[1:], Path(options.out) if options.out else None)
    console.print(f"report: {page}", soft_wrap=True)
    if options.picture:
        console.print(f"picture: {write_overview_picture(paths[0], Path(options.picture), options.sample)}")
    if options.open:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def text_report(paths: list[Path], options: Options, console) -> int:
    """The cells as a table of text."""
    from fusion.report.content import read_run
    from fusion.report.text_tables import text_table

    table = text_table([read_run(path) for path in paths], options.format)
    if options.out:
        write_text(Path(options.out), table)
        console.print(f"written: {options.out}", soft_wrap=True)
    else:
        console.print(table, markup=False, highlight=False, soft_wrap=True, end="")
    return 0
