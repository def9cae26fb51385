"""A run's cells as a Markdown or LaTeX table, for papers and READMEs."""

from collections.abc import Sequence

from fusion.report.content import RunContent, name_of
from fusion.report.export import table_rows
from fusion.robustness.cells import ROUTER

FORMATS = ("html", "markdown", "latex")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\^{}",
}


def text_table(runs: Sequence[RunContent], kind: str) -> str:
    """Scenario, budget, mAP, NDS, share of clean NDS, GFLOPs; the run's name where there are several.

    With the regret against the oracle where any cell has it.

    Raises:
        ValueError: another kind than ``markdown`` and ``latex``.
    """
    if kind not in FORMATS[1:]:
        raise ValueError(f"expected format to be one of {', '.join(FORMATS)}, got '{kind}'")
    heads = [*(["run"] if len(runs) > 1 else []), "scenario", "budget", "mAP", "NDS", "of clean", "GFLOPs"]
    has_regret = any(cell.regret is not None for run in runs for cell in run.cells)
    heads += ["regret"] if has_regret else []
    titles = {(name_of(run), cell.scenario): cell.title for run in runs for cell in run.cells}
    rows = []
    for row in table_rows(runs):
        title = titles[row["run"], row["scenario"]] + ("" if row["policy"] == ROUTER else f" ({row['policy']})")
        scores = ["failed" if row["error"] else f"{row[name]:.3f}" for name in ("mAP", "NDS")]
        kept = "" if row["kept"] is None else f"{row['kept']:.0%}"
        own = [title, f"{row['budget']:g}", *scores, kept, f"{row['GFLOPs']:.2f}" if row["GFLOPs"] else ""]
        if has_regret:
            own.append("" if row["regret"] is None else f"{row['regret']:.3f}")
        rows.append([row["run"], *own] if len(runs) > 1 else own)
    note = _note(runs)
    return _markdown(heads, rows, note) if kind == "markdown" else _latex(heads, rows, note)


def _note(runs: Sequence[RunContent]) -> str:
    return "Scores on a synthetic town, not nuScenes scores." if any(run.is_town for run in runs) else ""


def _markdown(heads: list[str], rows: list[list[str]], note: str) -> str:
    align = ["---" if head in ("run", "scenario") else "---:" for head in heads]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, align, *rows)]
    return "\n".join([*lines, *(["", note] if note else [])]) + "\n"


def _latex(heads: list[str], rows: list[list[str]], note: str) -> str:
    """With booktabs."""
    columns = "".join("l" if head in ("run", "scenario") else "r" for head in heads)
    body = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in rows]
    head = " & ".join(_escaped(cell) for cell in heads) + r" \\"
    start, end = (
        [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"],
        [r"\bottomrule", r"\end{tabular}"],
    )
    return "\n".join([*start, *body, *end, *([f"% {note}"] if note else [])]) + "\n"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in text)
