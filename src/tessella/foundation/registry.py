"""Registry of exchangeable parts and tasks by name. Parts are found without importing them.

A decorator registers a part where it is defined:

    @register("quantizer", "fsq", summary="finite scalar quantisation (Mentzer et al. 2023)")
    class FSQ: ...

Parts of this package are found by parsing the decorators in its source files. Parts of other packages are found by
entry points in their pyproject.toml:

    [project.entry-points."tessella.quantizer"]
    bsq = "my_package:BSQ"

A part in a notebook is found once its class is defined. The command line, the specification of a run, the tables of the
documentation and the conformance tests of `tessella.testing` use the registry.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from tessella.foundation.errors import SpecError

PartKind = Literal["model", "likelihood", "bottleneck", "quantizer", "prior", "code-prior", "data", "kind", "task"]
PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)

T = TypeVar("T")

_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_DECORATED = re.compile(r"^@(?:register|task)\(", re.MULTILINE)
_HEADER = re.compile(r"^(class|def) +(\w+)", re.MULTILINE)
_DECORATORS: dict[bytes, tuple[str, ...]] = {b"register": (), b"task": ("task",)}
"""Decorators found in source files, with their leading arguments for `register`."""


class Entry(NamedTuple):  # no dataclass, whose import takes a quarter of the time that `tessella --help` does
    """Registered part, with its name, place of definition and one-line summary.

    Attributes:
        target: `module:attribute` of the part.
        facts: further arguments of the decorator, for example `values` of a likelihood and `group` of a task.
        origin: package that provides it.
    """

    kind: PartKind
    name: str
    target: str
    summary: str
    facts: Mapping[str, Any] = MappingProxyType({})
    origin: str = "tessella"

    def load(self) -> Any:
        """Import the registered class or function."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)

    @property
    def values(self) -> tuple[str, ...]:
        """Return the types of values for which a likelihood is normalised."""
        return tuple(self.facts.get("values", ()))


_MADE: dict[tuple[PartKind, str], Entry] = {}
"""Parts whose decorator has run, including those of notebooks, which are found only here."""
_MADE_AS: dict[Any, Entry] = {}


def register(kind: PartKind, name: str, *, summary: str, **facts: Any) -> Callable[[T], T]:
    """Register a class or function under a name.

    All arguments must be literals, because they are parsed from the source file.

    Raises:
        SpecError: if another part has this name already.
    """

    def registered(part: T) -> T:
        target = f"{part.__module__}:{part.__qualname__}"  # pyright: ignore[reportAttributeAccessIssue]
        entry = Entry(kind, name, target, summary, facts, target.partition(".")[0].partition(":")[0])
        known = _MADE.get((kind, name))
        if known is None and entry.origin != "tessella":  # ours are compared when they are looked up
            known = _installed(kind).get(name)
        if known is not None and known.target != target:
            raise _clash(known, entry)
        _MADE[kind, name] = entry
        _MADE_AS[part] = entry
        return part

    return registered


def entry_of(part: Any) -> Entry:
    """Return the entry of a registered class or function.

    Raises:
        SpecError: if it is not registered.
    """
    try:
        return _MADE_AS[part]
    except KeyError:
        raise SpecError(f"{part!r} is not registered: decorate it with @register(...)", code="not-registered") from None


def entries(kind: PartKind | None = None) -> tuple[Entry, ...]:
    """List the entries of all kinds or one kind: of this package, of other packages, of notebooks."""
    if kind is None:
        return tuple(entry for each in PART_KINDS for entry in entries(each))
    found = _installed(kind)
    return tuple({**found, **{e.name: e for e in _MADE.values() if e.kind == kind and e.name not in found}}.values())


def names(kind: PartKind) -> tuple[str, ...]:
    """List the registered names of one kind."""
    return tuple(e.name for e in entries(kind))


def find(kind: PartKind, name: str) -> Entry:
    """Return the entry with a given kind and name.

    Raises:
        SpecError: if there is none; the message lists the names of this kind.
    """
    for entry in entries(kind):
        if entry.name == name:
            return entry
    known = ", ".join(names(kind))
    raise SpecError(f"no {kind} is called {name!r}; there are: {known}", code="no-such-part", kind=kind, name=name)


def refresh() -> None:
    """Search for parts again, after packages were installed or removed."""
    _installed.cache_clear()
    _entry_points.cache_clear()


@cache
def _installed(kind: PartKind) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in (*(e for e in _own("tasks" if kind == "task" else "") if e.kind == kind), *_of_other_packages(kind)):
        if entry.name in found:
            raise _clash(found[entry.name], entry)
        found[entry.name] = entry
    return found


def _clash(one: Entry, other: Entry) -> SpecError:
    places = " and ".join(f"{e.target} of {e.origin}" for e in (one, other))
    return SpecError(
        f"two parts of kind {one.kind} have the name {one.name!r}: {places}; rename or uninstall one of them",
        code="name-clash",
        kind=one.kind,
        name=one.name,
    )


@cache
def _own(folder: str = "") -> tuple[Entry, ...]:
    """Find the entries in the source files of this package, or of one of its folders."""
    walk, found = os.walk(os.path.join(_PACKAGE, folder)), []
    for path in sorted(os.path.join(place, file) for place, _, files in walk for file in files if file.endswith(".py")):
        parts = os.path.relpath(path, os.path.dirname(_PACKAGE)).removesuffix(".py").split(os.sep)
        found += _decorated(path, ".".join(parts).removesuffix(".__init__"), "tessella")
    return tuple(found)


def _decorated(path: str, module: str, origin: str) -> Iterator[Entry]:
    """Find the entries in a source file; only the decorators are parsed, for speed."""
    with open(path, "rb") as file:
        source = file.read()
    if not any(b"\n@%b(" % name in source for name in _DECORATORS):
        return
    import ast

    text, end = source.decode("utf-8").replace("\r\n", "\n"), 0
    for start in (match.start() for match in _DECORATED.finditer(text)):
        header = _HEADER.search(text, start)
        if start < end or header is None:
            continue
        end = header.end()
        tail = ": ..." if header[1] == "class" else "(): ..."
        try:
            (node,) = ast.parse(text[start:end] + tail).body
            for call in node.decorator_list:  # pyright: ignore[reportAttributeAccessIssue]
                name = getattr(call.func, "id", "").encode() if isinstance(call, ast.Call) else b""
                if name in _DECORATORS:
                    said = [*_DECORATORS[name], *map(ast.literal_eval, call.args)]
                    facts = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
                    kind, title = cast(list[Any], said)
                    yield Entry(kind, title, f"{module}:{header[2]}", facts.pop("summary"), facts, origin)
        except (SyntaxError, ValueError, TypeError, KeyError) as error:
            line = text.count("\n", 0, start) + 1
            raise SpecError(
                f"{path}:{line}: all arguments of the decorator must be literals ({error})", code="not-literal"
            ) from error


class _Point(NamedTuple):
    """Entry point: its group without `tessella.`, its name, its `module:attribute`, and its package."""

    group: str
    name: str
    value: str
    origin: str


@cache
def _entry_points() -> tuple[_Point, ...]:
    """Read the entry points of tessella's groups from all installed packages.

    If a package is installed twice, the first one on the path counts. The files are read directly, because importing
    `importlib.metadata` would take longer.
    """
    points: list[_Point] = []
    seen: set[str] = set()
    for folder in sys.path:
        try:
            installed = sorted(n for n in os.listdir(folder or ".") if n.endswith((".dist-info", ".egg-info")))
        except OSError:
            continue
        for name in installed:
            distribution, _, version = name.rpartition(".")[0].partition("-")
            try:
                with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            if "[tessella." in text and distribution not in seen:
                seen.add(distribution)
                points += _points(text, f"{distribution.replace('_', '-')} {version}".strip())
    return tuple(points)


def _points(text: str, origin: str) -> Iterator[_Point]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            group = line.strip("[] ")
        elif group.startswith("tessella.") and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield _Point(group.removeprefix("tessella."), name.strip(), value.partition("[")[0].strip(), origin)


def _of_other_packages(kind: PartKind) -> Iterator[Entry]:
    for point in _entry_points():
        if point.group != kind.replace("-", "_"):
            continue
        module, _, attribute = point.value.partition(":")
        path = _source(module)
        for entry in _decorated(path, module, point.origin) if path else ():
            if entry.target.endswith(f":{attribute}") and entry.kind == kind:
                yield Entry(kind, point.name, entry.target, entry.summary, entry.facts, point.origin)
                break
        else:
            yield Entry(kind, point.name, point.value, f"of {point.origin}", {}, point.origin)


def _source(module: str) -> str | None:
    """Find the source file of a module of another package, without importing it."""
    top, *rest = module.split(".")
    for folder in sys.path:
        if (found := _file(os.path.join(folder, top, *rest))) is not None:
            return found
    from importlib.util import find_spec

    spec = find_spec(top)
    if spec is None:
        return None
    if not rest and spec.origin:
        return spec.origin
    places = [os.path.join(place, *rest) for place in spec.submodule_search_locations or ()]
    return next((found for place in places if (found := _file(place)) is not None), None)


def _file(place: str) -> str | None:
    return next((file for file in (os.path.join(place, "__init__.py"), f"{place}.py") if os.path.isfile(file)), None)
