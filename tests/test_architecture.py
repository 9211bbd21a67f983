"""The house that `docs/architecture.md` draws: imports go down, rooms stay small, and faces alone know flags.

Read from the syntax trees, so that imports in functions and those for type checkers count too.
"""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "tessella"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("foundation",),
    ("core",),
    ("kinds",),
    ("data",),
    ("networks",),
    ("flows", "likelihoods"),
    ("diffusion",),
    ("bottlenecks",),
    ("priors",),
    ("models",),
    ("evaluation",),
    ("training",),
    ("coding",),
    ("tasks",),
    ("pages",),
    ("commands",),
    ("cli", "sklearn"),
    ("__main__",),
)
"""From the ground up. A room imports from rows below its own, and from itself."""

KNOWN = {
    "coding.codes_file imports tasks.generate",
    "evaluation.classifier imports training.checkpoint",
    "models.base imports evaluation.results",
}
"""Arrows up that are still to be turned; `data`, `pages` and `commands` are still too large."""


def trees() -> dict[str, ast.Module]:
    """Modules by dotted name, `tessella` itself excepted: it names things of all rooms, lazily."""
    paths = sorted(SOURCE.rglob("*.py"))
    return {_name(path): ast.parse(path.read_text("utf-8")) for path in paths if path != SOURCE / "__init__.py"}


def _name(path: Path) -> str:
    return ".".join(("tessella", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """Modules of the package that a file imports, also by a string such as `module:attribute`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("tessella."):
            names = [node.value.replace(":", ".")]
        else:
            continue
        for name in names:
            while name and name not in modules:
                name = name.rpartition(".")[0]
            found |= {name} - {""}
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    return trees()


def room(module: str) -> str:
    return module.split(".")[1]


def test_imports_go_down(sources) -> None:
    rows = {name: number for number, row in enumerate(LAYERS) for name in row}
    graph = {module: imports(tree, set(sources)) - {module} for module, tree in sources.items()}
    assert {room(module) for module in sources} <= set(rows)
    wrong = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if room(other) != room(module) and rows[room(other)] >= rows[room(module)]
    ]
    assert {line.replace("tessella.", "") for line in wrong} <= KNOWN, "\n".join(wrong)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_are_small() -> None:
    """A folder has at most 12 files besides its `__init__`, a file at most 500 lines."""
    crowded = Counter(path.parent for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    crowded = Counter(
        {folder: n for folder, n in crowded.items() if folder.name not in ("data", "pages", "commands", "training")}
    )
    assert not {str(folder): n for folder, n in crowded.items() if n > 12}
    long = {str(path): n for path in SOURCE.rglob("*.py") if (n := len(path.read_text("utf-8").splitlines())) > 500}
    assert len(long) <= 3, long
