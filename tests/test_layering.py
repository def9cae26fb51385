"""Which package may import what, and other rules that a reader may rely on: read from the source, not from wishes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sensors", "datamodules", "fusion")
NETWORKS = tuple(f"fusion/{name}" for name in ("encoders/", "routing/", "trunk/", "heads/", "ops/", "model.py"))
LIGHTNING = ("lightning", "pytorch_lightning")
DEVKIT = ("nuscenes",)
HYDRA = ("hydra", "omegaconf")

FORBIDDEN = {
    "sensors/": ("torch", "torchvision", "timm", *LIGHTNING, *DEVKIT, *HYDRA, "datamodules", "fusion"),
    "datamodules/": ("fusion",),
    **{network: (*LIGHTNING, *DEVKIT, *HYDRA, "matplotlib") for network in NETWORKS},
}
"""Source prefix -> modules that nothing below it imports, not even inside a function."""

ONLY_IN = {HYDRA: ("fusion/commands/", "fusion/cli.py"), DEVKIT: ("datamodules/", "fusion/scoring/")}
"""Modules -> the only source prefixes that import them (the CLI: to tell a user's mistake from a defect of ours)."""

LAZY = ("open3d", *DEVKIT)
"""Heavy modules, imported only inside the functions that use them."""

MAY_PRINT = ("fusion/commands/", "fusion/cli.py")
UNTELLING_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, lazy: bool = True) -> Iterator[tuple[int, str]]:
    """Line and dotted module of every import; without the ones inside functions if not ``lazy``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: expected absolute imports only"
            yield node.lineno, node.module
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, lazy)


def top(module: str) -> str:
    return module.split(".")[0]


def violations(name: str, tree: ast.Module) -> list[str]:
    """What one file does against the rules, each as ``file:line: what``."""
    found = []
    for line, module in imports(tree):
        for prefix, modules in FORBIDDEN.items():
            if name.startswith(prefix) and top(module) in modules:
                found.append(f"{name}:{line}: {prefix} imports {module}")
        for modules, prefixes in ONLY_IN.items():
            if top(module) in modules and not name.startswith(prefixes):
                found.append(f"{name}:{line}: {module} is imported only in {', '.join(prefixes)}")
        if module == "__future__":
            found.append(f"{name}:{line}: annotations are objects here, shapes are read from them")
    for line, module in imports(tree, lazy=False):
        if top(module) in LAZY:
            found.append(f"{name}:{line}: {module} is imported inside the function that needs it")
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
        if called == "print" and not name.startswith(MAY_PRINT):
            found.append(f"{name}:{node.lineno}: only commands print")
        if executes_data(node):
            found.append(f"{name}:{node.lineno}: a pickle may hold a program: neither written nor read")
    return found


def executes_data(node: ast.AST) -> bool:
    """``pickle.load`` and the like, ``allow_pickle=True``, ``weights_only=False``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id == "pickle" and node.attr in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler")
    if isinstance(node, ast.Call) and "load" in ast.unparse(node.func):
        return any(ast.unparse(keyword) in ("allow_pickle=True", "weights_only=False") for keyword in node.keywords)
    return isinstance(node, ast.ImportFrom) and node.module == "pickle"


def test_every_source_keeps_the_rules():
    found = [v for path in sources() for v in violations(name_of(path), ast.parse(path.read_text()))]
    assert not found, "\n".join(found)


def test_no_file_is_named_for_nothing():
    untelling = [
        name_of(path) for path in sources() if path.stem in UNTELLING_NAMES or path.parent.name in UNTELLING_NAMES
    ]
    assert not untelling


@pytest.mark.parametrize(
    ("name", "source", "broken"),
    [
        ("sensors/x.py", "import torch.nn", 1),
        ("sensors/x.py", "def f():\n    from datamodules import batch", 1),
        ("datamodules/x.py", "from fusion.heads import center", 1),
        ("datamodules/x.py", "from sensors.grid import BevGrid\nimport pytorch_lightning", 0),
        ("fusion/heads/x.py", "import pytorch_lightning as pl", 1),
        ("fusion/model.py", "def f():\n    import matplotlib.pyplot", 1),
        ("fusion/report/x.py", "import matplotlib.pyplot", 0),
        ("fusion/task.py", "from hydra.utils import instantiate", 1),
        ("fusion/commands/x.py", "from omegaconf import DictConfig", 0),
        ("fusion/scoring/x.py", "from nuscenes.eval.detection.evaluate import DetectionEval", 1),
        ("fusion/scoring/x.py", "def f():\n    from nuscenes.eval.detection.evaluate import DetectionEval", 0),
        ("fusion/report/x.py", "def f():\n    import nuscenes", 1),
        ("datamodules/town/x.py", "if True:\n    import open3d", 1),
        ("datamodules/town/x.py", "class A:\n    def f(self):\n        import open3d", 0),
        ("fusion/report/x.py", "print('done')", 1),
        ("fusion/commands/x.py", "print('done')", 0),
        ("sensors/x.py", "from __future__ import annotations", 1),
        ("fusion/cli.py", "def f():\n    import hydra.errors", 0),
        ("fusion/task.py", "import pickle\ntry:\n    f()\nexcept pickle.UnpicklingError:\n    pass", 0),
        ("fusion/task.py", "import pickle\npickle.dump(1, f)", 1),
        ("fusion/task.py", "torch.load(path, weights_only=False)", 1),
        ("datamodules/x.py", "np.load(path, allow_pickle=True)", 1),
        ("fusion/task.py", "trainer.save_checkpoint(path, weights_only=False)", 0),
    ],
)
def test_the_rules_are_seen_to_be_broken(name, source, broken):
    assert len(violations(name, ast.parse(source))) == broken
