"""The page on exits and tokens: its names stand where they are defined, its figures are those that were measured."""

import importlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "adaptive.md").read_text(encoding="utf-8")
MEASURED = {
    row["name"]: row
    for row in json.loads((ROOT / "benchmarks" / "results" / "adaptive.json").read_text(encoding="utf-8"))["rows"]
}
METHODS = {"A-ViT": "A-ViT, 8 of 12 blocks", "BEV cells, keep 0.5": "BEV tokens, keep 0.5"}
PLACES = {"ViT-S at 256x704": "vit_small, 256x704", "ViT-tiny at 64x176": "vit_tiny, 64x176"}
ROW = re.compile(r"^\| (.+), (\S+(?: at \S+)?), (?:batch )?1 and (\d) ?(?:pictures)? \| (.+) \| (.+) \| (.+) \|$", re.M)


def test_classes_are_named_where_they_are_defined():
    named = set(re.findall(r"_target_: ([\w.]+)\.(\w+)[,}\s]", TEXT))
    assert len(named) > 20
    for module, name in named:
        owner = ".".join(part for part in module.split(".") if part.islower())
        kind = getattr(importlib.import_module(owner), name if owner == module else module.split(".")[-1])
        assert kind.__module__ == owner, f"{module}.{name}"


def test_what_tokens_save_is_what_was_measured():
    """Each figure to half of its last digit; ratios from the times, not from a rounded ratio."""
    rows = ROW.findall(TEXT)
    assert len(rows) == 7
    for method, place, large, *columns in rows:
        found = [
            MEASURED[f"{METHODS.get(method, method)}, {PLACES.get(place, place)}, batch {n}"] for n in ("1", large)
        ]
        wanted = [[row[key] for row in found] for key in ("ours", "peer")]
        wanted.append([ours / peer for ours, peer in zip(*wanted, strict=True)])
        for column, values in zip(columns, wanted, strict=True):
            if not column[0].isdigit():
                continue
            for figure, value in zip(re.split(r", ", column.partition(":")[0]), values, strict=True):
                step = 10.0 ** -len(figure.partition(".")[2])
                assert float(figure) == pytest.approx(value, abs=0.5 * step + 1e-9), (method, place, figure)
