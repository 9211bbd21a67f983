"""Names from outside as text: on a terminal, in CSV, in JSON. Loads nothing, so that a mistake is answered at once."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

from tessella.foundation.errors import in_python


def shown(text: str) -> str:
    r"""Escape a name from outside for a line: `\x1b`, `\n`, `\u202e`, and `\xff` of a byte that is no UTF-8.

    What is escaped are control characters, marks that turn the direction of text or cannot be seen, and surrogates.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(c: str) -> str:
    if c.isprintable() or unicodedata.category(c) == "Zs":
        return c
    if "\udc80" <= c <= "\udcff":  # a byte of a file name that is no UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode("ascii")


def cell(text: str) -> str:
    """Escape a name for a CSV file, and quote it where a spreadsheet would take it for a formula."""
    return shown(f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text)


def json_text(record: Any, indent: int | None = None) -> str:
    """Write a record as JSON that any reader takes.

    Numbers that are not finite become null, bytes that are no UTF-8 are escaped, options and tasks are Python names.
    """
    import json

    return json.dumps(_jsonable(record), indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_jsonable(key): _jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        value = in_python(value)
        return shown(value) if any("\ud800" <= c <= "\udfff" for c in value) else value
    return value
