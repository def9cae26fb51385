"""The oldest Python that is promised: its grammar, and nothing from the standard library that came later."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_layering import ROOT, name_of, sources

CAME_LATER = {
    "tomllib": ("*",),
    "enum": ("StrEnum", "ReprEnum", "verify"),
    "datetime": ("UTC",),
    "typing": ("Self", "LiteralString", "Never", "Required", "NotRequired", "Unpack", "TypeVarTuple", "override"),
    "itertools": ("batched",),
    "contextlib": ("chdir",),
    "asyncio": ("TaskGroup", "timeout"),
    "math": ("cbrt", "exp2", "sumprod"),
}
"""Module -> names that Python 3.11 and 3.12 brought (their "What's New"); ``*`` is the whole module."""


def oldest() -> tuple[int, int]:
    wanted = re.search(r'requires-python = ">=(\d+)\.(\d+)', (ROOT / "pyproject.toml").read_text())
    return int(wanted[1]), int(wanted[2])


def too_new(path: Path, source: str, version: tuple[int, int]) -> list[str]:
    try:
        tree = ast.parse(source, feature_version=version)
    except SyntaxError as error:
        return [f"{path}:{error.lineno}: {error.msg}"]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name, "*") for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [(node.value.id, node.attr)]
        else:
            continue
        later = [(module, name) for module, name in names if name in CAME_LATER.get(module, ())]
        found += [f"{path}:{node.lineno}: {module}.{name} came after {version}" for module, name in later]
    return found


def test_the_packages_read_as_the_oldest_python():
    found = [line for path in sources() for line in too_new(path.relative_to(ROOT), path.read_text(), oldest())]
    assert not found, "\n".join(found)
    assert "fusion/cli.py" in {name_of(path) for path in sources()}


@pytest.mark.parametrize(
    "source",
    [
        "import tomllib",
        "from enum import StrEnum",
        "import datetime\nnow = datetime.UTC",
        "try:\n    f()\nexcept* ValueError:\n    pass",
    ],
)
def test_newer_python_is_seen(source):
    assert too_new(Path("x.py"), source, (3, 10))
