"""Validation of stored records: JSON of bounded size and depth, and fields checked by the types of dataclasses.

A run may come from a stranger. The annotations of a dataclass define what is valid, so a new field needs no further
code here.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tessella.foundation.errors import TessellaError

MOST_BYTES = 1 << 23
"""Largest JSON text in bytes, enough for the specification of a table with 100,000 columns."""
DEEPEST = 32
"""Largest nesting depth of lists and objects."""
LONGEST = 1 << 14
"""Largest number of characters in a text."""
LARGEST = 1 << 64
"""Largest absolute value of a whole number."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


TYPE = "type"
"""Key of a record that names its class."""


class Tagged:
    """Base of dataclasses whose records name their class under the key `type`."""

    @classmethod
    def chosen(cls, name: str) -> type:
        """Return the class with a given name."""
        raise NotImplementedError


@dataclass(frozen=True)
class Range:
    """Allowed range of a number, in `Annotated[int, Range(1, 9)]`."""

    least: float = -math.inf
    most: float = math.inf


class Malformed(ValueError):
    """Error: stored content is invalid."""


# files


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: if it does not exist or cannot be read.
        Malformed: if it is larger, or a pipe, socket or device.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(file, "rb") as opened:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise Malformed("it is not a regular file")
        if status.st_size > most:
            raise Malformed(f"it has {status.st_size:,} bytes, more than {most:,}")
        return opened.read(most + 1)


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Read a JSON file.

    Raises:
        OSError: if it does not exist or cannot be read.
        Malformed: if it is too large, or not valid JSON for `parse`.
    """
    try:
        return parse(read_bytes(path, most).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Malformed(f"it is not UTF-8 text: {error.reason}") from error


def parse(text: str) -> Any:
    """Parse strict JSON: no NaN, no repeated keys, at most `DEEPEST` levels.

    Raises:
        Malformed: if it is not.
    """
    brackets = _STRING.sub(b"", text.encode("utf-8", "replace")).translate(None, _NO_BRACKETS)
    for _ in range(DEEPEST):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise Malformed(f"it is not JSON, or has more than {DEEPEST} levels")
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is not JSON: {error}") from error


def _no_constant(name: str) -> Any:
    raise Malformed(f"it holds {name}, which is not allowed in JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        known: set[str] = set()
        twice = next(name for name, _ in pairs if name in known or known.add(name))
        raise Malformed(f"it has the key {_shown(twice)} twice")
    return found


# records


def fitted(kind: Any, value: Any, name: str = "it", *, others: bool = False) -> Any:
    """Check and convert a parsed value to the type of an annotation.

    Args:
        kind: a dataclass, `str`, `int`, `float`, `bool`, `None`, `Any`, an abstract class with a `from_json`, or a
            `Literal`, `tuple`, `dict` or union of these.
        name: name of the value in messages.
        others: ignore keys that are not fields of the dataclass.

    Raises:
        Malformed: if it has another type, is not finite, is too long, or is refused by its dataclass.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return _plain(value, name)
    if origin is Annotated:
        return _in_range(fitted(parts[0], value, name), parts[1:], name)
    if origin in (Union, UnionType):
        return _of_union(parts, value, name)
    if origin is Literal:
        if any(value == one and type(value) is type(one) for one in parts):
            return value
        raise Malformed(f"{name} is {_shown(value)}, not {' or '.join(map(repr, parts))}")
    if origin is tuple:
        return _tuple(parts, value, name)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise Malformed(f"{name} is {_shown(value)}, not an object")
        inner = parts[1] if parts else Any
        return {_text(key, name): fitted(inner, one, f"{name} {_shown(key)}") for key, one in value.items()}
    if isinstance(kind, type) and issubclass(kind, Tagged):
        return value if isinstance(value, kind) else _tagged(kind, value, name)
    if is_dataclass(kind):
        if isinstance(kind, type) and isinstance(value, kind):
            return value
        return _record(kind, value, name, others=others)
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    return _scalar(kind, value, name)


def known_fields(kind: type, value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check the entries that are fields of a dataclass; other and missing entries are allowed.

    Raises:
        Malformed: if an entry has another type than its field, or the dataclass refuses it.
    """
    hints = field_types(kind)
    found = {key: fitted(hints.get(key, Any), one, f"{name} {_shown(key)}") for key, one in value.items()}
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if required <= set(found):
        _made(kind, {key: one for key, one in found.items() if key in hints}, name)
    return found


def arguments(function: Callable[..., Any], value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check keyword arguments by the annotations of a function.

    Raises:
        Malformed: if an argument is unknown or has another type.
    """
    hints = field_types(function)
    if unknown := [key for key in value if key not in hints or key == "return"]:
        raise Malformed(f"{name} has the unknown key {_shown(unknown[0])}")
    return {key: fitted(hints[key], one, f"{name} {key}") for key, one in value.items()}


@cache
def field_types(of: Any) -> dict[str, Any]:
    """Resolve the annotations of a class or function."""
    return get_type_hints(of, include_extras=True)


def _record(kind: Any, value: Any, name: str, *, others: bool) -> Any:
    if not isinstance(value, dict):
        raise Malformed(f"{name} is {_shown(value)}, not an object")
    hints = {f.name: field_types(kind)[f.name] for f in fields(kind) if f.init}
    if not others and (unknown := sorted(set(value) - set(hints))):
        raise Malformed(f"{name} has the unknown key {_shown(unknown[0])}")
    needed = [f.name for f in fields(kind) if f.init and f.default is MISSING and f.default_factory is MISSING]
    if missing := [key for key in needed if key not in value]:
        raise Malformed(f"{name} has no {missing[0]}")
    before = "" if name == "it" else f"{name} "
    found = {key: fitted(hint, value[key], before + key) for key, hint in hints.items() if key in value}
    return _made(kind, found, name)


def _tagged(kind: type[Tagged], value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise Malformed(f"{name} is {_shown(value)}, not an object")
    if TYPE not in value:
        raise Malformed(f"{name} has no {TYPE}")
    try:
        chosen = kind.chosen(_text(value[TYPE], name))
    except TessellaError as error:
        raise Malformed(f"{name}: {error.message}") from error
    if not issubclass(chosen, kind):
        raise Malformed(f"{name} is {_shown(value[TYPE])}, which is not allowed here")
    return _record(chosen, {key: one for key, one in value.items() if key != TYPE}, name, others=False)


def _in_range(value: Any, meanings: tuple[Any, ...], name: str) -> Any:
    for meaning in meanings:
        if isinstance(meaning, Range) and not meaning.least <= value <= meaning.most:
            limit = f"at least {meaning.least:,}" if value < meaning.least else f"at most {meaning.most:,}"
            raise Malformed(f"{name} must be {limit}, not {value:,}")
    return value


def _made(kind: Any, found: dict[str, Any], name: str) -> Any:
    try:
        return kind(**found)
    except TessellaError as error:
        raise Malformed(f"{'' if name == 'it' else f'{name}: '}{error.message}") from error


def _of_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not NoneType]
    for kind in rest[:-1]:
        try:
            return fitted(kind, value, name)
        except Malformed:
            continue
    return fitted(rest[-1], value, name)


def _tuple(parts: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise Malformed(f"{name} is {_shown(value)}, not a list")
    if parts[-1:] == (Ellipsis,):
        return tuple(fitted(parts[0], one, name) for one in value)
    if len(value) != len(parts):
        raise Malformed(f"{name} has {len(value)} parts, not {len(parts)}")
    return tuple(fitted(part, one, name) for part, one in zip(parts, value, strict=True))


def _plain(value: Any, name: str) -> Any:
    """Check a value of any type: numbers must be finite and texts not too long."""
    if isinstance(value, list | tuple):
        return [_plain(one, name) for one in value]
    if isinstance(value, dict):
        return {_text(key, name): _plain(one, f"{name} {_shown(key)}") for key, one in value.items()}
    return _scalar(None if value is None else type(value), value, name)


def _scalar(kind: Any, value: Any, name: str) -> Any:
    if kind is str:
        return _text(value, name)
    whole = type(value) is int and -LARGEST <= value <= LARGEST
    if kind is float and (whole or (type(value) is float and math.isfinite(value))):
        return float(value)
    if kind is int and whole:
        return value
    if kind is bool and type(value) is bool:
        return value
    if kind in (None, NoneType) and value is None:
        return None
    words = {float: "a number", int: "a whole number", bool: "true or false"}
    raise Malformed(f"{name} is {_shown(value)}, not {words.get(kind, kind)}")


def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        raise Malformed(f"{name} is {_shown(value)}, not a text")
    if len(value) > LONGEST:
        raise Malformed(f"{name} is a text of {len(value):,} characters, more than {LONGEST:,}")
    return value


def _shown(value: Any) -> str:
    """Shorten a value for messages."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
