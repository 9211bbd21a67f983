"""Imports go only downward through the layers of the design, and never in a circle.

Read from the syntax trees, so that imports in functions and those for type checkers count too. `tessella/__init__`
names things lazily and so may name anything; whoever imports such a name from there is taken to import its home.
"""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "tessella"
SOURCE = Path(__file__).resolve().parents[1] / "src" / PACKAGE

LAYERS: tuple[tuple[str, ...], ...] = (
    ("records", "errors", "registry", "text", "stored", "files"),
    (
        "contracts",
        "divergences",
        "noise",
        "fixed_batch",
        "precision",
        "entropy_coding",
        "pictures",
        "device",
        "tensors",
    ),
    ("networks",),
    ("likelihoods", "bottlenecks", "priors", "flows", "diffusion"),
    ("models", "spec"),
    (
        "training",
        "fitting",
        "checkpoint",
        "tensor_files",
        "lock",
        "ranks",
        "processes",
        "provenance",
        "monitor",
        "evaluation",
    ),
    ("uses",),
    ("cli", "__main__", "commands", "report", "sklearn", "studio"),
)
"""From the ground up: the files and packages right under `tessella`."""

BESIDE = {"data": (1, 5)}
"""What stands beside the tower: the highest layer that it may import, the lowest one that may import it."""

_PERMISSION = re.compile(r"^Imports beside it: (.+)\.$", re.MULTILINE)


def violations(root: Path) -> list[str]:
    """Every breach of the layers in the package at `root`, a line each."""
    sources = {_module(path, root): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.py"))}
    homes = _lazy_names(sources)
    graph: dict[str, set[str]] = {}
    found: list[str] = []
    for module, tree in sources.items():
        if module == PACKAGE:
            continue
        targets = {(_resolve(name, sources, homes), line) for name, line in _imports(module, tree, sources)}
        graph[module] = {target for target, _ in targets} - {module, PACKAGE}
        permitted = {n.strip() for text in _PERMISSION.findall(ast.get_docstring(tree) or "") for n in text.split(",")}
        for target, line in sorted(targets, key=lambda pair: (pair[1], pair[0])):
            complaint = _complaint(_unit(module), _unit(target), permitted)
            if complaint:
                found.append(f"{module}:{line} imports {target}: {complaint}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"circle: {' -> '.join(reversed(error.args[1]))}")
    return found


def _complaint(importer: str, imported: str, permitted: set[str]) -> str | None:
    if imported in ("", importer):
        return None
    for unit in (importer, imported):
        if unit not in BESIDE and not any(unit in row for row in LAYERS):
            return f"{unit} is in no layer: give it a place in LAYERS of tests/test_layers.py and in the design"
    reach, own = (BESIDE[importer][0], None) if importer in BESIDE else (_row(importer), _row(importer))
    level = BESIDE[imported][1] if imported in BESIDE else _row(imported)
    if level > reach:
        return "upward"
    if level == own and imported not in BESIDE and imported not in permitted:
        return f"beside it; if it must be, say so in the docstring by a line 'Imports beside it: {imported}.'"
    return None


def _row(unit: str) -> int:
    return next(number for number, row in enumerate(LAYERS) if unit in row)


def _unit(module: str) -> str:
    """What `LAYERS` calls it: `models` of `tessella.models.presets`; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def _module(path: Path, root: Path) -> str:
    parts = (PACKAGE, *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, tree: ast.Module, sources: dict[str, ast.Module]) -> list[tuple[str, int]]:
    """Dotted names inside the package that a file asks for, and the lines where it does."""
    asked: list[tuple[str, int]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            asked += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                is_package = any(other.startswith(f"{module}.") for other in sources)
                parents = module.split(".")[: None if node.level == 1 and is_package else -node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            asked += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Attribute):
            asked.append((ast.unparse(node), node.lineno))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                asked.append((node.args[0].value, node.lineno))
    return [(name, line) for name, line in asked if name == PACKAGE or name.startswith(f"{PACKAGE}.")]


def _lazy_names(sources: dict[str, ast.Module]) -> dict[str, str]:
    """The names that the package's own `__init__` offers, and the modules that they come from."""
    tree = sources.get(PACKAGE, ast.Module([], []))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {f"{PACKAGE}.{a.asname or a.name}": f"{n.module}.{a.name}" for n in froms for a in n.names}


def _resolve(name: str, sources: dict[str, ast.Module], homes: dict[str, str]) -> str:
    """The file that a dotted name is found in: its longest prefix that is a file, by way of the lazy names."""
    parts = name.split(".")
    if len(parts) > 1 and ".".join(parts[:2]) not in sources:
        parts = homes.get(".".join(parts[:2]), PACKAGE).split(".")
    while ".".join(parts) not in sources:
        if len(parts) == 1:
            return PACKAGE
        parts = parts[:-1]
    return ".".join(parts)


def test_layers() -> None:
    assert not (found := violations(SOURCE)), "\n".join(found)


def test_every_file_has_a_layer() -> None:
    units = {_unit(_module(path, SOURCE)) for path in SOURCE.rglob("*.py")} - {""}
    assert units <= {unit for row in LAYERS for unit in row} | set(BESIDE)


# The checker itself, on packages made up for it


LAZY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tessella.training import train as train\n"


def written(root: Path, **files: str) -> Path:
    """A package of such files; `models__flow` is `models/flow.py`."""
    (root / "__init__.py").write_text(files.pop("init", ""))
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"records": "from tessella.models.flow import Flow", "models__flow": ""}, "records:1 .*upward"),
        ({"records": "from tessella.models import flow", "models__flow": ""}, "imports tessella.models.flow: upward"),
        ({"noise": "def f():\n    import tessella.spec", "spec": ""}, "noise:2 imports tessella.spec: upward"),
        (
            {"noise": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tessella import spec", "spec": ""},
            "noise:3 imports tessella.spec: upward",
        ),
        ({"init": LAZY, "noise": "from tessella import train", "training": ""}, "imports tessella.training: upward"),
        ({"init": LAZY, "noise": "import tessella\ntessella.train()", "training": ""}, "noise:2 .*upward"),
        ({"noise": "from importlib import import_module\nimport_module('tessella.cli')", "cli": ""}, "upward"),
        ({"priors__normal": "from ..models.flow import Flow", "models__flow": ""}, "models.flow: upward"),
        ({"data__sheet": "import tessella.networks.mlp", "networks__mlp": ""}, "upward"),
        ({"models__flow": "import tessella.data.sheet", "data__sheet": ""}, "upward"),
        ({"models__flow": "import tessella.spec", "spec": ""}, "beside it; .*'Imports beside it: spec.'"),
        ({"models__flow": '"""Imports beside it: noise."""\nimport tessella.spec', "spec": ""}, "beside it"),
        ({"noise": "import tessella.odd", "odd": ""}, "odd is in no layer"),
        (
            {
                "models__a": "from tessella.models import b",
                "models__b": "def f():\n    import tessella.models.a",
            },
            "circle: tessella.models.(a -> tessella.models.b|b -> tessella.models.a)",
        ),
        (
            {
                "spec": '"""Imports beside it: models."""\nimport tessella.models.flow',
                "models__flow": '"""Imports beside it: spec."""\nimport tessella.spec',
            },
            "circle",
        ),
    ],
)
def test_checker_sees(tmp_path: Path, files: dict[str, str], complaint: str) -> None:
    (found,) = violations(written(tmp_path, **files))
    assert re.search(complaint, found), found


def test_checker_lets_pass(tmp_path: Path) -> None:
    files = {
        "init": LAZY,
        "noise": "import torch.tessella\nfrom . import records",
        "records": "",
        "spec": "from tessella.noise import Noise",
        "models__flow": '"""Flows.\n\nImports beside it: spec.\n"""\nimport tessella.spec, tessella.models.base',
        "models__base": "",
        "data__sheet": "import tessella.noise",
        "training": "import tessella\nfrom tessella.data import sheet\ntessella.__version__\ntessella.train",
        "cli": "from tessella import train, __version__",
    }
    assert violations(written(tmp_path, **files)) == []
