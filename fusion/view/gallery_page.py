"""The page of the gallery: every fault with its levels and its picture, by sensor. No request leaves the folder."""

from html import escape
from typing import NamedTuple

from sensors.frame import Frame

_TITLES = {"camera": "Cameras", "lidar": "LiDAR", "radar": "Radars"}
_STYLE = """
:root { color-scheme: light dark; --back: #fff; --ink: #1c2430; --pale: #5c6878; --line: #d8dee6; }
@media (prefers-color-scheme: dark) { :root { --back: #10151c; --ink: #e6ebf1; --pale: #8b98a8; --line: #2a3440; } }
body { margin: 0 auto; max-width: 1500px; padding: 1.5rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
h3 { margin: 1.6rem 0 .2rem; font: 600 1rem ui-monospace, monospace; }
p { margin: .2rem 0 .5rem; color: var(--pale); } img { width: 100%; height: auto; display: block; }
nav a { margin-right: .8rem; white-space: nowrap; font: .85rem ui-monospace, monospace; color: inherit; }
.problem { color: #c43b3b; }
"""


class Entry(NamedTuple):
    """What the page says of one fault.

    Attributes:
        picture: name of its file; empty with a problem.
        problem: why there is no picture.
    """

    name: str
    family: str
    modality: str
    unit: str
    levels: tuple[float, ...]
    picture: str
    problem: str = ""


def page(entries: list[Entry], notices: list[str], frame: Frame) -> str:
    """The HTML text."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_TITLES.get(entry.modality, "Several sensors together"), []).append(entry)
    sections = []
    for title, members in groups.items():
        links = "".join(f'<a href="#{escape(entry.name)}">{escape(entry.name)}</a>' for entry in members)
        sections.append(f"<h2>{escape(title)}</h2><nav>{links}</nav>{''.join(_figure(entry) for entry in members)}")
    told = "".join(f"<p>{escape(notice)}</p>" for notice in notices)
    where = f"sample {frame.token}, keyframe {frame.keyframe + 1} of {frame.num_keyframes} of {frame.scene}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Gallery of faults</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Gallery of faults</h1><p>{len(entries)} faults, clean and at three of their levels, on {escape(where)}. "
        "Views from above: forward is up, rings are 20 m apart, white outlines are the labels of the clean data.</p>"
        f"{told}{''.join(sections)}</body></html>\n"
    )


def _figure(entry: Entry) -> str:
    levels = ", ".join(f"{level:g}" for level in entry.levels)
    text = f"family {entry.family}; levels {levels} ({entry.unit})"
    if entry.problem:
        shown = f'<p class="problem">{escape(entry.problem)}</p>'
    else:
        shown = f'<img loading="lazy" src="{escape(entry.picture)}" alt="{escape(entry.name)}">'
    return f'<section id="{escape(entry.name)}"><h3>{escape(entry.name)}</h3><p>{escape(text)}</p>{shown}</section>'
