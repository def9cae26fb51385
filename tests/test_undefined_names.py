"""Names that nothing defines: the linter cannot look for them, since it takes dimensions of arrays for names."""

import builtins
import symtable
from pathlib import Path

ROOT = Path(__file__).parents[1]
OF_EVERY_MODULE = {"__file__", "__name__", "__doc__", "__path__", "__class__"}


def undefined(source: str, name: str) -> set[str]:
    """Names of a module that are read somewhere, and defined neither in it nor by Python."""
    top = symtable.symtable(source, name, "exec")
    known = (
        OF_EVERY_MODULE | set(dir(builtins)) | {symbol.get_name() for symbol in top.get_symbols() if defined(symbol)}
    )
    found, tables = set(), [top]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            outside = symbol.is_global() or table is top
            if symbol.is_referenced() and outside and not defined(symbol) and symbol.get_name() not in known:
                found.add(symbol.get_name())
    return found


def defined(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace() or symbol.is_parameter()


def test_an_undefined_name_is_found():
    source = "import os\ndef f(a: 'b n') -> int:\n    return [a + os.sep + c for d in a] + gone + len(d)\n"
    assert undefined(source, "example") == {"c", "gone", "d"}


def test_no_module_reads_a_name_that_nothing_defines():
    folders = ("fusion", "datamodules", "sensors", "benchmarks", "tests", "docs")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100
    missing = {str(path.relative_to(ROOT)): undefined(path.read_text(), path.name) for path in paths}
    assert {path: names for path, names in missing.items() if names} == {}
