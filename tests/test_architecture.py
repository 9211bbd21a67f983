"""The house that `docs/architecture.md` draws: imports go down, rooms stay small, and faces alone know flags.

Read from the syntax trees, so that imports in functions and those for type checkers count too.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tessella
from tessella import cli, plugin

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
    ("cli", "sklearn", "testing"),
    ("plugin",),
    ("__main__",),
)
"""From the ground up. A room imports from rows below its own, and from itself."""


def trees() -> dict[str, ast.Module]:
    """Modules by dotted name, `tessella` itself excepted."""
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
    none("arrows up", wrong)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_are_small() -> None:
    """A folder has at most 12 files besides its `__init__`, a file at most 500 lines."""
    crowded = Counter(path.parent for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
    assert not {str(folder): n for folder, n in crowded.items() if n > 12}
    long = {str(path): n for path in SOURCE.rglob("*.py") if (n := len(path.read_text("utf-8").splitlines())) > 500}
    assert not long


FACES = {"commands", "cli", "pages", "sklearn", "__main__"}
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]+")
ROOMS_OF_KINDS = {"kinds", "networks"}
OFF_THE_LIST = frozenset(
    re.findall(
        r"\w+",
        """
        Wire Sender Receiver Passage Stack tell_even tell_logits tell_split put_under drop_under adopt settle soften
        softened Lot Named Source Item Seen see laid Findings Examiner held_out Rivals Rival steady made_by Frozen
        Priors LatentPrior Fitting Training Bench Recipe hindrance Trial judged Exactly waist grown cell_side stride_of
        amortised UNHEARD minded survey Units Look LOOKS View Reading filling fill TAUGHT taught normals
        """,
    )
)
"""Names that NAMES.md replaces by the field's."""


def none(what: str, found: list[str]) -> None:
    assert not found, f"{len(found)} {what}:\n" + "\n".join(found)


def words(sources: dict[str, ast.Module], rooms: set[str]) -> Iterator[tuple[str, str]]:
    """All texts outside these rooms, with the modules that they stand in."""
    for module, tree in sources.items():
        if room(module) not in rooms:
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{module}:{node.lineno}", node.value


def test_faces_alone_know_flags_and_commands(sources) -> None:
    command = re.compile(rf"\btessella ({'|'.join(cli.summaries())})\b")
    texts = list(words(sources, FACES))
    none("flags", [place for place, text in texts if FLAG.search(text)])
    none("commands", [place for place, text in texts if command.search(text)])


def test_faces_alone_print(sources) -> None:
    calls = ((m, n) for m, tree in sources.items() if room(m) not in FACES for n in ast.walk(tree))
    none("prints", [m for m, n in calls if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "print"])


def test_progress_is_ambient(sources) -> None:
    below = [t for m, t in sources.items() if room(m) not in FACES]
    functions = [n for t in below for n in ast.walk(t) if isinstance(n, ast.FunctionDef)]
    given = [(n.name, a.arg) for n in functions for a in (*n.args.args, *n.args.kwonlyargs)]
    none("progress", [f"{function}({name})" for function, name in given if name == "progress"])


PICTURES = re.compile(r"(\brank|(spatial|sides)\)) [12]$|(dim\(\)|shape\)) [34]$")


def asks_for_pictures(node: ast.AST) -> bool:
    """Whether it assumes or asks if something is a picture or a signal: `Conv2d`, `rank == 2`, `len(shape) == 3`."""
    if isinstance(node, ast.Attribute):
        return node.attr in ("is_picture", "Conv2d", "pixel_shuffle", "pixel_unshuffle")
    if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
        return False
    return bool(PICTURES.search(f"{ast.unparse(node.left)} {ast.unparse(node.comparators[0])}"))


def test_what_differs_by_kind_is_asked_of_kinds(sources) -> None:
    modules = ("tessella.models.presets", "tessella.core.schema")  # the latter says what an example is
    rooms = {m: t for m, t in sources.items() if room(m) not in ROOMS_OF_KINDS and m not in modules}
    found = [(m, n) for m, t in rooms.items() for n in ast.walk(t) if asks_for_pictures(n)]
    none("pictures", [f"{m}: {ast.unparse(n)}" for m, n in found])


def test_a_public_name_means_one_thing(sources) -> None:
    homes: dict[str, set[str]] = {}
    for module, tree in sources.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(module)
    several = {name: modules for name, modules in homes.items() if len(modules) > 1}
    none("two meanings", [f"{name}: {', '.join(sorted(modules))}" for name, modules in sorted(several.items())])


def test_names_are_the_fields(sources) -> None:
    found = []
    for module, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lstrip("_") in OFF_THE_LIST:
                found.append(f"{module}: {node.name}")
            if isinstance(node, ast.arg) and node.arg in OFF_THE_LIST:
                found.append(f"{module}: argument {node.arg}")
    none("off the list", found)


PUBLIC = {"tessella": tessella.__all__, "tessella.plugin": plugin.__all__}
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_what_is_outside_uses_the_public_api_alone() -> None:
    """Experiments, the example of a plug-in, examples, and the Python blocks of all pages."""
    root = SOURCE.parents[1]
    files = [path for place in ("experiments", "tests/plugin", "examples") for path in (root / place).rglob("*.py")]
    texts = {path: path.read_text("utf-8") for path in files}
    for page in (root / "README.md", *(root / "docs").rglob("*.md")):
        texts[page] = "\n".join(BLOCK.findall(page.read_text("utf-8")))
    found = []
    for path, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found += [f"{path}: {a.name}" for a in node.names if inner(a.name) and a.name not in PUBLIC]
            elif isinstance(node, ast.ImportFrom) and inner(node.module or ""):
                names = [a.name for a in node.names if a.name not in PUBLIC.get(node.module or "", [])]
                found += [f"{path}: {node.module}.{name}" for name in names]
    none("inner names", found)
    assert len(files) > 20
    assert not set(tessella.__all__) & set(plugin.__all__)


def inner(module: str) -> bool:
    return module.split(".")[0] == "tessella"
